//! [`walk`]: every reference to every cluster, and who refers to it.

mod bitmaps;
mod l1;
mod l2;
mod snapshots;

use super::{finding::Finding, report::CheckFailed};
use crate::{
    Geometry,
    addr::HostOffset,
    format::{Extensions, Header, RefcountTableEntry},
    io::Storage,
};

pub(super) use l1::{Order, ReadTables};
pub use l2::Clusters;
use l2::L2Scan;
pub(super) use snapshots::{for_each as for_each_snapshot, plausible as snapshots_plausible};

/// Bytes of a table that are read at once.
const PIECE: u64 = 1 << 20;
/// Table entries that a walk may look at, whatever the size of the file: seconds.
const FREE_ENTRIES: u64 = 1 << 28;
/// The most entries for a large file: an image of 512 TiB at 64 KiB maps as many.
const MAX_ENTRIES: u64 = 1 << 33;

/// What a walk needs of an image.
#[derive(Clone, Copy, Debug)]
pub struct Metadata<'a> {
    /// The image file.
    pub storage: &'a dyn Storage,
    /// Its header; [`Header::parse_for_check`] is enough.
    pub header: &'a Header,
    /// Its header extensions.
    pub extensions: &'a Extensions,
    /// The header's geometry.
    pub geometry: Geometry,
}

/// Who refers to a cluster. Numbers are indices in the snapshot table, the bitmap
/// directory or the refcount table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Referrer {
    /// It is the header's cluster.
    Header,
    /// The header: the active L1 table.
    ActiveL1,
    /// The snapshot table: a snapshot's L1 table.
    SnapshotL1,
    /// An L1 table: an L2 table.
    L2Table {
        /// Whether it is the active L1 table, or else a snapshot's.
        active: bool,
    },
    /// A standard L2 entry: guest data, or a preallocated cluster.
    Data {
        /// Whether the L2 table belongs to the active L1 table, or else to a snapshot's.
        active: bool,
    },
    /// An L2 entry: a compressed cluster, which needn't begin or end at a boundary.
    Compressed {
        /// Whether the L2 table belongs to the active L1 table, or else to a snapshot's.
        active: bool,
    },
    /// The header: the snapshot table.
    SnapshotTable,
    /// A header extension: the LUKS header.
    EncryptionHeader,
    /// A header extension: the bitmap directory.
    BitmapDirectory,
    /// The bitmap directory: a bitmap table.
    BitmapTable(u32),
    /// A bitmap table: bitmap data.
    BitmapData(u32),
    /// The header: the refcount table.
    RefcountTable,
    /// The refcount table: a refcount block.
    RefcountBlock(u64),
}

/// An entry of an active table whose copied flag means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedFlag {
    /// The flag.
    pub copied: bool,
    /// The L2 table, or the cluster.
    pub offset: HostOffset,
    /// The cluster is in the external data file, so that its refcount counts as 1.
    pub in_data_file: bool,
}

/// What a walk tells.
pub trait Visitor {
    /// `bytes` bytes at `offset` are referred to, `times` times. They may be anywhere:
    /// unaligned, beyond the file's end, beyond 2^63.
    fn reference(&mut self, by: Referrer, offset: HostOffset, bytes: u64, times: u64);

    /// Something is wrong with what refers to clusters. The walk goes on.
    fn problem(&mut self, finding: Finding);

    /// An L2 entry of a cluster that reads as zeros names a preallocated cluster which
    /// isn't at a cluster boundary. Whether the entry is taken as one without a cluster.
    fn misplaced_preallocation(&mut self, offset: HostOffset) -> bool {
        let offset = offset.get();
        self.problem(Finding::ClusterUnaligned {
            offset,
            data: false,
        });
        false
    }

    /// An entry of an active L1 or L2 table has, or lacks, the copied flag.
    fn copied(&mut self, _flag: CopiedFlag) {}

    /// The entries of the L2 table at `offset`, to which L1 tables refer so often, follow.
    fn enter_l2_table(&mut self, _offset: HostOffset, _references: u64) {}

    /// An L2 table has been visited: `clusters` says what it maps, which counts as
    /// often as the active L1 table refers to it.
    fn l2_table(&mut self, _offset: HostOffset, _clusters: &Clusters, _active: u64) {}

    /// The number of clusters below which refcount blocks have to be; as many as the
    /// file has, unless stated.
    fn clusters(&self) -> Option<u64> {
        None
    }
}

/// Tells `visitor` of every reference to every cluster. L2 tables are read in large
/// pieces in the order of the file; snapshots that share one count at once.
///
/// # Errors
/// When the storage fails, when there are more entries to look at than in any real
/// image, or when the snapshot table can't be read at all (after `visitor` was told why).
pub fn walk<V: Visitor>(metadata: &Metadata<'_>, visitor: &mut V) -> Result<(), CheckFailed> {
    walk_structures(metadata, visitor, Order::OfFile)?;
    walk_refcounts(metadata, visitor)
}

/// All but the refcount table and blocks, in the order in which QEMU counts them.
pub(super) fn walk_structures<V: Visitor>(
    metadata: &Metadata<'_>,
    visitor: &mut V,
    order: Order<'_>,
) -> Result<(), CheckFailed> {
    let table_bytes = snapshots::check_table(metadata, visitor)?;
    let cluster_size = metadata.geometry.cluster_size();
    visitor.reference(Referrer::Header, HostOffset(0), cluster_size, 1);
    l1::walk_mappings(metadata, visitor, order)?;
    let header = metadata.header;
    visitor.reference(
        Referrer::SnapshotTable,
        header.snapshots_offset,
        table_bytes,
        1,
    );
    match metadata.extensions.encryption() {
        Ok(Some(luks)) => {
            visitor.reference(Referrer::EncryptionHeader, luks.offset, luks.length, 1);
        }
        Ok(None) => {}
        Err(error) => visitor.problem(Finding::EncryptionPointer(error)),
    }
    bitmaps::walk_bitmaps(metadata, visitor)
}

/// The refcount table and its blocks.
pub(super) fn walk_refcounts<V: Visitor>(
    metadata: &Metadata<'_>,
    visitor: &mut V,
) -> Result<(), CheckFailed> {
    let geometry = metadata.geometry;
    let header = metadata.header;
    let cluster_size = geometry.cluster_size();
    let bytes = u64::from(header.refcount_table_clusters) * cluster_size;
    visitor.reference(
        Referrer::RefcountTable,
        header.refcount_table_offset,
        bytes,
        1,
    );
    let in_file = geometry.clusters_for(metadata.file_end()?);
    metadata.for_each_refcount_block(|index, entry| {
        if entry.reserved() != 0 {
            visitor.problem(Finding::RefcountTableReserved { index });
            return Ok(());
        }
        let Some(offset) = entry.block() else {
            return Ok(());
        };
        if !geometry.is_aligned(offset) {
            visitor.problem(Finding::RefcountBlockUnaligned { index });
        } else if geometry.host_cluster(offset).get() >= visitor.clusters().unwrap_or(in_file) {
            visitor.problem(Finding::RefcountBlockOutside { index });
        } else {
            visitor.reference(Referrer::RefcountBlock(index), offset, cluster_size, 1);
        }
        Ok(())
    })
}

impl Metadata<'_> {
    /// The length of the file.
    pub(super) fn file_end(&self) -> Result<u64, CheckFailed> {
        self.storage
            .size()
            .map_err(CheckFailed::io("the file's size", 0))
    }

    /// Fills `out` from `offset` on; past the file's end are zeros.
    pub(super) fn read(&self, what: &str, offset: u64, out: &mut [u8]) -> Result<(), CheckFailed> {
        // Storage takes offsets as the system does, so nothing near 2^63 is asked for.
        let end = self.file_end()?;
        let inside = end.saturating_sub(offset).min(out.len() as u64);
        let inside = usize::try_from(inside).unwrap_or(0);
        let (data, beyond) = out.split_at_mut_checked(inside).unwrap_or_default();
        beyond.fill(0);
        if data.is_empty() {
            return Ok(());
        }
        self.storage
            .read_padded(offset, data)
            .map_err(CheckFailed::io(what, offset))
    }

    /// Calls `each` with index and value of every entry other than 0 of the table of
    /// `entries` 8-byte numbers at `offset`. What is past the file's end is 0.
    pub(super) fn for_each_entry(
        &self,
        what: &str,
        offset: HostOffset,
        entries: u64,
        mut each: impl FnMut(u64, u64) -> Result<(), CheckFailed>,
    ) -> Result<(), CheckFailed> {
        let bytes = entries.saturating_mul(8);
        let inside = bytes.min(
            self.file_end()?
                .saturating_sub(offset.get())
                .next_multiple_of(8),
        );
        let mut piece = vec![0; usize::try_from(PIECE.min(inside)).unwrap_or(0)];
        let mut at = 0;
        while at < inside {
            let len = usize::try_from(PIECE.min(inside - at)).unwrap_or(0);
            let Some(piece) = piece.get_mut(..len) else {
                break;
            };
            self.read(what, offset.get().saturating_add(at), piece)?;
            for (index, word) in (at / 8..).zip(piece.as_chunks::<8>().0) {
                let word = u64::from_be_bytes(*word);
                if word != 0 {
                    each(index, word)?;
                }
            }
            at += len as u64;
        }
        Ok(())
    }

    /// Calls `each` with every refcount table entry other than 0.
    pub(super) fn for_each_refcount_block(
        &self,
        mut each: impl FnMut(u64, RefcountTableEntry) -> Result<(), CheckFailed>,
    ) -> Result<(), CheckFailed> {
        let clusters = u64::from(self.header.refcount_table_clusters);
        let entries = clusters * (self.geometry.cluster_size() / RefcountTableEntry::LEN);
        let offset = self.header.refcount_table_offset;
        self.for_each_entry("the refcount table", offset, entries, |index, word| {
            each(index, RefcountTableEntry(word))
        })
    }
}

/// Counts down the entries that a walk may still look at. A small file whose tables
/// are all one table could else ask for any number.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    /// For a file of `bytes` bytes: twice what it can hold, and some more for snapshots.
    pub(super) fn for_file(bytes: u64) -> Self {
        Self((bytes / 4).min(MAX_ENTRIES) + FREE_ENTRIES)
    }

    pub(super) fn spend(&mut self, entries: u64) -> Result<(), CheckFailed> {
        self.0 = self
            .0
            .checked_sub(entries)
            .ok_or_else(CheckFailed::endless)?;
        Ok(())
    }
}
