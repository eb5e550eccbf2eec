//! Pages held in full, 4 KiB each, cut from slabs of up to 2 MiB.
//!
//! A slab comes zeroed from the allocator, so a page that was never used costs no
//! physical memory and needs no clearing. A slab that holds no page any more is given
//! back.

use alloc::vec;
use alloc::vec::Vec;

use super::kernel::PageWords;
use super::store::Store;

/// log2 of the most pages in a slab.
const SLAB_SHIFT: u32 = 9;
/// The most pages in a slab: 512, which is 2 MiB.
const SLAB_PAGES: usize = 1 << SLAB_SHIFT;

#[derive(Debug)]
struct Slab {
    /// The pages; none when the slab has been given back.
    store: Store,
    /// Set bits in each page.
    counts: Vec<u32>,
    /// Numbers of the pages that were used and are free again.
    free: Vec<u16>,
    /// Pages from here on were never used and are zero.
    fresh: usize,
    /// Pages in use.
    live: usize,
}

impl Slab {
    fn new(pages: usize) -> Self {
        Self {
            store: Store::new(pages),
            counts: vec![0; pages],
            free: Vec::new(),
            fresh: 0,
            live: 0,
        }
    }
}

impl Clone for Slab {
    fn clone(&self) -> Self {
        Self {
            store: self.store.copy(self.fresh),
            counts: self.counts.clone(),
            free: self.free.clone(),
            fresh: self.fresh,
            live: self.live,
        }
    }
}

/// The slabs of one bitmap. A page's number is slab × 512 + place in the slab.
#[derive(Clone, Debug, Default)]
pub(crate) struct DensePool {
    slabs: Vec<Slab>,
    /// Numbers of slabs that have room, the last one to be used first.
    room: Vec<u32>,
    /// Numbers of slabs that were given back.
    gone: Vec<u32>,
}

impl DensePool {
    #[inline]
    pub(crate) fn words(&self, id: u32) -> &PageWords {
        &self.slabs[(id >> SLAB_SHIFT) as usize].store.pages()[id as usize % SLAB_PAGES]
    }

    #[inline]
    pub(crate) fn words_mut(&mut self, id: u32) -> &mut PageWords {
        &mut self.slabs[(id >> SLAB_SHIFT) as usize].store.pages_mut()[id as usize % SLAB_PAGES]
    }

    /// The words of a page and their count.
    #[inline]
    pub(crate) fn page_mut(&mut self, id: u32) -> (&mut PageWords, &mut u32) {
        let slab = &mut self.slabs[(id >> SLAB_SHIFT) as usize];
        let place = id as usize % SLAB_PAGES;
        (&mut slab.store.pages_mut()[place], &mut slab.counts[place])
    }

    #[inline]
    pub(crate) fn count(&self, id: u32) -> u32 {
        self.slabs[(id >> SLAB_SHIFT) as usize].counts[id as usize % SLAB_PAGES]
    }

    #[inline]
    pub(crate) fn count_mut(&mut self, id: u32) -> &mut u32 {
        &mut self.slabs[(id >> SLAB_SHIFT) as usize].counts[id as usize % SLAB_PAGES]
    }

    /// A page, and whether its words are known to be zero; otherwise they are whatever
    /// they were.
    fn take(&mut self) -> (u32, bool) {
        let slab_id = match self.room.last() {
            Some(id) => *id,
            None => self.add_slab(),
        };
        let slab = &mut self.slabs[slab_id as usize];
        let (page, zeroed) = match slab.free.pop() {
            Some(page) => (usize::from(page), false),
            None => {
                slab.fresh += 1;
                (slab.fresh - 1, true)
            }
        };
        slab.live += 1;
        if slab.live == slab.counts.len() {
            self.room.pop();
        }
        ((slab_id << SLAB_SHIFT) | page as u32, zeroed)
    }

    /// Slabs grow with their number, so that small bitmaps stay small.
    fn add_slab(&mut self) -> u32 {
        let id = self.gone.pop().unwrap_or(self.slabs.len() as u32);
        let slab = Slab::new(SLAB_PAGES.min(4 << id.min(16)));
        match self.slabs.get_mut(id as usize) {
            Some(old) => *old = slab,
            None => self.slabs.push(slab),
        }
        self.room.push(id);
        id
    }

    /// A page of zeros.
    pub(crate) fn insert_zero(&mut self) -> u32 {
        let (id, zeroed) = self.take();
        if !zeroed {
            self.words_mut(id).fill(0);
        }
        *self.count_mut(id) = 0;
        id
    }

    /// A page whose words and count the caller writes.
    #[inline]
    pub(crate) fn insert_with(&mut self, fill: impl FnOnce(&mut PageWords) -> u32) -> u32 {
        let (id, _) = self.take();
        let count = fill(self.words_mut(id));
        *self.count_mut(id) = count;
        id
    }

    pub(crate) fn remove(&mut self, id: u32) {
        let slab_id = id >> SLAB_SHIFT;
        let slab = &mut self.slabs[slab_id as usize];
        if slab.live == slab.counts.len() {
            self.room.push(slab_id);
        }
        slab.live -= 1;
        slab.free.push((id as usize % SLAB_PAGES) as u16);
        if slab.live == 0 {
            *slab = Slab::new(0);
            self.room.retain(|r| *r != slab_id);
            self.gone.push(slab_id);
        }
    }

    /// Pages in use.
    pub(crate) fn used(&self) -> usize {
        self.slabs.iter().map(|s| s.live).sum()
    }
}
