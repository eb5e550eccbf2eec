//! [`DirtySlices`]: slices of L2 tables that were changed and aren't written yet, by
//! their place in the file. They come before what the file, or the cache of what was
//! read, has there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::SLICE;
use crate::{Geometry, addr::HostOffset};

/// Changed slices of L2 tables.
#[derive(Debug, Default)]
pub(crate) struct DirtySlices {
    slices: BTreeMap<HostOffset, Arc<Vec<u8>>>,
    /// Tables that nothing on the disk refers to yet.
    new_tables: BTreeSet<HostOffset>,
    bytes: u64,
}

impl DirtySlices {
    /// The slice at `offset`, if it was changed.
    pub(crate) fn get(&self, offset: HostOffset) -> Option<&Arc<Vec<u8>>> {
        self.slices.get(&offset)
    }

    /// The slice at `offset`, if it was changed, to be changed further.
    pub(crate) fn get_mut(&mut self, offset: HostOffset) -> Option<&mut Vec<u8>> {
        self.slices.get_mut(&offset).map(Arc::make_mut)
    }

    /// Takes in a slice that is about to be changed.
    pub(crate) fn insert(&mut self, offset: HostOffset, bytes: Arc<Vec<u8>>) {
        self.bytes += bytes.len() as u64;
        if let Some(old) = self.slices.insert(offset, bytes) {
            self.bytes -= old.len() as u64;
        }
    }

    /// Says that the table at `offset`, of which all slices were taken in, is new.
    pub(crate) fn insert_table(&mut self, offset: HostOffset) {
        self.new_tables.insert(offset);
    }

    /// Bytes of slices.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing was changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// The slices of new tables, or those of the others, in the order of the file.
    pub(crate) fn iter(
        &self,
        geometry: Geometry,
        new: bool,
    ) -> impl Iterator<Item = (HostOffset, &[u8])> {
        let table_of =
            move |offset: HostOffset| HostOffset(offset.0 & !(geometry.cluster_size() - 1));
        self.slices
            .iter()
            .filter(move |(offset, _)| self.new_tables.contains(&table_of(**offset)) == new)
            .map(|(offset, bytes)| (*offset, bytes.as_slice()))
    }

    /// Gives up all slices: they were written.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = (HostOffset, Arc<Vec<u8>>)> + use<> {
        self.new_tables.clear();
        self.bytes = 0;
        std::mem::take(&mut self.slices).into_iter()
    }
}

/// Bytes of a slice.
pub(crate) fn slice_size(geometry: Geometry) -> u64 {
    geometry.cluster_size().min(SLICE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_tables_are_told_from_old_ones() {
        let geometry = Geometry::new(16, 4, false).unwrap();
        let mut dirty = DirtySlices::default();
        assert!(dirty.is_empty());
        for at in [0x20000, 0x24000, 0x50000] {
            dirty.insert(HostOffset(at), Arc::new(vec![0; 0x4000]));
        }
        dirty.insert(HostOffset(0x50000), Arc::new(vec![1; 0x4000]));
        dirty.insert_table(HostOffset(0x20000));
        dirty.get_mut(HostOffset(0x24000)).unwrap()[5] = 7;
        let of = |new| -> Vec<u64> { dirty.iter(geometry, new).map(|(at, _)| at.0).collect() };
        assert_eq!(
            (of(true), of(false)),
            (vec![0x20000, 0x24000], vec![0x50000])
        );
        assert_eq!(dirty.bytes(), 3 * 0x4000);
        assert_eq!(dirty.get(HostOffset(0x24000)).unwrap()[5], 7);
        assert_eq!(dirty.take().count(), 3);
        assert_eq!((dirty.bytes(), dirty.is_empty()), (0, true));
    }
}
