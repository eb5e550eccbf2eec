//! [`StoredBits`]: the bits of one bitmap as they lie in an image, read a piece
//! at a time through the bitmap table.

use std::{ops::Range, sync::Arc};

use hbitmap::{Granularity, HBitmap};

use crate::{
    Error, Geometry, Result,
    addr::{HostCluster, HostOffset},
    bitmap::edit::lossy,
    format::{BitmapCluster, BitmapDirectoryEntry, BitmapTableEntry},
    io::Storage,
};

/// A bitmap takes at most 512 MiB of clusters: what QEMU is willing to load.
pub const MAX_BITMAP_BYTES: u64 = 512 << 20;

/// What a piece of a bitmap holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Only clean granules.
    Zeros,
    /// Only dirty ones.
    Ones,
    /// Some of both, or not known without reading.
    Data,
}

/// A bitmap's table, checked, and the storage its clusters are in.
#[derive(Debug)]
pub(crate) struct StoredBits {
    storage: Arc<dyn Storage>,
    geometry: Geometry,
    granularity: Granularity,
    /// Bytes of the guest's disk.
    len: u64,
    table_offset: HostOffset,
    table: Vec<BitmapTableEntry>,
}

impl StoredBits {
    /// Reads and checks the table of the bitmap that `entry` describes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the table is misplaced, of the wrong size for a disk of
    /// `len` bytes, or has an entry that is; [`Error::Unsupported`] if the bitmap is
    /// larger than [`MAX_BITMAP_BYTES`].
    pub(crate) fn open(
        storage: &Arc<dyn Storage>,
        geometry: Geometry,
        len: u64,
        entry: &BitmapDirectoryEntry,
    ) -> Result<Self> {
        let name = lossy(&entry.name);
        let table_offset = entry.table_offset;
        let granularity = Granularity::from_bits(u32::from(entry.granularity_bits))?;
        let wrong = |found: String, allowed: String| {
            Error::corrupt(
                format!("table of bitmap '{name}'"),
                table_offset,
                found,
                allowed,
            )
        };
        let wanted = table_len(geometry, granularity, len);
        if u64::from(entry.table_size) != wanted {
            return Err(wrong(
                format!("{} entries", entry.table_size),
                format!(
                    "{wanted} for a disk of {len} bytes at {} bytes a bit",
                    granularity.bytes()
                ),
            ));
        }
        if wanted.saturating_mul(geometry.cluster_size()) > MAX_BITMAP_BYTES {
            return Err(Error::Unsupported(format!(
                "bitmap '{name}' takes {wanted} clusters, more than {MAX_BITMAP_BYTES} bytes"
            )));
        }
        let size = storage
            .size()
            .map_err(Error::io("asking for the size of the image"))?;
        let inside = |offset: HostOffset, bytes: u64| {
            geometry.is_aligned(offset)
                && offset.0 >= geometry.cluster_size()
                && offset.0.checked_add(bytes).is_some_and(|end| end <= size)
        };
        let bytes = wanted * 8;
        if !inside(table_offset, bytes) {
            return Err(wrong(
                format!("{bytes} bytes there"),
                format!("a cluster boundary inside the file of {size} bytes"),
            ));
        }
        let mut raw = vec![0; usize::try_from(bytes).unwrap_or(0)];
        storage
            .read_padded(table_offset.0, &mut raw)
            .map_err(Error::io_with(|| {
                format!("reading the table of bitmap '{name}'")
            }))?;
        let mut table = Vec::with_capacity(raw.len() / 8);
        for (index, bytes) in (0_u64..).zip(raw.chunks_exact(8)) {
            let entry = BitmapTableEntry(bytes.try_into().map_or(0, u64::from_be_bytes));
            let inside = match entry.cluster() {
                BitmapCluster::Data(offset) => geometry.is_aligned(offset) && offset.0 < size,
                BitmapCluster::Zeros | BitmapCluster::Ones => true,
            };
            if !inside || entry.reserved() != 0 {
                return Err(Error::corrupt(
                    format!("entry {index} of the table of bitmap '{name}'"),
                    HostOffset(table_offset.0 + index * 8),
                    format!("{:#018x}", entry.0),
                    "0, 1, or the offset of a cluster inside the file",
                ));
            }
            table.push(entry);
        }
        if let Some(offset) = named_twice(&table) {
            return Err(wrong(
                format!("the cluster at {offset} named twice"),
                "each cluster once".into(),
            ));
        }
        Ok(Self {
            storage: Arc::clone(storage),
            geometry,
            granularity,
            len,
            table_offset,
            table,
        })
    }

    /// Bytes of disk that a bit stands for.
    pub(crate) fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Bytes of the guest's disk.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of disk that one cluster of bits covers.
    fn cluster_coverage(&self) -> u64 {
        cluster_coverage(self.geometry, self.granularity)
    }

    /// The table entries.
    pub(crate) fn table(&self) -> &[BitmapTableEntry] {
        &self.table
    }

    /// What table entry `index` stands for. Entries were checked when opened.
    fn target(&self, index: u64) -> BitmapCluster {
        let entry = usize::try_from(index).ok().and_then(|i| self.table.get(i));
        entry.map_or(BitmapCluster::Zeros, |entry| entry.cluster())
    }

    /// Every cluster that the bitmap takes up: its table's and its bits'.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = HostCluster> {
        let first = self.geometry.host_cluster(self.table_offset).0;
        let count = self.geometry.clusters_for(self.table.len() as u64 * 8);
        let bits = self.table.iter().filter_map(|entry| match entry.cluster() {
            BitmapCluster::Data(offset) => Some(self.geometry.host_cluster(offset)),
            BitmapCluster::Zeros | BitmapCluster::Ones => None,
        });
        (first..first + count).map(HostCluster).chain(bits)
    }

    /// Table entries that cover `range` of the disk, with the part of the range
    /// each covers.
    fn covering(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
        let coverage = self.cluster_coverage();
        let first = range.start / coverage;
        let end = if range.is_empty() {
            first
        } else {
            range.end.div_ceil(coverage)
        };
        (first..end).map(move |index| {
            let start = index.saturating_mul(coverage);
            let stop = start.saturating_add(coverage);
            (index, range.start.max(start)..range.end.min(stop))
        })
    }

    /// What `range` of the disk holds as far as the table tells.
    pub(crate) fn hint(&self, range: Range<u64>) -> Piece {
        let mut all = None;
        for (index, _) in self.covering(range) {
            let piece = match self.target(index) {
                BitmapCluster::Zeros => Piece::Zeros,
                BitmapCluster::Ones => Piece::Ones,
                BitmapCluster::Data(_) => return Piece::Data,
            };
            if *all.get_or_insert(piece) != piece {
                return Piece::Data;
            }
        }
        all.unwrap_or(Piece::Zeros)
    }

    /// Reads the bits of `range`, which starts on a multiple of 8 granules, in
    /// linear form into `out`; what `out` holds past the range becomes zeros, bits
    /// past the end of the disk too. `out` is only written if the answer is `Data`.
    pub(crate) fn read(&self, range: Range<u64>, out: &mut [u8]) -> Result<Piece> {
        let hint = self.hint(range.clone());
        if hint != Piece::Data {
            return Ok(hint);
        }
        let per_byte = self.granularity.bytes().saturating_mul(8);
        let mut done = 0;
        for (index, part) in self.covering(range.clone()) {
            let bytes = part.end.div_ceil(per_byte) - part.start / per_byte;
            let stop = done + usize::try_from(bytes).unwrap_or(usize::MAX);
            let Some(piece) = out.get_mut(done..stop) else {
                return Err(Error::Refused(format!(
                    "buffer of {} bytes is too short",
                    out.len()
                )));
            };
            match self.target(index) {
                BitmapCluster::Zeros => piece.fill(0),
                BitmapCluster::Ones => piece.fill(0xff),
                BitmapCluster::Data(offset) => {
                    let within = (part.start % self.cluster_coverage()) / per_byte;
                    let at = offset.0.saturating_add(within);
                    self.storage
                        .read_padded(at, piece)
                        .map_err(Error::io_with(|| {
                            format!("reading the bitmap cluster at {offset}")
                        }))?;
                }
            }
            done = stop;
        }
        if let Some(rest) = out.get_mut(done..) {
            rest.fill(0);
        }
        clear_past_end(
            out,
            granules(self.granularity, range.start..range.end.min(self.len)),
        );
        Ok(Piece::Data)
    }

    /// Calls `dirty` with every dirty range within `range`, in order, reading one
    /// cluster of bits at a time. Ranges are clipped to the disk, not to `range`.
    pub(crate) fn for_each_dirty(
        &self,
        range: Range<u64>,
        dirty: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let coverage = self.cluster_coverage();
        let mut bytes = Vec::new();
        for (index, part) in self.covering(range) {
            let start = index.saturating_mul(coverage);
            let whole = start..start.saturating_add(coverage).min(self.len);
            match self.target(index) {
                BitmapCluster::Zeros => {}
                BitmapCluster::Ones => dirty(part)?,
                BitmapCluster::Data(_) => {
                    bytes.resize(
                        usize::try_from(self.geometry.cluster_size()).unwrap_or(0),
                        0,
                    );
                    self.read(whole.clone(), &mut bytes)?;
                    let bits = window(self.granularity, whole.end - whole.start, &bytes)?;
                    for found in bits.ranges() {
                        let found = start + found.start..start + found.end;
                        if found.end > part.start && found.start < part.end {
                            dirty(found)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The whole bitmap in memory.
    ///
    /// # Errors
    /// I/O errors; [`Error::Bitmap`] if the disk is larger than a bitmap can cover.
    pub(crate) fn load(&self) -> Result<HBitmap> {
        let mut bitmap = HBitmap::new(self.len, self.granularity)?;
        let mut bytes = Vec::new();
        for (index, part) in self.covering(0..self.len) {
            match self.target(index) {
                BitmapCluster::Zeros => {}
                BitmapCluster::Ones => bitmap.load_ones(part)?,
                BitmapCluster::Data(_) => {
                    let size = bitmap.linear_size(part.clone())?;
                    bytes.resize(size, 0);
                    self.read(part.clone(), &mut bytes)?;
                    bitmap.load_linear(part, &bytes)?;
                }
            }
        }
        bitmap.finish();
        Ok(bitmap)
    }
}

/// A cluster that two entries name. Bits that are there once must not fill memory
/// many times over.
fn named_twice(table: &[BitmapTableEntry]) -> Option<HostOffset> {
    let mut offsets: Vec<HostOffset> = table
        .iter()
        .filter_map(|entry| match entry.cluster() {
            BitmapCluster::Data(offset) => Some(offset),
            BitmapCluster::Zeros | BitmapCluster::Ones => None,
        })
        .collect();
    offsets.sort_unstable();
    let mut pairs = offsets.iter().zip(offsets.iter().skip(1));
    pairs.find(|(a, b)| a == b).map(|(offset, _)| *offset)
}

/// A bitmap over `len` bytes made from linear-form `bytes`.
fn window(granularity: Granularity, len: u64, bytes: &[u8]) -> Result<HBitmap> {
    let mut bitmap = HBitmap::new(len, granularity)?;
    let size = bitmap.linear_size(0..len)?;
    bitmap.load_linear(0..len, bytes.get(..size).unwrap_or(bytes))?;
    bitmap.finish();
    Ok(bitmap)
}

/// Bytes of disk that one cluster of bits covers.
pub(crate) fn cluster_coverage(geometry: Geometry, granularity: Granularity) -> u64 {
    (geometry.cluster_size() * 8).saturating_mul(granularity.bytes())
}

/// Entries of the table of a bitmap over `len` bytes of disk.
pub(crate) fn table_len(geometry: Geometry, granularity: Granularity, len: u64) -> u64 {
    len.div_ceil(granularity.bytes())
        .div_ceil(8)
        .div_ceil(geometry.cluster_size())
}

/// Granules that `range` touches.
fn granules(granularity: Granularity, range: Range<u64>) -> u64 {
    range
        .end
        .div_ceil(granularity.bytes())
        .saturating_sub(range.start / granularity.bytes())
}

/// Zeros every bit of `bytes` from the `valid`-th on.
fn clear_past_end(bytes: &mut [u8], valid: u64) {
    let whole = usize::try_from(valid / 8).unwrap_or(usize::MAX);
    if let Some(last) = bytes.get_mut(whole) {
        *last &= (1_u8 << (valid % 8)) - 1;
    }
    if let Some(rest) = bytes.get_mut(whole.saturating_add(1)..) {
        rest.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_past_the_end_are_cleared() {
        let mut bytes = [0xff; 4];
        clear_past_end(&mut bytes, 11);
        assert_eq!(bytes, [0xff, 0x07, 0, 0]);
        let mut bytes = [0xff; 2];
        clear_past_end(&mut bytes, 16);
        assert_eq!(bytes, [0xff; 2]);
    }

    #[test]
    fn a_table_has_an_entry_for_each_cluster_of_bits() {
        let geometry = Geometry::new(16, 4, false).unwrap();
        let granularity = Granularity::from_bytes(65536).unwrap();
        assert_eq!(table_len(geometry, granularity, 16 << 40), 512);
        assert_eq!(table_len(geometry, granularity, 1), 1);
        assert_eq!(table_len(geometry, granularity, (32 << 30) + 1), 2);
        assert_eq!(table_len(geometry, granularity, 0), 0);
    }
}
