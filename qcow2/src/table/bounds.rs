//! [`Bounds`]: where in the image file a table or guest data can be. What a damaged
//! entry refers to must not be shown to the guest as data.

use std::{
    io,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    addr::HostOffset,
    format::{Header, L1Entry},
    io::Storage,
};

/// The length of the image file. It is asked for again only when something seems to be
/// beyond it, for a running writer makes the file longer.
#[derive(Debug, Default)]
pub(crate) struct FileEnd {
    seen: AtomicU64,
    /// As long as it will be when what is in memory is written.
    promised: AtomicU64,
}

impl FileEnd {
    /// Whether the byte at `offset` is in the file; else the file's length.
    fn holds(&self, storage: &dyn Storage, offset: u64) -> io::Result<Result<(), u64>> {
        if offset < self.seen.load(Ordering::Relaxed)
            || offset < self.promised.load(Ordering::Relaxed)
        {
            return Ok(Ok(()));
        }
        let end = storage.size()?;
        self.seen.store(end, Ordering::Relaxed);
        Ok(if offset < end { Ok(()) } else { Err(end) })
    }

    /// Says that there will be something up to `end`.
    pub(crate) fn promise(&self, end: u64) {
        self.promised.fetch_max(end, Ordering::Relaxed);
    }
}

/// The image file as far as references into it can be judged without counting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) header: &'a Header,
    pub(crate) end: &'a FileEnd,
}

impl Bounds<'_> {
    /// What is wrong with a reference to `range`, which has to begin, and with its last
    /// part at `last` too, in the file, and to be none of the tables that the header
    /// names.
    pub(crate) fn fault(&self, range: &Range<u64>, last: u64) -> io::Result<Option<String>> {
        for (table, name) in self.tables() {
            if range.start < table.end && table.start < range.end {
                return Ok(Some(format!("{:#x}, which is in {name}", range.start)));
            }
        }
        Ok(match self.end.holds(self.storage, last)? {
            Ok(()) => None,
            Err(end) => Some(format!("{:#x}, where the file ends at {end:#x}", last)),
        })
    }

    /// The tables that the header names, and its own cluster.
    fn tables(&self) -> [(Range<u64>, &'static str); 3] {
        let header = self.header;
        let cluster_size = header.geometry().cluster_size();
        let table = |offset: HostOffset, bytes: u64| {
            let end = offset.0.saturating_add(bytes);
            let rounded = end.checked_add(cluster_size - 1);
            offset.0..rounded.map_or(end, |end| end & !(cluster_size - 1))
        };
        let l1_bytes = u64::from(header.l1_size) * L1Entry::LEN;
        let refcount_bytes = u64::from(header.refcount_table_clusters) * cluster_size;
        [
            (0..cluster_size, "the header's cluster"),
            (table(header.l1_table_offset, l1_bytes), "the L1 table"),
            (
                table(header.refcount_table_offset, refcount_bytes),
                "the refcount table",
            ),
        ]
    }
}
