//! [`Geometry`]: every number that follows from the cluster size, the refcount
//! width and the kind of L2 entries, computed in one place.

use crate::addr::{HostCluster, HostOffset};

/// Smallest cluster: 512 bytes ("`cluster_bits` must not be less than 9").
pub const MIN_CLUSTER_BITS: u32 = 9;
/// Largest cluster: 2 MiB, QEMU's limit ("an implementation may have a limit", spec, header).
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Largest refcount width: 2^6 = 64 bits (spec, header, `refcount_order`).
pub const MAX_REFCOUNT_ORDER: u32 = 6;

/// The three parameters of an image from which its table shapes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    refcount_order: u32,
    extended_l2: bool,
}

impl Geometry {
    /// `None` where the spec or QEMU's limits don't allow the combination:
    /// `cluster_bits` 9 to 21 (with extended L2 entries 14 to 21), `refcount_order` 0 to 6.
    #[must_use]
    pub const fn new(cluster_bits: u32, refcount_order: u32, extended_l2: bool) -> Option<Self> {
        let least = if extended_l2 { 14 } else { MIN_CLUSTER_BITS };
        if cluster_bits < least
            || cluster_bits > MAX_CLUSTER_BITS
            || refcount_order > MAX_REFCOUNT_ORDER
        {
            return None;
        }
        Some(Self {
            cluster_bits,
            refcount_order,
            extended_l2,
        })
    }

    /// The nearest combination that is allowed; for numbers already checked it is exact.
    pub(crate) fn clamped(cluster_bits: u32, refcount_order: u32, extended_l2: bool) -> Self {
        let least = if extended_l2 { 14 } else { MIN_CLUSTER_BITS };
        Self {
            cluster_bits: cluster_bits.clamp(least, MAX_CLUSTER_BITS),
            refcount_order: refcount_order.min(MAX_REFCOUNT_ORDER),
            extended_l2,
        }
    }

    /// log2 of the cluster size.
    #[must_use]
    pub const fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Bytes in a cluster.
    #[must_use]
    pub const fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries are 16 bytes with a subcluster bitmap.
    #[must_use]
    pub const fn extended_l2(self) -> bool {
        self.extended_l2
    }

    /// Bytes in an L2 entry: 8, or 16 when extended.
    #[must_use]
    pub const fn l2_entry_size(self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Entries in an L2 table, which is one cluster.
    #[must_use]
    pub const fn l2_entries(self) -> u64 {
        1 << self.l2_bits()
    }

    /// log2 of the entries in an L2 table.
    const fn l2_bits(self) -> u32 {
        self.cluster_bits - if self.extended_l2 { 4 } else { 3 }
    }

    /// Guest bytes that one L1 entry (one L2 table) maps.
    #[must_use]
    pub const fn l2_coverage(self) -> u64 {
        // Divisions by it, which every request does, become shifts.
        1 << (self.l2_bits() + self.cluster_bits)
    }

    /// L1 entries that a disk of `virtual_size` bytes needs.
    #[must_use]
    pub const fn l1_entries(self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(self.l2_coverage())
    }

    /// log2 of the refcount width in bits.
    #[must_use]
    pub const fn refcount_order(self) -> u32 {
        self.refcount_order
    }

    /// Bits in a refcount: 1, 2, 4, 8, 16, 32 or 64.
    #[must_use]
    pub const fn refcount_bits(self) -> u32 {
        1 << self.refcount_order
    }

    /// The largest value a refcount can hold.
    #[must_use]
    pub const fn refcount_max(self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Refcounts in a refcount block, which is one cluster.
    #[must_use]
    pub const fn refcount_block_entries(self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// Clusters needed to hold `bytes`, rounded up.
    #[must_use]
    pub const fn clusters_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// The cluster that holds the byte at `offset`.
    #[must_use]
    pub const fn host_cluster(self, offset: HostOffset) -> HostCluster {
        HostCluster(offset.0 >> self.cluster_bits)
    }

    /// The first byte of `cluster`; `None` past 2^64.
    #[must_use]
    pub const fn host_offset(self, cluster: HostCluster) -> Option<HostOffset> {
        match cluster.0.checked_mul(self.cluster_size()) {
            Some(offset) => Some(HostOffset(offset)),
            None => None,
        }
    }

    /// Whether `offset` is the first byte of a cluster.
    #[must_use]
    pub const fn is_aligned(self, offset: HostOffset) -> bool {
        offset.0 & (self.cluster_size() - 1) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_image_has_the_shapes_of_the_spec() {
        let g = Geometry::new(16, 4, false).unwrap();
        assert_eq!(g.cluster_size(), 65536);
        assert_eq!(g.l2_entries(), 8192);
        assert_eq!(g.l2_coverage(), 512 << 20);
        assert_eq!(g.refcount_block_entries(), 32768);
        assert_eq!(g.refcount_max(), 65535);
        assert_eq!(g.l1_entries(1 << 40), 2048);
    }

    #[test]
    fn limits_of_cluster_and_refcount_width() {
        assert!(Geometry::new(8, 4, false).is_none());
        assert!(Geometry::new(22, 4, false).is_none());
        assert!(Geometry::new(16, 7, false).is_none());
        assert!(Geometry::new(13, 4, true).is_none());
        assert_eq!(Geometry::new(14, 6, true).unwrap().refcount_max(), u64::MAX);
        assert_eq!(
            Geometry::new(9, 0, false).unwrap().refcount_block_entries(),
            4096
        );
    }
}
