//! L2 table entries: standard, compressed, and extended ones with subclusters.
//!
//! ```text
//! bit 63  copied: the cluster's refcount is exactly one (true in active L2 tables only)
//!     62  1: compressed
//!
//! standard    bit       0  reads as zeros (version 3 without extended L2 entries)
//!                  1 -  8  reserved
//!                  9 - 55  host cluster offset
//!                 56 - 61  reserved
//! compressed  bit  0 - x-1 host offset, to the byte          x = 62 - (cluster_bits - 8)
//!                  x - 61  further 512-byte sectors after the one with that offset
//!
//! An extended entry has 8 more bytes: bits 0 to 31 say which subclusters are
//! allocated, bits 32 to 63 which read as zeros; unused for compressed clusters.
//! ```

use super::l1::{COPIED, OFFSET_MASK};
use crate::{Geometry, addr::HostOffset};

/// Bit 62: the descriptor is that of a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard descriptor.
const ZERO: u64 = 1;
/// Bits above 55 of a compressed cluster's offset are 0 (spec).
const COMPRESSED_OFFSET_LIMIT: u64 = 1 << 56;
/// Subclusters in a cluster.
pub const SUBCLUSTERS: u32 = 32;

/// An entry, or the first half of an extended one, as it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry(pub u64);

/// What an entry says about its guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Reads come from the backing file, or are zeros.
    Unallocated,
    /// Reads are zeros; `host` is a preallocated cluster, not used for reading.
    Zero {
        /// The preallocated cluster.
        host: Option<HostOffset>,
    },
    /// Stored at `host`; with extended entries the subclusters say which parts.
    Data {
        /// The cluster, in the image or in the external data file.
        host: HostOffset,
    },
    /// Stored compressed at `host`, within `len` bytes: from `host` to the end of
    /// the last sector.
    Compressed {
        /// First byte of the compressed data.
        host: HostOffset,
        /// Bytes it may take up; decompression ends when a cluster is made.
        len: u64,
    },
}

/// The number of bits of the compressed descriptor that hold the offset.
const fn compressed_offset_bits(geometry: Geometry) -> u32 {
    62 - (geometry.cluster_bits() - 8)
}

impl L2Entry {
    /// Reserved bits of a standard descriptor, bit 0 aside.
    pub const RESERVED: u64 = !(OFFSET_MASK | COPIED | COMPRESSED | ZERO);

    /// A standard entry for the cluster at `host`, of which bits 9 to 55 are used.
    #[must_use]
    pub const fn data(host: HostOffset, copied: bool) -> Self {
        Self(host.0 & OFFSET_MASK | if copied { COPIED } else { 0 })
    }

    /// A standard entry that reads as zeros, with a preallocated cluster or without.
    #[must_use]
    pub const fn zero(host: Option<(HostOffset, bool)>) -> Self {
        match host {
            Some((host, copied)) => Self(Self::data(host, copied).0 | ZERO),
            None => Self(ZERO),
        }
    }

    /// The entry of a compressed cluster of `len` bytes at `host`; `None` where
    /// they don't fit the descriptor.
    #[must_use]
    pub const fn compressed(geometry: Geometry, host: HostOffset, len: u64) -> Option<Self> {
        let bits = compressed_offset_bits(geometry);
        let Some(end) = host.0.checked_add(len) else {
            return None;
        };
        if len == 0 || host.0 >> bits != 0 || host.0 >= COMPRESSED_OFFSET_LIMIT {
            return None;
        }
        let sectors = (end - 1) / 512 - host.0 / 512;
        if sectors >> (62 - bits) != 0 {
            return None;
        }
        Some(Self(COMPRESSED | sectors << bits | host.0))
    }

    /// Whether the entry says that the cluster's refcount is one.
    #[must_use]
    pub const fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Whether the descriptor is that of a compressed cluster.
    #[must_use]
    pub const fn is_compressed(self) -> bool {
        self.0 & COMPRESSED != 0
    }

    /// Whether bit 0 of a standard descriptor is set. With extended entries, and in
    /// version 2, it is reserved.
    #[must_use]
    pub const fn reads_as_zeros(self) -> bool {
        self.0 & (COMPRESSED | ZERO) == ZERO
    }

    /// The host cluster of a standard descriptor; `None` if it has none, or is
    /// compressed. Where guest data is in an external file, `data_file`, offset 0 is
    /// a cluster if the entry is marked copied.
    #[must_use]
    pub const fn host(self, data_file: bool) -> Option<HostOffset> {
        let offset = self.0 & OFFSET_MASK;
        if self.is_compressed() || (offset == 0 && !(data_file && self.copied())) {
            return None;
        }
        Some(HostOffset(offset))
    }

    /// Reserved bits that are set: 0 in a valid entry. Bit 0 counts where it is
    /// reserved (`zero_bit` false: version 2 or extended entries).
    #[must_use]
    pub const fn reserved(self, geometry: Geometry, zero_bit: bool) -> u64 {
        if self.is_compressed() {
            let offset = self.0 & ((1 << compressed_offset_bits(geometry)) - 1);
            return offset & !(COMPRESSED_OFFSET_LIMIT - 1);
        }
        self.0 & (Self::RESERVED | if zero_bit { 0 } else { ZERO })
    }

    /// Offset and length of a compressed cluster's data, in whole sectors at the end.
    #[must_use]
    pub const fn compressed_range(self, geometry: Geometry) -> (HostOffset, u64) {
        let bits = compressed_offset_bits(geometry);
        let host = self.0 & ((1 << bits) - 1);
        let sectors = self.0 >> bits & ((1 << (62 - bits)) - 1);
        (HostOffset(host), (sectors + 1) * 512 - host % 512)
    }

    /// The meaning of a standard entry, whatever the reserved bits are: an image
    /// with extended entries asks [`ExtendedL2Entry::mapping`] instead.
    #[must_use]
    pub const fn mapping(self, geometry: Geometry, data_file: bool) -> Mapping {
        if self.is_compressed() {
            let (host, len) = self.compressed_range(geometry);
            return Mapping::Compressed { host, len };
        }
        match self.host(data_file) {
            host if self.reads_as_zeros() => Mapping::Zero { host },
            Some(host) => Mapping::Data { host },
            None => Mapping::Unallocated,
        }
    }

    /// Appends the entry's 8 bytes.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.extend(self.0.to_be_bytes());
    }
}

/// The second half of an extended entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubclusterBitmap(pub u64);

/// The state of one subcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subcluster {
    /// Reads come from the backing file, or are zeros.
    Unallocated,
    /// Reads are zeros.
    Zero,
    /// Stored in its place in the host cluster.
    Data,
    /// Both bits are set, which the spec forbids.
    Invalid,
}

impl SubclusterBitmap {
    /// All subclusters allocated.
    pub const ALL_DATA: Self = Self(0xffff_ffff);
    /// All subclusters read as zeros.
    pub const ALL_ZERO: Self = Self(0xffff_ffff << 32);

    /// The allocated subclusters, one bit each.
    #[must_use]
    pub const fn allocated(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    /// The subclusters that read as zeros, one bit each.
    #[must_use]
    pub const fn zeros(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Subclusters with both bits set, one bit each: 0 in a valid entry.
    #[must_use]
    pub const fn invalid(self) -> u32 {
        self.allocated() & self.zeros()
    }

    /// The state of subcluster `index` (0 to 31; beyond it is unallocated).
    #[must_use]
    pub const fn get(self, index: u32) -> Subcluster {
        if index >= SUBCLUSTERS {
            return Subcluster::Unallocated;
        }
        match (self.allocated() >> index & 1, self.zeros() >> index & 1) {
            (0, 0) => Subcluster::Unallocated,
            (0, _) => Subcluster::Zero,
            (_, 0) => Subcluster::Data,
            _ => Subcluster::Invalid,
        }
    }
}

/// A 16-byte entry of an image with extended L2 entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtendedL2Entry {
    /// The first half: as a standard entry, without the zero bit.
    pub entry: L2Entry,
    /// The second half; reserved if the entry is compressed.
    pub bitmap: SubclusterBitmap,
}

impl ExtendedL2Entry {
    /// The meaning for the whole cluster: `Data` as soon as one subcluster is
    /// allocated (the bitmap tells which), `Zero` if all that is said is that some
    /// read as zeros, else `Unallocated`.
    #[must_use]
    pub const fn mapping(self, geometry: Geometry, data_file: bool) -> Mapping {
        if self.entry.is_compressed() {
            return self.entry.mapping(geometry, data_file);
        }
        match self.entry.host(data_file) {
            Some(host) if self.bitmap.allocated() != 0 => Mapping::Data { host },
            host if self.bitmap.zeros() != 0 => Mapping::Zero { host },
            _ => Mapping::Unallocated,
        }
    }

    /// Appends the entry's 16 bytes.
    pub fn encode(self, out: &mut Vec<u8>) {
        self.entry.encode(out);
        out.extend(self.bitmap.0.to_be_bytes());
    }
}

/// The standard entries in the bytes of an L2 table; an incomplete last one is left out.
pub fn entries(table: &[u8]) -> impl ExactSizeIterator<Item = L2Entry> + '_ {
    super::parse::words(table).map(L2Entry)
}

/// The extended entries in the bytes of an L2 table; an incomplete last one is left out.
pub fn extended_entries(table: &[u8]) -> impl ExactSizeIterator<Item = ExtendedL2Entry> + '_ {
    let (halves, _) = table.as_chunks::<8>();
    let (pairs, _) = halves.as_chunks::<2>();
    pairs.iter().map(|[entry, bitmap]| ExtendedL2Entry {
        entry: L2Entry(u64::from_be_bytes(*entry)),
        bitmap: SubclusterBitmap(u64::from_be_bytes(*bitmap)),
    })
}

#[cfg(test)]
mod tests;
