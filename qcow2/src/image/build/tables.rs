//! [`Tables`]: the L1 table, and the L2 tables one after the other.

use super::space::Space;
use crate::{
    Error, Geometry, Result,
    addr::HostOffset,
    format::{L1Entry, L2Entry, SubclusterBitmap},
    io::Storage,
};

/// Bytes of L2 tables that are written at once, at least.
const RUN: usize = 64 << 10;

/// The tables of a new image. Entries come in the order of the guest's disk.
#[derive(Debug)]
pub(super) struct Tables {
    geometry: Geometry,
    l1: Vec<L1Entry>,
    /// Indices of the L2 tables in `bytes`, the last of which is the current one.
    indices: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tables {
    pub(super) fn new(geometry: Geometry, l1_entries: u64) -> Self {
        Self {
            geometry,
            l1: vec![L1Entry::default(); usize::try_from(l1_entries).unwrap_or(0)],
            indices: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Sets the entry of a cluster of the guest's disk; none of those before it follow.
    ///
    /// # Errors
    /// Those of writing tables that are complete.
    pub(super) fn set(
        &mut self,
        cluster: u64,
        entry: L2Entry,
        bitmap: SubclusterBitmap,
        space: &mut Space,
        storage: &dyn Storage,
    ) -> Result<()> {
        let index = usize::try_from(cluster / self.geometry.l2_entries()).unwrap_or(usize::MAX);
        let size = usize::try_from(self.geometry.cluster_size()).unwrap_or(0);
        if self.indices.last() != Some(&index) {
            if self.bytes.len() >= RUN {
                self.write(space, storage)?;
            }
            self.indices.push(index);
            self.bytes.resize(self.bytes.len() + size, 0);
        }
        let table = self.bytes.len() - size;
        let width = usize::try_from(self.geometry.l2_entry_size()).unwrap_or(8);
        let within = usize::try_from(cluster % self.geometry.l2_entries()).unwrap_or(0);
        let at = table + within * width;
        let place = self.bytes.get_mut(at..at + width).unwrap_or_default();
        let (first, second) = place.split_at_mut_checked(8).unwrap_or_default();
        first.copy_from_slice(&entry.0.to_be_bytes());
        if !second.is_empty() {
            second.copy_from_slice(&bitmap.0.to_be_bytes());
        }
        Ok(())
    }

    /// Writes the L2 tables that are in memory.
    ///
    /// # Errors
    /// I/O errors, and that there is no room.
    pub(super) fn write(&mut self, space: &mut Space, storage: &dyn Storage) -> Result<()> {
        if self.indices.is_empty() {
            return Ok(());
        }
        let first = space.take(self.indices.len() as u64)?;
        storage
            .write_all_at(first.0, &self.bytes)
            .map_err(Error::io_with(|| format!("writing L2 tables at {first}")))?;
        let places =
            (first.0..).step_by(usize::try_from(self.geometry.cluster_size()).unwrap_or(1));
        for (index, place) in self.indices.drain(..).zip(places) {
            if let Some(entry) = self.l1.get_mut(index) {
                *entry = L1Entry::new(HostOffset(place), true);
            }
        }
        self.bytes.clear();
        Ok(())
    }

    /// The bytes of the L1 table, to the end of its last cluster.
    pub(super) fn l1_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in &self.l1 {
            entry.encode(&mut bytes);
        }
        let size = usize::try_from(self.geometry.cluster_size()).unwrap_or(1);
        bytes.resize(bytes.len().next_multiple_of(size), 0);
        bytes
    }
}
