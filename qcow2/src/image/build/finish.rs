//! The end: tables, and last the header, which makes the file an image.

use super::{Builder, TablePlaces, empty};
use crate::{Error, Result, image::create::Preallocation};

/// Bytes of a sector, which is written whole or not at all.
const SECTOR: usize = 512;

impl Builder {
    /// Writes the tables, and last the header. With `durable` it returns when all of it is
    /// on stable storage, and the header goes there after everything else.
    ///
    /// # Errors
    /// I/O errors; the storage holds no image then.
    pub fn finish(self, durable: bool) -> Result<()> {
        let mut state = self.lock();
        let state = &mut *state;
        self.fill_gap(state, self.geometry.clusters_for(self.size))?;
        state.tables.write(&mut state.space, &*self.storage)?;
        let table = state.space.finish(&*self.storage, self.refcount_table)?;
        let l1 = state.tables.l1_bytes();
        let write = |offset: u64, bytes: &[u8], what: &str| {
            let done = self.storage.write_all_at(offset, bytes);
            done.map_err(Error::io_with(|| format!("writing {what}")))
        };
        let places = TablePlaces {
            l1_entries: self.geometry.l1_entries(self.size),
            l1_offset: if l1.is_empty() { 0 } else { self.l1_offset.0 },
            refcount_table_offset: table.offset.0,
            refcount_table_clusters: table.clusters,
            encryption_offset: 0,
        };
        let first = places.first_cluster(&self.options.check()?)?;
        let (sector, rest) = first.split_at_checked(SECTOR).unwrap_or((&first, &[]));
        if !l1.is_empty() {
            write(self.l1_offset.0, &l1, "the L1 table")?;
        }
        if !rest.is_empty() {
            write(SECTOR as u64, rest, "the header extensions")?;
        }
        let bytes = state.space.clusters() * self.geometry.cluster_size();
        self.make_length(bytes)?;
        if let (Some(data_file), true) = (&self.data_file, durable) {
            let synced = data_file.sync();
            synced.map_err(Error::io("syncing the data file"))?;
        }
        let sync = || match durable {
            true => self.storage.sync().map_err(Error::io("syncing the image")),
            false => Ok(()),
        };
        sync()?;
        let done = write(0, sector, "the header").and_then(|()| sync());
        if done.is_err() {
            // The failure is reported; one of this adds nothing.
            empty(&*self.storage).ok();
        }
        done
    }

    /// The last cluster is a whole one; preallocated space is there.
    fn make_length(&self, bytes: u64) -> Result<()> {
        let resizing = || Error::io("setting the image's length");
        if self.storage.can_grow() {
            self.storage.set_len(bytes).map_err(resizing())?;
        }
        if self.options.preallocation == Preallocation::Falloc {
            let reserved = match &self.data_file {
                Some(data_file) => data_file.allocate(0..self.size),
                None => self.storage.allocate(0..bytes),
            };
            reserved.map_err(Error::io("reserving space"))?;
        }
        Ok(())
    }
}
