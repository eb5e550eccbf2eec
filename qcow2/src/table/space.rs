//! [`Space`]: clusters for a writer that takes and gives them back one by one, over
//! the [`Allocator`], which plans.
//!
//! A cluster that is given back keeps its refcount until
//! [`release_given_back`](Space::release_given_back), which is called when nothing on
//! stable storage refers to it any more. So it can't be taken again before.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use super::{Allocator, Run, TableChange, allocator::MovedTable};
use crate::{
    Error, Geometry, Result,
    addr::{HostCluster, HostOffset},
    format::Header,
    io::Storage,
};

/// Clusters that are looked for at once. They aren't taken before they are used.
const AHEAD: u64 = if cfg!(test) { 7 } else { 256 };
/// Bytes of refcount blocks that are kept in memory.
const MAX_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 16 << 20 };
/// Runs of clusters given back that are kept in memory.
const MAX_GIVEN_BACK: usize = if cfg!(test) { 16 } else { 1 << 18 };

/// Clusters that lose a reference.
#[derive(Clone, Copy, Debug)]
struct GivenBack {
    run: Run,
    /// Their space is given back to the system, too.
    punch: bool,
}

/// The clusters of an image file as its writer sees them.
#[derive(Debug)]
pub(crate) struct Space {
    storage: Arc<dyn Storage>,
    allocator: Allocator<'static>,
    geometry: Geometry,
    /// Clusters known to be free, which are taken from the front.
    ahead: VecDeque<HostCluster>,
    /// Clusters that lose a reference with the next flush, once for each reference.
    given_back: Vec<GivenBack>,
    /// A refcount table that the header no longer names.
    old_table: Option<MovedTable>,
    /// Refcounts changed that were not written.
    dirty: bool,
    /// Nothing was ever written to the file from here on, so that it reads as zeros.
    untouched: u64,
    /// The free end of the cluster that compressed clusters are packed into; empty
    /// without one.
    packing: Range<u64>,
}

impl Space {
    /// The space of the image in `storage`.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn new(storage: &Arc<dyn Storage>, header: &Header) -> Result<Self> {
        let geometry = header.geometry();
        let untouched = match storage.can_grow() {
            true => storage
                .size()
                .map_err(Error::io("asking for the size of the image"))?,
            false => u64::MAX,
        };
        Ok(Self {
            storage: Arc::clone(storage),
            allocator: Allocator::kept(storage, header)?,
            geometry,
            ahead: VecDeque::new(),
            given_back: Vec::new(),
            old_table: None,
            dirty: false,
            untouched,
            packing: 0..0,
        })
    }

    /// Makes sure that `count` clusters can be taken one by one.
    ///
    /// # Errors
    /// [`Error::NoSpace`]; I/O errors and corrupt refcount table entries. Nothing was written.
    pub(crate) fn ensure(&mut self, count: u64) -> Result<()> {
        if self.ahead.len() as u64 >= count {
            return Ok(());
        }
        // Those that are left are free, too, and found again.
        let start = self
            .ahead
            .front()
            .copied()
            .unwrap_or(self.allocator.cursor());
        self.ahead.clear();
        self.allocator
            .search_from(start.min(self.allocator.cursor()));
        let attempts = [
            (AHEAD.max(count), self.allocator.cursor()),
            (AHEAD.max(count), HostCluster(1)),
            (count, HostCluster(1)),
        ];
        let mut refused = None;
        for (wanted, from) in attempts {
            self.allocator.search_from(from);
            match self.allocator.plan(wanted, &[]) {
                Ok(plan) => {
                    self.allocator.adopt(&plan)?;
                    self.dirty |= plan.clusters().count() > plan.singles.len();
                    let next = plan.singles.last().map_or(from.0, |last| last.0 + 1);
                    self.allocator.search_from(HostCluster(next));
                    self.ahead = plan.singles.into();
                    return Ok(());
                }
                Err(error @ (Error::NoSpace { .. } | Error::Refused(_))) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| self.allocator.no_space()))
    }

    /// Takes a cluster, with a refcount of 1 in memory.
    ///
    /// # Errors
    /// As [`ensure`](Self::ensure).
    pub(crate) fn take(&mut self) -> Result<HostOffset> {
        self.ensure(1)?;
        let first = self.ahead.front().copied();
        let cluster = first.ok_or_else(|| self.allocator.no_space())?;
        let offset = self.allocator.offset(cluster)?;
        self.allocator.claim(cluster)?;
        self.ahead.pop_front();
        self.dirty = true;
        Ok(offset)
    }

    /// Where `len` bytes of a compressed cluster, less than a cluster, come to lie: behind
    /// the one before if they fit into its host cluster, or if the next host cluster is
    /// behind that; else at the start of another. Changes nothing.
    ///
    /// # Errors
    /// As [`ensure`](Self::ensure).
    pub(crate) fn place_packed(&mut self, len: u64) -> Result<Range<u64>> {
        let Range { start, end } = self.packing;
        if start < end {
            let cluster = self.geometry.host_cluster(HostOffset(start));
            let counted = self.allocator.refcount(cluster)?;
            let can_share = counted > 0 && counted < self.geometry.refcount_max();
            if can_share && end - start >= len {
                return Ok(start..start + len);
            }
            self.ensure(1)?;
            let next = self.ahead.front().copied();
            if can_share && next == Some(HostCluster(cluster.0 + 1)) {
                return Ok(start..start + len);
            }
        }
        self.ensure(1)?;
        let first = self.ahead.front().copied().unwrap_or_default();
        let start = self.allocator.offset(first)?.0;
        Ok(start..start.saturating_add(len))
    }

    /// Takes the place that [`place_packed`](Self::place_packed) told: each cluster of it
    /// has one more reference in memory.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn take_packed(&mut self, range: &Range<u64>) -> Result<()> {
        let cluster_size = self.geometry.cluster_size();
        let first = self.geometry.host_cluster(HostOffset(range.start));
        let last = self.geometry.host_cluster(HostOffset(range.end - 1));
        let shared = range.start == self.packing.start && !self.packing.is_empty();
        if shared {
            self.allocator.add(first)?;
            self.dirty = true;
        }
        if !shared || last != first {
            self.take()?;
        }
        self.packing = range.end..(last.0 + 1).saturating_mul(cluster_size);
        Ok(())
    }

    /// Takes a reference from each of the clusters that `bytes` bytes at `offset` touch,
    /// once that can be done. With `punch` the space of those that become free is given
    /// back to the system: they won't be needed soon.
    pub(crate) fn give_back(&mut self, offset: HostOffset, bytes: u64, punch: bool) {
        let first = self.geometry.host_cluster(offset);
        let last = HostOffset(offset.0.saturating_add(bytes.saturating_sub(1)));
        let clusters = self.geometry.host_cluster(last).0 - first.0 + 1;
        match self.given_back.last_mut() {
            Some(GivenBack { run, punch: same })
                if *same == punch && run.first.0.checked_add(run.clusters) == Some(first.0) =>
            {
                run.clusters += clusters;
            }
            _ => {
                let run = Run { first, clusters };
                self.given_back.push(GivenBack { run, punch });
            }
        }
    }

    /// Whether there is as much to write as memory is meant for, or what has to be
    /// written before the next cluster is looked for.
    pub(crate) fn wants_flush(&self) -> bool {
        self.allocator.table_pending()
            || self.given_back.len() > MAX_GIVEN_BACK
            || self.allocator.dirty_bytes() > MAX_BYTES
    }

    /// Whether there are clusters that lose a reference with the next flush.
    pub(crate) fn has_given_back(&self) -> bool {
        !self.given_back.is_empty()
    }

    /// Whether refcounts changed, or will.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty || !self.given_back.is_empty() || self.old_table.is_some()
    }

    /// Writes changed refcount blocks. No sync.
    pub(crate) fn write_blocks(&mut self) -> Result<bool> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty {
            self.allocator.write_blocks()?;
        }
        Ok(dirty)
    }

    /// As [`Allocator::write_table`].
    pub(crate) fn write_table(&mut self) -> Result<TableChange> {
        let change = self.allocator.write_table()?;
        if let TableChange::Moved(moved) = change {
            self.touched(u64::MAX);
            self.old_table = Some(moved);
        }
        Ok(change)
    }

    /// Whether the refcounts that changed, and those of what was given back, are as few
    /// as memory is meant for.
    pub(crate) fn fits_in_memory(&self) -> bool {
        let entries = self.geometry.refcount_block_entries();
        let (mut blocks, mut last) = (0_u64, None);
        for GivenBack { run, .. } in &self.given_back {
            let first = run.first.0 / entries;
            let end = run.first.0.saturating_add(run.clusters).div_ceil(entries);
            let counted = u64::from(last == Some(first));
            blocks = blocks.saturating_add(end.saturating_sub(first + counted));
            last = end.checked_sub(1);
        }
        let bytes = blocks.saturating_mul(self.geometry.cluster_size());
        !self.wants_flush() && bytes <= MAX_BYTES && self.old_table.is_none()
    }

    /// Lowers the refcounts of what was given back, and writes them unless they are
    /// `lazy`. No sync. Afterwards clusters whose refcount is 0 can be taken.
    ///
    /// Returns whether anything was written.
    pub(crate) fn release_given_back(&mut self, lazy: bool) -> Result<bool> {
        let any = self.old_table.is_some() || !self.given_back.is_empty();
        if let Some(moved) = self.old_table.take() {
            self.allocator.release_old_table(moved)?;
        }
        let mut given_back = std::mem::take(&mut self.given_back);
        given_back.sort_unstable_by_key(|given| given.run.first);
        if let Some(lowest) = given_back.first() {
            let cursor = lowest.run.first.min(self.allocator.cursor());
            self.allocator.search_from(cursor);
        }
        let mut hole = 0..0;
        for GivenBack { run, punch } in given_back {
            for cluster in run.iter() {
                self.allocator.release(cluster)?;
                let is_free = self.allocator.refcount(cluster)? == 0;
                let packed = self.geometry.host_cluster(HostOffset(self.packing.start));
                if is_free && packed == cluster {
                    self.packing = 0..0;
                }
                if punch && is_free {
                    let start = self.allocator.offset(cluster)?.0;
                    if hole.end != start {
                        self.punch(std::mem::replace(&mut hole, start..start));
                    }
                    hole.end = start + self.geometry.cluster_size();
                }
            }
            if !lazy && self.allocator.dirty_bytes() > MAX_BYTES {
                self.allocator.write_blocks()?;
                self.allocator.trim(MAX_BYTES);
            }
        }
        self.punch(hole);
        if lazy {
            self.dirty |= any;
            return Ok(false);
        }
        self.allocator.write_blocks()?;
        self.allocator.trim(MAX_BYTES);
        Ok(any)
    }

    /// Gives space back to the system. Where that can't be done it stays reserved, which
    /// is no failure: nothing reads it.
    fn punch(&self, hole: Range<u64>) {
        if !hole.is_empty() {
            let _ = self.storage.punch_hole(hole);
        }
    }

    /// The refcount of the cluster at `offset`.
    pub(crate) fn refcount(&mut self, offset: HostOffset) -> Result<u64> {
        self.allocator.refcount(self.geometry.host_cluster(offset))
    }

    /// Whether the file reads as zeros from `offset` on, because nothing was written
    /// there.
    pub(crate) fn is_untouched(&self, offset: HostOffset) -> bool {
        offset.0 >= self.untouched
    }

    /// Says that something was written to the file up to `end`.
    pub(crate) fn touched(&mut self, end: u64) {
        self.untouched = self.untouched.max(end);
    }
}
