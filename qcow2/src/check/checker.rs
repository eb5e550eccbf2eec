//! [`check`]: counted references against stored refcounts, then copied flags against
//! stored refcounts.

use super::{
    copied::judge_flags,
    counts::Counts,
    finding::Finding,
    report::{CheckFailed, CheckReport},
    stored::Stored,
    walk::{
        Clusters, CopiedFlag, Metadata, Order, ReadTables, Referrer, Visitor, walk_refcounts,
        walk_structures,
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
    let geometry = metadata.geometry;
    let file_end = metadata.file_end()?;
    let in_file = geometry.clusters_for(file_end);
    let mut checker = Checker {
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
        found,
    };
    checker.run(options)?;
    Ok(checker.report)
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
    limit: u64,
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
    found: &'a mut dyn FnMut(&Finding),
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
        match end.filter(|end| *end < self.limit) {
            Some(end) if self.pass != Pass::Describe => {
                let first = geometry.host_cluster(offset).get();
                let last = geometry.host_cluster(HostOffset(end - 1)).get();
                for cluster in first..=last {
                    if !self.counts.add(cluster, times) {
                        self.overflow(cluster);
                    }
                }
            }
            Some(_) => {}
            None => self.problem(Finding::ExceedsEnd {
                offset: offset.get(),
                bytes,
            }),
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
        if self.pass != Pass::Count {
            self.emit(&finding);
        }
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
        }
    }

    fn clusters(&self) -> Option<u64> {
        Some(self.counts.clusters())
    }
}

impl Checker<'_> {
    fn run(&mut self, options: CheckOptions) -> Result<(), CheckFailed> {
        let metadata = self.metadata;
        let counted = walk_structures(metadata, self, Order::OfFile);
        match counted {
            // What the description will come to as well, and tell in its place.
            Err(failed) if self.any_trouble && !failed.at_once => {
                // L2 tables may not have been looked at when it ended.
                self.describe(true)?;
                return Err(failed);
            }
            Err(failed) => return Err(failed),
            Ok(()) if self.any_trouble => self.describe(false)?,
            Ok(()) => {}
        }
        self.pass = Pass::CountAndDescribe;
        walk_refcounts(metadata, self)?;
        self.compare()?;
        if self.bad_copied {
            judge_flags(metadata, self)?;
        }
        if options.bitmaps {
            self.note_bitmaps()
        } else {
            Ok(())
        }
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
        let offset = cluster << self.metadata.geometry.cluster_bits();
        self.problem(Finding::RefcountOverflow { offset });
    }

    pub(super) fn emit(&mut self, finding: &Finding) {
        self.findings += 1;
        self.report.count(finding);
        if self.findings <= MAX_FINDINGS {
            (self.found)(finding);
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

    fn note_bitmaps(&mut self) -> Result<(), CheckFailed> {
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
