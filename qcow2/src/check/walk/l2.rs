//! One L2 table: what its entries refer to, and what is wrong with them.

use super::{CopiedFlag, Referrer, Visitor};
use crate::{
    Geometry,
    addr::HostOffset,
    check::finding::Finding,
    format::l2::{self, ExtendedL2Entry, L2Entry, SubclusterBitmap},
};

/// What an L2 table maps, in clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clusters {
    /// With a host cluster, compressed ones among them.
    pub allocated: u64,
    /// Of them, those that don't start where the allocated one before ends; every
    /// compressed one.
    pub fragmented: u64,
    /// Compressed.
    pub compressed: u64,
}

/// How the entries of an image's L2 tables are to be understood, and how often the
/// table at hand is referred to.
#[derive(Clone, Copy, Debug)]
pub(in crate::check) struct L2Scan {
    pub(in crate::check) geometry: Geometry,
    /// Guest clusters are in an external data file.
    pub(in crate::check) data_file: bool,
    /// References from the active L1 table.
    pub(in crate::check) active: u64,
    /// References from snapshots' L1 tables.
    pub(in crate::check) snapshots: u64,
}

impl L2Scan {
    /// Tells `visitor` of every entry of `table`, in order.
    pub(in crate::check) fn scan<V: Visitor>(&self, table: &[u8], visitor: &mut V) -> Clusters {
        let mut scan = Scan {
            scan: self,
            clusters: Clusters::default(),
            next: 0,
        };
        if self.geometry.extended_l2() {
            for (index, entry) in (0..).zip(l2::extended_entries(table)) {
                if entry != ExtendedL2Entry::default() {
                    scan.entry(index, entry.entry, Some(entry.bitmap), visitor);
                }
            }
        } else {
            for (index, entry) in (0..).zip(l2::entries(table)) {
                if entry.0 != 0 {
                    scan.entry(index, entry, None, visitor);
                }
            }
        }
        scan.clusters
    }
}

struct Scan<'a> {
    scan: &'a L2Scan,
    clusters: Clusters,
    /// Where the next cluster would have to be, to follow the one before; 0 at first.
    next: u64,
}

impl Scan<'_> {
    #[inline]
    fn entry<V: Visitor>(
        &mut self,
        index: u64,
        entry: L2Entry,
        bitmap: Option<SubclusterBitmap>,
        visitor: &mut V,
    ) {
        if entry.is_compressed() {
            self.compressed(index, entry, bitmap, visitor);
            return;
        }
        // Bit 0 is never complained about: not in version 2, nor in extended entries.
        if entry.0 & L2Entry::RESERVED != 0 {
            visitor.problem(Finding::L2Reserved { entry: entry.0 });
        }
        let Some(host) = entry.host(self.scan.data_file) else {
            if bitmap.is_some_and(|bitmap| bitmap.allocated() != 0) {
                visitor.problem(Finding::SubclustersWithoutCluster);
            }
            return;
        };
        if bitmap.is_some_and(|bitmap| bitmap.invalid() != 0) {
            visitor.problem(Finding::SubclustersInvalid { offset: host.get() });
        }
        if !self.scan.geometry.is_aligned(host) {
            let data = bitmap.map_or(!entry.reads_as_zeros(), |bitmap| bitmap.allocated() != 0);
            let offset = host.get();
            if data {
                visitor.problem(Finding::ClusterUnaligned { offset, data });
            } else if visitor.misplaced_preallocation(host) {
                return;
            }
        }
        self.clusters.allocated += 1;
        if self.next != 0 && self.next != host.get() {
            self.clusters.fragmented += 1;
        }
        let cluster_size = self.scan.geometry.cluster_size();
        self.next = host.get() + cluster_size;
        let in_data_file = self.scan.data_file;
        if !in_data_file {
            let kind = |active| Referrer::Data { active };
            self.refer(kind, host, cluster_size, visitor);
        }
        if self.scan.active > 0 {
            visitor.copied(CopiedFlag {
                copied: entry.copied(),
                offset: host,
                in_data_file,
            });
        }
    }

    fn compressed<V: Visitor>(
        &mut self,
        index: u64,
        mut entry: L2Entry,
        bitmap: Option<SubclusterBitmap>,
        visitor: &mut V,
    ) {
        let (host, len) = entry.compressed_range(self.scan.geometry);
        if entry.copied() {
            visitor.problem(Finding::CompressedCopied { offset: host.get() });
            entry.0 &= u64::MAX >> 1;
        }
        if self.scan.data_file {
            visitor.problem(Finding::CompressedWithDataFile {
                index,
                entry: entry.0,
            });
            return;
        }
        if bitmap.is_some_and(|bitmap| bitmap != SubclusterBitmap::default()) {
            visitor.problem(Finding::CompressedWithSubclusters {
                index,
                entry: entry.0,
            });
            return;
        }
        self.clusters.allocated += 1;
        self.clusters.compressed += 1;
        self.clusters.fragmented += 1;
        self.refer(|active| Referrer::Compressed { active }, host, len, visitor);
    }

    #[inline]
    fn refer<V: Visitor>(
        &self,
        by: impl Fn(bool) -> Referrer,
        host: HostOffset,
        bytes: u64,
        visitor: &mut V,
    ) {
        if self.scan.active > 0 {
            visitor.reference(by(true), host, bytes, self.scan.active);
        }
        if self.scan.snapshots > 0 {
            visitor.reference(by(false), host, bytes, self.scan.snapshots);
        }
    }
}
