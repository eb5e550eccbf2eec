//! [`L1Table`]: the active L1 table, or a snapshot's, in memory.

use super::Bounds;
use crate::{
    Error, Geometry, Result,
    addr::HostOffset,
    format::{L1Entry, l1},
    io::Storage,
};

/// An L1 table, as far as it is in the file. Entries are checked when they are used.
#[derive(Debug)]
pub(crate) struct L1Table {
    offset: HostOffset,
    /// Entries that the table has.
    len: u64,
    /// Those of them that the file holds.
    entries: Vec<L1Entry>,
}

impl L1Table {
    /// Reads the first `len` entries of the table at `offset`. The caller has checked
    /// their number against [`MAX_L1_BYTES`](crate::format::header::MAX_L1_BYTES).
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn read(storage: &dyn Storage, offset: HostOffset, len: u64) -> Result<Self> {
        let end = storage
            .size()
            .map_err(Error::io("asking for the size of the image"))?;
        let inside = end.saturating_sub(offset.0).min(len * L1Entry::LEN);
        let mut bytes = vec![0; usize::try_from(inside).unwrap_or(0)];
        if !bytes.is_empty() {
            storage
                .read_padded(offset.0, &mut bytes)
                .map_err(Error::io_with(|| {
                    format!("reading the L1 table at {offset}")
                }))?;
        }
        let entries = l1::entries(&bytes).collect();
        Ok(Self {
            offset,
            len,
            entries,
        })
    }

    /// The L2 table that entry `index` refers to; `None` without one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for an entry that the file doesn't hold, that has reserved bits
    /// set, or that refers to where no L2 table can be.
    pub(crate) fn l2_table(
        &self,
        index: u64,
        geometry: Geometry,
        bounds: &Bounds<'_>,
    ) -> Result<Option<HostOffset>> {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|i| self.entries.get(i));
        let Some(entry) = entry else {
            // A snapshot's table may be shorter than its disk.
            return match index < self.len {
                true => Err(self.corrupt(index, "the end of the file", "8 bytes")),
                false => Ok(None),
            };
        };
        if entry.0 == 0 {
            return Ok(None);
        }
        if entry.reserved() != 0 {
            let found = format!("{:#018x}", entry.0);
            return Err(self.corrupt(index, found, "bits 0 to 8 and 56 to 62 clear"));
        }
        let Some(table) = entry.l2_table() else {
            return Ok(None);
        };
        let cluster_size = geometry.cluster_size();
        if !geometry.is_aligned(table) {
            let found = format!("{table}, which is unaligned");
            return Err(self.corrupt(index, found, format!("a multiple of {cluster_size:#x}")));
        }
        let end = table.0.saturating_add(cluster_size);
        let fault = bounds
            .fault(&(table.0..end), end - 1)
            .map_err(Error::io("asking for the size of the image"))?;
        match fault {
            None => Ok(Some(table)),
            Some(found) => Err(self.corrupt(index, found, "an L2 table inside the file")),
        }
    }

    /// Entry `index` as it is; 0 where the table has none.
    pub(crate) fn entry(&self, index: u64) -> L1Entry {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|i| self.entries.get(i));
        entry.copied().unwrap_or_default()
    }

    /// Changes entry `index` in memory.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the table has none.
    pub(crate) fn set(&mut self, index: u64, entry: L1Entry) -> Result<()> {
        let place = usize::try_from(index)
            .ok()
            .and_then(|i| self.entries.get_mut(i));
        match place {
            Some(place) => {
                *place = entry;
                Ok(())
            }
            None => Err(self.corrupt(index, "the end of the table", "an entry")),
        }
    }

    /// Where entry `index` stands in the image file.
    pub(crate) fn place(&self, index: u64) -> HostOffset {
        HostOffset(self.offset.0.saturating_add(index * L1Entry::LEN))
    }

    fn corrupt(&self, index: u64, found: impl Into<String>, allowed: impl Into<String>) -> Error {
        Error::corrupt(
            format!("L1 table entry {index}"),
            self.place(index),
            found,
            allowed,
        )
    }
}
