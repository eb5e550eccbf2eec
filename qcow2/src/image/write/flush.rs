//! What is in memory reaches the disk, in an order that a power cut can't turn into
//! more than leaked clusters.

use super::State;
use crate::{Error, Result, format::L1Entry, table::TableChange};

impl State {
    /// Returns when all that was written is on stable storage.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.write_tables()?;
        if self.unsynced {
            self.sync_data()?;
        }
        Ok(())
    }

    /// Writes the tables if any changed:
    ///
    /// 1. guest data that waits, new L2 tables, refcount blocks with the refcounts of
    ///    new clusters; sync
    /// 2. where refcount blocks were added, their entries in the refcount table; sync
    ///    (or a larger table; sync; the header; sync)
    /// 3. entries of L2 tables that are in use, and of the L1 table; sync
    /// 4. refcounts of clusters given back
    ///
    /// With lazy refcounts these stay in memory, as far as it is meant for that: then
    /// there are no refcount blocks in 1, there is no 2, and nothing is written in 4.
    pub(super) fn write_tables(&mut self) -> Result<()> {
        self.write_batch()?;
        if self.l2.is_empty() && self.l1_changed.is_empty() && !self.space.is_dirty() {
            return Ok(());
        }
        let written = self.write_tables_in_order();
        self.stored(written)
    }

    fn write_tables_in_order(&mut self) -> Result<()> {
        let lazy = self.lazy && self.space.fits_in_memory();
        let new_tables = self.write_slices(true)?;
        let refcounts = !lazy && self.space.write_blocks()?;
        if new_tables || refcounts || self.unsynced {
            self.sync_data()?;
        }
        let change = match lazy {
            true => TableChange::None,
            false => self.space.write_table()?,
        };
        match change {
            TableChange::None => {}
            TableChange::InPlace => self.sync_image()?,
            TableChange::Moved(moved) => {
                self.sync_image()?;
                self.image
                    .switch_refcount_table(moved.offset, moved.clusters)?;
            }
        }
        let slices = self.write_slices(false)?;
        let entries = self.write_l1_entries()?;
        if slices || entries {
            self.sync_image()?;
        }
        for (offset, bytes) in self.l2.take() {
            self.image.guest.l2.insert(offset, bytes);
        }
        self.punch_holes();
        self.released |= self.space.release_given_back(lazy)?;
        Ok(())
    }

    /// Writes slices of new L2 tables, or of those in use; whether there were any.
    fn write_slices(&mut self, new: bool) -> Result<bool> {
        let mut end = None;
        for (offset, bytes) in self.l2.iter(self.image.geometry(), new) {
            end = Some(offset.0.saturating_add(bytes.len() as u64));
            self.image
                .storage
                .write_all_at(offset.0, bytes)
                .map_err(Error::io_with(|| format!("writing L2 entries at {offset}")))?;
        }
        self.space.touched(end.unwrap_or(0));
        Ok(end.is_some())
    }

    /// Writes changed L1 entries, adjoining ones at once; whether there were any.
    fn write_l1_entries(&mut self) -> Result<bool> {
        let changed = std::mem::take(&mut self.l1_changed);
        let mut indices = changed.iter().copied().peekable();
        while let Some(first) = indices.next() {
            let mut bytes = Vec::with_capacity(8);
            self.l1.entry(first).encode(&mut bytes);
            let mut next = first + 1;
            while indices.next_if_eq(&next).is_some() {
                self.l1.entry(next).encode(&mut bytes);
                next += 1;
            }
            let at = self.l1.place(first);
            debug_assert_eq!(bytes.len() as u64, (next - first) * L1Entry::LEN);
            self.image
                .storage
                .write_all_at(at.0, &bytes)
                .map_err(Error::io_with(|| format!("writing L1 entries at {at}")))?;
        }
        Ok(!changed.is_empty())
    }

    /// Syncs guest data, and with it the image.
    fn sync_data(&mut self) -> Result<()> {
        if self.image.header().has_data_file() {
            let data = self.image.data_storage()?;
            let synced = data.sync().map_err(Error::io("syncing the data file"));
            self.stored(synced)?;
        }
        self.sync_image()?;
        self.unsynced = false;
        Ok(())
    }

    pub(super) fn sync_image(&mut self) -> Result<()> {
        let synced = self.image.storage.sync();
        self.stored(synced.map_err(Error::io("syncing the image")))?;
        self.released = false;
        Ok(())
    }
}
