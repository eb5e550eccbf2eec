//! Refcount table entries, and the refcounts in a refcount block.
//!
//! ```text
//! refcount table entry   bit 0 -  8  reserved
//!                            9 - 63  offset of the refcount block, cluster aligned; 0: none
//! refcount block         one cluster of refcounts of 1, 2, 4, 8, 16, 32 or 64 bits: big-endian
//!                        from 16 bits on; below 8 bits several to a byte, the first one in the
//!                        least significant bits
//! ```

use crate::addr::HostOffset;

/// An entry of the refcount table as it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// Bytes of an entry.
    pub const LEN: u64 = 8;
    /// Bits that are 0 in a valid entry.
    pub const RESERVED: u64 = 0x1ff;

    /// The entry for a refcount block at `offset`.
    #[must_use]
    pub const fn new(offset: HostOffset) -> Self {
        Self(offset.0 & !Self::RESERVED)
    }

    /// Where the refcount block is; `None` where all its refcounts are 0. It may be
    /// unaligned or past the file's end in a damaged image.
    #[must_use]
    pub const fn block(self) -> Option<HostOffset> {
        match self.0 & !Self::RESERVED {
            0 => None,
            offset => Some(HostOffset(offset)),
        }
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

/// The entries in the bytes of a refcount table; an incomplete last one is left out.
pub fn entries(table: &[u8]) -> impl ExactSizeIterator<Item = RefcountTableEntry> + '_ {
    super::parse::words(table).map(RefcountTableEntry)
}

/// Refcount `index` of the bytes of a refcount block; `order` is log2 of the width
/// in bits. `None` past the end of `block`, or if `order` is above 6.
#[must_use]
pub fn get(block: &[u8], order: u32, index: usize) -> Option<u64> {
    match order {
        0..=2 => {
            let (at, shift, mask) = sub_byte(order, index);
            Some(u64::from(block.get(at)? >> shift & mask))
        }
        3 => block.get(index).copied().map(u64::from),
        4 => block
            .as_chunks()
            .0
            .get(index)
            .map(|b| u64::from(u16::from_be_bytes(*b))),
        5 => block
            .as_chunks()
            .0
            .get(index)
            .map(|b| u64::from(u32::from_be_bytes(*b))),
        6 => block
            .as_chunks()
            .0
            .get(index)
            .map(|b| u64::from_be_bytes(*b)),
        _ => None,
    }
}

/// How many of the first `entries` refcounts of `block` aren't 0; 0 if `order` is above 6.
#[must_use]
pub fn count_in_use(block: &[u8], order: u32, entries: usize) -> usize {
    fn count<const BYTES: usize>(block: &[u8], entries: usize) -> usize {
        let (list, _) = block.as_chunks::<BYTES>();
        let list = list.get(..entries).unwrap_or(list);
        list.iter().filter(|entry| **entry != [0; BYTES]).count()
    }
    match order {
        3 => count::<1>(block, entries),
        4 => count::<2>(block, entries),
        5 => count::<4>(block, entries),
        6 => count::<8>(block, entries),
        _ => (0..entries)
            .map_while(|index| get(block, order, index))
            .filter(|value| *value != 0)
            .count(),
    }
}

/// Sets refcount `index` of `block`. Returns `false`, and changes nothing, past the
/// end of `block`, if `order` is above 6, or if `value` doesn't fit the width.
#[must_use]
pub fn set(block: &mut [u8], order: u32, index: usize, value: u64) -> bool {
    set_checked(block, order, index, value).is_some()
}

fn set_checked(block: &mut [u8], order: u32, index: usize, value: u64) -> Option<()> {
    match order {
        0..=2 => {
            let (at, shift, mask) = sub_byte(order, index);
            let value = u8::try_from(value).ok().filter(|value| *value <= mask)?;
            let byte = block.get_mut(at)?;
            *byte = *byte & !(mask << shift) | value << shift;
        }
        3 => *block.get_mut(index)? = u8::try_from(value).ok()?,
        4 => {
            let value = u16::try_from(value).ok()?;
            *block.as_chunks_mut().0.get_mut(index)? = value.to_be_bytes();
        }
        5 => {
            let value = u32::try_from(value).ok()?;
            *block.as_chunks_mut().0.get_mut(index)? = value.to_be_bytes();
        }
        6 => *block.as_chunks_mut().0.get_mut(index)? = value.to_be_bytes(),
        _ => return None,
    }
    Some(())
}

/// Byte, shift and mask of a refcount narrower than a byte (`order` 0 to 2).
const fn sub_byte(order: u32, index: usize) -> (usize, usize, u8) {
    let per_byte_bits = 3 - order;
    let slot = index & ((1 << per_byte_bits) - 1);
    (
        index >> per_byte_bits,
        slot << order,
        u8::MAX >> (8 - (1_u32 << order)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn table_entry_fixed_bytes() {
        let bytes = [0, 0, 0, 0, 0, 2, 0, 1, 0xff, 0, 0, 0, 0, 0, 2, 0];
        let list: Vec<_> = entries(&bytes).collect();
        assert_eq!(
            (list[0].block(), list[0].reserved()),
            (Some(HostOffset(0x20000)), 1)
        );
        assert_eq!(
            list[1],
            RefcountTableEntry::new(HostOffset(0xff00_0000_0000_0200))
        );
        assert_eq!(RefcountTableEntry(5).block(), None);
        let mut again = Vec::new();
        list.iter().for_each(|entry| entry.encode(&mut again));
        assert_eq!(again, bytes);
    }

    #[test]
    fn block_fixed_bytes() {
        let bytes = [0b1110_0100, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde];
        let all = |order| {
            (0..)
                .map_while(|i| get(&bytes, order, i))
                .collect::<Vec<_>>()
        };
        assert_eq!(all(0)[..8], [0, 0, 1, 0, 0, 1, 1, 1]);
        assert_eq!(all(1)[..6], [0, 1, 2, 3, 2, 0]);
        assert_eq!(all(2)[..4], [4, 14, 2, 1]);
        assert_eq!(all(3)[..2], [0xe4, 0x12]);
        assert_eq!(all(4), [0xe412, 0x3456, 0x789a, 0xbcde]);
        assert_eq!(all(5), [0xe412_3456, 0x789a_bcde]);
        assert_eq!(all(6), [0xe412_3456_789a_bcde]);
        assert_eq!(all(7), []);
        assert_eq!((all(0).len(), all(1).len(), all(2).len()), (64, 32, 16));
    }

    #[test]
    fn value_that_does_not_fit_changes_nothing() {
        for order in 0..6 {
            let mut block = [0x5a; 8];
            assert!(!set(&mut block, order, 0, 1 << (1 << order)));
            assert!(!set(&mut block, order, 64 >> order, 0));
            assert_eq!(block, [0x5a; 8]);
        }
        assert!(!set(&mut [0; 8], 6, 1, 0));
        assert!(!set(&mut [0; 8], 7, 0, 0));
    }

    proptest! {
        #[test]
        fn those_in_use_are_counted(block: Vec<u8>, order in 0_u32..7, entries in 0_usize..40) {
            let block: Vec<u8> = block.into_iter().map(|byte| byte & 1).collect();
            let get = |index| get(&block, order, index);
            let one_by_one = (0..entries).filter(|index| get(*index).is_some_and(|n| n != 0));
            prop_assert_eq!(count_in_use(&block, order, entries), one_by_one.count());
        }
    }

    proptest! {
        #[test]
        fn set_changes_one_refcount_only(
            order in 0_u32..=6, before: [u8; 32], index in 0_usize..256, value: u64,
        ) {
            let count = 256 >> order;
            let (index, value) = (index % count, value & (u64::MAX >> (64 - (1 << order))));
            let mut block = before;
            prop_assert!(set(&mut block, order, index, value));
            for i in 0..count {
                let expected = if i == index { Some(value) } else { get(&before, order, i) };
                prop_assert_eq!(get(&block, order, i), expected);
            }
        }
    }
}
