//! The consistency check: what refers to each cluster, against the stored refcounts.
//!
//! ```text
//! walk     visits every reference to every cluster and says who refers to it
//! counts   how often each cluster was referred to, packed as refcount blocks are
//! stored   the image's own refcounts
//! checker  the check itself: the order of the passes
//! compare  counts against stored refcounts
//! copied   the copied flags against refcounts
//! finding  what is wrong, in the words of `qemu-img check`
//! survey   what else a repair has to know
//! repair   from findings to an image without them
//! report   the sums
//! ```
//!
//! Findings are data, handed out one by one as they are made; what can't be checked
//! at all ends the check with [`CheckFailed`]. Nothing is written.
//!
//! # Two passes
//! The first pass counts. It visits the L2 tables of all snapshots at once, each table
//! once, in the order of the file, and only notes which tables have something
//! wrong with them. Only if there is any does a second pass go through the image in
//! the order of the guest and describe it, looking at the noted tables alone. A sound
//! image, and that is nearly every one, is read once and sequentially.

mod checker;
mod compare;
mod copied;
mod counts;
mod finding;
mod ranges;
mod repair;
mod report;
mod stored;
mod survey;
mod walk;
mod watch;

pub use checker::{CheckOptions, check, dry_run};
pub use finding::{Finding, Severity};
pub use repair::{Fixed, Repair, RepairEvent, RepairReport, repair};
pub use report::{CheckFailed, CheckReport, Verdict};
pub use walk::{Clusters, CopiedFlag, Metadata, Referrer, Visitor, walk};
pub(crate) use watch::Watch;
