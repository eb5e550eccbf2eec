//! [`Refcounts`]: the refcounts of an image, read block by block as they are
//! asked for, with changes kept apart until they are written.

use std::{collections::BTreeMap, fmt, ops::Deref, sync::Arc};

use crate::{
    Error, Geometry, Result,
    addr::{HostCluster, HostOffset},
    format::{Header, RefcountTableEntry, refcount},
    io::Storage,
};

/// Refcount table and blocks of an open image.
///
/// Only blocks that were changed stay in memory, and one that was read last; a
/// scan of a full image holds one block at a time.
pub struct Refcounts<'a> {
    storage: Handle<'a>,
    geometry: Geometry,
    /// The refcount table, one entry a refcount block.
    table: Vec<RefcountTableEntry>,
    /// Where the table stands in the file.
    table_offset: HostOffset,
    /// Bytes of the file when it was opened: what lies past them holds no block.
    size: u64,
    /// Blocks with changes that may not be on disk yet, by their index in the table.
    changed: BTreeMap<u64, Block>,
    /// The block read last: its index and its bytes.
    last_read: Option<(u64, Vec<u8>)>,
}

/// The image file: lent for one operation, or kept for as long as it takes.
#[derive(Clone, Debug)]
pub(crate) enum Handle<'a> {
    /// Lent.
    Lent(&'a dyn Storage),
    /// Kept.
    Kept(Arc<dyn Storage>),
}

impl<'a> Deref for Handle<'a> {
    type Target = dyn Storage + 'a;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Lent(storage) => *storage,
            Self::Kept(storage) => &**storage,
        }
    }
}

/// A refcount block in memory.
struct Block {
    host: HostOffset,
    bytes: Vec<u8>,
    /// Differs from what was last written.
    dirty: bool,
}

impl<'a> Refcounts<'a> {
    /// Reads the refcount table (at most 8 MiB, a limit the header was checked
    /// against).
    ///
    /// # Errors
    /// I/O errors only; entries are checked when they are used.
    pub fn load(storage: &'a dyn Storage, header: &Header) -> Result<Self> {
        Self::load_from(Handle::Lent(storage), header)
    }

    /// As [`load`](Self::load).
    pub(super) fn load_from(storage: Handle<'a>, header: &Header) -> Result<Self> {
        let geometry = header.geometry();
        let table_offset = header.refcount_table_offset;
        let bytes = u64::from(header.refcount_table_clusters) * geometry.cluster_size();
        let mut raw = vec![0; usize::try_from(bytes).unwrap_or(0)];
        storage
            .read_padded(table_offset.0, &mut raw)
            .map_err(Error::io_with(|| {
                format!("reading the refcount table at {table_offset}")
            }))?;
        let table = refcount::entries(&raw).collect();
        let size = storage
            .size()
            .map_err(Error::io("asking for the size of the image"))?;
        Ok(Self {
            storage,
            geometry,
            table,
            table_offset,
            size,
            changed: BTreeMap::new(),
            last_read: None,
        })
    }

    /// The number of entries that the refcount table has room for.
    pub(super) fn table_len(&self) -> u64 {
        self.table.len() as u64
    }

    /// Bytes of the refcount table in the file, and where it starts.
    pub(super) fn table_place(&self) -> (HostOffset, u64) {
        (self.table_offset, self.table_len() * 8)
    }

    /// Index of the refcount block that counts `cluster`, and the place in it.
    fn place(&self, cluster: HostCluster) -> (u64, usize) {
        let entries = self.geometry.refcount_block_entries();
        // A block is a cluster: its entries can be counted in memory.
        (
            cluster.0 / entries,
            usize::try_from(cluster.0 % entries).unwrap_or(usize::MAX),
        )
    }

    /// The refcount block with this index, or `None` if the table has none there.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the entry has reserved bits or is not on a cluster boundary.
    pub(super) fn block_offset(&self, index: u64) -> Result<Option<HostOffset>> {
        if let Some(block) = self.changed.get(&index) {
            return Ok(Some(block.host));
        }
        let Some(entry) = usize::try_from(index).ok().and_then(|i| self.table.get(i)) else {
            return Ok(None);
        };
        let Some(offset) = entry.block() else {
            return Ok(None);
        };
        // Past the end a block would read as zeros, and every cluster as free. Blocks
        // that were added are where the file ended before.
        let size = match offset.0 < self.size {
            true => self.size,
            false => self
                .storage
                .size()
                .map_err(Error::io("asking for the size of the image"))?,
        };
        let inside = offset.0 < size && offset.0 >= self.geometry.cluster_size();
        if entry.reserved() != 0 || !self.geometry.is_aligned(offset) || !inside {
            return Err(Error::corrupt(
                format!("refcount table entry {index}"),
                HostOffset(self.table_offset.0.saturating_add(index.saturating_mul(8))),
                format!("{:#x}", entry.0),
                format!("a cluster boundary inside the file of {size} bytes"),
            ));
        }
        Ok(Some(offset))
    }

    /// Whether there is a refcount block with this index.
    pub(super) fn has_block(&self, index: u64) -> Result<bool> {
        Ok(self.block_offset(index)?.is_some())
    }

    /// The bytes of block `index`; `None` if the table has none there, so that
    /// all of its refcounts are 0.
    pub(super) fn block(&mut self, index: u64) -> Result<Option<&[u8]>> {
        if self.changed.contains_key(&index) {
            return Ok(self.changed.get(&index).map(|block| block.bytes.as_slice()));
        }
        let Some(offset) = self.block_offset(index)? else {
            return Ok(None);
        };
        if self
            .last_read
            .as_ref()
            .is_none_or(|(read, _)| *read != index)
        {
            let mut bytes = match self.last_read.take() {
                Some((_, bytes)) => bytes,
                None => vec![0; usize::try_from(self.geometry.cluster_size()).unwrap_or(0)],
            };
            self.storage
                .read_padded(offset.0, &mut bytes)
                .map_err(Error::io_with(|| {
                    format!("reading the refcount block at {offset}")
                }))?;
            self.last_read = Some((index, bytes));
        }
        Ok(self.last_read.as_ref().map(|(_, bytes)| bytes.as_slice()))
    }

    /// The refcount of `cluster`: 0 where no refcount block covers it.
    ///
    /// # Errors
    /// I/O errors, and [`Error::Corrupt`] for a bad refcount table entry.
    pub fn get(&mut self, cluster: HostCluster) -> Result<u64> {
        let (index, within) = self.place(cluster);
        let order = self.geometry.refcount_order();
        Ok(self
            .block(index)?
            .and_then(|block| refcount::get(block, order, within))
            .unwrap_or(0))
    }

    /// Whether at least `many` of the first `clusters` clusters are in use. Refcount blocks
    /// that can't be are counted as if they were not there.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn at_least_in_use(&mut self, clusters: u64, many: u64) -> Result<bool> {
        let entries = self.geometry.refcount_block_entries();
        let order = self.geometry.refcount_order();
        let (mut first, mut count) = (0, 0);
        while first < clusters && count < many {
            let here = usize::try_from(entries.min(clusters - first)).unwrap_or(usize::MAX);
            count += match self.block(first / entries) {
                Ok(Some(block)) => refcount::count_in_use(block, order, here) as u64,
                Ok(None) | Err(Error::Corrupt { .. }) => 0,
                Err(error) => return Err(error),
            };
            first += entries;
        }
        Ok(count >= many)
    }

    /// Adds a fresh block (all zeros) with this index at `host`. It becomes part
    /// of the table with [`write_table_entries`](Self::write_table_entries).
    pub(super) fn add_block(&mut self, index: u64, host: HostOffset) {
        let bytes = vec![0; usize::try_from(self.geometry.cluster_size()).unwrap_or(0)];
        self.changed.insert(
            index,
            Block {
                host,
                bytes,
                dirty: true,
            },
        );
    }

    /// Sets the refcount of `cluster` in memory, where a block exists for it.
    fn set(&mut self, cluster: HostCluster, value: u64) -> Result<()> {
        let (index, within) = self.place(cluster);
        if !self.changed.contains_key(&index) {
            let host = self.block_offset(index)?.ok_or_else(|| {
                Error::Refused(format!("cluster {} has no refcount block", cluster.0))
            })?;
            let bytes = self.block(index)?.map(<[u8]>::to_vec).unwrap_or_default();
            self.changed.insert(
                index,
                Block {
                    host,
                    bytes,
                    dirty: false,
                },
            );
        }
        let order = self.geometry.refcount_order();
        let stored = self.changed.get_mut(&index).is_some_and(|block| {
            block.dirty = true;
            refcount::set(&mut block.bytes, order, within, value)
        });
        if stored {
            Ok(())
        } else {
            Err(Error::Refused(format!(
                "refcount {value} of cluster {} does not fit",
                cluster.0
            )))
        }
    }

    /// Raises the refcount of `cluster` from 0 to 1 in memory.
    ///
    /// # Errors
    /// [`Error::Refused`] if it isn't 0: then it was not free.
    pub(super) fn claim(&mut self, cluster: HostCluster) -> Result<()> {
        match self.get(cluster)? {
            0 => self.set(cluster, 1),
            found => Err(Error::Refused(format!(
                "cluster {} was to be allocated, but its refcount is {found}",
                cluster.0
            ))),
        }
    }

    /// Raises the refcount of `cluster` by one in memory.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no refcount so large.
    pub(super) fn add(&mut self, cluster: HostCluster) -> Result<()> {
        let more = self.get(cluster)?.saturating_add(1);
        self.set(cluster, more)
    }

    /// Lowers the refcount of `cluster` by one in memory.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is 0 already: the refcounts are wrong.
    pub(super) fn release(&mut self, cluster: HostCluster) -> Result<()> {
        match self.get(cluster)?.checked_sub(1) {
            Some(less) => self.set(cluster, less),
            None => Err(refcount_zero_in_use(self.geometry, cluster)),
        }
    }

    /// Writes every changed refcount block to its place. No sync.
    pub(super) fn write_blocks(&mut self) -> Result<()> {
        for block in self.changed.values_mut().filter(|block| block.dirty) {
            self.storage
                .write_all_at(block.host.0, &block.bytes)
                .map_err(Error::io_with(|| {
                    format!("writing the refcount block at {}", block.host)
                }))?;
            block.dirty = false;
        }
        Ok(())
    }

    /// Bytes of blocks with changes that were not written.
    pub(super) fn dirty_bytes(&self) -> u64 {
        let dirty = self.changed.values().filter(|block| block.dirty).count();
        self.geometry.cluster_size().saturating_mul(dirty as u64)
    }

    /// Forgets blocks that were written if they are more than `bytes`. Only when the
    /// table in memory names them all: after
    /// [`write_table_entries`](Self::write_table_entries) or
    /// [`write_moved_table`](Self::write_moved_table).
    pub(super) fn trim(&mut self, bytes: u64) {
        let kept = self.changed.len() as u64;
        if self.geometry.cluster_size().saturating_mul(kept) > bytes {
            self.changed.retain(|_, block| block.dirty);
            self.last_read = None;
        }
    }

    /// Enters blocks that were added into the table in memory; returns the
    /// indices of the entries that changed.
    fn enter_blocks(&mut self) -> Vec<u64> {
        let mut entered = Vec::new();
        for (&index, block) in &self.changed {
            let entry = usize::try_from(index)
                .ok()
                .and_then(|i| self.table.get_mut(i));
            if let Some(entry) = entry
                && entry.0 != block.host.0
            {
                entry.0 = block.host.0;
                entered.push(index);
            }
        }
        entered
    }

    /// Writes the table entries of blocks that were added, in place. The blocks
    /// themselves must be on stable storage by then. Blocks that count themselves come
    /// first, and those that they count after a sync. Returns whether anything was
    /// written; it is to be synced.
    pub(super) fn write_table_entries(&mut self) -> Result<bool> {
        let entered = self.enter_blocks();
        let (first, second): (Vec<u64>, Vec<u64>) = entered
            .iter()
            .partition(|index| self.counts_itself(**index));
        self.write_entries(&first)?;
        if !first.is_empty() && !second.is_empty() {
            self.storage
                .sync()
                .map_err(Error::io("syncing the refcount table"))?;
        }
        self.write_entries(&second)?;
        Ok(!entered.is_empty())
    }

    /// Whether the refcount of block `index` is in the block.
    fn counts_itself(&self, index: u64) -> bool {
        let host = self.changed.get(&index).map(|block| block.host);
        host.is_some_and(|host| self.place(self.geometry.host_cluster(host)).0 == index)
    }

    fn write_entries(&self, indices: &[u64]) -> Result<()> {
        for &index in indices {
            let Some(entry) = usize::try_from(index).ok().and_then(|i| self.table.get(i)) else {
                continue;
            };
            let at = self.table_offset.0.saturating_add(index.saturating_mul(8));
            self.storage
                .write_all_at(at, &entry.0.to_be_bytes())
                .map_err(Error::io_with(|| {
                    format!("writing refcount table entry {index} at {at:#x}")
                }))?;
        }
        Ok(())
    }

    /// Writes the whole table, blocks that were added included, to a new place
    /// with room for `entries`. The header still names the old one. No sync.
    pub(super) fn write_moved_table(&mut self, to: HostOffset, entries: u64) -> Result<()> {
        self.table
            .resize(usize::try_from(entries).unwrap_or(0), RefcountTableEntry(0));
        self.enter_blocks();
        let bytes: Vec<u8> = self
            .table
            .iter()
            .flat_map(|entry| entry.0.to_be_bytes())
            .collect();
        self.storage
            .write_all_at(to.0, &bytes)
            .map_err(Error::io_with(|| {
                format!("writing the refcount table at {to}")
            }))?;
        self.table_offset = to;
        Ok(())
    }
}

/// The refcounts say that a cluster is free which something refers to.
pub(crate) fn refcount_zero_in_use(geometry: Geometry, cluster: HostCluster) -> Error {
    Error::corrupt(
        format!("refcount of cluster {}", cluster.0),
        geometry.host_offset(cluster).unwrap_or_default(),
        "0 although the cluster is in use",
        "at least 1 (the refcounts of this image are wrong; repair it before writing to it)",
    )
}

impl fmt::Debug for Refcounts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refcounts")
            .field("table_offset", &self.table_offset)
            .field("entries", &self.table.len())
            .field("changed", &self.changed.len())
            .finish_non_exhaustive()
    }
}
