//! Says of each wrong refcount whether it is repaired.

use super::{Plan, Repair, RepairEvent, targets::Stage};
use crate::check::{compare::compared_blocks, finding::Finding, report::CheckFailed};

/// Goes through the refcounts once more, now that it is known what becomes of them, and
/// counts what is repaired. Returns whether any refcount changes.
pub(super) fn settle(
    plan: &mut Plan,
    tell: &mut dyn FnMut(RepairEvent<'_>),
) -> Result<bool, CheckFailed> {
    let targets = &plan.targets;
    let fixed = &mut plan.fixed;
    if plan.places.change() {
        tell(RepairEvent::Rebuilding);
    }
    if targets.repair == Repair::All {
        fixed.corruptions += plan.survey.structure;
    }
    let limit = targets.counts.clusters();
    let entries = targets.geometry.refcount_block_entries();
    let mut room = Vec::new();
    let (mut kept, mut changes) = (0, plan.places.change());
    for index in compared_blocks(&targets.counts, &targets.stored) {
        if targets.is_right(index, &mut room) {
            continue;
        }
        let renewed = targets.renewed.contains_key(&index);
        let first = index * entries;
        for cluster in first..first.saturating_add(entries).min(limit) {
            let references = targets.counts.get(cluster);
            let Ok(stored) = targets.stored.get(cluster) else {
                if !renewed {
                    tell(RepairEvent::Found(&Finding::RefcountUnreadable { cluster }));
                }
                continue;
            };
            if stored == references {
                continue;
            }
            let finding = Finding::RefcountWrong {
                cluster,
                stored,
                references,
            };
            let repaired = match stored > references {
                true => !targets.keep,
                false => targets.repair == Repair::All,
            };
            match (stored > references, repaired) {
                (true, true) => fixed.leaks += 1,
                (true, false) => kept += 1,
                (false, true) => fixed.corruptions += 1,
                (false, false) => {}
            }
            changes |= repaired;
            match repaired {
                // They are written anew as they should be.
                _ if renewed => {}
                true => tell(RepairEvent::Repaired(&finding)),
                false => tell(RepairEvent::Found(&finding)),
            }
        }
    }
    for &cluster in &plan.places.abandoned {
        let stored = targets.value(cluster, Stage::Raised);
        let references = targets.value(cluster, Stage::Final);
        if stored != references {
            tell(RepairEvent::Repaired(&Finding::RefcountWrong {
                cluster,
                stored,
                references,
            }));
        }
    }
    if kept > 0 {
        tell(RepairEvent::LeaksKept(kept));
    }
    Ok(changes)
}
