//! [`Survey`]: what a repair has to know of an image, beyond how often each cluster is
//! referred to.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{
    counts::Counts,
    finding::{Finding, Severity},
    ranges::Ranges,
    repair::Repair,
    report::CheckFailed,
    walk::{Metadata, Referrer},
};
use crate::{Geometry, addr::HostOffset};

/// What was learned of the metadata during a check.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Damage that a repair is to mend is told of as mended.
    pub(super) mend: bool,
    /// Clusters of metadata, L2 tables and refcount structures excepted.
    taken: Ranges,
    /// Clusters of the refcount table and of refcount blocks.
    structures: Ranges,
    /// Of these, those that will be given up; sorted.
    abandoned: Vec<u64>,
    /// Clusters with more references than a refcount can hold: the count is no more than
    /// a lower bound.
    pub(super) overflowed: Ranges,
    /// Clusters of the active L1 table.
    l1: Range<u64>,
    /// Something else that is metadata is in these clusters too.
    l1_shared: bool,
    /// L2 tables referred to in L1 tables, and what is wrong with such entries.
    l1_entries: u64,
    l1_faults: u64,
    /// The L2 table at hand is visited for the first time.
    first_visit: bool,
    /// The L2 table at hand.
    table: HostOffset,
    /// References to it as an L2 table.
    references: u64,
    /// What is wrong in it, and how much of that are misplaced preallocated clusters.
    faults: u64,
    misplaced: u64,
    /// L2 tables in which nothing else is wrong, with the references to them.
    mendable: BTreeMap<u64, u64>,
    /// What is taken for L2 tables and looks like anything else.
    garbage: BTreeSet<u64>,
    /// L2 tables with entries to be mended.
    pub(super) mended_tables: BTreeSet<u64>,
    /// Clusters of the snapshot table.
    pub(super) snapshot_table: Range<u64>,
    /// The snapshot table has entries to be completed.
    pub(super) snapshots_incomplete: bool,
    /// Such entries look like snapshots, if that was asked.
    pub(super) snapshots_plausible: Option<bool>,
    /// Something is referred to in a way that can't be followed, so that clusters
    /// without a reference may yet be somebody's.
    pub(super) lost: bool,
    /// Findings about the refcount table and the places of its blocks.
    pub(super) structure: u64,
    /// qemu-img would lay out the refcounts anew.
    pub(super) must_rebuild: bool,
    /// The first cluster past the end of the file that something refers to.
    dangling: Option<u64>,
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
        // These are visited last, and by then it must be known what is one of them.
        let bytes = u64::from(header.refcount_table_clusters) * geometry.cluster_size();
        let table = clusters(geometry, header.refcount_table_offset, bytes);
        survey.structures.insert(table);
        metadata.for_each_refcount_block(|_, entry| {
            if let Some(offset) = entry.block() {
                let block = clusters(geometry, offset, geometry.cluster_size());
                survey.structures.insert(block);
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
                self.l1_entries += 1;
                self.l1_shared |= overlap(&self.l1, &clusters);
            }
            Referrer::ActiveL1 => self.taken.insert(clusters),
            Referrer::RefcountTable | Referrer::RefcountBlock(_) => {}
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
        self.structures.sort();
        self.overflowed.sort();
    }

    /// `clusters` are referred to, and are beyond the end of the file of `in_file`.
    pub(super) fn note_beyond(&mut self, by: Referrer, in_file: u64, clusters: Range<u64>) {
        if matches!(by, Referrer::L2Table { .. }) {
            self.l1_faults += 1;
        }
        let first = clusters.start.max(in_file);
        if first < clusters.end {
            self.dangling = Some(self.dangling.map_or(first, |known| known.min(first)));
        }
    }

    /// The first cluster past the end of the file that something refers to. The file must
    /// stay shorter than that: in a longer one the reference would lead to zeros, and look
    /// sound, and what it really meant would look leaked.
    pub(super) fn dangling(&self) -> Option<u64> {
        self.dangling
    }

    pub(super) fn enter_l2_table(&mut self, offset: HostOffset, references: u64) {
        self.table = offset;
        self.references = references;
        self.faults = 0;
        self.misplaced = 0;
        self.first_visit = !self.mended_tables.contains(&offset.get());
    }

    /// Something is wrong, mostly in the L2 table at hand.
    pub(super) fn fault(&mut self, finding: &Finding) {
        match finding {
            Finding::L1Reserved { .. } | Finding::L2TableUnaligned { .. } => self.l1_faults += 1,
            _ => self.faults += 1,
        }
    }

    /// What is wrong is a misplaced preallocated cluster.
    pub(super) fn misplaced(&mut self) {
        self.misplaced += 1;
    }

    /// The L2 table at hand, with so many `clusters`, has been counted. Where an L1 entry
    /// is damaged it may be guest data, which is not to be written over.
    pub(super) fn judge_table(&mut self, clusters: u64) {
        let offset = self.table.get();
        if self.faults > 2 && self.faults > clusters / 2 {
            self.garbage.insert(offset);
        } else if self.faults == self.misplaced {
            self.mendable.insert(offset, self.references);
        }
    }

    /// An entry of the L2 table at hand names a misplaced preallocated cluster; notes it
    /// if it is to be mended.
    pub(super) fn mend_entry(&mut self, geometry: Geometry, counts: &Counts) -> Entry {
        let cluster = geometry.host_cluster(self.table).get();
        let alone = Some(&counts.get(cluster)) == self.mendable.get(&self.table.get());
        if !alone || !self.writable(geometry, self.table, Moment::Before) {
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

    /// From now on `clusters`, which are sorted, count as given up.
    pub(super) fn abandon(&mut self, clusters: Vec<u64>) {
        self.abandoned = clusters;
    }

    /// Whether the L2 table at `offset` may be written at this `moment`: nothing else is
    /// there that would be damaged.
    pub(super) fn writable(&self, geometry: Geometry, offset: HostOffset, moment: Moment) -> bool {
        let cluster = geometry.host_cluster(offset).get();
        geometry.is_aligned(offset)
            && !self.garbage.contains(&offset.get())
            && !self.taken.contains(cluster)
            && !self.is_structure(cluster, moment)
    }

    /// Whether the active L1 table may be written at this `moment`.
    pub(super) fn l1_writable(&self, metadata: &Metadata<'_>, moment: Moment) -> bool {
        let garbage = self.l1_faults > 2 && self.l1_faults > self.l1_entries / 2;
        !(self.l1_shared || garbage)
            && metadata
                .geometry
                .is_aligned(metadata.header.l1_table_offset)
            && !self
                .l1
                .clone()
                .any(|cluster| self.is_structure(cluster, moment))
    }

    fn is_structure(&self, cluster: u64, moment: Moment) -> bool {
        let given_up = moment == Moment::Switched && self.abandoned.binary_search(&cluster).is_ok();
        self.structures.contains(cluster) && !given_up
    }

    /// What kind of repair would mend a finding.
    pub(super) fn remedy(&self, finding: &Finding) -> Option<Repair> {
        match finding {
            Finding::RefcountWrong { .. } if matches!(finding.severity(), Severity::Leak) => {
                if self.lost { None } else { Some(Repair::Leaks) }
            }
            Finding::SnapshotIncomplete { .. } if self.snapshots_plausible == Some(false) => None,
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

/// When something may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// While the refcount structures are where they were.
    Before,
    /// Once old refcount structures are given up.
    Switched,
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
