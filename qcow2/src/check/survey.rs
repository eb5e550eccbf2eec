//! [`Survey`]: what a repair has to know of an image, beyond how often each cluster is
//! referred to.

use std::{collections::BTreeSet, ops::Range};

use super::{
    finding::{Finding, Severity},
    ranges::Ranges,
    repair::Repair,
    report::CheckFailed,
    walk::{Metadata, Referrer},
};
use crate::{Geometry, addr::HostOffset};

/// Clusters past the end of the file whose dangling references are remembered one by one.
const WINDOW: u64 = 1 << 17;

/// What was learned of the metadata during a check.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Damage that a repair is to mend is told of as mended.
    pub(super) mend: bool,
    /// Clusters of metadata, L2 tables excepted.
    taken: Ranges,
    /// Clusters with more references than a refcount can hold: the count is no more than
    /// a lower bound.
    pub(super) overflowed: Ranges,
    /// Clusters of the active L1 table.
    l1: Range<u64>,
    /// Something else that is metadata is in these clusters too.
    l1_shared: bool,
    /// The L2 table at hand is visited for the first time.
    first_visit: bool,
    /// The L2 table at hand.
    table: HostOffset,
    /// L2 tables with entries to be mended.
    pub(super) mended_tables: BTreeSet<u64>,
    /// Clusters of the snapshot table.
    pub(super) snapshot_table: Range<u64>,
    /// The snapshot table has entries to be completed.
    pub(super) snapshots_incomplete: bool,
    /// Something is referred to in a way that can't be followed, so that clusters
    /// without a reference may yet be somebody's.
    pub(super) lost: bool,
    /// Findings about the refcount table and the places of its blocks.
    pub(super) structure: u64,
    /// qemu-img would lay out the refcounts anew.
    pub(super) must_rebuild: bool,
    beyond: Beyond,
}

impl Survey {
    /// For a repair: `mend` tells whether more than leaks is repaired.
    pub(super) fn new(metadata: &Metadata<'_>, mend: bool) -> Result<Self, CheckFailed> {
        let header = metadata.header;
        let geometry = metadata.geometry;
        let mut survey = Self {
            mend,
            l1: clusters(
                geometry,
                header.l1_table_offset,
                u64::from(header.l1_size) * 8,
            ),
            ..Self::default()
        };
        // These are visited last, but no L2 table may be written that is one of them.
        let bytes = u64::from(header.refcount_table_clusters) * geometry.cluster_size();
        let table = clusters(geometry, header.refcount_table_offset, bytes);
        survey.take(table);
        metadata.for_each_refcount_block(|_, entry| {
            if let Some(offset) = entry.block() {
                survey.take(clusters(geometry, offset, geometry.cluster_size()));
            }
            Ok(())
        })?;
        Ok(survey)
    }

    /// `clusters` are referred to by `by`.
    #[inline]
    pub(super) fn note(&mut self, by: Referrer, clusters: Range<u64>) {
        match by {
            Referrer::Data { .. } | Referrer::Compressed { .. } | Referrer::BitmapData(_) => {}
            Referrer::L2Table { .. } => {
                self.l1_shared |= overlap(&self.l1, &clusters);
            }
            Referrer::ActiveL1 => self.taken.insert(clusters),
            Referrer::SnapshotTable => {
                self.snapshot_table = clusters.clone();
                self.take(clusters);
            }
            _ => self.take(clusters),
        }
    }

    fn take(&mut self, clusters: Range<u64>) {
        self.l1_shared |= overlap(&self.l1, &clusters);
        self.taken.insert(clusters);
    }

    /// Makes it ready to be asked what may be written.
    pub(super) fn sort(&mut self) {
        self.taken.sort();
        self.overflowed.sort();
    }

    /// `clusters` are referred to, and are beyond the end of the file of `in_file`.
    pub(super) fn note_beyond(&mut self, in_file: u64, clusters: Range<u64>) {
        self.beyond.insert(in_file, clusters);
    }

    /// Whether nothing refers to `cluster`, which is past the end of the file.
    pub(super) fn free_beyond(&self, in_file: u64, cluster: u64) -> bool {
        self.beyond.is_free(in_file, cluster)
    }

    pub(super) fn enter_l2_table(&mut self, offset: HostOffset) {
        self.table = offset;
        self.first_visit = !self.mended_tables.contains(&offset.get());
    }

    /// An entry of the L2 table at hand names a misplaced preallocated cluster; notes it
    /// if it is to be mended.
    pub(super) fn mend_entry(&mut self, geometry: Geometry) -> Entry {
        if !self.writable(geometry, self.table) {
            return Entry::Left;
        }
        if !self.mend {
            return Entry::Mendable;
        }
        self.mended_tables.insert(self.table.get());
        Entry::Mended {
            first: self.first_visit,
        }
    }

    /// Whether the L2 table at `offset` may be written: nothing else is there that
    /// would be damaged.
    pub(super) fn writable(&self, geometry: Geometry, offset: HostOffset) -> bool {
        let cluster = geometry.host_cluster(offset).get();
        geometry.is_aligned(offset) && !self.taken.contains(cluster)
    }

    /// Whether the active L1 table may be written.
    pub(super) fn l1_writable(&self, metadata: &Metadata<'_>) -> bool {
        !self.l1_shared
            && metadata
                .geometry
                .is_aligned(metadata.header.l1_table_offset)
    }

    /// What kind of repair would mend a finding.
    pub(super) const fn remedy(&self, finding: &Finding) -> Option<Repair> {
        match finding {
            Finding::RefcountWrong { .. } if matches!(finding.severity(), Severity::Leak) => {
                if self.lost { None } else { Some(Repair::Leaks) }
            }
            Finding::SnapshotIncomplete { .. }
            | Finding::RefcountTableReserved { .. }
            | Finding::RefcountBlockUnaligned { .. }
            | Finding::RefcountBlockOutside { .. }
            | Finding::RefcountBlockShared { .. }
            | Finding::RefcountBlockNeeded { .. }
            | Finding::RefcountUnreadable { .. }
            | Finding::RefcountWrong { .. } => Some(Repair::All),
            _ => None,
        }
    }

    /// Notes what a finding that is not mended means for a repair.
    pub(super) fn judge(&mut self, finding: &Finding) {
        match finding {
            Finding::RefcountTableReserved { .. }
            | Finding::RefcountBlockUnaligned { .. }
            | Finding::RefcountBlockShared { .. } => {
                self.structure += 1;
                self.must_rebuild = true;
            }
            Finding::RefcountBlockOutside { .. } => self.structure += 1,
            Finding::RefcountWrong { stored: 0, .. } => self.must_rebuild = true,
            _ => self.lost |= finding.hides_references(),
        }
    }
}

/// What can be done about an L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing.
    Left,
    /// It could be mended, but is not to be.
    Mendable,
    /// It is to be mended.
    Mended {
        /// Its table is visited for the first time.
        first: bool,
    },
}

/// The clusters of `bytes` bytes at `offset`.
fn clusters(geometry: Geometry, offset: HostOffset, bytes: u64) -> Range<u64> {
    let first = geometry.host_cluster(offset).get();
    let end = offset.get().saturating_add(bytes);
    first..geometry.clusters_for(end).max(first)
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// References to clusters past the end of the file. They must not come true when the
/// file grows.
#[derive(Debug, Default)]
struct Beyond {
    /// One bit for each of the first clusters past the end.
    near: Vec<u64>,
    /// There are references further out.
    far: bool,
}

impl Beyond {
    fn insert(&mut self, in_file: u64, clusters: Range<u64>) {
        let end = in_file.saturating_add(WINDOW);
        self.far |= clusters.end > end;
        for cluster in clusters.start.max(in_file)..clusters.end.min(end) {
            let (word, bit) = Self::place(in_file, cluster);
            if self.near.len() <= word {
                self.near.resize(word + 1, 0);
            }
            if let Some(word) = self.near.get_mut(word) {
                *word |= bit;
            }
        }
    }

    fn is_free(&self, in_file: u64, cluster: u64) -> bool {
        if cluster >= in_file.saturating_add(WINDOW) {
            return !self.far;
        }
        let (word, bit) = Self::place(in_file, cluster);
        self.near.get(word).is_none_or(|word| word & bit == 0)
    }

    fn place(in_file: u64, cluster: u64) -> (usize, u64) {
        let index = cluster - in_file;
        let word = usize::try_from(index / 64).unwrap_or(usize::MAX);
        (word, 1 << (index % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangling_references_are_remembered() {
        let mut beyond = Beyond::default();
        beyond.insert(100, 90..103);
        beyond.insert(100, 200..201);
        for (cluster, free) in [(100, false), (102, false), (103, true), (200, false)] {
            assert_eq!(beyond.is_free(100, cluster), free, "{cluster}");
        }
        assert!(beyond.is_free(100, 1 << 40));
        beyond.insert(100, 1 << 41..(1 << 41) + 1);
        assert!(!beyond.is_free(100, 1 << 40) && beyond.is_free(100, 201));
        beyond.insert(100, 0..u64::MAX);
        assert!(!beyond.is_free(100, 201));
    }
}
