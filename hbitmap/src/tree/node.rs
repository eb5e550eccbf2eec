//! Inner nodes: 64 children each, and the pool that they live in.

use alloc::vec::Vec;

/// What a parent knows of a subtree. A subtree whose bits are all equal has no memory
/// of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// No bit set.
    Empty,
    /// Every valid bit set.
    Full,
    /// Neither: at level 0 the number of a page, above it that of a node.
    At(u32),
}

/// An inner node. Invariants: bit *i* of `any` is set exactly when child *i* has a set
/// bit; bit *i* of `full` exactly when all its valid bits are set; `kids[i]` means
/// something only where `any` is set and `full` is not.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) any: u64,
    pub(crate) full: u64,
    pub(crate) kids: [u32; 64],
}

impl Node {
    /// The state of child `i`, `i < 64`.
    #[inline]
    pub(crate) fn slot(&self, i: u32) -> Slot {
        let bit = 1u64 << i;
        if self.any & bit == 0 {
            Slot::Empty
        } else if self.full & bit != 0 {
            Slot::Full
        } else {
            Slot::At(self.kids[i as usize])
        }
    }

    /// Changes the state of child `i`, `i < 64`.
    #[inline]
    pub(crate) fn set_slot(&mut self, i: u32, slot: Slot) {
        let bit = 1u64 << i;
        match slot {
            Slot::Empty => {
                self.any &= !bit;
                self.full &= !bit;
            }
            Slot::Full => {
                self.any |= bit;
                self.full |= bit;
            }
            Slot::At(id) => {
                self.any |= bit;
                self.full &= !bit;
                self.kids[i as usize] = id;
            }
        }
    }
}

/// The set bits of a mask, lowest first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bits(pub(crate) u64);

impl Iterator for Bits {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let i = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(i)
    }
}

/// Items of one kind, named by number; freed numbers are used again.
#[derive(Clone, Debug)]
pub(crate) struct Pool<T> {
    items: Vec<T>,
    free: Vec<u32>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Pool<T> {
    #[inline]
    pub(crate) fn get(&self, id: u32) -> &T {
        &self.items[id as usize]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: u32) -> &mut T {
        &mut self.items[id as usize]
    }

    #[inline]
    pub(crate) fn insert(&mut self, item: T) -> u32 {
        if let Some(id) = self.free.pop() {
            self.items[id as usize] = item;
            return id;
        }
        // 2^29 items take more memory than machines have; ids past it would collide with
        // the kinds of pages.
        let id = self.items.len() as u32;
        self.items.push(item);
        id
    }

    /// Gives the number back; when nothing is left, the memory as well.
    #[inline]
    pub(crate) fn remove(&mut self, id: u32) {
        self.free.push(id);
        if self.free.len() == self.items.len() {
            *self = Self::default();
        }
    }

    /// Items in use.
    pub(crate) fn used(&self) -> usize {
        self.items.len() - self.free.len()
    }
}
