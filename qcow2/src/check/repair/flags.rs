//! What is written into L1 and L2 tables: copied flags, and L2 entries without a
//! preallocated cluster that was misplaced.

use super::{Plan, Repair, RepairEvent, apply::Writer, targets::Stage, targets::Targets};
use crate::{
    addr::HostOffset,
    check::{
        copied::Flags,
        finding::Finding,
        report::CheckFailed,
        stored::NoRefcount,
        survey::{Moment, Survey},
        walk::Metadata,
    },
    format::{L1Entry, L2Entry, l2},
};

/// Bit 63 of an entry.
const COPIED: u64 = 1 << 63;

/// An entry with the flag that the cluster's refcount asks for.
const fn with_flag(entry: u64, refcount: u64) -> u64 {
    if refcount == 1 {
        entry | COPIED
    } else {
        entry & !COPIED
    }
}

/// Says of each wrong flag whether it is repaired, and notes the kinds of changes.
pub(super) struct TellFlags<'a> {
    plan: &'a mut Plan,
    tell: &'a mut dyn FnMut(RepairEvent<'_>),
    /// They are to be repaired.
    wanted: bool,
    l1_writable: bool,
}

impl<'a> TellFlags<'a> {
    pub(super) fn new(
        metadata: &Metadata<'_>,
        plan: &'a mut Plan,
        tell: &'a mut dyn FnMut(RepairEvent<'_>),
    ) -> Self {
        let (report, fixed) = (&plan.report, &plan.fixed);
        // Flags alone are repaired in any case, as qemu-img does.
        let alone = report.corruptions == 0
            && report.check_errors == 0
            && report.leaks == fixed.leaks
            && !plan.targets.keep;
        let wanted = plan.targets.repair == Repair::All || alone;
        let l1_writable = plan.survey.l1_writable(metadata, Moment::Switched);
        Self {
            plan,
            tell,
            wanted,
            l1_writable,
        }
    }

    fn tell(&mut self, writable: bool, finding: &Finding) {
        if !writable || !self.wanted {
            self.plan.report.count(finding);
            (self.tell)(RepairEvent::Found(finding));
            return;
        }
        self.plan.flags_change = true;
        self.plan.fixed.corruptions += 1;
        (self.tell)(RepairEvent::Repaired(finding));
    }
}

impl Flags for TellFlags<'_> {
    fn refcount(&self, cluster: u64) -> Result<u64, NoRefcount> {
        final_refcount(&self.plan.targets, cluster)
    }

    fn unknown(&mut self, _: NoRefcount) {}

    fn l1(&mut self, index: u64, entry: L1Entry, stored: u64) -> Result<(), CheckFailed> {
        let entry = entry.0;
        let finding = Finding::L1Copied {
            index,
            entry,
            stored,
        };
        self.tell(self.l1_writable, &finding);
        Ok(())
    }

    fn l2(&mut self, table: HostOffset, _: usize, entry: L2Entry, stored: u64) {
        let geometry = self.plan.targets.geometry;
        let survey = &self.plan.survey;
        let writable = survey.writable(geometry, table, Moment::Switched);
        let finding = Finding::L2Copied {
            entry: entry.0,
            stored,
        };
        self.tell(writable, &finding);
    }

    fn l2_table(&mut self, _: HostOffset, _: &mut [u8]) -> Result<(), CheckFailed> {
        Ok(())
    }
}

/// The refcount by which flags are judged. Where it is 1 for lack of bits there are more
/// references, and the flag must not be set.
fn final_refcount(targets: &Targets, cluster: u64) -> Result<u64, NoRefcount> {
    if targets.is_overflowed(cluster) {
        return Err(NoRefcount::Unreadable);
    }
    if targets.repair == Repair::Leaks {
        targets.stored.get(cluster)?;
    }
    Ok(targets.value(cluster, Stage::Final))
}

/// Changes the flags that are wrong.
pub(super) struct WriteFlags<'a, 'w> {
    pub(super) metadata: &'a Metadata<'a>,
    pub(super) writer: &'a Writer<'w>,
    pub(super) targets: &'a Targets,
    pub(super) survey: &'a Survey,
    /// [`Moment::Before`]: only those that are to go.
    pub(super) moment: Moment,
    /// Changes of the L2 table at hand: where, and the new entry.
    pub(super) pending: Vec<(usize, u64)>,
    pub(super) written: bool,
}

impl WriteFlags<'_, '_> {
    fn due(&self, refcount: u64) -> bool {
        self.moment == Moment::Switched || refcount != 1
    }
}

impl Flags for WriteFlags<'_, '_> {
    fn refcount(&self, cluster: u64) -> Result<u64, NoRefcount> {
        final_refcount(self.targets, cluster)
    }

    fn unknown(&mut self, _: NoRefcount) {}

    fn l1(&mut self, index: u64, entry: L1Entry, refcount: u64) -> Result<(), CheckFailed> {
        let writable = self.survey.l1_writable(self.metadata, self.moment);
        if !writable || !self.due(refcount) {
            return Ok(());
        }
        let table = self.metadata.header.l1_table_offset.get();
        let at = table.saturating_add(index.saturating_mul(L1Entry::LEN));
        self.written = true;
        let entry = with_flag(entry.0, refcount);
        self.writer.write(at, &entry.to_be_bytes())
    }

    fn l2(&mut self, table: HostOffset, at: usize, entry: L2Entry, refcount: u64) {
        let geometry = self.metadata.geometry;
        if self.due(refcount) && self.survey.writable(geometry, table, self.moment) {
            self.pending.push((at, with_flag(entry.0, refcount)));
        }
    }

    fn l2_table(&mut self, offset: HostOffset, table: &mut [u8]) -> Result<(), CheckFailed> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.written = true;
        let before = table.to_vec();
        for (at, entry) in self.pending.drain(..) {
            put(table, at, entry);
        }
        self.writer.write_changes(offset.get(), &before, table)
    }
}

fn put(table: &mut [u8], at: usize, entry: u64) {
    if let Some(place) = table.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *place = entry.to_be_bytes();
    }
}

/// Takes the cluster out of entries that read as zeros and name one that isn't at a
/// cluster boundary.
pub(super) fn drop_misplaced(
    metadata: &Metadata<'_>,
    writer: &Writer<'_>,
    survey: &Survey,
) -> Result<(), CheckFailed> {
    let geometry = metadata.geometry;
    let data_file = metadata.header.has_data_file();
    let mut before = vec![0; usize::try_from(geometry.cluster_size()).unwrap_or(0)];
    for offset in &survey.mended_tables {
        metadata.read("an L2 table", *offset, &mut before)?;
        let mut table = before.clone();
        let misplaced = |entry: L2Entry| {
            let host = entry.host(data_file);
            host.is_some_and(|host| !geometry.is_aligned(host))
        };
        if geometry.extended_l2() {
            for (index, entry) in l2::extended_entries(&before).enumerate() {
                // What the bitmap says stays true: zero, or as in the backing file.
                if misplaced(entry.entry) && entry.bitmap.allocated() == 0 {
                    put(&mut table, index * 16, 0);
                }
            }
        } else {
            for (index, entry) in l2::entries(&before).enumerate() {
                if misplaced(entry) && entry.reads_as_zeros() {
                    put(&mut table, index * 8, L2Entry::zero(None).0);
                }
            }
        }
        writer.write_changes(*offset, &before, &table)?;
    }
    writer.sync()
}
