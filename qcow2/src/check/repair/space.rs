//! [`Space`]: clusters that are free by every account, for new structures.

use super::targets::Targets;
use crate::check::{report::CheckFailed, survey::Survey};

/// Clusters that are looked at within the file before the search goes on past its end.
const MAX_STEPS: u64 = 1 << 28;
/// Host offsets have 56 bits (spec, standard cluster descriptor).
const HOST_LIMIT: u64 = 1 << 56;

/// Hands out clusters that nothing refers to and whose refcount is 0, lowest first.
pub(super) struct Space<'a> {
    targets: &'a Targets,
    survey: &'a Survey,
    /// Clusters at or past this can't be had.
    end: u64,
    /// Clusters below this are taken.
    from: u64,
    steps: u64,
}

impl<'a> Space<'a> {
    /// `device` is the size in bytes of what can't grow.
    pub(super) fn new(targets: &'a Targets, survey: &'a Survey, device: Option<u64>) -> Self {
        let end = device.unwrap_or(HOST_LIMIT).min(HOST_LIMIT);
        Self {
            targets,
            survey,
            end: end >> targets.geometry.cluster_bits(),
            // The header is in cluster 0.
            from: 1,
            steps: 0,
        }
    }

    /// The first of `clusters` free ones in a row.
    pub(super) fn take(&mut self, clusters: u64) -> Result<u64, CheckFailed> {
        let mut first = self.from;
        let mut at = first;
        while at < first.saturating_add(clusters) {
            let end = first.saturating_add(clusters);
            if self
                .survey
                .dangling()
                .is_some_and(|dangling| end > dangling)
            {
                return Err(CheckFailed::because(
                    "Something is referred to beyond the end of the file, which can't become \
                     longer for new refcounts before that is mended",
                ));
            }
            if end > self.end || self.steps > 2 * MAX_STEPS {
                return Err(CheckFailed::because("No space left on device"));
            }
            self.steps += 1;
            if self.is_free(at) {
                at += 1;
                continue;
            }
            let hurry = self.steps > MAX_STEPS;
            first = match hurry {
                true => at.saturating_add(1).max(self.targets.in_file),
                false => at.saturating_add(1),
            };
            at = first;
        }
        self.from = at;
        Ok(first)
    }

    fn is_free(&self, cluster: u64) -> bool {
        let targets = self.targets;
        if targets.counts.get(cluster) != 0 {
            return false;
        }
        if cluster >= targets.in_file {
            return targets.stored(cluster).unwrap_or(0) == 0;
        }
        match targets.stored(cluster) {
            Some(stored) => stored == 0,
            None => !targets.keep,
        }
    }
}
