//! The ladder of levels: a radix tree over bits, 64 children a node, pages of 32768
//! bits at level 0. It knows bits only; bytes and granularities are
//! [`HBitmap`](crate::HBitmap)'s.
//!
//! The one invariant: bit *i* of a node's `any` is set exactly when child *i* has a set
//! bit, and bit *i* of `full` exactly when all its bits are set. A subtree that is
//! empty or full is nothing but these two bits, so bitmaps of any size that are uniform
//! cost nothing. Bits from the length on belong to nobody: they count neither as set
//! nor as clear, and words hold zeros there.
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "places in pages and nodes are below 512 and 64 by construction, and these loops are what the crate's speed is"
)]

mod build;
mod dense;
mod edit;
pub(crate) mod kernel;
mod merge;
pub(crate) mod node;
pub(crate) mod pages;
mod resize;
mod runs;
mod scan;
mod sparse;
mod store;

use kernel::PAGE_BITS;
use node::{Bits, Node, Pool, Slot};
use pages::Pages;
pub(crate) use runs::Runs;

/// log2 of the children of a node.
const FANOUT_BITS: u32 = 6;

/// log2 of the bits below a slot of `level` (0 is a page).
#[inline]
pub(crate) const fn span_bits(level: u32) -> u32 {
    PAGE_BITS + level * FANOUT_BITS
}

/// A set of bits `0..len`, `len <= 2^63`.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    /// Bits.
    len: u64,
    /// Set bits.
    count: u64,
    /// Levels of nodes above the pages; the least that reaches `len`.
    height: u32,
    root: Slot,
    nodes: Pool<Node>,
    pages: Pages,
}

impl Tree {
    pub(crate) fn new(len: u64) -> Self {
        Self {
            len,
            count: 0,
            height: height_for(len),
            root: Slot::Empty,
            nodes: Pool::default(),
            pages: Pages::default(),
        }
    }

    #[inline]
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    #[inline]
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    #[inline]
    pub(crate) const fn height(&self) -> u32 {
        self.height
    }

    #[inline]
    pub(crate) const fn root(&self) -> Slot {
        self.root
    }

    #[inline]
    pub(crate) fn node(&self, id: u32) -> &Node {
        self.nodes.get(id)
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Bits that a slot at `base` has: fewer than its span at the end.
    #[inline]
    pub(crate) const fn valid(&self, level: u32, base: u64) -> u64 {
        let left = self.len - base;
        let span = 1 << span_bits(level);
        if left < span { left } else { span }
    }

    /// The children of a node at `base` that have valid bits.
    #[inline]
    pub(crate) const fn valid_kids(&self, level: u32, base: u64) -> u64 {
        let kids = self.valid(level, base).div_ceil(1 << span_bits(level - 1));
        kernel::low_mask(kids as u32)
    }

    /// Drops everything: all bits clear.
    pub(crate) fn clear_all(&mut self) {
        *self = Self::new(self.len);
    }

    /// Sets every bit.
    pub(crate) fn set_all(&mut self) {
        self.clear_all();
        if self.len != 0 {
            self.root = Slot::Full;
            self.count = self.len;
        }
    }

    pub(crate) fn get(&self, bit: u64) -> bool {
        let mut slot = self.root;
        let mut level = self.height;
        loop {
            match slot {
                Slot::Empty => return false,
                Slot::Full => return true,
                Slot::At(id) if level == 0 => {
                    return self.pages.get(id, bit as u32 & ((1 << PAGE_BITS) - 1));
                }
                Slot::At(id) => {
                    level -= 1;
                    slot = self
                        .nodes
                        .get(id)
                        .slot((bit >> span_bits(level)) as u32 % 64);
                }
            }
        }
    }

    /// Gives the memory of a subtree back; the bits that were set in it.
    fn remove(&mut self, slot: Slot, level: u32, base: u64) -> u64 {
        match slot {
            Slot::Empty => 0,
            Slot::Full => self.valid(level, base),
            Slot::At(id) if level == 0 => {
                let count = u64::from(self.pages.count(id));
                self.pages.remove(id);
                count
            }
            Slot::At(id) => {
                let mut count = 0;
                for i in Bits(self.nodes.get(id).any) {
                    let kid = self.nodes.get(id).slot(i);
                    count += self.remove(
                        kid,
                        level - 1,
                        base + (u64::from(i) << span_bits(level - 1)),
                    );
                }
                self.nodes.remove(id);
                count
            }
        }
    }

    /// A node where the slot was, so that its children can differ.
    fn open(&mut self, slot: Slot, level: u32, base: u64) -> u32 {
        match slot {
            Slot::At(id) => id,
            Slot::Empty => self.nodes.insert(Node {
                any: 0,
                full: 0,
                kids: [0; 64],
            }),
            Slot::Full => {
                let all = self.valid_kids(level, base);
                self.nodes.insert(Node {
                    any: all,
                    full: all,
                    kids: [0; 64],
                })
            }
        }
    }

    /// The slot for a node, which is removed if its children are all empty or full.
    #[inline]
    fn close(&mut self, id: u32, level: u32, base: u64) -> Slot {
        let node = self.nodes.get(id);
        let slot = if node.any == 0 {
            Slot::Empty
        } else if node.full == self.valid_kids(level, base) {
            Slot::Full
        } else {
            return Slot::At(id);
        };
        self.nodes.remove(id);
        slot
    }

    /// Bytes of memory in use for nodes and pages.
    pub(crate) fn used_bytes(&self) -> usize {
        self.nodes.used() * size_of::<Node>() + self.pages.used_bytes()
    }

    /// Checks every invariant, for tests.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert_eq!(self.height, height_for(self.len));
        assert_eq!(self.check_slot(self.root, self.height, 0), self.count);
    }

    #[cfg(test)]
    fn check_slot(&self, slot: Slot, level: u32, base: u64) -> u64 {
        let count = match slot {
            Slot::Empty => return 0,
            Slot::Full => return self.valid(level, base),
            Slot::At(id) if level == 0 => {
                let valid = self.valid(0, base) as u32;
                let mut words = [0; kernel::PAGE_WORDS];
                self.pages.expand(slot, valid, &mut words);
                assert_eq!(kernel::count(&words), self.pages.count(id));
                assert_eq!(kernel::clear_bits(&mut words, valid, 1 << PAGE_BITS), 0);
                u64::from(self.pages.count(id))
            }
            Slot::At(id) => {
                let node = self.nodes.get(id);
                assert_eq!(node.full & !node.any, 0);
                assert_eq!(node.any & !self.valid_kids(level, base), 0);
                Bits(node.any)
                    .map(|i| {
                        let at = base + (u64::from(i) << span_bits(level - 1));
                        self.check_slot(node.slot(i), level - 1, at)
                    })
                    .sum()
            }
        };
        assert!(
            count != 0 && count != self.valid(level, base),
            "uniform subtree kept"
        );
        count
    }
}

/// Levels of nodes that `len` bits need.
const fn height_for(len: u64) -> u32 {
    let mut height = 0;
    while len > 1 << span_bits(height) {
        height += 1;
    }
    height
}

#[cfg(test)]
mod tests;
