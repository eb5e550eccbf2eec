//! The active L1 table and those of the snapshots, and the L2 tables they refer to.

use super::{Budget, CopiedFlag, L2Scan, Metadata, Referrer, Visitor, snapshots};
use crate::{
    addr::HostOffset,
    check::{finding::Finding, report::CheckFailed, stored::MAX_READ_END},
    format::{L1Entry, header::MAX_L1_BYTES},
};

/// Bytes of neighbouring L2 tables that are read at once.
const RUN: u64 = 4 << 20;
/// A gap between two L2 tables that is read over rather than around.
const GAP: u64 = 128 << 10;

/// The order in which L2 tables are visited, and which.
#[derive(Clone, Copy, Debug)]
pub(in crate::check) enum Order<'a> {
    /// Each table once, as they stand in the file.
    OfFile,
    /// Each table for every reference to it, as the L1 tables name them; the entries
    /// only of those that are in the sorted list.
    OfGuest(ReadTables<'a>),
}

/// Which L2 tables to read.
#[derive(Clone, Copy, Debug)]
pub(in crate::check) enum ReadTables<'a> {
    /// All.
    All,
    /// Those at these offsets, which are sorted.
    At(&'a [u64]),
}

impl ReadTables<'_> {
    /// Whether the table at `offset` is to be read.
    pub(in crate::check) fn contains(self, offset: HostOffset) -> bool {
        match self {
            Self::All => true,
            Self::At(list) => list.binary_search(&offset.get()).is_ok(),
        }
    }
}

/// An L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct L1Table {
    offset: HostOffset,
    entries: u32,
    active: bool,
}

/// Visits all L1 tables, then, or in between, the L2 tables.
pub(super) fn walk_mappings<V: Visitor>(
    metadata: &Metadata<'_>,
    visitor: &mut V,
    order: Order<'_>,
) -> Result<(), CheckFailed> {
    let header = metadata.header;
    let active = L1Table {
        offset: header.l1_table_offset,
        entries: header.l1_size,
        active: true,
    };
    let file_end = metadata.file_end()?;
    let mut walk = Walk {
        metadata,
        file_end,
        budget: Budget::for_file(file_end),
        order,
        tables: L2Tables::default(),
        buffer: Vec::new(),
    };
    walk.l1(active, 1, visitor)?;
    match order {
        Order::OfGuest(_) => snapshots::for_each(metadata, |_, snapshot| {
            if let Some(finding) = walk.snapshot_fault(&snapshot) {
                visitor.problem(finding);
                return Ok(());
            }
            let offset = snapshot.l1_table_offset;
            let table = L1Table {
                offset,
                entries: snapshot.l1_size,
                active: false,
            };
            walk.l1(table, 1, visitor)
        }),
        Order::OfFile => {
            let mut list = Vec::new();
            snapshots::for_each(metadata, |_, snapshot| {
                let (offset, entries) = (snapshot.l1_table_offset, snapshot.l1_size);
                match walk.snapshot_fault(&snapshot) {
                    Some(finding) => visitor.problem(finding),
                    None => list.push(L1Table {
                        offset,
                        entries,
                        active: false,
                    }),
                }
                Ok(())
            })?;
            list.sort_unstable();
            for same in list.chunk_by(|a, b| a == b) {
                if let Some(table) = same.first() {
                    walk.l1(*table, same.len() as u64, visitor)?;
                }
            }
            walk.l2_in_file_order(visitor)
        }
    }
}

struct Walk<'a> {
    metadata: &'a Metadata<'a>,
    file_end: u64,
    budget: Budget,
    order: Order<'a>,
    tables: L2Tables,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    /// What forbids to look at a snapshot's L1 table.
    fn snapshot_fault(&self, snapshot: &crate::format::Snapshot) -> Option<Finding> {
        let aligned = self.metadata.geometry.is_aligned(snapshot.l1_table_offset);
        if aligned && u64::from(snapshot.l1_size) * L1Entry::LEN <= MAX_L1_BYTES {
            return None;
        }
        Some(Finding::SnapshotL1Invalid {
            id: snapshot.id.clone(),
            name: snapshot.name.clone(),
            offset: (!aligned).then_some(snapshot.l1_table_offset.get()),
            entries: snapshot.l1_size,
        })
    }

    /// An L1 table that `times` snapshots have, or the header.
    fn l1<V: Visitor>(
        &mut self,
        table: L1Table,
        times: u64,
        visitor: &mut V,
    ) -> Result<(), CheckFailed> {
        let bytes = u64::from(table.entries) * L1Entry::LEN;
        if bytes == 0 {
            return Ok(());
        }
        let by = if table.active {
            Referrer::ActiveL1
        } else {
            Referrer::SnapshotL1
        };
        visitor.reference(by, table.offset, bytes, times);
        if table
            .offset
            .get()
            .checked_add(bytes)
            .is_none_or(|end| end > MAX_READ_END)
        {
            visitor.problem(Finding::L1Unreadable);
            return Err(CheckFailed::because("Input/output error"));
        }
        self.budget.spend(u64::from(table.entries))?;
        let metadata = self.metadata;
        let entries = u64::from(table.entries);
        metadata.for_each_entry("an L1 table", table.offset, entries, |_, entry| {
            self.l1_entry(L1Entry(entry), table.active, times, visitor)
        })
    }

    fn l1_entry<V: Visitor>(
        &mut self,
        entry: L1Entry,
        active: bool,
        times: u64,
        visitor: &mut V,
    ) -> Result<(), CheckFailed> {
        if entry.reserved() != 0 {
            visitor.problem(Finding::L1Reserved { entry: entry.0 });
        }
        // As for QEMU, an entry with any bit set refers to a table, at 0 if need be.
        let offset = entry.l2_table().unwrap_or_default();
        let geometry = self.metadata.geometry;
        let by = Referrer::L2Table { active };
        visitor.reference(by, offset, geometry.cluster_size(), times);
        if !geometry.is_aligned(offset) {
            let offset = offset.get();
            visitor.problem(Finding::L2TableUnaligned { offset });
        }
        if active && entry.l2_table().is_some() {
            let copied = entry.copied();
            visitor.copied(CopiedFlag {
                copied,
                offset,
                in_data_file: false,
            });
        }
        if offset.get() >= self.file_end {
            return Ok(()); // It reads as zeros: no entries.
        }
        let counted = if active { (times, 0) } else { (0, times) };
        match self.order {
            Order::OfFile => self.tables.push(offset, counted.0, counted.1),
            Order::OfGuest(wanted) if wanted.contains(offset) => {
                self.l2_run(
                    &[L2Table {
                        offset,
                        active: counted.0,
                        snapshots: counted.1,
                    }],
                    visitor,
                )?;
            }
            Order::OfGuest(_) => {}
        }
        Ok(())
    }

    /// Visits the tables collected, neighbours read at once.
    fn l2_in_file_order<V: Visitor>(&mut self, visitor: &mut V) -> Result<(), CheckFailed> {
        let tables = std::mem::take(&mut self.tables).sorted();
        let cluster_size = self.metadata.geometry.cluster_size();
        let mut rest = tables.as_slice();
        while let Some(first) = rest.first() {
            let mut end = first.offset.get() + cluster_size;
            let run = rest.iter().take_while(|table| {
                let next = table.offset.get();
                let near = next <= end + GAP && next + cluster_size <= first.offset.get() + RUN;
                if near {
                    end = next + cluster_size;
                }
                near || next == first.offset.get()
            });
            let (run, after) = rest
                .split_at_checked(run.count().max(1))
                .unwrap_or((rest, &[]));
            self.l2_run(run, visitor)?;
            rest = after;
        }
        Ok(())
    }

    /// Reads L2 tables that are near each other, in file order, and visits them.
    fn l2_run<V: Visitor>(&mut self, run: &[L2Table], visitor: &mut V) -> Result<(), CheckFailed> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Ok(());
        };
        let geometry = self.metadata.geometry;
        let start = first.offset.get();
        let bytes = last.offset.get() - start + geometry.cluster_size();
        let bytes = usize::try_from(bytes).unwrap_or(0);
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(bytes, 0);
        self.metadata.read("L2 tables", start, &mut buffer)?;
        self.budget
            .spend(run.len() as u64 * geometry.l2_entries())?;
        let table_len = usize::try_from(geometry.cluster_size()).unwrap_or(0);
        for table in run {
            let at = usize::try_from(table.offset.get() - start).unwrap_or(usize::MAX);
            let bytes = buffer.get(at..).and_then(|rest| rest.get(..table_len));
            let scan = L2Scan {
                geometry,
                data_file: self.metadata.header.has_data_file(),
                active: table.active,
                snapshots: table.snapshots,
            };
            let references = table.active.saturating_add(table.snapshots);
            visitor.enter_l2_table(table.offset, references);
            let clusters = scan.scan(bytes.unwrap_or_default(), visitor);
            visitor.l2_table(table.offset, &clusters, table.active);
        }
        self.buffer = buffer;
        Ok(())
    }
}

/// An L2 table, and how often it is referred to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct L2Table {
    offset: HostOffset,
    active: u64,
    snapshots: u64,
}

/// The L2 tables found in L1 tables. The same table is kept once, so that memory
/// follows the number of tables and not that of snapshots.
#[derive(Debug, Default)]
struct L2Tables {
    list: Vec<L2Table>,
    /// Length of the list after it was last compacted.
    compact: usize,
}

impl L2Tables {
    fn push(&mut self, offset: HostOffset, active: u64, snapshots: u64) {
        self.list.push(L2Table {
            offset,
            active,
            snapshots,
        });
        if self.list.len() > 2 * self.compact + 65536 {
            self.compact();
        }
    }

    fn compact(&mut self) {
        self.list.sort_unstable_by_key(|table| table.offset);
        self.list.dedup_by(|later, kept| {
            let same = later.offset == kept.offset;
            if same {
                kept.active = kept.active.saturating_add(later.active);
                kept.snapshots = kept.snapshots.saturating_add(later.snapshots);
            }
            same
        });
        self.compact = self.list.len();
    }

    fn sorted(mut self) -> Vec<L2Table> {
        self.compact();
        self.list
    }
}
