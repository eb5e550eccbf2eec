//! Union of two trees, and whether they are equal.

use super::kernel::{PAGE_BITS, PAGE_WORDS};
use super::node::{Bits, Node, Slot};
use super::sparse::Scratch;
use super::{Tree, span_bits};

impl Tree {
    /// `self |= other`; both have the same length.
    pub(crate) fn merge(&mut self, other: &Self) {
        if other.count == 0 || self.is_full() {
            return;
        }
        if other.is_full() {
            self.set_all();
            return;
        }
        let mut scratch = Scratch::new();
        self.root = self.merge_slot(self.root, other, other.root, self.height, 0, &mut scratch);
    }

    /// The slot that `ours` becomes.
    fn merge_slot(
        &mut self,
        ours: Slot,
        other: &Self,
        theirs: Slot,
        level: u32,
        base: u64,
        scratch: &mut Scratch,
    ) -> Slot {
        match (ours, theirs) {
            (Slot::Full, _) | (_, Slot::Empty) => ours,
            (_, Slot::Full) => {
                self.count += self.valid(level, base) - self.remove(ours, level, base);
                Slot::Full
            }
            (Slot::Empty, Slot::At(id)) => Slot::At(self.copy(other, id, level, base)),
            (Slot::At(a), Slot::At(b)) if level == 0 => {
                let valid = self.valid(0, base) as u32;
                let (slot, added) = self.pages.merge(a, &other.pages, b, valid, scratch);
                self.count += u64::from(added);
                slot
            }
            (Slot::At(a), Slot::At(b)) => {
                let node = other.nodes.get(b);
                let skip = self.nodes.get(a).full;
                let shift = span_bits(level - 1);
                if level == 1 {
                    self.merge_pages(a, other, node, base, scratch);
                    return self.close(a, level, base);
                }
                for i in Bits(node.any & !skip) {
                    let kid = self.nodes.get(a).slot(i);
                    let at = base + (u64::from(i) << shift);
                    let new = self.merge_slot(kid, other, node.slot(i), level - 1, at, scratch);
                    if new != kid {
                        self.nodes.get_mut(a).set_slot(i, new);
                    }
                }
                self.close(a, level, base)
            }
        }
    }

    /// The pages below node `id` of level 1, with those below `theirs`.
    fn merge_pages(
        &mut self,
        id: u32,
        other: &Self,
        theirs: &Node,
        base: u64,
        scratch: &mut Scratch,
    ) {
        for i in Bits(theirs.any & !self.nodes.get(id).full) {
            let at = base + (u64::from(i) << PAGE_BITS);
            let kid = self.nodes.get(id).slot(i);
            let new = match (kid, theirs.slot(i)) {
                (Slot::Empty, Slot::At(page)) => {
                    self.count += u64::from(other.pages.count(page));
                    Slot::At(self.pages.copy(&other.pages, page))
                }
                (Slot::At(a), Slot::At(b)) => {
                    let valid = self.valid(0, at) as u32;
                    let (slot, added) = self.pages.merge(a, &other.pages, b, valid, scratch);
                    self.count += u64::from(added);
                    slot
                }
                _ => {
                    self.count += self.valid(0, at) - self.remove(kid, 0, at);
                    Slot::Full
                }
            };
            if new != kid {
                self.nodes.get_mut(id).set_slot(i, new);
            }
        }
    }

    /// A copy of a subtree of `other`, whose bits are counted.
    fn copy(&mut self, other: &Self, id: u32, level: u32, base: u64) -> u32 {
        if level == 0 {
            self.count += u64::from(other.pages.count(id));
            return self.pages.copy(&other.pages, id);
        }
        let from = other.nodes.get(id);
        let mut kids = [0; 64];
        let shift = span_bits(level - 1);
        for i in Bits(from.any & !from.full) {
            let at = base + (u64::from(i) << shift);
            kids[i as usize] = self.copy(other, from.kids[i as usize], level - 1, at);
        }
        for i in Bits(from.full) {
            self.count += self.valid(level - 1, base + (u64::from(i) << shift));
        }
        self.nodes.insert(Node {
            any: from.any,
            full: from.full,
            kids,
        })
    }

    /// Whether the same bits are set; both have the same length.
    pub(crate) fn same_bits(&self, other: &Self) -> bool {
        self.count == other.count && self.same_slot(self.root, other, other.root, self.height, 0)
    }

    fn same_slot(&self, ours: Slot, other: &Self, theirs: Slot, level: u32, base: u64) -> bool {
        match (ours, theirs) {
            (Slot::At(a), Slot::At(b)) if level == 0 => {
                let valid = self.len.min(base + (1 << PAGE_BITS)) - base;
                let (mut x, mut y) = ([0; PAGE_WORDS], [0; PAGE_WORDS]);
                self.pages.expand(Slot::At(a), valid as u32, &mut x);
                other.pages.expand(Slot::At(b), valid as u32, &mut y);
                x == y
            }
            (Slot::At(a), Slot::At(b)) => {
                let (a, b) = (self.nodes.get(a), other.nodes.get(b));
                a.any == b.any
                    && a.full == b.full
                    && Bits(a.any & !a.full).all(|i| {
                        let at = base + (u64::from(i) << span_bits(level - 1));
                        self.same_slot(a.slot(i), other, b.slot(i), level - 1, at)
                    })
            }
            _ => ours == theirs,
        }
    }
}
