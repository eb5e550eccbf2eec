//! L1 table entry.
//!
//! ```text
//! bit  0 -  8  reserved
//!      9 - 55  offset of the L2 table, cluster aligned; 0: none
//!     56 - 62  reserved
//!          63  copied: the L2 table's refcount is exactly one (true in the active table only)
//! ```

use crate::addr::HostOffset;

/// Bits 9 to 55: where the offset is in L1, L2 and bitmap table entries.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63 of L1 and L2 entries.
pub(crate) const COPIED: u64 = 1 << 63;

/// An entry as it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// Bytes of an entry.
    pub const LEN: u64 = 8;
    /// Bits that are 0 in a valid entry.
    pub const RESERVED: u64 = !(OFFSET_MASK | COPIED);

    /// The entry for an L2 table at `offset`, of which bits 9 to 55 are used.
    #[must_use]
    pub const fn new(offset: HostOffset, copied: bool) -> Self {
        Self(offset.0 & OFFSET_MASK | if copied { COPIED } else { 0 })
    }

    /// Where the L2 table is; `None` without one. It may be unaligned or past the
    /// file's end in a damaged image.
    #[must_use]
    pub const fn l2_table(self) -> Option<HostOffset> {
        match self.0 & OFFSET_MASK {
            0 => None,
            offset => Some(HostOffset(offset)),
        }
    }

    /// Whether the entry says that the L2 table's refcount is one.
    #[must_use]
    pub const fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// The reserved bits that are set: 0 in a valid entry.
    #[must_use]
    pub const fn reserved(self) -> u64 {
        self.0 & Self::RESERVED
    }

    /// Appends the entry's 8 bytes.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.extend(self.0.to_be_bytes());
    }
}

/// The entries in the bytes of a table; an incomplete last one is left out.
pub fn entries(table: &[u8]) -> impl ExactSizeIterator<Item = L1Entry> + '_ {
    super::parse::words(table).map(L1Entry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fixed_bytes() {
        let bytes = [0x80, 0, 0, 0, 0, 4, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 1, 9];
        let list: Vec<_> = entries(&bytes).collect();
        assert_eq!(
            list,
            [
                L1Entry::new(HostOffset(0x40000), true),
                L1Entry(1 << 62 | 1)
            ]
        );
        assert_eq!(list[0].l2_table(), Some(HostOffset(0x40000)));
        assert_eq!((list[0].copied(), list[0].reserved()), (true, 0));
        assert_eq!(
            (list[1].l2_table(), list[1].reserved()),
            (None, 1 << 62 | 1)
        );
    }

    proptest! {
        #[test]
        fn encode_and_parse_agree(raw: Vec<u64>) {
            let mut bytes = Vec::new();
            raw.iter().for_each(|raw| L1Entry(*raw).encode(&mut bytes));
            prop_assert_eq!(entries(&bytes).map(|e| e.0).collect::<Vec<_>>(), raw);
        }

        #[test]
        fn every_bit_belongs_to_one_part(raw: u64) {
            let entry = L1Entry(raw);
            let offset = entry.l2_table().unwrap_or_default();
            prop_assert_eq!(L1Entry::new(offset, entry.copied()).0 | entry.reserved(), raw);
        }
    }
}
