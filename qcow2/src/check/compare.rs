//! [`check`]: counted references against stored refcounts, then copied flags against
//! stored refcounts.

use super::{
    counts::{Block, Counts},
    finding::Finding,
    report::{CheckFailed, CheckReport},
    stored::{NoRefcount, Stored},
    walk::{
        Budget, Clusters, CopiedFlag, Metadata, Order, ReadTables, Referrer, Visitor,
        walk_refcounts, walk_structures,
    },
};
use crate::{
    addr::HostOffset,
    format::{Autoclear, BitmapFlags, L1Entry, L2Entry, l2, refcount},
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
enum Pass {
    /// Counts, and notes which L2 tables have something wrong.
    Count,
    /// Makes findings of what is wrong.
    Describe,
    /// Both: for the refcount table, which comes last, and for references too many
    /// for a refcount, whose place depends on all those before.
    CountAndDescribe,
}

struct Checker<'a> {
    metadata: &'a Metadata<'a>,
    stored: Stored,
    counts: Counts,
    /// Clusters of the file.
    in_file: u64,
    /// Where a reference must end before: less than a cluster beyond the file, whose
    /// end QEMU rounds up to a sector.
    limit: u64,
    pass: Pass,
    /// Something is wrong in the table at hand.
    trouble: bool,
    any_trouble: bool,
    /// A copied flag is wrong somewhere, or can't be judged.
    bad_copied: bool,
    overflowed: bool,
    /// L2 tables with something wrong, as they stand in the file.
    bad_tables: Vec<u64>,
    /// The line about an unaligned refcount block has been said.
    signalled: bool,
    findings: u64,
    report: CheckReport,
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
            self.check_copied()?;
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

    fn emit(&mut self, finding: &Finding) {
        self.findings += 1;
        self.report.count(finding);
        if self.findings <= MAX_FINDINGS {
            (self.found)(finding);
        }
    }

    fn give_up_when_hopeless(&self) -> Result<(), CheckFailed> {
        if self.findings <= MAX_FINDINGS {
            return Ok(());
        }
        Err(CheckFailed::because(format!(
            "more than {MAX_FINDINGS} errors"
        )))
    }

    /// Compares block by block, a whole block as bytes where that can be.
    fn compare(&mut self) -> Result<(), CheckFailed> {
        let geometry = self.metadata.geometry;
        let entries = geometry.refcount_block_entries();
        let order = geometry.refcount_order();
        let clusters = self.counts.clusters();
        let in_file = clusters.div_ceil(entries);
        let dense = self
            .stored
            .len()
            .max(self.counts.dense_blocks())
            .min(in_file);
        let sparse: Vec<u64> = self
            .counts
            .sparse_blocks()
            .filter(|b| *b < in_file)
            .collect();
        let mut highest = 0;
        let mut room = Vec::new();
        for block in (0..dense).chain(sparse) {
            let first = block * entries;
            let count = entries.min(clusters - first);
            let counted = self.counts.block(block);
            let stored = match self.stored.block(block) {
                Ok(stored) => stored,
                Err(why) => {
                    self.bad_copied |= counted.is_some_and(Block::has_flags);
                    self.no_refcounts(first..first + count, why)?;
                    continue;
                }
            };
            let packed = counted.map(|counted| counted.packed(&mut room));
            let equal = stored == packed;
            let last = [stored, packed].map(|bytes| last_nonzero(bytes?, order, count));
            if let Some(last) = last.into_iter().max().flatten() {
                highest = first + last;
            }
            self.bad_copied |=
                counted.is_some_and(|counted| !counted.copied_flags_fit(stored, equal));
            if !equal {
                self.compare_block(first, count)?;
            }
        }
        let end = (highest + 1).saturating_mul(geometry.cluster_size());
        self.report.image_end_offset = HostOffset(end);
        Ok(())
    }

    fn no_refcounts(
        &mut self,
        clusters: std::ops::Range<u64>,
        why: NoRefcount,
    ) -> Result<(), CheckFailed> {
        self.signal(why);
        for cluster in clusters {
            self.emit(&Finding::RefcountUnreadable { cluster });
            self.give_up_when_hopeless()?;
        }
        Ok(())
    }

    /// Says once that an unaligned refcount block was needed.
    fn signal(&mut self, why: NoRefcount) {
        if let NoRefcount::Unaligned { offset, index } = why
            && !std::mem::replace(&mut self.signalled, true)
        {
            self.emit(&Finding::RefcountBlockNeeded {
                offset: offset.get(),
                index,
            });
        }
    }

    fn compare_block(&mut self, first: u64, count: u64) -> Result<(), CheckFailed> {
        for cluster in first..first + count {
            let references = self.counts.get(cluster);
            let stored = self.stored.get(cluster).unwrap_or(0);
            if stored != references {
                self.emit(&Finding::RefcountWrong {
                    cluster,
                    stored,
                    references,
                });
                self.give_up_when_hopeless()?;
            }
        }
        Ok(())
    }

    /// Goes through the active tables once more for the sake of the copied flags.
    fn check_copied(&mut self) -> Result<(), CheckFailed> {
        let metadata = self.metadata;
        let geometry = metadata.geometry;
        let table_len = usize::try_from(geometry.cluster_size()).unwrap_or(0);
        let mut table = vec![0; table_len];
        let entries = u64::from(metadata.header.l1_size);
        let offset = metadata.header.l1_table_offset;
        let mut budget = Budget::for_file(metadata.file_end()?);
        metadata.for_each_entry("the active L1 table", offset, entries, |index, entry| {
            let l1 = L1Entry(entry);
            let Some(offset) = l1.l2_table() else {
                return Ok(());
            };
            let stored = match self.stored.get(geometry.host_cluster(offset).get()) {
                Ok(stored) => stored,
                Err(why) => {
                    self.signal(why);
                    return Ok(());
                }
            };
            if (stored == 1) != l1.copied() {
                self.emit(&Finding::L1Copied {
                    index,
                    entry,
                    stored,
                });
            }
            budget.spend(geometry.l2_entries())?;
            metadata.read("an L2 table", offset.get(), &mut table)?;
            self.check_l2_copied(&table);
            self.give_up_when_hopeless()
        })
    }

    fn check_l2_copied(&mut self, table: &[u8]) {
        let geometry = self.metadata.geometry;
        let data_file = self.metadata.header.has_data_file();
        let mut each = |entry: L2Entry| {
            let Some(host) = entry.host(data_file) else {
                return;
            };
            let stored = if data_file {
                Ok(1)
            } else {
                self.stored.get(geometry.host_cluster(host).get())
            };
            match stored {
                Ok(stored) if (stored == 1) != entry.copied() => {
                    self.emit(&Finding::L2Copied {
                        entry: entry.0,
                        stored,
                    });
                }
                Ok(_) => {}
                Err(why) => self.signal(why),
            }
        };
        if geometry.extended_l2() {
            l2::extended_entries(table).for_each(|entry| each(entry.entry));
        } else {
            l2::entries(table).for_each(&mut each);
        }
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

/// The last of the first `count` numbers of a refcount block that isn't 0.
fn last_nonzero(packed: &[u8], order: u32, count: u64) -> Option<u64> {
    (0..count).rev().find(|index| {
        let index = usize::try_from(*index).unwrap_or(usize::MAX);
        refcount::get(packed, order, index).is_some_and(|value| value != 0)
    })
}
