//! What the layered form needs: trees put together from their parts, top first.

use super::kernel::{self, PAGE_BITS, PAGE_WORDS, PageWords};
use super::node::{Bits, Node, Slot};
use super::{Tree, span_bits};

impl Tree {
    /// Makes a slot the root. Until all that it refers to is linked, the tree must not be
    /// used, only dropped.
    pub(crate) fn set_root(&mut self, slot: Slot) {
        self.root = slot;
    }

    /// A node whose children in `any` but not in `full` are still to be linked.
    pub(crate) fn add_node(&mut self, level: u32, base: u64, any: u64, full: u64) -> u32 {
        let shift = span_bits(level - 1);
        for i in Bits(full) {
            self.count += self.valid(level - 1, base + (u64::from(i) << shift));
        }
        self.nodes.insert(Node {
            any,
            full,
            kids: [0; 64],
        })
    }

    /// A page with these words, for the slot at `base`.
    pub(crate) fn add_page(&mut self, base: u64, words: &PageWords) -> Slot {
        let count = kernel::count(words);
        self.count += u64::from(count);
        self.pages.insert(words, count, self.valid(0, base) as u32)
    }

    /// Makes a slot child `i` of a node.
    pub(crate) fn link(&mut self, parent: u32, i: u32, slot: Slot) {
        self.nodes.get_mut(parent).set_slot(i, slot);
    }

    /// The words of a page at `base`.
    pub(crate) fn expand_page(&self, slot: Slot, base: u64, out: &mut PageWords) {
        self.pages.expand(slot, self.valid(0, base) as u32, out);
    }

    /// The page at `base` with all valid bits set.
    pub(crate) fn valid_page(&self, base: u64) -> PageWords {
        let mut words = [0; PAGE_WORDS];
        self.expand_page(Slot::Full, base, &mut words);
        words
    }

    /// The valid bits of word `i` of the page at `base`.
    pub(crate) const fn valid_word(&self, base: u64, i: usize) -> u64 {
        debug_assert!(base.is_multiple_of(1 << PAGE_BITS));
        let at = base + i as u64 * 64;
        let left = self.len.saturating_sub(at);
        kernel::low_mask(if left < 64 { left as u32 } else { 64 })
    }
}
