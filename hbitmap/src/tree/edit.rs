//! Changing a range of bits: set, clear, load. One walk for all of them.

use super::kernel::{self, PAGE_BITS, PAGE_WORDS};
use super::node::Slot;
use super::pages::Pages;
use super::{Tree, span_bits};

/// What a walk does to the range.
trait Edit {
    /// What a subtree that lies wholly in the range becomes, if that is always the same.
    const WHOLE: Option<Slot>;

    /// Changes the bits `lo..hi` of the page at `base`, which has `valid` bits.
    fn page(&mut self, pages: &mut Pages, slot: Slot, at: PageRange) -> Slot;
}

/// A range of bits in a page.
#[derive(Clone, Copy)]
struct PageRange {
    base: u64,
    valid: u32,
    lo: u32,
    hi: u32,
}

struct Set;

impl Edit for Set {
    const WHOLE: Option<Slot> = Some(Slot::Full);

    fn page(&mut self, pages: &mut Pages, slot: Slot, at: PageRange) -> Slot {
        pages.set(slot, at.valid, at.lo, at.hi).0
    }
}

struct Clear;

impl Edit for Clear {
    const WHOLE: Option<Slot> = Some(Slot::Empty);

    fn page(&mut self, pages: &mut Pages, slot: Slot, at: PageRange) -> Slot {
        pages.clear(slot, at.valid, at.lo, at.hi).0
    }
}

/// Replaces bits by little-endian bytes whose first bit is bit `first`, a multiple of 64.
struct Load<'a> {
    first: u64,
    bytes: &'a [u8],
}

impl Edit for Load<'_> {
    const WHOLE: Option<Slot> = None;

    fn page(&mut self, pages: &mut Pages, slot: Slot, at: PageRange) -> Slot {
        let start = ((at.base + u64::from(at.lo) - self.first) / 8) as usize;
        let bytes = &self.bytes[start..];
        if at.lo == 0
            && at.hi == 1 << PAGE_BITS
            && let Some(page) = bytes.first_chunk()
        {
            return pages.load(slot, page);
        }
        let (from, to) = (at.lo as usize / 64, at.hi.div_ceil(64) as usize);
        if at.hi.is_multiple_of(64)
            && let Some(bytes) = bytes.get(..(to - from) * 8)
        {
            if let Slot::At(id) = slot
                && pages.load_in_place(id, at.valid, from, bytes).is_some()
            {
                return slot;
            }
            if let Some(slot) = pages.load_sparse(slot, at.valid, from, bytes) {
                return slot;
            }
        }
        let mut words = [0; PAGE_WORDS];
        if at.hi - at.lo != at.valid {
            pages.expand(slot, at.valid, &mut words);
        }
        kernel::words_from_le(&mut words[from..to], bytes);
        if !at.hi.is_multiple_of(64) {
            words[to - 1] &= kernel::low_mask(at.hi % 64);
        }
        pages.replace(slot, &words, kernel::count(&words), at.valid)
    }
}

impl Tree {
    /// Sets the bits `lo..hi`, `lo <= hi <= len`.
    #[inline]
    pub(crate) fn set(&mut self, lo: u64, hi: u64) {
        if let Some(added) = self.set_in_place(lo, hi) {
            self.count += u64::from(added);
            return;
        }
        self.edit(lo, hi, &mut Set);
    }

    /// Sets a range within a page that exists and stays as it is otherwise; the bits added.
    #[inline]
    fn set_in_place(&mut self, lo: u64, hi: u64) -> Option<u32> {
        if lo >= hi || (lo ^ (hi - 1)) >> PAGE_BITS != 0 {
            return None;
        }
        let mut slot = self.root;
        for level in (0..self.height).rev() {
            match slot {
                Slot::Empty => return None,
                Slot::Full => return Some(0),
                Slot::At(id) => {
                    slot = self
                        .nodes
                        .get(id)
                        .slot((lo >> span_bits(level)) as u32 % 64);
                }
            }
        }
        let base = lo >> PAGE_BITS << PAGE_BITS;
        let valid = self.valid(0, base) as u32;
        match slot {
            Slot::Empty => None,
            Slot::Full => Some(0),
            Slot::At(id) => {
                self.pages
                    .set_in_place(id, valid, (lo - base) as u32, (hi - base) as u32)
            }
        }
    }

    /// Clears the bits `lo..hi`, `lo <= hi <= len`.
    pub(crate) fn clear(&mut self, lo: u64, hi: u64) {
        self.edit(lo, hi, &mut Clear);
    }

    /// Replaces the bits `lo..hi` by `bytes`; `lo` is a multiple of 64, `hi` too unless
    /// it is `len`, and there are enough bytes. Bits past `hi` are ignored.
    pub(crate) fn load(&mut self, lo: u64, hi: u64, bytes: &[u8]) {
        self.edit(lo, hi, &mut Load { first: lo, bytes });
    }

    fn edit<E: Edit>(&mut self, lo: u64, hi: u64, edit: &mut E) {
        if lo < hi {
            self.root = self.edit_slot(self.root, self.height, 0, lo, hi, edit);
        }
    }

    /// The slot that `slot` becomes; `lo..hi` is not empty and within the slot.
    fn edit_slot<E: Edit>(
        &mut self,
        slot: Slot,
        level: u32,
        base: u64,
        lo: u64,
        hi: u64,
        edit: &mut E,
    ) -> Slot {
        if E::WHOLE == Some(slot) {
            return slot;
        }
        let valid = self.valid(level, base);
        if let Some(whole) = E::WHOLE
            && hi - lo == valid
        {
            self.count -= self.remove(slot, level, base);
            if whole == Slot::Full {
                self.count += valid;
            }
            return whole;
        }
        if level == 0 {
            let at = PageRange {
                base,
                valid: valid as u32,
                lo: (lo - base) as u32,
                hi: (hi - base) as u32,
            };
            let before = self.pages.slot_count(slot, at.valid);
            let slot = edit.page(&mut self.pages, slot, at);
            let after = self.pages.slot_count(slot, at.valid);
            self.count = self.count - u64::from(before) + u64::from(after);
            return slot;
        }
        let id = self.open(slot, level, base);
        let shift = span_bits(level - 1);
        let (first, last) = ((lo - base) >> shift, (hi - 1 - base) >> shift);
        for i in first..=last {
            let start = base + (i << shift);
            let (from, to) = (lo.max(start), hi.min(start + (1 << shift)));
            let i = i as u32;
            let kid = self.nodes.get(id).slot(i);
            let new = self.edit_slot(kid, level - 1, start, from, to, edit);
            if new != kid {
                self.nodes.get_mut(id).set_slot(i, new);
            }
        }
        self.close(id, level, base)
    }
}
