//! [`Places`]: where the refcount blocks and the refcount table are to be.

use std::collections::BTreeMap;

use super::{space::Space, targets::Targets};
use crate::{
    addr::HostOffset,
    check::{report::CheckFailed, survey::Survey, walk::Metadata},
    format::{RefcountTableEntry, header::MAX_REFCOUNT_TABLE_BYTES},
};

/// Clusters that follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) clusters: u64,
}

/// What becomes of the refcount table and its blocks.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Blocks that stay: index in the refcount table, and offset.
    pub(super) kept: Vec<(u64, HostOffset)>,
    /// Entries of the table that change in place; 0 for what is no block and isn't needed.
    pub(super) entries: BTreeMap<u64, u64>,
    /// A new table.
    pub(super) table: Option<Run>,
    /// A new snapshot table.
    pub(super) snapshots: Option<Run>,
    /// Clusters of the old table and of old blocks.
    pub(super) abandoned: Vec<u64>,
}

impl Places {
    /// The blocks as they are: those that can be written where they stand, the others
    /// left out.
    pub(super) fn as_they_are(
        metadata: &Metadata<'_>,
        targets: &Targets,
    ) -> Result<Self, CheckFailed> {
        let mut places = Self::default();
        metadata.for_each_refcount_block(|index, entry| {
            if let Some(offset) = sound(targets, entry) {
                places.kept.push((index, offset));
            }
            Ok(())
        })?;
        Ok(places)
    }

    /// Whether the layout changes.
    pub(super) fn change(&self) -> bool {
        !self.entries.is_empty() || self.table.is_some()
    }

    /// Finds places for the blocks that are missing or can't be where they are, for a
    /// new table if need be, and for a snapshot table of `snapshot_bytes`. What is taken and what is
    /// abandoned is entered in `targets`. Nothing is written.
    pub(super) fn find(
        metadata: &Metadata<'_>,
        targets: &mut Targets,
        survey: &Survey,
        snapshot_bytes: u64,
    ) -> Result<Self, CheckFailed> {
        let geometry = targets.geometry;
        let mut places = Self::default();
        let mut wrong = Vec::new();
        metadata.for_each_refcount_block(|index, entry| {
            match sound(targets, entry) {
                Some(offset) => places.kept.push((index, offset)),
                None => wrong.push((index, entry)),
            }
            Ok(())
        })?;
        let known = |places: &Self, index: u64| {
            let found = places.kept.binary_search_by_key(&index, |(kept, _)| *kept);
            found.is_ok()
        };
        let dense = 0..targets.counts.dense_blocks();
        let sparse: Vec<u64> = targets.counts.sparse_blocks().collect();
        for index in dense.chain(sparse) {
            if targets.counts.block(index).is_some() && !known(&places, index) {
                targets.renewed.insert(index, 0);
            }
        }
        if targets.keep {
            // Clusters that these counted may be somebody's.
            let in_file = targets.block_of(targets.in_file.saturating_sub(1));
            let lost = wrong.iter().map(|(index, _)| *index);
            let lost = lost
                .filter(|index| *index <= in_file)
                .map(|index| (index, 0));
            targets.renewed.extend(lost);
        }
        let device = match metadata.storage.can_grow() {
            true => None,
            false => Some(metadata.file_end()?),
        };
        let snapshot_clusters = geometry.clusters_for(snapshot_bytes);
        loop {
            let last = targets
                .renewed
                .keys()
                .chain(places.kept.last().map(|(i, _)| i));
            let entries = last.max().map_or(1, |last| last.saturating_add(1));
            let written = !wrong.is_empty() || !targets.renewed.is_empty();
            let table_clusters = match table_entries(metadata, targets, written) {
                Some(room) if room >= entries => 0,
                _ => geometry.clusters_for(entries.saturating_mul(RefcountTableEntry::LEN)),
            };
            if entries.saturating_mul(RefcountTableEntry::LEN) > MAX_REFCOUNT_TABLE_BYTES {
                return Err(CheckFailed::because("File too large"));
            }
            targets.added.clear();
            let mut space = Space::new(targets, survey, device);
            let mut runs = Vec::new();
            for clusters in [snapshot_clusters, table_clusters] {
                runs.push(match clusters {
                    0 => None,
                    clusters => Some(Run {
                        first: space.take(clusters)?,
                        clusters,
                    }),
                });
            }
            let mut blocks = Vec::new();
            for _ in 0..targets.renewed.len() {
                blocks.push(space.take(1)?);
            }
            let taken = runs.iter().flatten();
            let taken = taken.flat_map(|run| run.first..run.first + run.clusters);
            targets.added = taken.chain(blocks.iter().copied()).collect();
            // What is taken wants refcounts too.
            let mut wanted: Vec<u64> = targets.added.iter().map(|c| targets.block_of(*c)).collect();
            wanted.dedup();
            wanted.retain(|index| !known(&places, *index) && !targets.renewed.contains_key(index));
            if wanted.is_empty() {
                for (place, cluster) in targets.renewed.values_mut().zip(blocks) {
                    *place = cluster;
                }
                let mut runs = runs.into_iter();
                places.snapshots = runs.next().flatten();
                places.table = runs.next().flatten();
                break;
            }
            targets
                .renewed
                .extend(wanted.into_iter().map(|index| (index, 0)));
        }
        places.abandon(metadata, targets, &wrong);
        if places.snapshots.is_some() {
            for cluster in survey.snapshot_table.clone() {
                *targets.dropped.entry(cluster).or_default() += 1;
            }
        }
        Ok(places)
    }

    /// Enters what changes in the table, and the clusters that are of no use any more.
    fn abandon(
        &mut self,
        metadata: &Metadata<'_>,
        targets: &mut Targets,
        wrong: &[(u64, RefcountTableEntry)],
    ) {
        let geometry = targets.geometry;
        let limit = targets.counts.clusters();
        for (_, entry) in wrong {
            // As the walk counted them.
            let Some(offset) = entry.block().filter(|_| entry.reserved() == 0) else {
                continue;
            };
            let cluster = geometry.host_cluster(offset).get();
            if geometry.is_aligned(offset) && cluster < limit {
                self.abandoned.push(cluster);
            }
        }
        match self.table {
            None => {
                let cleared = wrong.iter().map(|(index, _)| (*index, 0));
                self.entries.extend(cleared);
                for (index, cluster) in &targets.renewed {
                    let offset = cluster << geometry.cluster_bits();
                    self.entries.insert(*index, offset);
                }
            }
            Some(_) => {
                let header = metadata.header;
                let offset = header.refcount_table_offset.get();
                let bytes = u64::from(header.refcount_table_clusters) * geometry.cluster_size();
                let end = offset.checked_add(bytes).filter(|end| *end < targets.reach);
                if let Some(end) = end.filter(|_| bytes > 0) {
                    let first = offset >> geometry.cluster_bits();
                    self.abandoned.extend(first..geometry.clusters_for(end));
                }
            }
        }
        for cluster in &self.abandoned {
            *targets.dropped.entry(*cluster).or_default() += 1;
        }
        self.abandoned.sort_unstable();
        self.abandoned.dedup();
    }

    /// The table as it is to be, for a new place.
    pub(super) fn new_table(&self, targets: &Targets) -> Vec<u8> {
        let clusters = self.table.map_or(0, |run| run.clusters);
        let bytes = clusters.saturating_mul(targets.geometry.cluster_size());
        let mut table = vec![0; usize::try_from(bytes).unwrap_or(0)];
        let kept = self
            .kept
            .iter()
            .map(|(index, offset)| (*index, offset.get()));
        let bits = targets.geometry.cluster_bits();
        let renewed = targets
            .renewed
            .iter()
            .map(|(index, at)| (*index, at << bits));
        for (index, offset) in kept.chain(renewed) {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            if let Some(entry) = table.as_chunks_mut::<8>().0.get_mut(index) {
                *entry = offset.to_be_bytes();
            }
        }
        table
    }
}

/// Where the block of `entry` is, if it can stay there: in the file, at a cluster
/// boundary, and nothing else is in the same cluster.
fn sound(targets: &Targets, entry: RefcountTableEntry) -> Option<HostOffset> {
    let offset = entry.block().filter(|_| entry.reserved() == 0)?;
    let cluster = targets.geometry.host_cluster(offset).get();
    let alone = cluster < targets.in_file && targets.is_alone(cluster);
    (alone && targets.geometry.is_aligned(offset)).then_some(offset)
}

/// Entries of the refcount table, if it can stay where it is. Nothing else may be in its
/// clusters if it is to be `written`.
fn table_entries(metadata: &Metadata<'_>, targets: &Targets, written: bool) -> Option<u64> {
    let header = metadata.header;
    let offset = header.refcount_table_offset;
    let clusters = u64::from(header.refcount_table_clusters);
    let first = targets.geometry.host_cluster(offset).get();
    let end = first.checked_add(clusters)?;
    let good = clusters > 0
        && targets.geometry.is_aligned(offset)
        && end <= targets.in_file
        && (!written || (first..end).all(|cluster| targets.is_alone(cluster)));
    good.then(|| clusters * (targets.geometry.cluster_size() / RefcountTableEntry::LEN))
}
