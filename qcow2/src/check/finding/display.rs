//! A finding's `Display`: the line that `qemu-img check` 10.0 prints for it. Findings that
//! qemu-img doesn't have, because it can't open such an image, are in the same style.

use std::fmt;

use super::Finding;

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
    /// The line that `qemu-img check -r` prints when it repairs this.
    pub(in crate::check) fn fmt_repaired(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.to_string();
        let what = ["ERROR ", "Leaked "]
            .iter()
            .find_map(|word| line.strip_prefix(word));
        write!(f, "Repairing {}", what.unwrap_or(&line))
    }

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
}
