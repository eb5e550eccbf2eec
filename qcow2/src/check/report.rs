//! [`CheckReport`]: what a check found, in numbers; [`CheckFailed`]: why there is none.

use std::io;

use super::finding::{Finding, Severity};
use crate::{Error, addr::HostOffset};

/// What a check found, in numbers: those of `qemu-img check --output=json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Findings of [`Severity::Corruption`].
    pub corruptions: u64,
    /// Findings of [`Severity::Leak`].
    pub leaks: u64,
    /// Findings of [`Severity::CheckError`]; with any of them the check counts as failed.
    pub check_errors: u64,
    /// Findings about bitmaps that were asked for: in use, or void.
    pub unusable_bitmaps: u64,
    /// Guest clusters of the disk.
    pub total_clusters: u64,
    /// Guest clusters with a host cluster.
    pub allocated_clusters: u64,
    /// Of them those that don't follow the one before in the file; all compressed ones.
    pub fragmented_clusters: u64,
    /// Of them the compressed ones.
    pub compressed_clusters: u64,
    /// Where the last cluster in use ends.
    pub image_end_offset: HostOffset,
}

/// The outcome in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Nothing is wrong (exit code 0).
    Clean,
    /// Only leaks (exit code 3).
    Leaks,
    /// At least one corruption (exit code 2).
    Corrupt,
    /// Something could not be checked (exit code 1); qemu-img prints "Check failed".
    Failed,
}

impl CheckReport {
    /// The worst that was found.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        if self.check_errors > 0 {
            Verdict::Failed
        } else if self.corruptions > 0 {
            Verdict::Corrupt
        } else if self.leaks > 0 {
            Verdict::Leaks
        } else {
            Verdict::Clean
        }
    }

    pub(super) const fn count(&mut self, finding: &Finding) {
        match finding.severity() {
            Severity::Corruption => self.corruptions += 1,
            Severity::Leak => self.leaks += 1,
            Severity::CheckError => self.check_errors += 1,
            Severity::Note => match finding {
                Finding::BitmapInUse { .. } | Finding::BitmapsVoid { .. } => {
                    self.unusable_bitmaps += 1;
                }
                _ => {}
            },
        }
    }
}

/// The check could not be finished; there is no report. The sentence is qemu-img's.
#[derive(Debug, thiserror::Error)]
#[error("Check failed: {reason}")]
pub struct CheckFailed {
    /// Why, in the system's words for the error.
    pub reason: String,
    /// The error behind it, where there is one.
    #[source]
    pub source: Option<Error>,
    /// The storage failed, or the image asks for too much: there is no use in going
    /// through it again to say what is wrong with it.
    pub(super) at_once: bool,
}

impl CheckFailed {
    pub(super) fn because(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            source: None,
            at_once: false,
        }
    }

    /// The check would take too long.
    pub(super) fn endless() -> Self {
        let at_once = true;
        let reason = "the tables refer to each other too often to be checked";
        Self {
            at_once,
            ..Self::because(reason)
        }
    }

    /// Reading `what` from the image failed.
    pub(super) fn io(what: &str, offset: u64) -> impl FnOnce(io::Error) -> Self {
        let action = format!("reading {what} at {offset:#x}");
        move |source| {
            let reason = "Input/output error".to_owned();
            Self {
                reason,
                source: Some(Error::io(action)(source)),
                at_once: true,
            }
        }
    }
}

impl CheckFailed {
    /// Writing failed while doing `action`; the reason is the system's.
    pub(super) fn writing(action: String) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let text = source.to_string();
            let reason = text.split(" (os error").next().unwrap_or_default();
            Self {
                reason: reason.to_owned(),
                source: Some(Error::io(action)(source)),
                at_once: true,
            }
        }
    }
}

impl From<CheckFailed> for Error {
    fn from(failed: CheckFailed) -> Self {
        let text = failed.to_string();
        failed.source.unwrap_or(Self::Refused(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_refcounts_are_leaks_only_when_too_high() {
        let of = |stored, references| Finding::RefcountWrong {
            cluster: 5,
            stored,
            references,
        };
        assert_eq!(of(2, 1).severity(), Severity::Leak);
        assert_eq!(
            of(2, 1).to_string(),
            "Leaked cluster 5 refcount=2 reference=1"
        );
        assert_eq!(of(0, 1).severity(), Severity::Corruption);
        assert_eq!(
            of(0, 1).to_string(),
            "ERROR cluster 5 refcount=0 reference=1"
        );
        let mut report = CheckReport::default();
        assert_eq!(report.verdict(), Verdict::Clean);
        report.count(&of(2, 1));
        assert_eq!(report.verdict(), Verdict::Leaks);
        report.count(&of(0, 1));
        assert_eq!(report.verdict(), Verdict::Corrupt);
        report.count(&Finding::RefcountUnreadable { cluster: 1 });
        assert_eq!(
            (report.leaks, report.corruptions, report.check_errors),
            (1, 1, 1)
        );
        assert_eq!(report.verdict(), Verdict::Failed);
    }
}
