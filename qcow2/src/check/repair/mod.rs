//! [`repair`]: from findings to an image without them.
//!
//! ```text
//! targets    what each refcount is to become
//! space      clusters that are free by every account
//! places     where refcount blocks and the refcount table are to be
//! snapshots  the snapshot table with its entries completed
//! settle     says of each finding whether it is repaired
//! flags      copied flags, and L2 entries that are given up
//! apply      writes all this, in the order of docs/crash-order.md
//! ```
//!
//! All is planned and told of before the first write, except that L2 entries with a
//! misplaced preallocated cluster, which mean zeros with or without it, are mended
//! before references are counted. An error ends the repair: nothing more is written.
//!
//! # What is not done
//! An entry that can't be followed (reserved bits, no cluster boundary, beyond the
//! end of the file) stays as it is. While there is one, no cluster is freed: what seems
//! leaked may be what the entry meant. qemu-img frees and discards such clusters.

mod apply;
mod flags;
mod places;
mod settle;
mod snapshots;
mod space;
mod targets;

use std::fmt;

use super::{
    checker::{CheckOptions, Checker, Fate, check},
    copied::judge_flags,
    finding::{Finding, Severity},
    report::{CheckFailed, CheckReport, Verdict},
    survey::Survey,
    walk::Metadata,
};
use crate::{format::HeaderArea, io::Storage};

use apply::Writer;
use flags::TellFlags;
use places::Places;
use targets::Targets;

/// What to repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Repair {
    /// Refcounts that are too high. Copied flags too, if nothing else is wrong.
    Leaks,
    /// All that can be repaired without giving up data.
    All,
}

/// How many findings were repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Of [`Severity::Leak`].
    pub leaks: u64,
    /// Of [`Severity::Corruption`].
    pub corruptions: u64,
}

impl Fixed {
    /// Whether there were none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.leaks == 0 && self.corruptions == 0
    }
}

/// What a [`repair`] tells on its way. `Display` is the line that qemu-img prints, where
/// it prints one.
#[derive(Debug)]
#[non_exhaustive]
pub enum RepairEvent<'a> {
    /// Something is wrong.
    Found(&'a Finding),
    /// Something is wrong and is repaired.
    Repaired(&'a Finding),
    /// Refcount blocks, or the whole refcount table, get a new place.
    Rebuilding,
    /// Refcounts are too low or can't be read: more than leaks has to be repaired.
    NeedsAll,
    /// So many clusters seem to be leaked, but may be what a broken reference meant.
    LeaksKept(u64),
    /// The repair is written. What follows is what a second check finds.
    DoubleCheck(Fixed),
}

impl RepairEvent<'_> {
    /// Whether the program's name belongs in front of the line.
    #[must_use]
    pub const fn names_the_program(&self) -> bool {
        match self {
            Self::Found(finding) => finding.names_the_program(),
            Self::LeaksKept(_) => true,
            _ => false,
        }
    }
}

impl fmt::Display for RepairEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found(finding) => finding.fmt(f),
            Self::Repaired(finding) => finding.fmt_repaired(f),
            Self::Rebuilding => f.write_str("Rebuilding refcount structure"),
            Self::NeedsAll => f.write_str("ERROR need to rebuild refcount structures"),
            Self::LeaksKept(clusters) => write!(
                f,
                "{clusters} leaked clusters are not freed: they may be what a corrupted entry \
                 referred to"
            ),
            Self::DoubleCheck(_) => f.write_str("Double checking the fixed image now..."),
        }
    }
}

/// The outcome of a [`repair`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// What was repaired.
    pub fixed: Fixed,
    /// What a check finds now.
    pub report: CheckReport,
}

/// Checks the image in `storage`, whose header is `area`, and repairs what it finds, as
/// far as `repair` says and without giving up data. Whatever instant it is interrupted
/// at, the image is no worse than before. If no corruption is left, the corrupt bit is
/// cleared, and if the refcounts are right, the dirty bit.
///
/// The caller has a writer's locks.
///
/// # Errors
/// [`CheckFailed`] as from [`check`], for an image whose refcounts must be repaired when
/// only leaks were to be, when there is no room, or when writing fails. Nothing
/// more is written then, and what was written does no harm.
pub fn repair(
    storage: &dyn Storage,
    area: &mut HeaderArea,
    repair: Repair,
    options: CheckOptions,
    tell: &mut dyn FnMut(RepairEvent<'_>),
) -> Result<RepairReport, CheckFailed> {
    let view = area.clone();
    let metadata = metadata(storage, &view);
    let mut image = Writer { storage, area };
    let plan = plan(&metadata, repair, options, &mut image, tell)?;
    let fixed = plan.fixed;
    let mut outcome = RepairReport {
        fixed,
        report: plan.report,
    };
    let mut refcounts_right = plan.refcounts_right;
    if !fixed.is_empty() {
        apply::apply(&metadata, &mut image, &plan)?;
        tell(RepairEvent::DoubleCheck(fixed));
        let view = image.area.clone();
        let metadata = self::metadata(storage, &view);
        refcounts_right = true;
        outcome.report = check(&metadata, options, &mut |finding| {
            refcounts_right &= !spoils_refcounts(finding);
            tell(RepairEvent::Found(finding));
        })?;
    }
    let sound = matches!(outcome.report.verdict(), Verdict::Clean | Verdict::Leaks);
    image.clear_bits(sound, refcounts_right)?;
    if !fixed.is_empty() && refcounts_right {
        apply::give_back(storage, &plan.targets);
    }
    Ok(outcome)
}

fn metadata<'a>(storage: &'a dyn Storage, area: &'a HeaderArea) -> Metadata<'a> {
    Metadata {
        storage,
        header: area.header(),
        extensions: area.extensions(),
        geometry: area.header().geometry(),
    }
}

/// Whether refcounts can't be relied on because of this finding.
fn spoils_refcounts(finding: &Finding) -> bool {
    match finding {
        Finding::RefcountWrong { .. } => finding.severity() != Severity::Leak,
        Finding::RefcountTableReserved { .. }
        | Finding::RefcountBlockUnaligned { .. }
        | Finding::RefcountBlockOutside { .. }
        | Finding::RefcountBlockShared { .. }
        | Finding::RefcountBlockNeeded { .. }
        | Finding::RefcountUnreadable { .. }
        | Finding::RefcountOverflow { .. } => true,
        _ => false,
    }
}

/// All that is to be written.
#[derive(Debug)]
struct Plan {
    targets: Targets,
    places: Places,
    survey: Survey,
    /// The snapshot table with its entries completed, if one was incomplete.
    snapshots: Option<snapshots::Table>,
    /// Copied flags change.
    flags_change: bool,
    fixed: Fixed,
    report: CheckReport,
    refcounts_right: bool,
}

/// Checks the image, tells what is wrong and what becomes of it, and plans that.
fn plan(
    metadata: &Metadata<'_>,
    repair: Repair,
    options: CheckOptions,
    image: &mut Writer<'_>,
    tell: &mut dyn FnMut(RepairEvent<'_>),
) -> Result<Plan, CheckFailed> {
    let mut refcounts_right = true;
    let mut say = |finding: &Finding, fate| {
        refcounts_right &= !spoils_refcounts(finding);
        tell(match fate {
            Fate::Found(_) => RepairEvent::Found(finding),
            Fate::Repaired => RepairEvent::Repaired(finding),
        });
    };
    let mut checker = Checker::new(metadata, &mut say)?;
    checker.survey = Survey::new(metadata, repair == Repair::All)?;
    checker.count_structures()?;
    if !checker.survey.mended_tables.is_empty() {
        image.prepare()?;
        flags::drop_misplaced(metadata, image, &checker.survey)?;
        checker.count_structures_again()?;
    }
    checker.count_refcounts()?;
    checker.compare()?;
    let snapshots = match checker.survey.snapshots_incomplete {
        true => Some(snapshots::completed(metadata)?),
        false => None,
    };
    let bad_copied = checker.bad_copied;
    let mended = checker.mended;
    let (mut targets, mut survey, report) = Targets::new(checker, repair);
    if repair == Repair::Leaks && survey.must_rebuild {
        tell(RepairEvent::NeedsAll);
        return Err(CheckFailed::because("Input/output error"));
    }
    let places = match repair {
        Repair::Leaks => Places::as_they_are(metadata, &targets)?,
        Repair::All => {
            let bytes = snapshots
                .as_ref()
                .map_or(0, |table| table.bytes.len() as u64);
            Places::find(metadata, &mut targets, &survey, bytes)?
        }
    };
    survey.abandon(places.abandoned.clone());
    let fixed = Fixed {
        leaks: 0,
        corruptions: mended,
    };
    let mut plan = Plan {
        targets,
        places,
        survey,
        snapshots,
        flags_change: false,
        fixed,
        report,
        refcounts_right,
    };
    let changes = settle::settle(&mut plan, tell)?;
    if bad_copied || changes {
        let mut flags = TellFlags::new(metadata, &mut plan, tell);
        judge_flags(metadata, &mut flags)?;
    }
    if options.bitmaps && plan.fixed.is_empty() {
        let mut say = |finding: &Finding, _| tell(RepairEvent::Found(finding));
        let mut checker = Checker::new(metadata, &mut say)?;
        checker.note_bitmaps()?;
        plan.report.unusable_bitmaps = checker.report.unusable_bitmaps;
    }
    Ok(plan)
}
