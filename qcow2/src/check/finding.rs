//! [`Finding`]: one thing that a check found, as data. Its text is in `display`.

mod display;
mod fields;

use crate::Error;

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

    /// Whether this may be a reference that has become unrecognizable, so that clusters
    /// without a reference may be somebody's.
    #[must_use]
    pub const fn hides_references(&self) -> bool {
        !matches!(
            self,
            Self::RefcountOverflow { .. }
                | Self::RefcountTableReserved { .. }
                | Self::RefcountBlockUnaligned { .. }
                | Self::RefcountBlockOutside { .. }
                | Self::RefcountBlockShared { .. }
                | Self::RefcountBlockNeeded { .. }
                | Self::RefcountUnreadable { .. }
                | Self::RefcountWrong { .. }
                | Self::L1Copied { .. }
                | Self::L2Copied { .. }
                | Self::BitmapInUse { .. }
                | Self::BitmapsVoid { .. }
        )
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
