//! [`Targets`]: what each refcount is to become.

use std::collections::{BTreeMap, BTreeSet};

use super::Repair;
use crate::{
    Geometry,
    check::{
        checker::Checker, counts::Counts, ranges::Ranges, report::CheckReport, stored::Stored,
        survey::Survey,
    },
    format::refcount,
};

/// When a refcount has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// While the old refcount structures are still in use and the new ones are already
    /// there: nothing is lower than it was.
    Raised,
    /// At the end.
    Final,
}

/// The refcounts of an image as counted, as stored, and as they are to be.
#[derive(Debug)]
pub(super) struct Targets {
    pub(super) geometry: Geometry,
    pub(super) counts: Counts,
    pub(super) stored: Stored,
    /// Clusters of the file.
    pub(super) in_file: u64,
    /// Where references end, in bytes, to be counted at all.
    pub(super) reach: u64,
    /// Clusters whose references can't be counted; their refcount is the largest.
    overflowed: Ranges,
    pub(super) repair: Repair,
    /// No cluster is freed: what seems leaked may be what a broken reference meant.
    pub(super) keep: bool,
    /// References that go away: those of old refcount structures.
    pub(super) dropped: BTreeMap<u64, u64>,
    /// Clusters that are taken for new structures.
    pub(super) added: BTreeSet<u64>,
    /// Refcount blocks that are written anew, and to which cluster. What is stored in
    /// the old ones, if anything, means nothing.
    pub(super) renewed: BTreeMap<u64, u64>,
}

impl Targets {
    /// From what a check has counted; nothing changes place yet.
    pub(super) fn new(checker: Checker<'_>, repair: Repair) -> (Self, Survey, CheckReport) {
        let mut survey = checker.survey;
        survey.sort();
        let targets = Self {
            geometry: checker.metadata.geometry,
            counts: checker.counts,
            stored: checker.stored,
            in_file: checker.in_file,
            reach: checker.limit,
            overflowed: std::mem::take(&mut survey.overflowed),
            repair,
            keep: survey.lost,
            dropped: BTreeMap::new(),
            added: BTreeSet::new(),
            renewed: BTreeMap::new(),
        };
        (targets, survey, checker.report)
    }

    /// Index of the refcount block with `cluster`'s refcount.
    pub(super) const fn block_of(&self, cluster: u64) -> u64 {
        cluster / self.geometry.refcount_block_entries()
    }

    /// Whether there are more references to `cluster` than a refcount can hold.
    pub(super) fn is_overflowed(&self, cluster: u64) -> bool {
        self.overflowed.contains(cluster)
    }

    /// Whether there is exactly one reference to `cluster`.
    pub(super) fn is_alone(&self, cluster: u64) -> bool {
        self.counts.get(cluster) == 1 && !self.overflowed.contains(cluster)
    }

    /// The stored refcount of `cluster`; `None` where there is none to be believed.
    pub(super) fn stored(&self, cluster: u64) -> Option<u64> {
        if self.renewed.contains_key(&self.block_of(cluster)) {
            return None;
        }
        self.stored.get(cluster).ok()
    }

    /// The refcount that `cluster` is to have at `stage`.
    pub(super) fn value(&self, cluster: u64, stage: Stage) -> u64 {
        let stored = self.stored(cluster);
        let added = u64::from(self.added.contains(&cluster));
        if cluster >= self.counts.clusters() && added == 0 {
            // Of no interest to anybody, and compared by nobody.
            return stored.unwrap_or(0);
        }
        if self.repair == Repair::All && self.overflowed.contains(cluster) {
            return self.geometry.refcount_max();
        }
        let counted = self.counts.get(cluster).saturating_add(added);
        match stage {
            Stage::Raised => self
                .wanted(cluster, stored, counted)
                .max(stored.unwrap_or(0)),
            Stage::Final => {
                let dropped = self.dropped.get(&cluster).copied().unwrap_or(0);
                let stored = stored.map(|stored| stored.saturating_sub(dropped));
                self.wanted(cluster, stored, counted.saturating_sub(dropped))
            }
        }
    }

    fn wanted(&self, cluster: u64, stored: Option<u64>, references: u64) -> u64 {
        let max = self.geometry.refcount_max();
        let wanted = match (self.repair, stored) {
            (_, Some(stored)) if stored > references => match self.keep {
                true => stored,
                false => references,
            },
            (Repair::Leaks, Some(stored)) => stored,
            (_, None) if self.keep && cluster < self.in_file => references.max(1),
            _ => references,
        };
        wanted.min(max)
    }

    /// Whether refcount block `index` is right as it is stored.
    pub(super) fn is_right(&self, index: u64, room: &mut Vec<u8>) -> bool {
        let entries = self.geometry.refcount_block_entries();
        let first = index.saturating_mul(entries);
        let clusters = first..first.saturating_add(entries);
        if self.added.range(clusters.clone()).next().is_some()
            || self.dropped.range(clusters).next().is_some()
            || self.renewed.contains_key(&index)
        {
            return false;
        }
        let counted = self.counts.block(index).map(|counted| counted.packed(room));
        self.stored.block(index) == Ok(counted)
    }

    /// Fills `out` with refcount block `index` as it is to be at `stage`.
    pub(super) fn fill(&self, index: u64, stage: Stage, out: &mut Vec<u8>) {
        let order = self.geometry.refcount_order();
        let entries = self.geometry.refcount_block_entries();
        let size = usize::try_from(self.geometry.cluster_size()).unwrap_or(0);
        out.clear();
        out.resize(size, 0);
        let first = index.saturating_mul(entries);
        for (at, cluster) in (first..first.saturating_add(entries)).enumerate() {
            // It fits: it is one that was stored, or no more than the largest.
            let _ = refcount::set(out, order, at, self.value(cluster, stage));
        }
    }
}
