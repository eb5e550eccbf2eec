//! A finding for programs: a word for its kind, and its numbers by name.

use super::{Finding, Severity};

impl Severity {
    /// One word: `corruption`, `leak`, `check-error` or `note`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Corruption => "corruption",
            Self::Leak => "leak",
            Self::CheckError => "check-error",
            Self::Note => "note",
        }
    }
}

impl Finding {
    /// The kind in words that stay the same, such as `refcount-wrong`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::ExceedsEnd { .. } => "exceeds-end",
            Self::RefcountOverflow { .. } => "refcount-overflow",
            Self::L1Reserved { .. } => "l1-reserved",
            Self::L2TableUnaligned { .. } => "l2-table-unaligned",
            Self::L2Reserved { .. } => "l2-reserved",
            Self::ClusterUnaligned { data: true, .. } => "cluster-unaligned",
            Self::ClusterUnaligned { data: false, .. } => "preallocated-cluster-unaligned",
            Self::SubclustersInvalid { .. } => "subclusters-invalid",
            Self::SubclustersWithoutCluster => "subclusters-without-cluster",
            Self::CompressedCopied { .. } => "compressed-copied",
            Self::CompressedWithDataFile { .. } => "compressed-with-data-file",
            Self::CompressedWithSubclusters { .. } => "compressed-with-subclusters",
            Self::SnapshotTableMisplaced => "snapshot-table-misplaced",
            Self::SnapshotTableTooLarge { .. } => "snapshot-table-too-large",
            Self::SnapshotTableUnreadable { .. } => "snapshot-table-unreadable",
            Self::SnapshotExtraDataTooLong { .. } => "snapshot-extra-data-too-long",
            Self::SnapshotIncomplete { .. } => "snapshot-incomplete",
            Self::SnapshotL1Invalid { .. } => "snapshot-l1-invalid",
            Self::L1Unreadable => "l1-unreadable",
            Self::EncryptionPointer(_) => "encryption-pointer",
            Self::BitmapDirectory(_) => "bitmap-directory",
            Self::BitmapEntry(_) => "bitmap-entry",
            Self::BitmapTableEntry { .. } => "bitmap-table-entry",
            Self::BitmapInUse { .. } => "bitmap-in-use",
            Self::BitmapsVoid { .. } => "bitmaps-void",
            Self::RefcountTableReserved { .. } => "refcount-table-reserved",
            Self::RefcountBlockUnaligned { .. } => "refcount-block-unaligned",
            Self::RefcountBlockOutside { .. } => "refcount-block-outside",
            Self::RefcountBlockShared { .. } => "refcount-block-shared",
            Self::RefcountBlockNeeded { .. } => "refcount-block-needed",
            Self::RefcountUnreadable { .. } => "refcount-unreadable",
            Self::RefcountWrong { .. } => "refcount-wrong",
            Self::L1Copied { .. } => "l1-copied",
            Self::L2Copied { .. } => "l2-copied",
        }
    }

    /// The numbers that belong to it, by name: `offset` and `bytes` in bytes, `cluster`
    /// and `index` as indices, `entry` as it is stored, the others as counts.
    #[must_use]
    pub fn numbers(&self) -> Vec<(&'static str, u64)> {
        match *self {
            Self::ExceedsEnd { offset, bytes } => vec![("offset", offset), ("bytes", bytes)],
            Self::RefcountOverflow { offset }
            | Self::L2TableUnaligned { offset }
            | Self::ClusterUnaligned { offset, .. }
            | Self::SubclustersInvalid { offset }
            | Self::CompressedCopied { offset } => vec![("offset", offset)],
            Self::L1Reserved { entry } | Self::L2Reserved { entry } => vec![("entry", entry)],
            Self::CompressedWithDataFile { index, entry }
            | Self::CompressedWithSubclusters { index, entry }
            | Self::BitmapTableEntry { index, entry, .. } => {
                vec![("index", index), ("entry", entry)]
            }
            Self::SnapshotTableTooLarge { overhanging }
            | Self::SnapshotTableUnreadable {
                overhanging: Some(overhanging),
                ..
            } => vec![("overhanging", overhanging.into())],
            Self::SnapshotExtraDataTooLong { index } | Self::SnapshotIncomplete { index } => {
                vec![("index", index.into())]
            }
            Self::SnapshotL1Invalid {
                offset, entries, ..
            } => {
                let offset = offset.map(|offset| ("offset", offset));
                let entries = ("entries", u64::from(entries));
                offset.into_iter().chain([entries]).collect()
            }
            Self::BitmapsVoid { bitmaps } => vec![("bitmaps", bitmaps.into())],
            Self::RefcountTableReserved { index }
            | Self::RefcountBlockUnaligned { index }
            | Self::RefcountBlockOutside { index } => vec![("index", index)],
            Self::RefcountBlockShared { index, references } => {
                vec![("index", index), ("references", references)]
            }
            Self::RefcountBlockNeeded { offset, index } => {
                vec![("offset", offset), ("index", index)]
            }
            Self::RefcountUnreadable { cluster } => vec![("cluster", cluster)],
            Self::RefcountWrong {
                cluster,
                stored,
                references,
            } => vec![
                ("cluster", cluster),
                ("refcount", stored),
                ("references", references),
            ],
            Self::L1Copied {
                index,
                entry,
                stored,
            } => vec![("index", index), ("entry", entry), ("refcount", stored)],
            Self::L2Copied { entry, stored } => vec![("entry", entry), ("refcount", stored)],
            Self::SubclustersWithoutCluster
            | Self::SnapshotTableMisplaced
            | Self::SnapshotTableUnreadable {
                overhanging: None, ..
            }
            | Self::L1Unreadable
            | Self::EncryptionPointer(_)
            | Self::BitmapDirectory(_)
            | Self::BitmapEntry(_)
            | Self::BitmapInUse { .. } => Vec::new(),
        }
    }

    /// The name of the bitmap or snapshot that it is about: bytes of the image.
    #[must_use]
    pub fn name(&self) -> Option<&[u8]> {
        match self {
            Self::SnapshotL1Invalid { name, .. }
            | Self::BitmapTableEntry { name, .. }
            | Self::BitmapInUse { name } => Some(name),
            _ => None,
        }
    }
}
