//! Writes a repair, in this order:
//!
//! 1. copied flags that are to go, and sync: a cluster may be shared
//! 2. new refcount blocks, refcount table and snapshot table, where nothing was; refcounts
//!    that are too low; sync
//! 3. the entries of the refcount table, or the header, which from then on names
//!    the new tables; sync
//! 4. refcounts that are too high, and those of the old structures; sync
//! 5. copied flags that were missing, and those in clusters that were part of an old
//!    structure until now; sync
//!
//! After each step every refcount is at least the number of references, where it was
//! before or where the step before has made it so; and a copied flag is only where it
//! was before or where the refcount is one.

use super::{
    Plan, Repair,
    flags::WriteFlags,
    targets::{Stage, Targets},
};
use crate::{
    Error,
    addr::HostOffset,
    check::{
        compare::compared_blocks, copied::judge_flags, report::CheckFailed, survey::Moment,
        walk::Metadata,
    },
    format::{Autoclear, HeaderArea, Incompatible, RefcountTableEntry},
    image::header_switch,
    io::Storage,
};

/// What a disk writes as one.
const SECTOR: usize = 512;

/// The image that is written.
pub(super) struct Writer<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) area: &'a mut HeaderArea,
}

impl Writer<'_> {
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), CheckFailed> {
        let written = self.storage.write_all_at(offset, bytes);
        written.map_err(CheckFailed::writing(format!("writing at {offset:#x}")))
    }

    /// Writes the sectors of `after`, which stands at `offset`, that differ from `before`.
    pub(super) fn write_changes(
        &self,
        offset: u64,
        before: &[u8],
        after: &[u8],
    ) -> Result<(), CheckFailed> {
        let differs = |(a, b): (&u8, &u8)| a != b;
        let pairs = || before.iter().zip(after);
        let (Some(first), Some(last)) = (pairs().position(differs), pairs().rposition(differs))
        else {
            return Ok(());
        };
        let start = first / SECTOR * SECTOR;
        let end = (last / SECTOR + 1).saturating_mul(SECTOR).min(after.len());
        let bytes = after.get(start..end).unwrap_or_default();
        self.write(offset.saturating_add(start as u64), bytes)
    }

    pub(super) fn sync(&self) -> Result<(), CheckFailed> {
        let synced = self.storage.sync();
        synced.map_err(CheckFailed::writing("syncing the image".into()))
    }

    /// Before the first change: whoever writes an image clears the autoclear bits that
    /// he doesn't know.
    pub(super) fn prepare(&mut self) -> Result<(), CheckFailed> {
        let mut next = self.area.clone();
        let features = &mut next.header_mut().autoclear_features;
        *features = features.without(features.unknown());
        self.switch(next)
    }

    fn switch(&mut self, next: HeaderArea) -> Result<(), CheckFailed> {
        header_switch::switch(self.storage, self.area, &next).map_err(CheckFailed::from_error)?;
        *self.area = next;
        Ok(())
    }

    /// Clears the corrupt bit of an image that is `sound`, and the dirty bit of one
    /// whose `refcounts_right`.
    pub(super) fn clear_bits(
        &mut self,
        sound: bool,
        refcounts_right: bool,
    ) -> Result<(), CheckFailed> {
        let mut next = self.area.clone();
        let features = &mut next.header_mut().incompatible_features;
        if sound {
            *features = features.without(Incompatible::CORRUPT);
        }
        if refcounts_right {
            *features = features.without(Incompatible::DIRTY);
        }
        self.switch(next)
    }
}

/// Writes what `plan` says.
pub(super) fn apply(
    metadata: &Metadata<'_>,
    writer: &mut Writer<'_>,
    plan: &Plan,
) -> Result<(), CheckFailed> {
    writer.prepare()?;
    if plan.flags_change {
        write_flags(metadata, writer, plan, Moment::Before)?;
    }
    raise(writer, plan)?;
    switch_tables(metadata, writer, plan)?;
    drop_void_bitmaps(writer, plan)?;
    lower(writer, plan)?;
    if plan.flags_change {
        write_flags(metadata, writer, plan, Moment::Switched)?;
    }
    Ok(())
}

fn write_flags(
    metadata: &Metadata<'_>,
    writer: &Writer<'_>,
    plan: &Plan,
    moment: Moment,
) -> Result<(), CheckFailed> {
    let mut flags = WriteFlags {
        metadata,
        writer,
        targets: &plan.targets,
        survey: &plan.survey,
        moment,
        pending: Vec::new(),
        written: false,
    };
    judge_flags(metadata, &mut flags)?;
    match flags.written {
        true => writer.sync(),
        false => Ok(()),
    }
}

/// Step 2.
fn raise(writer: &Writer<'_>, plan: &Plan) -> Result<(), CheckFailed> {
    let targets = &plan.targets;
    if targets.repair == Repair::Leaks {
        return Ok(());
    }
    let bits = targets.geometry.cluster_bits();
    let (mut block, mut room) = (Vec::new(), Vec::new());
    for (index, cluster) in &targets.renewed {
        targets.fill(*index, Stage::Raised, &mut block);
        writer.write(cluster << bits, &block)?;
    }
    if let Some(run) = plan.places.table {
        writer.write(run.first << bits, &plan.places.new_table(targets))?;
    }
    if let (Some(run), Some(table)) = (plan.places.snapshots, &plan.snapshots) {
        writer.write(run.first << bits, &table.bytes)?;
    }
    for (index, offset) in &plan.places.kept {
        if targets.is_right(*index, &mut room) {
            continue;
        }
        let before = stored_block(targets, *index);
        targets.fill(*index, Stage::Raised, &mut block);
        writer.write_changes(offset.get(), &before, &block)?;
    }
    writer.sync()
}

fn stored_block(targets: &Targets, index: u64) -> Vec<u8> {
    let size = usize::try_from(targets.geometry.cluster_size()).unwrap_or(0);
    match targets.stored.block(index) {
        Ok(Some(block)) => block.to_vec(),
        _ => vec![0; size],
    }
}

/// Step 3.
fn switch_tables(
    metadata: &Metadata<'_>,
    writer: &mut Writer<'_>,
    plan: &Plan,
) -> Result<(), CheckFailed> {
    let bits = plan.targets.geometry.cluster_bits();
    let places = &plan.places;
    let table = metadata.header.refcount_table_offset.get();
    for (index, entry) in &places.entries {
        let at = table.saturating_add(index.saturating_mul(RefcountTableEntry::LEN));
        writer.write(at, &entry.to_be_bytes())?;
    }
    if !places.entries.is_empty() {
        writer.sync()?;
    }
    let mut next = writer.area.clone();
    if let Some(run) = places.table {
        let header = next.header_mut();
        header.refcount_table_offset = HostOffset(run.first << bits);
        header.refcount_table_clusters = u32::try_from(run.clusters).unwrap_or(u32::MAX);
    }
    if let Some(run) = places.snapshots {
        next.header_mut().snapshots_offset = HostOffset(run.first << bits);
    }
    writer.switch(next)
}

/// Bitmaps that nobody believes any more lose their clusters as leaks; then nothing
/// is to speak of them.
fn drop_void_bitmaps(writer: &mut Writer<'_>, plan: &Plan) -> Result<(), CheckFailed> {
    let valid = writer
        .area
        .header()
        .autoclear_features
        .contains(Autoclear::BITMAPS);
    if valid || plan.fixed.leaks == 0 {
        return Ok(());
    }
    let mut next = writer.area.clone();
    next.set_bitmaps_extension(None)
        .map_err(CheckFailed::from_error)?;
    writer.switch(next)
}

/// Step 4.
fn lower(writer: &Writer<'_>, plan: &Plan) -> Result<(), CheckFailed> {
    let targets = &plan.targets;
    let bits = targets.geometry.cluster_bits();
    let renewed = targets
        .renewed
        .iter()
        .map(|(index, at)| (*index, at << bits));
    let kept = plan
        .places
        .kept
        .iter()
        .map(|(index, at)| (*index, at.get()));
    let (mut before, mut after, mut room) = (Vec::new(), Vec::new(), Vec::new());
    let mut written = false;
    for (index, offset) in kept.chain(renewed) {
        if targets.is_right(index, &mut room) {
            continue;
        }
        targets.fill(index, Stage::Raised, &mut before);
        targets.fill(index, Stage::Final, &mut after);
        if before != after {
            writer.write_changes(offset, &before, &after)?;
            written = true;
        }
    }
    match written {
        true => writer.sync(),
        false => Ok(()),
    }
}

/// Gives the space of freed clusters back. It is no matter if that fails: nothing refers
/// to them.
pub(super) fn give_back(storage: &dyn Storage, targets: &Targets) {
    let bits = targets.geometry.cluster_bits();
    let entries = targets.geometry.refcount_block_entries();
    let mut free: Option<(u64, u64)> = None;
    let punch = |run: Option<(u64, u64)>| {
        if let Some((first, end)) = run {
            let _ = storage.punch_hole(first << bits..end << bits);
        }
    };
    for index in compared_blocks(&targets.counts, &targets.stored) {
        let first = index * entries;
        for cluster in first..first.saturating_add(entries).min(targets.in_file) {
            let had = targets.stored.get(cluster).is_ok_and(|stored| stored > 0);
            if !had || targets.value(cluster, Stage::Final) != 0 {
                continue;
            }
            free = match free {
                Some((first, end)) if end == cluster => Some((first, cluster + 1)),
                run => {
                    punch(run);
                    Some((cluster, cluster + 1))
                }
            };
        }
    }
    punch(free);
}

impl CheckFailed {
    fn from_error(error: Error) -> Self {
        match error {
            Error::Io { action, source } => Self::writing(action)(source),
            other => Self::because(other.to_string()),
        }
    }
}
