//! Bitmap table entry: where a cluster of bitmap data is, or what it reads as.
//!
//! ```text
//! bit       0  without an offset: 0 the cluster reads as all zeros, 1 as all ones;
//!              with an offset reserved
//!      1 -  8  reserved
//!      9 - 55  offset of the bitmap data's cluster, cluster aligned; 0: none
//!     56 - 63  reserved
//! ```

use super::l1::OFFSET_MASK;
use crate::addr::HostOffset;

/// An entry as it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BitmapTableEntry(pub u64);

/// What an entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapCluster {
    /// Nothing stored: all bits are 0.
    Zeros,
    /// Nothing stored: all bits are 1.
    Ones,
    /// Stored here; may be unaligned or past the file's end in a damaged image.
    Data(HostOffset),
}

impl BitmapTableEntry {
    /// Bytes of an entry.
    pub const LEN: u64 = 8;
    /// Bits that are 0 in every valid entry; bit 0 is reserved beside an offset too.
    pub const RESERVED: u64 = !(OFFSET_MASK | 1);

    /// The entry for `cluster`; of an offset bits 9 to 55 are used.
    #[must_use]
    pub const fn new(cluster: BitmapCluster) -> Self {
        match cluster {
            BitmapCluster::Zeros => Self(0),
            BitmapCluster::Ones => Self(1),
            BitmapCluster::Data(offset) => Self(offset.0 & OFFSET_MASK),
        }
    }

    /// The meaning, whatever the reserved bits are.
    #[must_use]
    pub const fn cluster(self) -> BitmapCluster {
        match (self.0 & OFFSET_MASK, self.0 & 1) {
            (0, 0) => BitmapCluster::Zeros,
            (0, _) => BitmapCluster::Ones,
            (offset, _) => BitmapCluster::Data(HostOffset(offset)),
        }
    }

    /// The reserved bits that are set: 0 in a valid entry.
    #[must_use]
    pub const fn reserved(self) -> u64 {
        let all_ones = if self.0 & OFFSET_MASK == 0 { 0 } else { 1 };
        self.0 & (Self::RESERVED | all_ones)
    }

    /// Appends the entry's 8 bytes.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.extend(self.0.to_be_bytes());
    }
}

/// The entries in the bytes of a bitmap table; an incomplete last one is left out.
pub fn entries(table: &[u8]) -> impl ExactSizeIterator<Item = BitmapTableEntry> + '_ {
    super::parse::words(table).map(BitmapTableEntry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fixed_bytes() {
        let mut bytes = vec![0; 8];
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0, 0, 0, 0, 0, 0x0a, 0, 0]);
        bytes.extend([0x80, 0, 0, 0, 0, 0x0a, 0, 3]);
        bytes.push(7);
        let list: Vec<_> = entries(&bytes)
            .map(|e| (e.cluster(), e.reserved()))
            .collect();
        let data = BitmapCluster::Data(HostOffset(0xa0000));
        assert_eq!(
            list[..2],
            [(BitmapCluster::Zeros, 0), (BitmapCluster::Ones, 0)]
        );
        assert_eq!(list[2..], [(data, 0), (data, 1 << 63 | 3)]);
    }

    proptest! {
        #[test]
        fn every_bit_is_meaning_or_reserved(raw: u64) {
            let entry = BitmapTableEntry(raw);
            prop_assert_eq!(BitmapTableEntry::new(entry.cluster()).0 | entry.reserved(), raw);
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            prop_assert_eq!(entries(&bytes).collect::<Vec<_>>(), [entry]);
        }
    }
}
