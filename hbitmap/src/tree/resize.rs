//! Other lengths.

use super::kernel::PAGE_BITS;
use super::node::{Node, Slot};
use super::{Tree, height_for, span_bits};

impl Tree {
    /// Cuts bits off the end, or adds clear ones.
    pub(crate) fn resize(&mut self, len: u64) {
        if len < self.len {
            self.clear(len, self.len);
            self.len = len;
            if len == 0 || self.count == 0 {
                self.clear_all();
                return;
            }
            self.root = self.settle(self.root, self.height, 0);
            self.lower();
        } else if len > self.len {
            self.grow(len);
        }
    }

    /// Takes levels off the top that `len` doesn't need.
    fn lower(&mut self) {
        let height = height_for(self.len);
        while self.height > height {
            if let Slot::At(id) = self.root {
                self.root = self.nodes.get(id).slot(0);
                self.nodes.remove(id);
            }
            self.height -= 1;
        }
    }

    /// Where the end moved down into a subtree, what is left of it may be full.
    fn settle(&mut self, slot: Slot, level: u32, base: u64) -> Slot {
        let Slot::At(id) = slot else { return slot };
        let last = self.len - 1;
        if level == 0 {
            return self
                .pages
                .shrink(id, (self.len - base).min(1 << PAGE_BITS) as u32);
        }
        let i = (last - base) >> span_bits(level - 1);
        let kid = self.nodes.get(id).slot(i as u32);
        let new = self.settle(kid, level - 1, base + (i << span_bits(level - 1)));
        self.nodes.get_mut(id).set_slot(i as u32, new);
        self.close(id, level, base)
    }

    fn grow(&mut self, len: u64) {
        let old = self.len;
        // What was full at the old end now reaches further: set, counted, then cleared.
        let reach = self.full_reach();
        for level in self.height..height_for(len) {
            if self.root != Slot::Empty {
                let mut node = Node {
                    any: 0,
                    full: 0,
                    kids: [0; 64],
                };
                node.set_slot(0, self.root);
                self.root = Slot::At(self.nodes.insert(node));
            }
            self.height = level + 1;
        }
        self.len = len;
        if let Some(reach) = reach {
            let reach = reach.min(len);
            self.count += reach - old;
            self.clear(old, reach);
        }
    }

    /// Where the full subtree that the last bit is in would end if the tree had no end.
    fn full_reach(&self) -> Option<u64> {
        let last = self.len.checked_sub(1)?;
        let (mut slot, mut level) = (self.root, self.height);
        loop {
            match slot {
                Slot::Empty => return None,
                Slot::Full => return Some(((last >> span_bits(level)) + 1) << span_bits(level)),
                Slot::At(_) if level == 0 => return None,
                Slot::At(id) => {
                    level -= 1;
                    slot = self
                        .nodes
                        .get(id)
                        .slot((last >> span_bits(level)) as u32 % 64);
                }
            }
        }
    }
}
