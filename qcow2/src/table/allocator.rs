//! [`Allocator`]: finds free clusters, and makes them ours in an order that a
//! power cut can't turn into more than leaked clusters.
//!
//! An allocation is planned first, refcount blocks and a larger refcount table
//! included, so that all the clusters it would take are known before anything is
//! written. The caller then proves that nothing refers to them (a refcount alone
//! is not believed), and only then [`adopt`](Allocator::adopt)s the plan.

use std::sync::Arc;

use crate::{
    Error, Geometry, Result,
    addr::{HostCluster, HostOffset},
    format::{Header, refcount},
    io::Storage,
    table::{Refcounts, refcounts::Handle},
};

/// Host offsets have 56 bits (spec, standard cluster descriptor).
const HOST_LIMIT: u64 = 1 << 56;

/// The refcount table is at most 8 MiB: QEMU's limit, and this crate's when reading.
const MAX_TABLE_BYTES: u64 = 8 << 20;

/// A run of clusters that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Index of the first cluster.
    pub(crate) first: HostCluster,
    /// How many.
    pub(crate) clusters: u64,
}

impl Run {
    /// The clusters of the run, one by one.
    pub(crate) fn iter(self) -> impl Iterator<Item = HostCluster> {
        (self.first.0..self.first.0.saturating_add(self.clusters)).map(HostCluster)
    }
}

/// Clusters that an operation means to take.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Single clusters, ascending; whoever asked uses them up from the front.
    pub(crate) singles: Vec<HostCluster>,
    /// One run for each contiguous request, in the order of the requests.
    pub(crate) runs: Vec<Run>,
    /// Refcount blocks to add: index in the refcount table, and where.
    blocks: Vec<(u64, HostCluster)>,
    /// A new, larger refcount table.
    table: Option<Run>,
}

impl Plan {
    /// Every cluster of the plan.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = HostCluster> {
        let blocks = self.blocks.iter().map(|(_, cluster)| *cluster);
        let runs = self
            .runs
            .iter()
            .chain(&self.table)
            .flat_map(|run| run.iter());
        self.singles.iter().copied().chain(blocks).chain(runs)
    }
}

/// Where a refcount table was moved to, for the header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MovedTable {
    pub(crate) offset: HostOffset,
    pub(crate) clusters: u32,
    old: Run,
}

/// Allocates and frees clusters of one image during one operation.
#[derive(Debug)]
pub(crate) struct Allocator<'a> {
    refcounts: Refcounts<'a>,
    geometry: Geometry,
    /// Clusters at or past this index can't be had (the end of a block device).
    end: u64,
    table: Option<Run>,
    /// Where the search begins; the clusters below aren't asked about.
    cursor: HostCluster,
}

impl Allocator<'static> {
    /// As [`new`](Self::new), for as long as it takes.
    pub(crate) fn kept(storage: &Arc<dyn Storage>, header: &Header) -> Result<Self> {
        Self::over(Handle::Kept(Arc::clone(storage)), header)
    }
}

impl<'a> Allocator<'a> {
    /// Reads the refcount table of the image in `storage`.
    pub(crate) fn new(storage: &'a dyn Storage, header: &Header) -> Result<Self> {
        Self::over(Handle::Lent(storage), header)
    }

    fn over(storage: Handle<'a>, header: &Header) -> Result<Self> {
        let geometry = header.geometry();
        let end = if storage.can_grow() {
            HOST_LIMIT
        } else {
            storage
                .size()
                .map_err(Error::io("asking for the size of the image"))?
        };
        Ok(Self {
            refcounts: Refcounts::load_from(storage, header)?,
            geometry,
            end: end >> geometry.cluster_bits(),
            table: None,
            // Cluster 0 holds the header, whatever its refcount says.
            cursor: HostCluster(1),
        })
    }

    /// That there are no clusters left.
    pub(crate) fn no_space(&self) -> Error {
        Error::no_space(self.end)
    }

    /// Where the next [`plan`](Self::plan) begins to search.
    pub(crate) fn cursor(&self) -> HostCluster {
        self.cursor
    }

    /// Has the next [`plan`](Self::plan) begin at `cursor`, past the header's cluster.
    pub(crate) fn search_from(&mut self, cursor: HostCluster) {
        self.cursor = cursor.max(HostCluster(1));
    }

    /// Whether a larger refcount table was planned that isn't written yet. There can be
    /// no other plan before it is.
    pub(crate) fn table_pending(&self) -> bool {
        self.table.is_some()
    }

    /// Bytes of refcount blocks with changes that were not written.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.refcounts.dirty_bytes()
    }

    /// Forgets refcount blocks that were written and entered in the table if they are
    /// more than `bytes`.
    pub(crate) fn trim(&mut self, bytes: u64) {
        self.refcounts.trim(bytes);
    }

    /// Finds `singles` clusters and a run for each length in `contiguous`, lowest
    /// first, and what refcount blocks and table they need. Changes nothing.
    ///
    /// # Errors
    /// [`Error::NoSpace`]; corrupt refcount table entries.
    pub(crate) fn plan(&mut self, singles: u64, contiguous: &[u64]) -> Result<Plan> {
        let mut blocks = 0;
        let mut table_entries = self.refcounts.table_len();
        loop {
            // New refcount blocks and a new table want clusters too, which may want
            // further blocks; the demand only grows, and soon stands.
            let grown = table_entries > self.refcounts.table_len();
            let mut wanted = contiguous.to_vec();
            if grown {
                wanted.push(self.geometry.clusters_for(table_entries.saturating_mul(8)));
            }
            let mut plan = self.first_fit(singles.saturating_add(blocks), &wanted)?;
            let missing = self.missing_blocks(&plan)?;
            let last_block = missing.last().copied().unwrap_or(0);
            if missing.len() as u64 <= blocks && last_block < table_entries {
                if grown {
                    plan.table = plan.runs.pop();
                }
                self.place_blocks(&mut plan, &missing);
                return Ok(plan);
            }
            blocks = blocks.max(missing.len() as u64);
            if last_block >= table_entries {
                table_entries = self.larger_table(last_block)?;
            }
        }
    }

    /// Takes clusters of the plan for refcount blocks. Each block counts itself if it can:
    /// then its entry can reach the disk before or after any other. Those that can't are
    /// counted by one that is there, or that counts itself.
    fn place_blocks(&self, plan: &mut Plan, missing: &[u64]) {
        let entries = self.geometry.refcount_block_entries();
        let mut elsewhere = Vec::new();
        for &index in missing {
            let below = |end: u64| {
                let end = end.saturating_mul(entries);
                plan.singles.partition_point(|cluster| cluster.0 < end)
            };
            let (start, end) = (below(index), below(index + 1));
            match end.checked_sub(1).filter(|last| start <= *last) {
                Some(last) => plan.blocks.push((index, plan.singles.remove(last))),
                None => elsewhere.push(index),
            }
        }
        let kept = plan.singles.len().saturating_sub(elsewhere.len());
        let taken = plan.singles.split_off(kept);
        plan.blocks.extend(elsewhere.into_iter().zip(taken));
    }

    /// Entries of a refcount table that reaches past `block`, with room to spare.
    fn larger_table(&self, block: u64) -> Result<u64> {
        let bytes = block
            .saturating_add(1)
            .saturating_mul(12)
            .min(MAX_TABLE_BYTES);
        let per_cluster = self.geometry.cluster_size() / 8;
        let entries = self
            .geometry
            .clusters_for(bytes)
            .saturating_mul(per_cluster);
        if entries <= block {
            return Err(Error::Refused(format!(
                "the refcount table would grow past its limit of {MAX_TABLE_BYTES} bytes"
            )));
        }
        Ok(entries)
    }

    /// Walks the free runs upwards and hands them out.
    fn first_fit(&mut self, singles: u64, contiguous: &[u64]) -> Result<Plan> {
        let mut runs: Vec<Option<Run>> = vec![None; contiguous.len()];
        let mut plan = Plan::default();
        let mut from = self.cursor.0;
        loop {
            let open = runs.iter().any(Option::is_none);
            if !open && plan.singles.len() as u64 >= singles {
                plan.runs = runs.into_iter().flatten().collect();
                return Ok(plan);
            }
            let longest = contiguous
                .iter()
                .zip(&runs)
                .filter(|(_, run)| run.is_none());
            let longest = longest.map(|(wanted, _)| *wanted).max().unwrap_or(1);
            let mut free = self.next_free_run(from, longest)?;
            from = free.first.0.saturating_add(free.clusters);
            for (&wanted, run) in contiguous.iter().zip(&mut runs) {
                if run.is_none() && wanted <= free.clusters {
                    *run = Some(Run {
                        first: free.first,
                        clusters: wanted,
                    });
                    free.first.0 += wanted;
                    free.clusters -= wanted;
                }
            }
            let take = free
                .clusters
                .min(singles.saturating_sub(plan.singles.len() as u64));
            plan.singles.extend(
                Run {
                    first: free.first,
                    clusters: take,
                }
                .iter(),
            );
        }
    }

    /// The first run of clusters with refcount 0 at or past `from`. It goes on past
    /// its refcount block as long as it is shorter than `enough`.
    fn next_free_run(&mut self, from: u64, enough: u64) -> Result<Run> {
        let entries = self.geometry.refcount_block_entries();
        let mut run = self.free_run_in_block(from)?;
        loop {
            let end = run.first.0.saturating_add(run.clusters);
            if run.clusters >= enough || end % entries != 0 || end >= self.end {
                return Ok(run);
            }
            let more = self.free_run_in_block(end)?;
            if more.first.0 != end {
                return Ok(run);
            }
            run.clusters = run.clusters.saturating_add(more.clusters);
        }
    }

    /// The first run of clusters with refcount 0 at or past `from`, cut at the end
    /// of its refcount block; one past the table's reach ends with the storage.
    fn free_run_in_block(&mut self, from: u64) -> Result<Run> {
        let entries = self.geometry.refcount_block_entries();
        let mut at = from;
        loop {
            if at >= self.end {
                return Err(Error::no_space(self.end));
            }
            let index = at / entries;
            if index >= self.refcounts.table_len() {
                return Ok(Run {
                    first: HostCluster(at),
                    clusters: self.end - at,
                });
            }
            let block_end = ((index + 1).saturating_mul(entries)).min(self.end);
            let within = at % entries;
            let order = self.geometry.refcount_order();
            let found = match self.refcounts.block(index)? {
                None => Some((within, block_end - index * entries)),
                Some(block) => zeros(block, order, within, block_end - index * entries),
            };
            match found {
                Some((start, end)) => {
                    let first = HostCluster(index * entries + start);
                    return Ok(Run {
                        first,
                        clusters: end - start,
                    });
                }
                None => at = block_end,
            }
        }
    }

    /// Indices of the refcount blocks that the plan's clusters fall into and that
    /// do not exist, ascending.
    fn missing_blocks(&mut self, plan: &Plan) -> Result<Vec<u64>> {
        let entries = self.geometry.refcount_block_entries();
        let mut missing = Vec::new();
        let mut known = None;
        let mut indices: Vec<u64> = Vec::new();
        for cluster in plan.clusters() {
            let index = cluster.0 / entries;
            if known != Some(index) {
                known = Some(index);
                indices.push(index);
            }
        }
        indices.sort_unstable();
        indices.dedup();
        for index in indices {
            if !self.refcounts.has_block(index)? {
                missing.push(index);
            }
        }
        Ok(missing)
    }

    /// Takes the plan's refcount blocks and table. Other clusters of the plan are
    /// [`claim`](Self::claim)ed one by one as they are used.
    pub(crate) fn adopt(&mut self, plan: &Plan) -> Result<()> {
        for &(index, cluster) in &plan.blocks {
            self.refcounts.add_block(index, self.offset(cluster)?);
        }
        for &(_, cluster) in &plan.blocks {
            self.refcounts.claim(cluster)?;
        }
        self.table = plan.table;
        for cluster in plan.table.iter().flat_map(|run| run.iter()) {
            self.refcounts.claim(cluster)?;
        }
        Ok(())
    }

    /// Counts one reference to a cluster of the plan, in memory.
    pub(crate) fn claim(&mut self, cluster: HostCluster) -> Result<()> {
        self.refcounts.claim(cluster)
    }

    /// Counts one more reference to a cluster that is in use, in memory.
    pub(crate) fn add(&mut self, cluster: HostCluster) -> Result<()> {
        self.refcounts.add(cluster)
    }

    /// Takes one reference from a cluster, in memory. Only after whatever
    /// referred to it is gone from stable storage.
    pub(crate) fn release(&mut self, cluster: HostCluster) -> Result<()> {
        self.refcounts.release(cluster)
    }

    /// The refcount of `cluster`.
    pub(crate) fn refcount(&mut self, cluster: HostCluster) -> Result<u64> {
        self.refcounts.get(cluster)
    }

    /// First byte of `cluster`.
    pub(crate) fn offset(&self, cluster: HostCluster) -> Result<HostOffset> {
        self.geometry
            .host_offset(cluster)
            .filter(|offset| offset.0 < HOST_LIMIT)
            .ok_or_else(|| Error::Refused(format!("cluster {} is past 2^56 bytes", cluster.0)))
    }

    /// The refcount structures in the file that are written over, or freed, when the
    /// clusters of `plan` are taken and `others` are released.
    pub(crate) fn touched(
        &mut self,
        plan: &Plan,
        others: impl Iterator<Item = HostCluster>,
    ) -> Result<Vec<HostCluster>> {
        let entries = self.geometry.refcount_block_entries();
        let mut indices: Vec<u64> = plan
            .clusters()
            .chain(others)
            .map(|c| c.0 / entries)
            .collect();
        let mut touched = Vec::new();
        if !plan.blocks.is_empty() || plan.table.is_some() {
            let (offset, bytes) = self.refcounts.table_place();
            let table = Run {
                first: self.geometry.host_cluster(offset),
                clusters: self.geometry.clusters_for(bytes),
            };
            touched.extend(table.iter());
            if plan.table.is_some() {
                indices.extend(table.iter().map(|cluster| cluster.0 / entries));
            }
        }
        indices.sort_unstable();
        indices.dedup();
        for index in indices {
            let block = self.refcounts.block_offset(index)?;
            touched.extend(block.map(|offset| self.geometry.host_cluster(offset)));
        }
        Ok(touched)
    }

    /// Writes changed refcount blocks to their places. No sync.
    pub(crate) fn write_blocks(&mut self) -> Result<()> {
        self.refcounts.write_blocks()
    }

    /// After the blocks are on stable storage: enters new ones into the table.
    /// Either in place (then `written` is true), or into a new table, for which
    /// the caller has to switch the header once it is on stable storage too.
    /// No sync.
    pub(crate) fn write_table(&mut self) -> Result<TableChange> {
        let Some(run) = self.table.take() else {
            return Ok(if self.refcounts.write_table_entries()? {
                TableChange::InPlace
            } else {
                TableChange::None
            });
        };
        let (old_offset, old_bytes) = self.refcounts.table_place();
        let offset = self.offset(run.first)?;
        let entries = run
            .clusters
            .saturating_mul(self.geometry.cluster_size() / 8);
        self.refcounts.write_moved_table(offset, entries)?;
        Ok(TableChange::Moved(MovedTable {
            offset,
            clusters: u32::try_from(run.clusters).unwrap_or(u32::MAX),
            old: Run {
                first: self.geometry.host_cluster(old_offset),
                clusters: self.geometry.clusters_for(old_bytes),
            },
        }))
    }

    /// Releases the clusters of a refcount table that the header no longer names.
    pub(crate) fn release_old_table(&mut self, moved: MovedTable) -> Result<()> {
        moved
            .old
            .iter()
            .try_for_each(|cluster| self.release(cluster))
    }
}

/// What became of the refcount table.
#[derive(Debug)]
pub(crate) enum TableChange {
    /// Nothing.
    None,
    /// Entries were written into it.
    InPlace,
    /// It was written elsewhere; the header has to follow.
    Moved(MovedTable),
}

/// The first run of zero refcounts in `block` within `from..end` (indices).
fn zeros(block: &[u8], order: u32, from: u64, end: u64) -> Option<(u64, u64)> {
    let is_zero = |index: u64| {
        usize::try_from(index).is_ok_and(|index| refcount::get(block, order, index) == Some(0))
    };
    let start = if order == 4 {
        // The usual width; full images are scanned at memory speed.
        let skip = usize::try_from(from).ok()?;
        let counts = block.chunks_exact(2).skip(skip);
        let start = counts.clone().position(|count| count == [0, 0])?;
        from.saturating_add(start as u64)
    } else {
        (from..end).find(|&index| is_zero(index))?
    };
    if start >= end {
        return None;
    }
    let stop = (start..end).find(|&index| !is_zero(index)).unwrap_or(end);
    Some((start, stop))
}
