//! The snapshot table: whether it can be read, and its entries one by one.

use super::{Metadata, Visitor};
use crate::{
    addr::HostOffset,
    check::{finding::Finding, report::CheckFailed, stored::MAX_READ_END},
    format::{
        header::MAX_SNAPSHOTS,
        snapshot::{self, Snapshot},
    },
};

/// Bytes of the table that are read at once.
const WINDOW: usize = 64 << 10;
/// Extra data that a version 3 entry must have: up to and with the virtual disk size.
const V3_EXTRA_DATA: u32 = 16;
/// What the system calls it that a number is too large.
const TOO_LARGE: &str = "File too large";

/// Checks that the snapshot table can be read; returns its length in bytes. Memory is
/// one window, whatever the header says.
pub(super) fn check_table<V: Visitor>(
    metadata: &Metadata<'_>,
    visitor: &mut V,
) -> Result<u64, CheckFailed> {
    let header = metadata.header;
    if let Some(overhanging) = header.nb_snapshots.checked_sub(MAX_SNAPSHOTS + 1) {
        let overhanging = overhanging + 1;
        visitor.problem(Finding::SnapshotTableTooLarge { overhanging });
        return Err(CheckFailed::because(TOO_LARGE));
    }
    if let Err(error) = header.check_snapshot_table() {
        visitor.problem(Finding::SnapshotTableMisplaced);
        return Err(CheckFailed {
            source: Some(error),
            ..CheckFailed::because("Invalid argument")
        });
    }
    let start = header.snapshots_offset.get();
    let mut window = Window::new(metadata);
    let (mut at, mut end) = (start, start);
    for index in 0..header.nb_snapshots {
        if at.saturating_add(snapshot::FIXED_LEN as u64) > MAX_READ_END {
            let reason = "Failed to read snapshot table: Input/output error";
            visitor.problem(Finding::SnapshotTableUnreadable {
                reason,
                overhanging: None,
            });
            return Err(CheckFailed::because("Input/output error"));
        }
        let (extra, len) = window.fixed(at)?;
        if extra > snapshot::QEMU_MAX_EXTRA_DATA {
            visitor.problem(Finding::SnapshotExtraDataTooLong { index });
            return Err(CheckFailed::because(TOO_LARGE));
        }
        end = at.saturating_add(len);
        at = after_padding(end);
        if end - start > snapshot::MAX_TABLE_BYTES {
            let (reason, overhanging) = ("Snapshot table is too big", header.nb_snapshots - index);
            let overhanging = Some(overhanging);
            visitor.problem(Finding::SnapshotTableUnreadable {
                reason,
                overhanging,
            });
            return Err(CheckFailed::because(TOO_LARGE));
        }
    }
    if header.version >= 3 {
        let mut at = start;
        for index in 0..header.nb_snapshots {
            let (extra, len) = window.fixed(at)?;
            if extra < V3_EXTRA_DATA {
                visitor.problem(Finding::SnapshotIncomplete { index });
            }
            at = after_padding(at.saturating_add(len));
        }
    }
    // The last entry's padding isn't counted.
    Ok(end - start)
}

/// Where the entry after one that ends at `end` begins.
fn after_padding(end: u64) -> u64 {
    end.checked_next_multiple_of(8).unwrap_or(u64::MAX)
}

/// Calls `each` with every snapshot of a table that [`check_table`] let through.
pub(in crate::check) fn for_each(
    metadata: &Metadata<'_>,
    mut each: impl FnMut(u32, Snapshot) -> Result<(), CheckFailed>,
) -> Result<(), CheckFailed> {
    let mut window = Window::new(metadata);
    let mut at = metadata.header.snapshots_offset.get();
    for index in 0..metadata.header.nb_snapshots {
        let (_, len) = window.fixed(at)?;
        let bytes = window.get(at, usize::try_from(len).unwrap_or(usize::MAX))?;
        let number = usize::try_from(index).unwrap_or(usize::MAX);
        let (_, snapshot) = Snapshot::parse(bytes, HostOffset(at), number)
            .map_err(|error| CheckFailed::because(error.to_string()))?;
        each(index, snapshot)?;
        at = after_padding(at.saturating_add(len));
    }
    Ok(())
}

/// Whether the incomplete entries of a table that [`check_table`] let through look like those
/// of an older program, and not like what is read where the table isn't, or where an entry's
/// length is damaged.
pub(in crate::check) fn plausible(metadata: &Metadata<'_>) -> Result<bool, CheckFailed> {
    let mut end = metadata.header.snapshots_offset.get();
    let mut plausible = true;
    for_each(metadata, |_, snapshot| {
        let is_complete = snapshot.extra.len() >= V3_EXTRA_DATA as usize;
        plausible &= is_complete || (snapshot.l1_size > 0 && !snapshot.id.is_empty());
        let mut bytes = Vec::new();
        snapshot.encode(&mut bytes);
        end = end.saturating_add(bytes.len() as u64);
        Ok(())
    })?;
    let size = metadata.storage.size();
    let size = size.map_err(|e| CheckFailed::because(e.to_string()))?;
    // The padding of the last one needn't be there.
    Ok(plausible && end <= size.saturating_add(7))
}

/// A part of the table in memory.
struct Window<'a> {
    metadata: &'a Metadata<'a>,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    const fn new(metadata: &'a Metadata<'a>) -> Self {
        Self {
            metadata,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// Length of the extra data, and of the whole entry at `at` without its padding.
    fn fixed(&mut self, at: u64) -> Result<(u32, u64), CheckFailed> {
        let fixed = self.get(at, snapshot::FIXED_LEN)?;
        let extra = fixed.last_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        let len = snapshot::unpadded_len(fixed);
        extra
            .zip(len)
            .ok_or_else(|| CheckFailed::because("Input/output error"))
    }

    /// `len` bytes at `at`; zeros past the file's end. `len` is less than 140 KiB for
    /// an entry with no more extra data than QEMU reads.
    fn get(&mut self, at: u64, len: usize) -> Result<&[u8], CheckFailed> {
        let have = at.checked_sub(self.start).and_then(|from| {
            let from = usize::try_from(from).ok()?;
            let end = from.checked_add(len)?;
            (end <= self.bytes.len()).then_some(from)
        });
        let from = match have {
            Some(from) => from,
            None => {
                self.bytes.resize(len.max(WINDOW), 0);
                self.start = at;
                self.metadata
                    .read("the snapshot table", at, &mut self.bytes)?;
                0
            }
        };
        Ok(self
            .bytes
            .get(from..)
            .and_then(|rest| rest.get(..len))
            .unwrap_or_default())
    }
}
