//! L1 and L2 entries in memory: where a cluster of the disk is, and where it will be.

use std::sync::Arc;

use super::State;
use crate::image::{entries::Entries, extents::Keep};
use crate::{
    Error, Result,
    addr::HostOffset,
    disk::bad,
    format::{ExtendedL2Entry, L1Entry, L2Entry, SubclusterBitmap},
    table::slice_size,
};

/// Bytes of changed L2 entries in memory, beyond which they are written.
const MAX_BYTES: u64 = if cfg!(test) { 2 << 10 } else { 32 << 20 };

/// The place of an L2 entry that is ours to be changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    slice: HostOffset,
    /// Bytes of the slice before the entry.
    within: usize,
}

impl State {
    /// Writes what has to be written before clusters can be taken, and makes sure that
    /// `clusters` can be for the cluster at `start`, and an L2 table if it needs one.
    pub(super) fn make_room(&mut self, start: u64, clusters: u64) -> Result<()> {
        let table = self.l1.entry(start / self.image.geometry().l2_coverage());
        let clusters = clusters + u64::from(!table.copied());
        if self.l2.bytes() > MAX_BYTES || self.space.wants_flush() {
            self.write_tables()?;
        }
        match self.space.ensure(clusters) {
            Err(Error::Refused(_)) if self.space.has_given_back() => {
                // Clusters that were given back can be taken after they were let go.
                self.write_tables()?;
                self.space.ensure(clusters)?;
            }
            ensured => ensured?,
        }
        if self.space.wants_flush() {
            // A larger refcount table goes out before anything that it counts.
            self.write_tables()?;
        }
        Ok(())
    }

    /// The entry of the cluster at `start`, checked; all zeros where there is no table.
    pub(super) fn entry(&self, start: u64) -> Result<ExtendedL2Entry> {
        let geometry = self.image.geometry();
        let cluster_size = geometry.cluster_size();
        let view = self.view();
        let table = view.l2_table(start / geometry.l2_coverage());
        let Some(table) = table.map_err(|error| bad(start, cluster_size, error))? else {
            return Ok(ExtendedL2Entry::default());
        };
        let end = start.saturating_add(cluster_size);
        let run = view.load(table, &(start..end), Keep::Yes)?;
        if !geometry.extended_l2() {
            let entry = Entries::new(&self.image, &run).standard_at(start)?;
            let bitmap = SubclusterBitmap::default();
            return Ok(ExtendedL2Entry { entry, bitmap });
        }
        // What is wrong with the entry is found here.
        view.stretches(start..end, Keep::Yes, &mut Vec::new())?;
        let within = (start - run.guest) / cluster_size * geometry.l2_entry_size();
        let word = |at: u64| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let bytes = run.bytes.get(at..).and_then(<[u8]>::first_chunk::<8>);
            bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
        };
        Ok(ExtendedL2Entry {
            entry: L2Entry(word(within)),
            bitmap: SubclusterBitmap(word(within + 8)),
        })
    }

    /// The bytes of the standard entries of the clusters from `start` up to `end`, which
    /// are in one slice, checked; zeros where there is no table.
    pub(super) fn entries(&self, start: u64, end: u64) -> Result<Vec<u8>> {
        let geometry = self.image.geometry();
        let cluster_size = geometry.cluster_size();
        let bytes = |clusters: u64| {
            usize::try_from(clusters * geometry.l2_entry_size()).unwrap_or(usize::MAX)
        };
        let wanted = bytes((end - start).div_ceil(cluster_size));
        let view = self.view();
        let table = view.l2_table(start / geometry.l2_coverage());
        let Some(table) = table.map_err(|error| bad(start, end - start, error))? else {
            return Ok(vec![0; wanted]);
        };
        // What is wrong with an entry is found here.
        let (mut at, mut stretches) = (start, Vec::new());
        while at < end {
            stretches.clear();
            view.stretches(at..end, Keep::Yes, &mut stretches)?;
            at = stretches.last().map_or(end, |last| last.end());
        }
        let run = view.load(table, &(start..end), Keep::Yes)?;
        let from = bytes((start - run.guest) / cluster_size);
        let entries = run.bytes.get(from..).and_then(|bytes| bytes.get(..wanted));
        entries
            .map(<[u8]>::to_vec)
            .ok_or_else(|| Error::Refused("entries of more than a slice of an L2 table".into()))
    }

    /// The place for the entry of the cluster at `start`, in a table that nothing but the
    /// active L1 table refers to: a new one where there is none, a copy of one that is
    /// shared with snapshots.
    pub(super) fn own_entry(&mut self, start: u64) -> Result<Place> {
        let geometry = self.image.geometry();
        let table = self.own_table(start / geometry.l2_coverage())?;
        let index = start % geometry.l2_coverage() / geometry.cluster_size();
        let within = index * geometry.l2_entry_size();
        let size = slice_size(geometry);
        let slice = HostOffset(table.0 + within / size * size);
        if self.l2.get(slice).is_none() {
            let bytes = self.slice(slice)?;
            self.l2.insert(slice, bytes);
        }
        Ok(Place {
            slice,
            within: usize::try_from(within % size).unwrap_or(usize::MAX),
        })
    }

    /// Changes an entry in memory.
    pub(super) fn set_entry(&mut self, place: Place, entry: ExtendedL2Entry) {
        let extended = self.image.geometry().extended_l2();
        let slice = self.l2.get_mut(place.slice);
        let Some(bytes) = slice.and_then(|slice| slice.get_mut(place.within..)) else {
            return;
        };
        let mut words = bytes.as_chunks_mut::<8>().0.iter_mut();
        if let Some(word) = words.next() {
            *word = entry.entry.0.to_be_bytes();
        }
        if let Some(word) = words.next().filter(|_| extended) {
            *word = entry.bitmap.0.to_be_bytes();
        }
    }

    /// Changes standard entries in memory, each so many behind the one at `place`, in its
    /// slice.
    pub(super) fn set_entries(
        &mut self,
        place: Place,
        entries: impl Iterator<Item = (u64, L2Entry)>,
    ) {
        let Some(slice) = self.l2.get_mut(place.slice) else {
            return;
        };
        let (words, _) = slice
            .get_mut(place.within..)
            .unwrap_or_default()
            .as_chunks_mut::<8>();
        for (behind, entry) in entries {
            let word = usize::try_from(behind).ok().and_then(|n| words.get_mut(n));
            if let Some(word) = word {
                *word = entry.0.to_be_bytes();
            }
        }
    }

    fn own_table(&mut self, index: u64) -> Result<HostOffset> {
        let geometry = self.image.geometry();
        let (size, cluster_size) = (slice_size(geometry), geometry.cluster_size());
        let old = self.view().l2_table(index)?;
        if let Some(table) = old.filter(|_| self.l1.entry(index).copied()) {
            return Ok(table);
        }
        let slices = cluster_size / size;
        let content: Vec<Arc<Vec<u8>>> = match old {
            Some(old) => (0..slices)
                .map(|n| self.slice(HostOffset(old.0 + n * size)))
                .collect::<Result<_>>()?,
            None => {
                let empty = Arc::new(vec![0; usize::try_from(size).unwrap_or(0)]);
                (0..slices).map(|_| Arc::clone(&empty)).collect()
            }
        };
        // An error if the table has no such entry.
        self.l1.set(index, self.l1.entry(index))?;
        let table = self.take_cluster()?;
        self.l1.set(index, L1Entry::new(table, true))?;
        self.l1_changed.insert(index);
        for (n, bytes) in (0..).zip(content) {
            self.l2.insert(HostOffset(table.0 + n * size), bytes);
        }
        self.l2.insert_table(table);
        if let Some(old) = old {
            self.space.give_back(old, cluster_size, false);
        }
        Ok(table)
    }

    /// Takes a cluster that will be written.
    pub(super) fn take_cluster(&mut self) -> Result<HostOffset> {
        let offset = self.space.take()?;
        let end = offset.0 + self.image.geometry().cluster_size();
        self.image.guest.file_end.promise(end);
        Ok(offset)
    }

    /// A slice of an L2 table as it is now.
    fn slice(&self, at: HostOffset) -> Result<Arc<Vec<u8>>> {
        if let Some(bytes) = self.l2.get(at) {
            return Ok(Arc::clone(bytes));
        }
        let cache = &self.image.guest.l2;
        if let Some(bytes) = cache.get(at) {
            return Ok(bytes);
        }
        let size = slice_size(self.image.geometry());
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let storage = &self.image.storage;
        storage
            .read_padded(at.0, &mut bytes)
            .map_err(Error::io_with(|| format!("reading L2 entries at {at}")))?;
        Ok(Arc::new(bytes))
    }
}
