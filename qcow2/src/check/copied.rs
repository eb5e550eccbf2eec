//! The copied flags of the active tables against refcounts.

use super::{
    checker::Checker,
    finding::Finding,
    repair::Repair,
    report::CheckFailed,
    stored::NoRefcount,
    survey::Moment,
    walk::{Budget, Metadata},
};
use crate::{
    addr::HostOffset,
    format::{L1Entry, L2Entry, l2},
};

/// What is done with the copied flags of an image.
pub(super) trait Flags {
    /// The refcount of `cluster`, by which its flags are judged.
    fn refcount(&self, cluster: u64) -> Result<u64, NoRefcount>;

    /// A refcount can't be told, so nor can the flag be judged.
    fn unknown(&mut self, why: NoRefcount);

    /// The flag of this L1 entry, with that index, is wrong.
    fn l1(&mut self, index: u64, entry: L1Entry, refcount: u64) -> Result<(), CheckFailed>;

    /// The flag of this L2 entry, which starts `at` bytes into the table at `table`, is
    /// wrong.
    fn l2(&mut self, table: HostOffset, at: usize, entry: L2Entry, refcount: u64);

    /// All entries of the L2 table at `offset`, whose bytes these are, have been seen.
    fn l2_table(&mut self, offset: HostOffset, table: &mut [u8]) -> Result<(), CheckFailed>;
}

/// Goes through the active L1 table and its L2 tables, and tells of flags that are wrong.
pub(super) fn judge_flags<F: Flags>(
    metadata: &Metadata<'_>,
    flags: &mut F,
) -> Result<(), CheckFailed> {
    let geometry = metadata.geometry;
    let table_len = usize::try_from(geometry.cluster_size()).unwrap_or(0);
    let mut table = vec![0; table_len];
    let entries = u64::from(metadata.header.l1_size);
    let offset = metadata.header.l1_table_offset;
    let mut budget = Budget::for_file(metadata.file_end()?);
    metadata.for_each_entry("the active L1 table", offset, entries, |index, entry| {
        let entry = L1Entry(entry);
        let Some(offset) = entry.l2_table() else {
            return Ok(());
        };
        let refcount = match flags.refcount(geometry.host_cluster(offset).get()) {
            Ok(refcount) => refcount,
            Err(why) => {
                flags.unknown(why);
                return Ok(());
            }
        };
        if (refcount == 1) != entry.copied() {
            flags.l1(index, entry, refcount)?;
        }
        budget.spend(geometry.l2_entries())?;
        metadata.read("an L2 table", offset.get(), &mut table)?;
        judge_table(metadata, offset, &table, flags);
        flags.l2_table(offset, &mut table)
    })
}

fn judge_table<F: Flags>(metadata: &Metadata<'_>, offset: HostOffset, table: &[u8], flags: &mut F) {
    let geometry = metadata.geometry;
    let data_file = metadata.header.has_data_file();
    let mut judge = |index: usize, size: usize, entry: L2Entry| {
        let Some(host) = entry.host(data_file) else {
            return;
        };
        let refcount = match data_file {
            true => Ok(1),
            false => flags.refcount(geometry.host_cluster(host).get()),
        };
        match refcount {
            Ok(refcount) if (refcount == 1) != entry.copied() => {
                flags.l2(offset, index * size, entry, refcount);
            }
            Ok(_) => {}
            Err(why) => flags.unknown(why),
        }
    };
    if geometry.extended_l2() {
        for (index, entry) in l2::extended_entries(table).enumerate() {
            judge(index, 16, entry.entry);
        }
    } else {
        for (index, entry) in l2::entries(table).enumerate() {
            judge(index, 8, entry);
        }
    }
}

/// The check only says what is wrong.
impl Flags for Checker<'_> {
    fn refcount(&self, cluster: u64) -> Result<u64, NoRefcount> {
        self.stored.get(cluster)
    }

    fn unknown(&mut self, why: NoRefcount) {
        self.signal(why);
    }

    fn l1(&mut self, index: u64, entry: L1Entry, stored: u64) -> Result<(), CheckFailed> {
        let entry = entry.0;
        let writable = self.survey.l1_writable(self.metadata, Moment::Before);
        let finding = Finding::L1Copied {
            index,
            entry,
            stored,
        };
        self.emit_with(&finding, writable.then_some(Repair::All));
        Ok(())
    }

    fn l2(&mut self, table: HostOffset, _: usize, entry: L2Entry, stored: u64) {
        let entry = entry.0;
        let geometry = self.metadata.geometry;
        let writable = self.survey.writable(geometry, table, Moment::Before);
        let finding = Finding::L2Copied { entry, stored };
        self.emit_with(&finding, writable.then_some(Repair::All));
    }

    fn l2_table(&mut self, _: HostOffset, _: &mut [u8]) -> Result<(), CheckFailed> {
        self.give_up_when_hopeless()
    }
}
