//! [`Builder`]: a whole new image, written from the front to the back.
//!
//! ```text
//! ┌────────┬────────────────┬──────────┬───────────────────────────────────┬─────────────┐
//! │ header │ refcount table │ L1 table │ data, L2 tables and refcount      │ the last    │
//! │        │                │          │ blocks, as they become complete … │ of them     │
//! └────────┴────────────────┴──────────┴───────────────────────────────────┴─────────────┘
//!   last                      at the end
//! ```
//!
//! Clusters come in the order of the guest's disk. Tables leave memory as soon as nothing
//! can be added to them. A refcount table that may need more than a cluster stands at the
//! end. The header is written after all else is on stable storage: before that the file is
//! no image.
//!
//! The work on a piece of the disk is in three steps, of which only the second has to
//! wait for its turn: [`prepare`](Builder::prepare) compresses,
//! [`place`](Builder::place) gives clusters their places, [`store`](Builder::store) writes
//! them.

mod finish;
mod prepared;
mod space;
mod tables;
#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use prepared::{Prepared, Unit};

use super::create::{CreateOptions, Layout, Preallocation, TablePlaces, check_room, empty};
use crate::{
    Error, Geometry, Result,
    addr::HostOffset,
    compress::{Compressor, Packed},
    disk::is_zero,
    format::{L2Entry, SubclusterBitmap, l2::SUBCLUSTERS},
    io::Storage,
};
use prepared::Fate;
use space::{Space, Table};
use tables::Tables;

/// A new image, on its way into a storage.
///
/// ```no_run
/// use std::sync::Arc;
/// use qcow2::{image::{build::Builder, create::CreateOptions}, io::FileStorage};
///
/// let (file, _) = FileStorage::create("disk.qcow2", true)?;
/// let options = CreateOptions { size: Some(1 << 30), ..CreateOptions::default() };
/// let builder = Builder::new(Arc::new(file), None, options, false)?;
/// builder.write(0, &[0x55; 65536])?;
/// builder.finish(true)?;
/// # Ok::<(), qcow2::Error>(())
/// ```
#[derive(Debug)]
pub struct Builder {
    storage: Arc<dyn Storage>,
    /// The external data file: clusters stand in it where they are on the disk.
    data_file: Option<Arc<dyn Storage>>,
    options: CreateOptions,
    geometry: Geometry,
    /// Bytes of the guest's disk.
    size: u64,
    /// Every cluster gets a place.
    preallocate: bool,
    compressor: Option<Compressor>,
    l1_offset: HostOffset,
    refcount_table: Option<Table>,
    state: Mutex<State>,
}

/// What grows from the front to the back.
#[derive(Debug)]
struct State {
    space: Space,
    tables: Tables,
    /// The first cluster of the disk of which nothing was said.
    next: u64,
}

impl Builder {
    /// Starts a new image in `storage`, over whatever is there. `data_file` is its
    /// external data file, if the options name one: it must read as zeros. With
    /// `compress` clusters are compressed as the options say.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::Unsupported`] for options that don't go together,
    /// before anything is written; I/O errors. The storage holds no image then.
    pub fn new(
        storage: Arc<dyn Storage>,
        data_file: Option<Arc<dyn Storage>>,
        options: CreateOptions,
        compress: bool,
    ) -> Result<Self> {
        let refused = |text: &str| Err(Error::Refused(text.into()));
        let checked = options.check()?;
        if options.encryption.is_some() {
            return refused("Encrypted images aren't written front to back");
        }
        if checked.options.data_file.is_some() != data_file.is_some() {
            return refused("The options and the storage differ over a data file");
        }
        let (geometry, size, preallocate) = (checked.geometry, checked.size, checked.preallocate);
        if compress && (preallocate || data_file.is_some()) {
            return refused("Compressed clusters go with neither preallocation nor a data file");
        }
        // What the header will hold fits.
        let empty_layout = Layout::with(&checked, 0, 0)?;
        empty_layout.first_cluster(&checked)?;
        check_room(&*storage, &checked, &Layout::new(&checked)?)?;
        let l1_clusters = empty_layout.l1_clusters;
        let limit = match storage.can_grow() {
            true => u64::MAX,
            false => {
                let bytes = storage.size();
                let bytes = bytes.map_err(Error::io("asking for the target's size"))?;
                bytes / geometry.cluster_size()
            }
        };
        // One cluster of refcount table is enough for nearly everybody.
        let is_small = Layout::full(&checked).is_ok_and(|full| full.refcount_table_clusters == 1);
        let reserved = u64::from(is_small);
        let compressor = compress.then(|| Compressor::new(options.compression_type));
        let mut space = Space::new(geometry, limit);
        space.take(1 + reserved + l1_clusters)?;
        empty(&*storage)?;
        let cluster_size = geometry.cluster_size();
        Ok(Self {
            storage,
            data_file,
            geometry,
            size,
            preallocate,
            compressor,
            l1_offset: HostOffset((1 + reserved) * cluster_size),
            refcount_table: is_small.then_some(Table {
                offset: HostOffset(cluster_size),
                clusters: 1,
            }),
            state: Mutex::new(State {
                space,
                tables: Tables::new(geometry, geometry.l1_entries(size)),
                next: 0,
            }),
            options,
        })
    }

    /// Bytes of the guest's disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        self.geometry.cluster_size()
    }

    /// Bytes of a [`Unit`]: of a subcluster if there are such, else of a cluster. Clusters
    /// that are compressed are so as a whole.
    #[must_use]
    pub fn unit_size(&self) -> u64 {
        match self.geometry.extended_l2() && self.compressor.is_none() {
            true => self.geometry.cluster_size() / u64::from(SUBCLUSTERS),
            false => self.geometry.cluster_size(),
        }
    }

    /// Whether clusters are compressed.
    #[must_use]
    pub fn compresses(&self) -> bool {
        self.compressor.is_some()
    }

    /// Whether the image has a backing file, so that zeros differ from what nothing is
    /// said of.
    #[must_use]
    pub fn has_backing(&self) -> bool {
        self.options.backing.is_some()
    }

    /// Writes `bytes` at `offset`, which begins and ends with a cluster or the disk, behind
    /// all that was written. Clusters of zeros are left out.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare), [`place`](Self::place) and [`store`](Self::store).
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let cluster = usize::try_from(self.cluster_size()).unwrap_or(usize::MAX);
        let end = offset.saturating_add(bytes.len() as u64);
        let mut whole = bytes.to_vec();
        if end == self.size {
            whole.resize(bytes.len().next_multiple_of(cluster), 0);
        }
        let unit = usize::try_from(self.unit_size()).unwrap_or(usize::MAX);
        let units: Vec<_> = whole
            .chunks(unit)
            .map(|unit| match is_zero(unit) {
                true => Unit::Zero,
                false => Unit::Data,
            })
            .collect();
        let mut prepared = self.prepare(offset, &whole, &units)?;
        self.place(&mut prepared)?;
        self.store(&whole, &prepared)
    }

    /// Makes whole clusters ready. `bytes` are those of the disk from `offset` on, `units`
    /// say what each part of them is; the bytes of [`Unit::Data`] and of those that share a
    /// cluster with it count. Behind the disk's end are zeros.
    ///
    /// # Errors
    /// [`Error::Refused`] for parts of clusters, a range beyond the disk, or lists of
    /// different length.
    pub fn prepare(&self, offset: u64, bytes: &[u8], units: &[Unit]) -> Result<Prepared> {
        let mut prepared = Prepared::default();
        self.prepare_in(&mut prepared, offset, bytes, units)?;
        Ok(prepared)
    }

    /// As [`prepare`](Self::prepare), in the memory of a piece that is stored.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare); of what is `prepared` nothing may be placed then.
    pub fn prepare_in(
        &self,
        prepared: &mut Prepared,
        offset: u64,
        bytes: &[u8],
        units: &[Unit],
    ) -> Result<()> {
        let cluster_size = self.geometry.cluster_size();
        let size = usize::try_from(cluster_size).unwrap_or(usize::MAX);
        let per_cluster = usize::try_from(cluster_size / self.unit_size()).unwrap_or(1);
        let count = bytes.len() / size;
        let first = offset / cluster_size;
        let is_whole = offset.is_multiple_of(cluster_size) && bytes.len().is_multiple_of(size);
        let end = first.checked_add(count as u64);
        let inside = end.is_some_and(|end| end <= self.geometry.clusters_for(self.size));
        if !is_whole || !inside || units.len() != count.saturating_mul(per_cluster) {
            return Err(Error::Refused(format!(
                "a new image is written in whole clusters: {} bytes at {offset} aren't",
                bytes.len()
            )));
        }
        prepared.begin(first);
        if self.compressor.is_some() {
            prepared.packed.begin(bytes.len(), size);
        }
        for (bytes, units) in bytes.chunks(size).zip(units.chunks(per_cluster)) {
            let mut fate = self.fate(units);
            if let (Fate::Plain(_), Some(compressor)) = (&fate, &self.compressor)
                && let Some(packed) = prepared.packed.add(compressor, bytes)?
            {
                fate = Fate::Packed(packed);
            }
            prepared.fates.push(fate);
        }
        Ok(())
    }

    /// Whole clusters of zeros from `offset` on, ready. Nothing needs to be stored.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub fn prepare_zeros(&self, range: &Range<u64>) -> Result<Prepared> {
        let cluster_size = self.geometry.cluster_size();
        let first = range.start / cluster_size;
        let end = range.end.div_ceil(cluster_size);
        let is_whole = range.start.is_multiple_of(cluster_size)
            && (range.end.is_multiple_of(cluster_size) || range.end == self.size);
        let writes_data = self.has_backing() && self.options.version == super::create::Version::V2;
        if !is_whole || range.end > self.size || writes_data {
            return Err(Error::Refused(format!(
                "zeros from {} to {} can't be said of whole clusters",
                range.start, range.end
            )));
        }
        let units = vec![Unit::Zero; usize::try_from(cluster_size / self.unit_size()).unwrap_or(1)];
        let count = usize::try_from(end.saturating_sub(first)).unwrap_or(0);
        Ok(Prepared {
            first,
            fates: vec![self.fate(&units); count],
            packed: Packed::default(),
            writes: Vec::new(),
        })
    }

    /// Whether zeros have to be written as data: only where there is something behind them
    /// that they hide, and entries of version 2 can't say so.
    #[must_use]
    pub fn zeros_are_data(&self) -> bool {
        self.has_backing() && self.options.version == super::create::Version::V2
    }

    fn fate(&self, units: &[Unit]) -> Fate {
        let bits = |what: Unit| {
            if let [only] = units {
                return if *only == what {
                    u64::from(u32::MAX)
                } else {
                    0
                };
            }
            let set = units.iter().enumerate().filter(|(_, unit)| **unit == what);
            set.fold(0_u64, |bits, (index, _)| bits | 1 << index)
        };
        let data = bits(Unit::Data);
        let zeros = match self.has_backing() {
            true => bits(Unit::Zero),
            false => 0,
        };
        match (data, zeros) {
            (0, 0) => Fate::Nothing,
            (0, _) if self.zeros_are_data() => Fate::Plain(SubclusterBitmap::default()),
            (0, _) => Fate::Zero(SubclusterBitmap(zeros << SUBCLUSTERS)),
            _ => Fate::Plain(SubclusterBitmap(data | zeros << SUBCLUSTERS)),
        }
    }

    /// Gives the clusters their places. Pieces have to come in the order of the disk.
    ///
    /// # Errors
    /// [`Error::Refused`] if they don't; [`Error::NoSpace`]; I/O errors of writing tables. Nothing more can be written then.
    pub fn place(&self, prepared: &mut Prepared) -> Result<()> {
        let mut state = self.lock();
        let state = &mut *state;
        if prepared.first < state.next {
            let text = "a new image is written from the front to the back, once";
            return Err(Error::Refused(text.into()));
        }
        self.fill_gap(state, prepared.first)?;
        let size = usize::try_from(self.geometry.cluster_size()).unwrap_or(usize::MAX);
        let mut fates = std::mem::take(&mut prepared.fates);
        for (index, fate) in fates.drain(..).enumerate() {
            let cluster = prepared.first + index as u64;
            let bytes = index * size..(index + 1) * size;
            self.place_one(state, prepared, cluster, fate, bytes)?;
            state.next = cluster + 1;
        }
        prepared.fates = fates;
        state.space.write_full_blocks(&*self.storage)
    }

    fn place_one(
        &self,
        state: &mut State,
        prepared: &mut Prepared,
        cluster: u64,
        fate: Fate,
        bytes: Range<usize>,
    ) -> Result<()> {
        let State { space, tables, .. } = state;
        let nothing = SubclusterBitmap::default();
        let (entry, bitmap) = match fate {
            Fate::Nothing if self.preallocate => self.preallocate(space, cluster, nothing)?,
            Fate::Nothing => return Ok(()),
            Fate::Zero(bitmap) if self.preallocate => self.preallocate(space, cluster, bitmap)?,
            Fate::Zero(bitmap) if self.geometry.extended_l2() => (L2Entry::default(), bitmap),
            Fate::Zero(_) => (L2Entry::zero(None), nothing),
            Fate::Plain(bitmap) => {
                let host = self.host(space, cluster)?;
                self.write_parts(prepared, host, bitmap, bytes);
                (L2Entry::data(host, true), bitmap)
            }
            Fate::Packed(bytes) => {
                let len = bytes.len() as u64;
                let host = space.pack(len)?;
                prepared.write(host, true, bytes);
                let entry = L2Entry::compressed(self.geometry, host, len);
                let entry = entry.ok_or_else(|| {
                    Error::Refused(format!("no entry can hold a compressed cluster at {host}"))
                })?;
                (entry, nothing)
            }
        };
        tables.set(cluster, entry, bitmap, space, &*self.storage)
    }

    /// The place of a cluster of the disk.
    fn host(&self, space: &mut Space, cluster: u64) -> Result<HostOffset> {
        match self.data_file {
            Some(_) => Ok(HostOffset(cluster * self.geometry.cluster_size())),
            None => space.take(1),
        }
    }

    /// Those bytes of a cluster that its entry calls data.
    fn write_parts(
        &self,
        prepared: &mut Prepared,
        host: HostOffset,
        bitmap: SubclusterBitmap,
        bytes: Range<usize>,
    ) {
        if !self.geometry.extended_l2() || bitmap.allocated() == u32::MAX {
            prepared.write(host, false, bytes);
            return;
        }
        let unit = bytes.len() / SUBCLUSTERS as usize;
        for index in 0..SUBCLUSTERS {
            if bitmap.allocated() >> index & 1 == 1 {
                let skip = unit * index as usize;
                let start = bytes.start + skip;
                let host = HostOffset(host.0.saturating_add(skip as u64));
                prepared.write(host, false, start..start + unit);
            }
        }
    }

    /// A cluster that reads as zeros and has a place.
    fn preallocate(
        &self,
        space: &mut Space,
        cluster: u64,
        bitmap: SubclusterBitmap,
    ) -> Result<(L2Entry, SubclusterBitmap)> {
        let host = self.host(space, cluster)?;
        let storage = self.data_storage();
        let end = host.0.saturating_add(self.geometry.cluster_size());
        // A data file is as long as the disk.
        let end = match self.data_file {
            Some(_) => end.min(self.size),
            None => end,
        };
        let range = host.0..end;
        let cleared = match self.options.preallocation {
            Preallocation::Full => storage.write_zeros(range),
            // A new file has zeros there.
            _ if storage.can_grow() => Ok(()),
            _ => storage.zero(range),
        };
        cleared.map_err(Error::io("writing zeros to preallocated clusters"))?;
        Ok((L2Entry::data(host, true), bitmap))
    }

    /// Preallocates what nothing was said of, up to `cluster`.
    fn fill_gap(&self, state: &mut State, cluster: u64) -> Result<()> {
        if !self.preallocate {
            return Ok(());
        }
        while state.next < cluster {
            let nothing = SubclusterBitmap::default();
            let next = state.next;
            let (entry, bitmap) = self.preallocate(&mut state.space, next, nothing)?;
            let State { space, tables, .. } = &mut *state;
            tables.set(next, entry, bitmap, space, &*self.storage)?;
            state.next += 1;
            state.space.write_full_blocks(&*self.storage)?;
        }
        Ok(())
    }

    /// Writes what has its place: `bytes` as they were given to
    /// [`prepare`](Self::prepare). In any order.
    ///
    /// # Errors
    /// I/O errors.
    pub fn store(&self, bytes: &[u8], prepared: &Prepared) -> Result<()> {
        for write in &prepared.writes {
            let from = if write.packed {
                prepared.packed.bytes()
            } else {
                bytes
            };
            let part = from.get(write.bytes.clone());
            let part = part.ok_or_else(|| {
                Error::Refused("a piece was stored with fewer bytes than prepared".into())
            })?;
            // A data file is as long as the disk.
            let part = match self.data_file {
                Some(_) => {
                    let inside = self.size.saturating_sub(write.host.0);
                    let inside = usize::try_from(inside).unwrap_or(usize::MAX);
                    part.get(..inside).unwrap_or(part)
                }
                None => part,
            };
            self.data_storage()
                .write_all_at(write.host.0, part)
                .map_err(Error::io_with(|| format!("writing data at {}", write.host)))?;
        }
        Ok(())
    }

    fn data_storage(&self) -> &dyn Storage {
        self.data_file.as_deref().unwrap_or(&*self.storage)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
