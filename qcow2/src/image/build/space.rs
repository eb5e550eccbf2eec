//! [`Space`]: which cluster of the file is next, and how often each is referred to.
//!
//! Clusters are given out from the front to the back, so that the refcounts of those
//! before the current place never change again: a refcount block is written as soon as it
//! is full, and memory holds the last one, or two.

use std::collections::VecDeque;

use crate::{
    Error, Geometry, Result,
    addr::HostOffset,
    format::{RefcountTableEntry, header::MAX_REFCOUNT_TABLE_BYTES, refcount},
    io::Storage,
};

/// First offset that doesn't fit an L2 entry (bits 9 to 55).
const OFFSET_LIMIT: u64 = 1 << 56;

/// Clusters of a new image file.
#[derive(Debug)]
pub(super) struct Space {
    geometry: Geometry,
    /// Clusters that there may be: of a device what it holds.
    limit: u64,
    /// The first cluster that wasn't given out.
    next: u64,
    /// The cluster that compressed data ends in, and how many of its bytes are used.
    tail: Option<(u64, u64)>,
    /// The refcount blocks that aren't written; the first one is that of index
    /// `table.len()`.
    blocks: VecDeque<Vec<u8>>,
    /// Where the blocks before them are.
    table: Vec<HostOffset>,
}

/// Where the refcount table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) offset: HostOffset,
    pub(super) clusters: u64,
}

impl Space {
    /// A file of at most `limit` clusters, none of which is used.
    pub(super) fn new(geometry: Geometry, limit: u64) -> Self {
        Self {
            geometry,
            limit: limit.min(OFFSET_LIMIT / geometry.cluster_size()),
            next: 0,
            tail: None,
            blocks: VecDeque::new(),
            table: Vec::new(),
        }
    }

    /// Clusters that the file has.
    pub(super) fn clusters(&self) -> u64 {
        self.next
    }

    /// Gives out `count` clusters in a row, each with a refcount of 1.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn take(&mut self, count: u64) -> Result<HostOffset> {
        let first = self.next;
        let end = first.checked_add(count).filter(|end| *end <= self.limit);
        let Some(end) = end else {
            return Err(Error::no_space(self.limit));
        };
        for cluster in first..end {
            self.count(cluster)?;
        }
        self.next = end;
        Ok(HostOffset(first * self.geometry.cluster_size()))
    }

    /// Gives out `len` bytes for a compressed cluster, less than a cluster: behind the
    /// last one where that can be, at the start of a new cluster otherwise.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(super) fn pack(&mut self, len: u64) -> Result<HostOffset> {
        let size = self.geometry.cluster_size();
        if let Some((cluster, used)) = self.tail {
            let room = size - used;
            // A compressed cluster goes on in the next cluster of the file only.
            let fits = len <= room || cluster + 1 == self.next;
            if fits && self.refcount(cluster) < self.geometry.refcount_max() {
                self.count(cluster)?;
                self.tail = Some((cluster, used + len));
                if len > room {
                    let more = self.take(1)?;
                    self.tail = Some((more.0 / size, len - room));
                }
                self.tail = self.tail.filter(|(_, used)| *used < size);
                return Ok(HostOffset(cluster * size + used));
            }
        }
        let host = self.take(1)?;
        self.tail = Some((host.0 / size, len));
        Ok(host)
    }

    /// Writes the refcount blocks that are complete.
    ///
    /// # Errors
    /// I/O errors, and as [`take`](Self::take).
    pub(super) fn write_full_blocks(&mut self, storage: &dyn Storage) -> Result<()> {
        let settled = self.tail.map_or(self.next, |(tail, _)| tail.min(self.next));
        loop {
            let end = (self.table.len() as u64 + 1) * self.geometry.refcount_block_entries();
            if end > settled {
                return Ok(());
            }
            let place = self.take(1)?;
            self.write_block(storage, place)?;
        }
    }

    /// Writes all that is left: the last blocks, and the table, at `reserved` if it fits
    /// there, behind everything else if not. Returns where the table is.
    ///
    /// # Errors
    /// As [`write_full_blocks`](Self::write_full_blocks).
    pub(super) fn finish(
        &mut self,
        storage: &dyn Storage,
        reserved: Option<Table>,
    ) -> Result<Table> {
        let (size, entries) = (
            self.geometry.cluster_size(),
            self.geometry.refcount_block_entries(),
        );
        let done = self.table.len() as u64;
        let (mut left, mut behind) = (0, 0);
        // Blocks and table are counted by blocks themselves; both only grow.
        loop {
            let blocks = (self.next + behind + left).div_ceil(entries);
            let clusters = self.geometry.clusters_for(blocks * 8);
            let outside = match reserved {
                Some(table) if clusters <= table.clusters => 0,
                _ => clusters,
            };
            if (blocks - done, outside) == (left, behind) {
                break;
            }
            (left, behind) = (blocks - done, outside);
        }
        if (done + left) * 8 > MAX_REFCOUNT_TABLE_BYTES {
            let text = "The image needs a larger refcount table than the format allows";
            return Err(Error::Refused(text.into()));
        }
        let first = self.take(left + behind)?;
        self.tail = None;
        for index in 0..left {
            self.write_block(storage, HostOffset(first.0 + index * size))?;
        }
        let table = match reserved {
            Some(table) if behind == 0 => table,
            _ => Table {
                offset: HostOffset(first.0 + left * size),
                clusters: behind,
            },
        };
        let mut bytes = Vec::new();
        for block in &self.table {
            RefcountTableEntry::new(*block).encode(&mut bytes);
        }
        bytes.resize(usize::try_from(table.clusters * size).unwrap_or(0), 0);
        storage
            .write_all_at(table.offset.0, &bytes)
            .map_err(Error::io("writing the refcount table"))?;
        Ok(table)
    }

    /// Writes the first of the blocks that aren't.
    fn write_block(&mut self, storage: &dyn Storage, place: HostOffset) -> Result<()> {
        let block = self.blocks.pop_front().unwrap_or_default();
        storage
            .write_all_at(place.0, &block)
            .map_err(Error::io_with(|| {
                format!("writing a refcount block at {place}")
            }))?;
        self.table.push(place);
        Ok(())
    }

    /// The block of `cluster` among those in memory, and the index in it.
    fn place(&self, cluster: u64) -> (usize, usize) {
        let entries = self.geometry.refcount_block_entries();
        let block = (cluster / entries).saturating_sub(self.table.len() as u64);
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        (index(block), index(cluster % entries))
    }

    fn refcount(&self, cluster: u64) -> u64 {
        let (block, index) = self.place(cluster);
        let order = self.geometry.refcount_order();
        let block = self.blocks.get(block);
        block
            .and_then(|block| refcount::get(block, order, index))
            .unwrap_or(0)
    }

    /// One more reference to `cluster`.
    fn count(&mut self, cluster: u64) -> Result<()> {
        let (block, index) = self.place(cluster);
        let size = usize::try_from(self.geometry.cluster_size()).unwrap_or(0);
        while self.blocks.len() <= block {
            self.blocks.push_back(vec![0; size]);
        }
        let order = self.geometry.refcount_order();
        let counted = self.blocks.get_mut(block).is_some_and(|block| {
            let count = refcount::get(block, order, index).unwrap_or(0);
            refcount::set(block, order, index, count.saturating_add(1))
        });
        match counted {
            true => Ok(()),
            false => Err(Error::Refused(format!(
                "cluster {cluster} of the new image is referred to too often"
            ))),
        }
    }
}
