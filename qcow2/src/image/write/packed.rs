//! Compressed clusters: packed one behind the other within host clusters, each of which
//! counts the compressed clusters that it has a part of.

use std::ops::Range;

use super::{GuestWriter, State};
use crate::{
    Error, Result,
    addr::HostOffset,
    compress::Packed,
    disk::{DiskExt, SECTOR},
    format::{ExtendedL2Entry, L2Entry, SubclusterBitmap},
    image::build::Unit,
};

/// Bytes of the disk that are compressed before they are stored.
const AT_ONCE: usize = 1 << 20;

/// What becomes of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// It stays as it is.
    Leave,
    /// It is to read as zeros.
    Zero,
    /// It is stored as it is.
    Plain,
    /// It is stored compressed: these bytes of [`Pieces::packed`].
    Packed(Range<usize>),
}

/// Clusters of the disk in a row, the last perhaps in part, ready to be stored.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    offset: u64,
    fates: Vec<Fate>,
    packed: Packed,
}

impl GuestWriter {
    /// Writes the clusters that `data` covers wholly, compressed with the image's codec;
    /// `offset` is where one of them begins, and `data` ends with a cluster or with the
    /// disk. Clusters that would not become smaller are stored as they are. What was
    /// there before is given back.
    ///
    /// Many threads can call this at once: they compress beside each other, and only
    /// storing the result has the disk for itself.
    ///
    /// # Errors
    /// [`Error::Refused`] for parts of clusters, and in an image that is encrypted;
    /// [`Error::Unsupported`] in one whose guest data is in an external data file; else as
    /// [`write`](Self::write).
    pub fn write_compressed(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_range(offset, data.len())?;
        self.read_lock().require_packable()?;
        let size = usize::try_from(self.cluster_size).unwrap_or(usize::MAX);
        let end = offset.saturating_add(data.len() as u64);
        let whole = end == self.size || end.is_multiple_of(self.cluster_size);
        if !offset.is_multiple_of(self.cluster_size) || !whole {
            let name = &self.name;
            return Err(Error::Refused(format!(
                "of '{name}' whole clusters of {size} bytes are compressed, not {} bytes at {offset}",
                data.len()
            )));
        }
        let at_once = AT_ONCE.next_multiple_of(size);
        let mut pieces = Pieces::default();
        let mut at = offset;
        for data in data.chunks(at_once) {
            let units = vec![Unit::Data; data.len().div_ceil(size)];
            self.pack(&mut pieces, at, data, &units)?;
            self.store_packed(data, &pieces)?;
            at = at.saturating_add(data.len() as u64);
        }
        Ok(())
    }

    /// Compresses those clusters in `data`, bytes of the disk from `offset` on, where a
    /// cluster begins, that `units` call data, for [`store_packed`](Self::store_packed).
    /// A part of a cluster at its end is stored compressed if the disk ends with it. Nothing
    /// is written, and threads don't wait for each other.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::Unsupported`] if this image holds no compressed
    /// clusters, or if there is no memory for it.
    pub(crate) fn pack(
        &self,
        pieces: &mut Pieces,
        offset: u64,
        data: &[u8],
        units: &[Unit],
    ) -> Result<()> {
        let size = usize::try_from(self.cluster_size).unwrap_or(usize::MAX);
        let ends_with_disk = offset.saturating_add(data.len() as u64) == self.size;
        pieces.offset = offset;
        pieces.fates.clear();
        pieces.packed.begin(data.len().next_multiple_of(size), size);
        if units.contains(&Unit::Data) {
            self.read_lock().require_packable()?;
        }
        for (cluster, unit) in data.chunks(size).zip(units) {
            let packed = match unit {
                Unit::Leave => Fate::Leave,
                Unit::Zero => Fate::Zero,
                Unit::Data => {
                    let packed = if cluster.len() == size {
                        pieces.packed.add(&self.compressor, cluster)?
                    } else if ends_with_disk {
                        let mut filled = cluster.to_vec();
                        filled.resize(size, 0);
                        pieces.packed.add(&self.compressor, &filled)?
                    } else {
                        None
                    };
                    packed.map_or(Fate::Plain, Fate::Packed)
                }
            };
            pieces.fates.push(packed);
        }
        Ok(())
    }

    /// Stores what [`pack`](Self::pack) made of `data`, the bytes that it got.
    ///
    /// # Errors
    /// As [`write_compressed`](Self::write_compressed).
    pub(crate) fn store_packed(&self, data: &[u8], pieces: &Pieces) -> Result<()> {
        self.check_range(pieces.offset, data.len())?;
        if !pieces.fates.iter().any(|fate| *fate != Fate::Leave) {
            return Ok(());
        }
        let size = usize::try_from(self.cluster_size).unwrap_or(usize::MAX);
        self.change_state(|state| {
            let mut at = pieces.offset;
            for (cluster, fate) in data.chunks(size).zip(&pieces.fates) {
                let end = at.saturating_add(cluster.len() as u64);
                if *fate != Fate::Leave {
                    state.recorder.record(at..end);
                }
                match fate {
                    Fate::Leave => {}
                    Fate::Zero => state.zero(at..end, true)?,
                    Fate::Plain => state.write(at, cluster)?,
                    Fate::Packed(range) => {
                        let packed = pieces.packed.bytes().get(range.clone());
                        state.store_packed(at, packed.unwrap_or_default())?;
                    }
                }
                at = end;
            }
            Ok(())
        })
    }

    /// Compresses `cluster`, one whole cluster of the disk (the last one filled up with
    /// zeros), into `out`, for [`store_compressed`](Self::store_compressed); false if
    /// it would not become smaller. Nothing is written, and threads don't wait for each
    /// other.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no memory for it.
    pub fn compress(&self, cluster: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        self.compressor.compress(cluster, out)
    }

    /// Stores `packed`, what [`compress`](Self::compress) made of the cluster at `offset`
    /// of the disk. It is taken as it is.
    ///
    /// # Errors
    /// [`Error::Refused`] if no cluster begins at `offset`, or if `packed` isn't smaller
    /// than one; else as [`write_compressed`](Self::write_compressed).
    pub fn store_compressed(&self, offset: u64, packed: &[u8]) -> Result<()> {
        let end = offset.saturating_add(self.cluster_size).min(self.size);
        self.check_range(offset, 1)?;
        let fits = !packed.is_empty() && (packed.len() as u64) < self.cluster_size;
        if !offset.is_multiple_of(self.cluster_size) || !fits {
            return Err(Error::Refused(format!(
                "{} bytes at {offset} are no compressed cluster of '{}'",
                packed.len(),
                self.name
            )));
        }
        self.read_lock().require_packable()?;
        self.change(offset..end, |state, range| {
            state.store_packed(range.start, packed)
        })
    }
}

impl State {
    fn require_packable(&self) -> Result<()> {
        if self.image.is_encrypted() {
            // Compressed clusters aren't encrypted: the disk's data would lie open.
            let text = "Compression and encryption not supported at the same time";
            return Err(Error::Refused(text.into()));
        }
        if !self.image.header().has_data_file() {
            return Ok(());
        }
        let name = &self.image.name;
        Err(Error::Unsupported(format!(
            "'{name}' has an external data file, where no cluster can be compressed"
        )))
    }

    /// Stores a compressed cluster for the one at `start`.
    fn store_packed(&mut self, start: u64, packed: &[u8]) -> Result<()> {
        let old = self.entry(start)?;
        self.make_room(start, 1)?;
        let place = self.own_entry(start)?;
        let geometry = self.image.geometry();
        let len = packed.len() as u64;
        let range = self.space.place_packed(len)?;
        let host = HostOffset(range.start);
        let entry = L2Entry::compressed(geometry, host, len).ok_or_else(|| {
            Error::Refused(format!(
                "no compressed cluster can be at {host}: its offset has {} bits",
                70 - geometry.cluster_bits()
            ))
        })?;
        self.space.take_packed(&range)?;
        let last = geometry.host_cluster(HostOffset(range.end - 1)).0 + 1;
        let file_end = last.saturating_mul(geometry.cluster_size());
        self.image.guest.file_end.promise(file_end);
        self.image.guest.clusters.forget(host);
        self.put_stored(host, &[packed])?;
        // The file ends with a whole sector; what follows goes over the zeros.
        let fill = range.end.next_multiple_of(SECTOR) - range.end;
        self.fill(HostOffset(range.end), usize::try_from(fill).unwrap_or(0))?;
        let bitmap = SubclusterBitmap::default();
        self.set_entry(place, ExtendedL2Entry { entry, bitmap });
        self.drop_cluster(start, old.entry, false);
        Ok(())
    }
}
