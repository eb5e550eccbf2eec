//! [`check`]: counted references against stored refcounts, then copied flags against
//! stored refcounts.

use super::{
    copied::judge_flags,
    counts::Counts,
    finding::Finding,
    repair::Repair,
    report::{CheckFailed, CheckReport},
    stored::Stored,
    survey::{Entry, Survey},
    walk::{
        Clusters, CopiedFlag, Metadata, Order, ReadTables, Referrer, Visitor,
        snapshots_plausible as plausible, walk_refcounts, walk_structures,
    },
};
use crate::{
    addr::HostOffset,
    format::{Autoclear, BitmapFlags},
};

/// Findings after which the check gives up: more than in any image that can be saved.
const MAX_FINDINGS: u64 = 1 << 26;

/// What to report beyond what `qemu-img check` does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Bitmaps that are in use, or void because the autoclear bit was cleared. These
    /// are notes, not errors.
    pub bitmaps: bool,
}

/// Checks the image and hands each finding to `found` as it is made, in the order of
/// `qemu-img check`. Memory follows the clusters that are in the file, never a number in it.
///
/// # Errors
/// [`CheckFailed`] when the storage fails or the image is such that qemu-img gives up too;
/// findings that say why may have been made before. [`CheckReport::check_errors`] is
/// for what could be stepped over.
pub fn check(
    metadata: &Metadata<'_>,
    options: CheckOptions,
    found: &mut dyn FnMut(&Finding),
) -> Result<CheckReport, CheckFailed> {
    check_only(metadata, options, Survey::default(), &mut |finding, _| {
        found(finding);
    })
}

/// As [`check`], and says of each finding what kind of [`repair`](super::repair::repair)
/// would mend it; `None` if none would. (Leaks alone are not repaired as long as there are
/// refcounts of 0 that are too low, or refcount blocks that are misplaced.)
///
/// # Errors
/// As for [`check`].
pub fn dry_run(
    metadata: &Metadata<'_>,
    options: CheckOptions,
    found: &mut dyn FnMut(&Finding, Option<Repair>),
) -> Result<CheckReport, CheckFailed> {
    let survey = Survey::new(metadata, false)?;
    check_only(metadata, options, survey, &mut |finding, fate| match fate {
        Fate::Found(remedy) => found(finding, remedy),
        Fate::Repaired => {}
    })
}

fn check_only(
    metadata: &Metadata<'_>,
    options: CheckOptions,
    survey: Survey,
    tell: &mut dyn FnMut(&Finding, Fate),
) -> Result<CheckReport, CheckFailed> {
    let mut checker = Checker::new(metadata, tell)?;
    checker.survey = survey;
    checker.count_structures()?;
    checker.count_refcounts()?;
    checker.survey.sort();
    checker.compare()?;
    if checker.bad_copied {
        judge_flags(metadata, &mut checker)?;
    }
    if options.bitmaps {
        checker.note_bitmaps()?;
    }
    Ok(checker.report)
}

/// What becomes of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays as it is; this kind of repair would mend it.
    Found(Option<Repair>),
    /// It is repaired.
    Repaired,
}

/// What a [`Checker`] does with what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Counts, and notes which L2 tables have something wrong.
    Count,
    /// Makes findings of what is wrong.
    Describe,
    /// Both: for the refcount table, which comes last, and for references too many
    /// for a refcount, whose place depends on all those before.
    CountAndDescribe,
}

pub(super) struct Checker<'a> {
    pub(super) metadata: &'a Metadata<'a>,
    pub(super) stored: Stored,
    pub(super) counts: Counts,
    /// Clusters of the file.
    pub(super) in_file: u64,
    /// Where a reference must end before: less than a cluster beyond the file, whose
    /// end QEMU rounds up to a sector.
    pub(super) limit: u64,
    pass: Pass,
    /// Something is wrong in the table at hand.
    trouble: bool,
    any_trouble: bool,
    /// A copied flag is wrong somewhere, or can't be judged.
    pub(super) bad_copied: bool,
    overflowed: bool,
    /// L2 tables with something wrong, as they stand in the file.
    bad_tables: Vec<u64>,
    /// The line about an unaligned refcount block has been said.
    pub(super) signalled: bool,
    findings: u64,
    pub(super) report: CheckReport,
    /// Corruptions that are mended.
    pub(super) mended: u64,
    pub(super) survey: Survey,
    tell: &'a mut dyn FnMut(&Finding, Fate),
}

impl Visitor for Checker<'_> {
    #[inline]
    fn reference(&mut self, by: Referrer, offset: HostOffset, bytes: u64, times: u64) {
        // For QEMU a length is a signed number, and a negative one is nothing.
        if bytes == 0 || bytes > i64::MAX as u64 {
            return;
        }
        let geometry = self.metadata.geometry;
        let end = offset
            .get()
            .checked_add(bytes)
            .filter(|end| *end <= i64::MAX as u64);
        let first = geometry.host_cluster(offset).get();
        match end.filter(|end| *end < self.limit) {
            Some(end) if self.pass != Pass::Describe => {
                let last = geometry.host_cluster(HostOffset(end - 1)).get();
                if self.pass == Pass::Count {
                    self.survey.note(by, first..last + 1);
                }
                for cluster in first..=last {
                    if !self.counts.add(cluster, times) {
                        self.overflow(cluster);
                    }
                }
            }
            Some(_) => {}
            None => {
                let after = geometry.clusters_for(offset.get().saturating_add(bytes));
                self.survey.note_beyond(by, self.in_file, first..after);
                let finding = Finding::ExceedsEnd {
                    offset: offset.get(),
                    bytes,
                };
                match by {
                    Referrer::RefcountTable => self.misplaced_refcount_table(&finding),
                    _ => self.problem(finding),
                }
            }
        }
        if let Referrer::RefcountBlock(index) = by {
            let references = self.counts.get(geometry.host_cluster(offset).get());
            if references != 1 {
                self.problem(Finding::RefcountBlockShared { index, references });
            }
        }
    }

    #[cold]
    fn problem(&mut self, finding: Finding) {
        self.trouble = true;
        self.any_trouble = true;
        if self.pass == Pass::Count {
            self.survey.fault(&finding);
            return;
        }
        if matches!(finding, Finding::SnapshotIncomplete { .. }) {
            let metadata = self.metadata;
            self.survey
                .snapshots_plausible
                .get_or_insert_with(|| plausible(metadata).unwrap_or(false));
        }
        match finding {
            Finding::SnapshotIncomplete { .. }
                if self.survey.mend && self.survey.snapshots_plausible == Some(true) =>
            {
                self.survey.snapshots_incomplete = true;
                self.mend(&finding);
            }
            Finding::RefcountBlockOutside { .. } if self.survey.mend => self.mend(&finding),
            _ => self.emit(&finding),
        }
    }

    #[cold]
    fn misplaced_preallocation(&mut self, offset: HostOffset) -> bool {
        let finding = Finding::ClusterUnaligned {
            offset: offset.get(),
            data: false,
        };
        if self.pass == Pass::Count {
            self.problem(finding);
            self.survey.misplaced();
            return false;
        }
        let entry = self.survey.mend_entry(self.metadata.geometry, &self.counts);
        match entry {
            Entry::Mended { first: true } => self.mend(&finding),
            Entry::Mended { first: false } => {}
            Entry::Mendable => self.emit_with(&finding, Some(Repair::All)),
            Entry::Left => self.problem(finding),
        }
        matches!(entry, Entry::Mended { .. })
    }

    fn enter_l2_table(&mut self, offset: HostOffset, references: u64) {
        self.survey.enter_l2_table(offset, references);
    }

    #[inline]
    fn copied(&mut self, flag: CopiedFlag) {
        if self.pass == Pass::Describe {
            return;
        }
        let cluster = self.metadata.geometry.host_cluster(flag.offset).get();
        if flag.in_data_file {
            self.bad_copied |= !flag.copied;
        } else if cluster < self.in_file {
            self.counts.mark(cluster, flag.copied);
        } else {
            // Where it can't be told there is a line to be said about that.
            let right = self
                .stored
                .get(cluster)
                .map(|stored| (stored == 1) == flag.copied);
            self.bad_copied |= right != Ok(true);
        }
    }

    fn l2_table(&mut self, offset: HostOffset, clusters: &Clusters, active: u64) {
        if self.pass != Pass::Count {
            return;
        }
        let report = &mut self.report;
        report.allocated_clusters += clusters.allocated.saturating_mul(active);
        report.fragmented_clusters += clusters.fragmented.saturating_mul(active);
        report.compressed_clusters += clusters.compressed.saturating_mul(active);
        if std::mem::take(&mut self.trouble) {
            self.bad_tables.push(offset.get());
            self.survey.judge_table(clusters.allocated);
        }
    }

    fn clusters(&self) -> Option<u64> {
        Some(self.counts.clusters())
    }
}

impl<'a> Checker<'a> {
    /// What a check of `metadata` starts with.
    pub(super) fn new(
        metadata: &'a Metadata<'a>,
        tell: &'a mut dyn FnMut(&Finding, Fate),
    ) -> Result<Self, CheckFailed> {
        let geometry = metadata.geometry;
        let file_end = metadata.file_end()?;
        let in_file = geometry.clusters_for(file_end);
        Ok(Self {
            metadata,
            stored: Stored::read(metadata)?,
            counts: Counts::new(geometry, in_file),
            in_file,
            limit: file_end
                .checked_next_multiple_of(512)
                .and_then(|end| end.checked_add(geometry.cluster_size()))
                .unwrap_or(u64::MAX),
            pass: Pass::Count,
            trouble: false,
            any_trouble: false,
            bad_copied: false,
            overflowed: false,
            bad_tables: Vec::new(),
            signalled: false,
            findings: 0,
            report: CheckReport {
                total_clusters: geometry.clusters_for(metadata.header.size),
                ..CheckReport::default()
            },
            mended: 0,
            survey: Survey::default(),
            tell,
        })
    }

    /// Counts the references of everything but the refcount table, and says what is
    /// wrong with it.
    pub(super) fn count_structures(&mut self) -> Result<(), CheckFailed> {
        match walk_structures(self.metadata, self, Order::OfFile) {
            // What the description will come to as well, and tell in its place.
            Err(failed) if self.any_trouble && !failed.at_once => {
                self.survey.mend = false;
                self.survey.sort();
                // L2 tables may not have been looked at when it ended.
                self.describe(true)?;
                Err(failed)
            }
            Ok(()) if self.any_trouble => {
                self.survey.sort();
                self.describe(false)
            }
            counted => counted,
        }
    }

    /// Counts them again, after a change, without a word.
    pub(super) fn count_structures_again(&mut self) -> Result<(), CheckFailed> {
        self.pass = Pass::Count;
        self.counts = Counts::new(self.metadata.geometry, self.in_file);
        self.bad_copied = false;
        self.report.allocated_clusters = 0;
        self.report.fragmented_clusters = 0;
        self.report.compressed_clusters = 0;
        walk_structures(self.metadata, self, Order::OfFile)
    }

    /// Counts the references of the refcount table, once all others are counted.
    pub(super) fn count_refcounts(&mut self) -> Result<(), CheckFailed> {
        self.pass = Pass::CountAndDescribe;
        walk_refcounts(self.metadata, self)
    }

    /// Goes through the image in the order of the guest for the sake of the findings:
    /// through the L2 tables with something wrong, or through all.
    fn describe(&mut self, all_tables: bool) -> Result<(), CheckFailed> {
        let metadata = self.metadata;
        if self.overflowed {
            self.pass = Pass::CountAndDescribe;
            self.counts = Counts::new(metadata.geometry, self.in_file);
            return walk_structures(metadata, self, Order::OfGuest(ReadTables::All));
        }
        self.pass = Pass::Describe;
        let bad_tables = std::mem::take(&mut self.bad_tables);
        let wanted = if all_tables {
            ReadTables::All
        } else {
            ReadTables::At(&bad_tables)
        };
        let result = walk_structures(metadata, self, Order::OfGuest(wanted));
        self.bad_tables = bad_tables;
        result
    }

    #[cold]
    fn overflow(&mut self, cluster: u64) {
        self.overflowed = true;
        self.survey
            .overflowed
            .insert(cluster..cluster.saturating_add(1));
        let offset = cluster << self.metadata.geometry.cluster_bits();
        self.problem(Finding::RefcountOverflow { offset });
    }

    pub(super) fn emit(&mut self, finding: &Finding) {
        let remedy = self.survey.remedy(finding);
        self.emit_with(finding, remedy);
    }

    pub(super) fn emit_with(&mut self, finding: &Finding, remedy: Option<Repair>) {
        self.report.count(finding);
        self.survey.judge(finding);
        self.say(finding, Fate::Found(remedy));
    }

    /// Tells of a corruption that is mended.
    fn mend(&mut self, finding: &Finding) {
        self.mended += 1;
        self.say(finding, Fate::Repaired);
    }

    /// A refcount table that isn't in the file hides nothing but refcounts.
    fn misplaced_refcount_table(&mut self, finding: &Finding) {
        self.report.count(finding);
        self.survey.structure += 1;
        self.say(finding, Fate::Found(Some(Repair::All)));
    }

    /// Tells of `finding` without counting it.
    pub(super) fn say(&mut self, finding: &Finding, fate: Fate) {
        self.findings += 1;
        if self.findings <= MAX_FINDINGS {
            (self.tell)(finding, fate);
        }
    }

    pub(super) fn give_up_when_hopeless(&self) -> Result<(), CheckFailed> {
        if self.findings <= MAX_FINDINGS {
            return Ok(());
        }
        Err(CheckFailed::because(format!(
            "more than {MAX_FINDINGS} errors"
        )))
    }

    pub(super) fn note_bitmaps(&mut self) -> Result<(), CheckFailed> {
        // What is wrong with the directory has been told by the walk.
        let Ok(Some((extension, directory))) = self.metadata.bitmap_directory()? else {
            return Ok(());
        };
        if !self
            .metadata
            .header
            .autoclear_features
            .contains(Autoclear::BITMAPS)
        {
            self.emit(&Finding::BitmapsVoid {
                bitmaps: extension.nb_bitmaps,
            });
            return Ok(());
        }
        for entry in directory.entries {
            if entry.flags.contains(BitmapFlags::IN_USE) {
                self.emit(&Finding::BitmapInUse { name: entry.name });
            }
        }
        Ok(())
    }
}
