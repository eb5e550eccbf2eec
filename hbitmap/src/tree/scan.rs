//! Looking without changing: the next set or clear bit, uniform ranges, words out.

use super::kernel::{self, PAGE_BITS, PAGE_WORDS};
use super::node::{Bits, Slot};
use super::pages::PageView;
use super::{Tree, span_bits};
use crate::Chunk;

impl Tree {
    /// The first set bit at or after `from`.
    pub(crate) fn next_one(&self, from: u64) -> Option<u64> {
        (from < self.len).then(|| self.next_one_in(self.root, self.height, 0, from))?
    }

    fn next_one_in(&self, slot: Slot, level: u32, base: u64, from: u64) -> Option<u64> {
        match slot {
            Slot::Empty => None,
            Slot::Full => Some(from),
            Slot::At(id) if level == 0 => {
                let at = self.page_next_one(id, (from - base) as u32)?;
                Some(base + u64::from(at))
            }
            Slot::At(id) => {
                let node = self.nodes.get(id);
                let shift = span_bits(level - 1);
                let first = (from - base) >> shift;
                Bits(node.any & (u64::MAX << first)).find_map(|i| {
                    let start = base + (u64::from(i) << shift);
                    self.next_one_in(node.slot(i), level - 1, start, from.max(start))
                })
            }
        }
    }

    /// The first clear bit at or after `from`.
    pub(crate) fn next_zero(&self, from: u64) -> Option<u64> {
        (from < self.len).then(|| self.next_zero_in(self.root, self.height, 0, from))?
    }

    fn next_zero_in(&self, slot: Slot, level: u32, base: u64, from: u64) -> Option<u64> {
        match slot {
            Slot::Full => None,
            Slot::Empty => Some(from),
            Slot::At(id) if level == 0 => {
                let at = u64::from(self.page_next_zero(id, (from - base) as u32)?);
                (at < self.valid(0, base)).then_some(base + at)
            }
            Slot::At(id) => {
                let node = self.nodes.get(id);
                let shift = span_bits(level - 1);
                let first = (from - base) >> shift;
                let open = !node.full & self.valid_kids(level, base) & (u64::MAX << first);
                Bits(open).find_map(|i| {
                    let start = base + (u64::from(i) << shift);
                    self.next_zero_in(node.slot(i), level - 1, start, from.max(start))
                })
            }
        }
    }

    fn page_next_one(&self, id: u32, from: u32) -> Option<u32> {
        let (at, skip) = (from / 64, u64::MAX << (from % 64));
        match self.pages.view(id) {
            PageView::Dense(words) => {
                let mut i = at as usize;
                let mut word = words[i] & skip;
                while word == 0 {
                    i += 1;
                    word = *words.get(i)?;
                }
                Some(i as u32 * 64 + word.trailing_zeros())
            }
            PageView::Sparse(v) => {
                let i = v.at.partition_point(|a| u32::from(*a) < at);
                v.at[i..].iter().zip(&v.words[i..]).find_map(|(a, word)| {
                    let a = u32::from(*a);
                    let word = if a == at { word & skip } else { *word };
                    (word != 0).then(|| a * 64 + word.trailing_zeros())
                })
            }
        }
    }

    fn page_next_zero(&self, id: u32, from: u32) -> Option<u32> {
        let (at, skip) = (from / 64, u64::MAX << (from % 64));
        match self.pages.view(id) {
            PageView::Dense(words) => {
                let mut i = at as usize;
                let mut word = !words[i] & skip;
                while word == 0 {
                    i += 1;
                    word = !*words.get(i)?;
                }
                Some(i as u32 * 64 + word.trailing_zeros())
            }
            PageView::Sparse(v) => {
                let mut i = v.at.partition_point(|a| u32::from(*a) < at);
                let (mut at, mut skip) = (at, skip);
                // Word after word, until one is missing (all clear) or has a clear bit.
                while (at as usize) < PAGE_WORDS {
                    let word = match v.at.get(i) {
                        Some(a) if u32::from(*a) == at => v.words[i],
                        _ => 0,
                    };
                    let clear = !word & skip;
                    if clear != 0 {
                        return Some(at * 64 + clear.trailing_zeros());
                    }
                    (i, at, skip) = (i + 1, at + 1, u64::MAX);
                }
                None
            }
        }
    }

    /// Whether the bits `lo..hi`, `lo < hi <= len`, are all clear, all set, or neither.
    pub(crate) fn kind(&self, lo: u64, hi: u64) -> Chunk {
        if self.next_one(lo).is_none_or(|at| at >= hi) {
            Chunk::Zeros
        } else if self.next_zero(lo).is_none_or(|at| at >= hi) {
            Chunk::Ones
        } else {
            Chunk::Data
        }
    }

    /// Writes the words of the bits `lo..hi` little-endian to `out`, which has eight bytes
    /// for each; `lo` is a multiple of 64. Bits from `hi` on in the last word are those of
    /// the bitmap.
    pub(crate) fn store(&self, lo: u64, hi: u64, out: &mut [u8]) {
        if lo < hi {
            self.store_slot(self.root, self.height, 0, lo, hi, out);
        }
    }

    fn store_slot(&self, slot: Slot, level: u32, base: u64, lo: u64, hi: u64, out: &mut [u8]) {
        match slot {
            Slot::Empty => out.fill(0),
            Slot::Full => {
                out.fill(0xff);
                self.mask_end(hi, out);
            }
            Slot::At(id) if level == 0 => {
                let first = (lo - base) as usize / 64;
                match self.pages.view(id) {
                    PageView::Dense(words) => kernel::words_to_le(out, &words[first..]),
                    PageView::Sparse(v) => {
                        out.fill(0);
                        let (to, _) = out.as_chunks_mut::<8>();
                        let i = v.at.partition_point(|a| usize::from(*a) < first);
                        for (at, word) in v.at[i..].iter().zip(&v.words[i..]) {
                            match to.get_mut(usize::from(*at) - first) {
                                Some(to) => *to = word.to_le_bytes(),
                                None => break,
                            }
                        }
                    }
                }
            }
            Slot::At(id) => {
                let node = self.nodes.get(id);
                let shift = span_bits(level - 1);
                let (first, last) = ((lo - base) >> shift, (hi - 1 - base) >> shift);
                let mut rest = out;
                for i in first..=last {
                    let start = base + (i << shift);
                    let (from, to) = (lo.max(start), hi.min(start + (1 << shift)));
                    let bytes = (to - from).div_ceil(64) as usize * 8;
                    let (here, tail) = rest.split_at_mut(bytes);
                    self.store_slot(node.slot(i as u32), level - 1, start, from, to, here);
                    rest = tail;
                }
            }
        }
    }

    /// Clears what lies past the end of the bitmap in the last word of a full range.
    fn mask_end(&self, hi: u64, out: &mut [u8]) {
        let left = (self.len - hi / 64 * 64).min(64) as u32;
        if !hi.is_multiple_of(64)
            && left < 64
            && let Some(last) = out.last_chunk_mut::<8>()
        {
            *last = kernel::low_mask(left).to_le_bytes();
        }
    }

    /// The slot of the page that holds `bit`; `None` where a whole subtree is uniform is
    /// told by the bits it reaches to.
    pub(crate) fn page_at(&self, bit: u64) -> (Slot, u32) {
        let (mut slot, mut level) = (self.root, self.height);
        while let Slot::At(id) = slot
            && level > 0
        {
            level -= 1;
            slot = self
                .nodes
                .get(id)
                .slot((bit >> span_bits(level)) as u32 % 64);
        }
        debug_assert!(span_bits(level) >= PAGE_BITS);
        (slot, level)
    }
}
