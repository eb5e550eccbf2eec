//! [`Finding`]s and the [`CheckReport`] that sums them up. A finding's `Display` is
//! the line that `qemu-img check` 10.0 prints for it; those that qemu-img doesn't
//! have, because it can't open such an image, are in the same style.

use std::{fmt, io};

use crate::{Error, addr::HostOffset};

/// How bad a finding is, and which sum it goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Data may be lost, now or by the next write.
    Corruption,
    /// Clusters are allocated that nothing refers to: wasted space.
    Leak,
    /// Something could not be checked.
    CheckError,
    /// Nothing wrong with the image's structure: said about a bitmap on request, or
    /// beside another finding.
    Note,
}

/// One thing that the check found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Finding {
    /// A reference goes beyond the end of the file.
    ExceedsEnd {
        /// Where what is referred to would start.
        offset: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// More references to a cluster than its refcount can hold.
    RefcountOverflow {
        /// The cluster.
        offset: u64,
    },
    /// An L1 entry, whole, with reserved bits.
    L1Reserved {
        /// The entry.
        entry: u64,
    },
    /// An L2 table isn't at a cluster boundary.
    L2TableUnaligned {
        /// Where it is.
        offset: u64,
    },
    /// An L2 entry, whole, with reserved bits.
    L2Reserved {
        /// The entry.
        entry: u64,
    },
    /// A cluster isn't at a cluster boundary.
    ClusterUnaligned {
        /// Where it is.
        offset: u64,
        /// Whether guest data is in it; else it is only preallocated.
        data: bool,
    },
    /// A subcluster is both allocated and zero.
    SubclustersInvalid {
        /// The cluster.
        offset: u64,
    },
    /// Subclusters are allocated in an entry without a cluster.
    SubclustersWithoutCluster,
    /// A compressed cluster has the copied flag.
    CompressedCopied {
        /// The cluster.
        offset: u64,
    },
    /// A compressed cluster in an image with an external data file.
    CompressedWithDataFile {
        /// Index in the L2 table.
        index: u64,
        /// The entry, without the copied flag.
        entry: u64,
    },
    /// A compressed cluster with a subcluster bitmap.
    CompressedWithSubclusters {
        /// Index in the L2 table.
        index: u64,
        /// The entry, without the copied flag.
        entry: u64,
    },
    /// The snapshot table can't be where the header says.
    SnapshotTableMisplaced,
    /// More snapshots than the limit.
    SnapshotTableTooLarge {
        /// How many are beyond it.
        overhanging: u32,
    },
    /// The snapshot table could not be read on.
    SnapshotTableUnreadable {
        /// Why, as QEMU says it.
        reason: &'static str,
        /// How many snapshots are beyond the limit, if that is the reason.
        overhanging: Option<u32>,
    },
    /// A snapshot has more extra data than QEMU reads.
    SnapshotExtraDataTooLong {
        /// Index in the snapshot table.
        index: u32,
    },
    /// A snapshot lacks extra data that version 3 must have.
    SnapshotIncomplete {
        /// Index in the snapshot table.
        index: u32,
    },
    /// A snapshot's L1 table can't be where its entry says, or be as large.
    SnapshotL1Invalid {
        /// The snapshot's ID: bytes of the image, escaped by `Display`.
        id: Vec<u8>,
        /// The snapshot's name: bytes of the image, escaped by `Display`.
        name: Vec<u8>,
        /// The offset, if that is wrong.
        offset: Option<u64>,
        /// The number of entries.
        entries: u32,
    },
    /// A snapshot's L1 table could not be read.
    L1Unreadable,
    /// The encryption header extension is broken. QEMU doesn't open such an image.
    EncryptionPointer(Error),
    /// The bitmaps extension or the directory is broken. QEMU doesn't open such an image.
    BitmapDirectory(Error),
    /// A bitmap can't be used as its directory entry stands. QEMU doesn't open such an image.
    BitmapEntry(Error),
    /// A bitmap table's entry is wrong.
    BitmapTableEntry {
        /// The bitmap's name: bytes of the image, escaped by `Display`.
        name: Vec<u8>,
        /// Index in the bitmap table.
        index: u64,
        /// The entry.
        entry: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A bitmap is marked in-use: its writer crashed, or is running.
    BitmapInUse {
        /// The bitmap's name: bytes of the image, escaped by `Display`.
        name: Vec<u8>,
    },
    /// The bitmaps' autoclear bit is not set: no bitmap can be believed.
    BitmapsVoid {
        /// How many bitmaps the image says it has.
        bitmaps: u32,
    },
    /// A refcount table entry has reserved bits.
    RefcountTableReserved {
        /// Index in the refcount table.
        index: u64,
    },
    /// A refcount block isn't at a cluster boundary.
    RefcountBlockUnaligned {
        /// Index in the refcount table.
        index: u64,
    },
    /// A refcount block is beyond the end of the file.
    RefcountBlockOutside {
        /// Index in the refcount table.
        index: u64,
    },
    /// A refcount block is referred to elsewhere too.
    RefcountBlockShared {
        /// Index in the refcount table.
        index: u64,
        /// References to it.
        references: u64,
    },
    /// Said once, when an unaligned refcount block is needed.
    RefcountBlockNeeded {
        /// Where the block is.
        offset: u64,
        /// Index in the refcount table.
        index: u64,
    },
    /// The stored refcount of a cluster can't be read.
    RefcountUnreadable {
        /// Index of the cluster.
        cluster: u64,
    },
    /// The stored refcount isn't the number of references.
    RefcountWrong {
        /// Index of the cluster.
        cluster: u64,
        /// The stored refcount.
        stored: u64,
        /// References to the cluster.
        references: u64,
    },
    /// An active L1 entry's copied flag doesn't fit the L2 table's refcount.
    L1Copied {
        /// Index in the L1 table.
        index: u64,
        /// The entry.
        entry: u64,
        /// The stored refcount.
        stored: u64,
    },
    /// An active L2 entry's copied flag doesn't fit the cluster's refcount.
    L2Copied {
        /// The entry.
        entry: u64,
        /// The stored refcount.
        stored: u64,
    },
}

impl Finding {
    /// How bad it is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::RefcountWrong {
                stored, references, ..
            } if *stored > *references => Severity::Leak,
            Self::RefcountUnreadable { .. } => Severity::CheckError,
            Self::RefcountBlockNeeded { .. }
            | Self::BitmapInUse { .. }
            | Self::BitmapsVoid { .. }
            | Self::SnapshotTableMisplaced
            | Self::SnapshotTableTooLarge { .. }
            | Self::SnapshotTableUnreadable { .. }
            | Self::SnapshotExtraDataTooLong { .. }
            | Self::L1Unreadable => Severity::Note,
            _ => Severity::Corruption,
        }
    }

    /// Whether `qemu-img` prints its own name in front of the line.
    #[must_use]
    pub const fn names_the_program(&self) -> bool {
        matches!(
            self,
            Self::SnapshotTableMisplaced
                | Self::SnapshotTableTooLarge { .. }
                | Self::SnapshotTableUnreadable { .. }
                | Self::SnapshotExtraDataTooLong { .. }
        )
    }
}

/// Bytes out of an image, for a line of text: UTF-8 is kept, control characters
/// and what isn't UTF-8 are escaped. As in QEMU, whose strings are C's, a zero ends them.
fn shown(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                text.extend(c.escape_default())
            } else {
                text.push(c)
            }
        }
        text.extend(chunk.invalid().escape_ascii().map(char::from));
    }
    text
}

/// A number as C's `%#x` has it: zero without `0x`.
fn c_hex(number: u64) -> String {
    if number == 0 {
        "0".to_owned()
    } else {
        format!("{number:#x}")
    }
}

/// What qemu-img says after a table that is too large; it is qemu-img's own command.
fn overhanging(f: &mut fmt::Formatter<'_>, count: u32) -> fmt::Result {
    write!(
        f,
        "\nYou can force-remove all {count} overhanging snapshots with qemu-img check -r all"
    )
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExceedsEnd { .. }
            | Self::RefcountOverflow { .. }
            | Self::L1Reserved { .. }
            | Self::L2TableUnaligned { .. }
            | Self::L2Reserved { .. }
            | Self::ClusterUnaligned { .. }
            | Self::SubclustersInvalid { .. }
            | Self::SubclustersWithoutCluster
            | Self::CompressedCopied { .. }
            | Self::CompressedWithDataFile { .. }
            | Self::CompressedWithSubclusters { .. } => self.fmt_mapping(f),
            Self::SnapshotTableMisplaced
            | Self::SnapshotTableTooLarge { .. }
            | Self::SnapshotTableUnreadable { .. }
            | Self::SnapshotExtraDataTooLong { .. }
            | Self::SnapshotIncomplete { .. }
            | Self::SnapshotL1Invalid { .. }
            | Self::L1Unreadable => self.fmt_snapshot(f),
            Self::EncryptionPointer(error)
            | Self::BitmapDirectory(error)
            | Self::BitmapEntry(error) => write!(f, "ERROR {error}"),
            Self::BitmapTableEntry {
                name,
                index,
                entry,
                reason,
            } => {
                let name = shown(name);
                write!(
                    f,
                    "ERROR bitmap '{name}' table entry {index}: {entry:x}: {reason}"
                )
            }
            Self::BitmapInUse { name } => {
                write!(
                    f,
                    "Bitmap '{}' is in use or was not saved correctly",
                    shown(name)
                )
            }
            Self::BitmapsVoid { bitmaps } => {
                write!(f, "All {bitmaps} bitmaps are inconsistent: ")?;
                f.write_str("the image was written by a program that doesn't support them")
            }
            _ => self.fmt_refcount(f),
        }
    }
}

impl Finding {
    fn fmt_mapping(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExceedsEnd { offset, bytes } => {
                f.write_str("ERROR: counting reference for region exceeding the end of the file ")?;
                write!(
                    f,
                    "by one cluster or more: offset {offset:#x} size {bytes:#x}"
                )
            }
            Self::RefcountOverflow { offset } => {
                writeln!(f, "ERROR: overflow cluster offset={offset:#x}")?;
                f.write_str(
                    "Use qemu-img amend to increase the refcount entry width or qemu-img ",
                )?;
                f.write_str("convert to create a clean copy if the image cannot be opened for ")?;
                f.write_str("writing")
            }
            Self::L1Reserved { entry } => {
                write!(f, "ERROR found L1 entry with reserved bits set: {entry:x}")
            }
            Self::L2TableUnaligned { offset } => {
                write!(f, "ERROR l2_offset={offset:x}: ")?;
                f.write_str("Table is not cluster aligned; L1 entry corrupted")
            }
            Self::L2Reserved { entry } => {
                write!(f, "ERROR found l2 entry with reserved bits set: {entry:x}")
            }
            Self::ClusterUnaligned { offset, data } => {
                let kind = if *data { "Data" } else { "Preallocated" };
                write!(
                    f,
                    "ERROR offset={offset:x}: {kind} cluster is not properly aligned; "
                )?;
                f.write_str("L2 entry corrupted.")
            }
            Self::SubclustersInvalid { offset } => {
                write!(f, "ERROR offset={offset:x}: ")?;
                f.write_str("Allocated cluster has corrupted subcluster allocation bitmap")
            }
            Self::SubclustersWithoutCluster => {
                f.write_str("ERROR: Unallocated cluster has non-zero subcluster allocation map")
            }
            Self::CompressedCopied { offset } => {
                write!(f, "ERROR: coffset={offset:#x}: ")?;
                f.write_str("copied flag must never be set for compressed clusters")
            }
            Self::CompressedWithDataFile { index, entry } => {
                write!(
                    f,
                    "ERROR compressed cluster {index} with data file, entry={entry:#x}"
                )
            }
            Self::CompressedWithSubclusters { index, entry } => {
                write!(
                    f,
                    "ERROR compressed cluster {index} with non-zero subcluster "
                )?;
                write!(f, "allocation bitmap, entry={entry:#x}")
            }
            _ => Ok(()),
        }
    }

    fn fmt_snapshot(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SnapshotTableMisplaced => f.write_str("ERROR snapshot table offset invalid"),
            Self::SnapshotTableTooLarge { overhanging: count } => {
                f.write_str("ERROR snapshot table too large")?;
                overhanging(f, *count)
            }
            Self::SnapshotTableUnreadable {
                reason,
                overhanging: count,
            } => {
                write!(f, "ERROR failed to read the snapshot table: {reason}")?;
                count.map_or(Ok(()), |count| overhanging(f, count))
            }
            Self::SnapshotExtraDataTooLong { index } => {
                f.write_str("ERROR failed to read the snapshot table: ")?;
                writeln!(f, "Too much extra metadata in snapshot table entry {index}")?;
                f.write_str("You can force-remove this extra metadata with qemu-img check -r all")
            }
            Self::SnapshotIncomplete { index } => {
                write!(f, "ERROR snapshot table entry {index} is incomplete")
            }
            Self::SnapshotL1Invalid {
                id,
                name,
                offset,
                entries,
            } => {
                write!(f, "ERROR snapshot {} ({}) ", shown(id), shown(name))?;
                match offset {
                    Some(at) => write!(f, "l1_offset={at:#x}: L1 table is not cluster aligned")?,
                    None => write!(f, "l1_size={entries:#x}: L1 table is too large")?,
                }
                f.write_str("; snapshot table entry corrupted")
            }
            Self::L1Unreadable => f.write_str("ERROR: I/O error in check_refcounts_l1"),
            _ => Ok(()),
        }
    }

    fn fmt_refcount(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RefcountTableReserved { index } => {
                write!(
                    f,
                    "ERROR refcount table entry {index} has reserved bits set"
                )
            }
            Self::RefcountBlockUnaligned { index } => {
                write!(f, "ERROR refcount block {index} is not cluster aligned; ")?;
                f.write_str("refcount table entry corrupted")
            }
            Self::RefcountBlockOutside { index } => {
                write!(f, "ERROR refcount block {index} is outside image")
            }
            Self::RefcountBlockShared { index, references } => {
                write!(f, "ERROR refcount block {index} refcount={references}")
            }
            Self::RefcountBlockNeeded { offset, index } => {
                write!(
                    f,
                    "qcow2: Image is corrupt: Refblock offset {offset:#x} unaligned "
                )?;
                write!(f, "(reftable index: {}); ", c_hex(*index))?;
                f.write_str("further non-fatal corruption events will be suppressed")
            }
            Self::RefcountUnreadable { cluster } => {
                write!(
                    f,
                    "Can't get refcount for cluster {cluster}: Input/output error"
                )
            }
            Self::RefcountWrong {
                cluster,
                stored,
                references,
            } => {
                let kind = if stored > references {
                    "Leaked"
                } else {
                    "ERROR"
                };
                write!(
                    f,
                    "{kind} cluster {cluster} refcount={stored} reference={references}"
                )
            }
            Self::L1Copied {
                index,
                entry,
                stored,
            } => {
                write!(f, "ERROR OFLAG_COPIED L2 cluster: ")?;
                write!(f, "l1_index={index} l1_entry={entry:x} refcount={stored}")
            }
            Self::L2Copied { entry, stored } => {
                write!(
                    f,
                    "ERROR OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={stored}"
                )
            }
            _ => Ok(()),
        }
    }
}

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
}

impl CheckFailed {
    pub(super) fn because(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            source: None,
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
    fn names_from_the_image_are_escaped() {
        let finding = Finding::BitmapInUse {
            name: b"\x1b[2J\xc3\xa4\xff".to_vec(),
        };
        let text = "Bitmap '\\u{1b}[2Jä\\xff' is in use or was not saved correctly";
        assert_eq!(finding.to_string(), text);
    }

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
