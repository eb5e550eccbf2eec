//! The pages of a bitmap: 32768 bits each, sparse or dense, whichever is smaller.
//!
//! A page that exists has a set and a clear bit; the callers turn what becomes empty
//! or full into a [`Slot`].

use super::dense::DensePool;
use super::kernel::{self, PAGE_WORDS, PageBytes, PageWords};
use super::node::Slot;
use super::sparse::{KIND_SHIFT, MAX_SPARSE, Scratch, SparsePool, View};

/// The words of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PageView<'a> {
    Dense(&'a PageWords),
    Sparse(View<'a>),
}

/// All pages of one bitmap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages {
    dense: DensePool,
    sparse: SparsePool,
}

/// Whether the number is that of a dense page.
#[inline]
const fn is_dense(id: u32) -> bool {
    id >> KIND_SHIFT == 0
}

impl Pages {
    #[inline]
    pub(crate) fn view(&self, id: u32) -> PageView<'_> {
        if is_dense(id) {
            PageView::Dense(self.dense.words(id))
        } else {
            PageView::Sparse(self.sparse.view(id))
        }
    }

    /// Set bits of a page.
    #[inline]
    pub(crate) fn count(&self, id: u32) -> u32 {
        if is_dense(id) {
            self.dense.count(id)
        } else {
            self.sparse.view(id).count
        }
    }

    pub(crate) fn get(&self, id: u32, bit: u32) -> bool {
        let word = match self.view(id) {
            PageView::Dense(words) => words[bit as usize / 64],
            PageView::Sparse(v) => match v.at.binary_search(&((bit / 64) as u16)) {
                Ok(i) => v.words[i],
                Err(_) => 0,
            },
        };
        word >> (bit % 64) & 1 != 0
    }

    #[inline]
    pub(crate) fn remove(&mut self, id: u32) {
        if is_dense(id) {
            self.dense.remove(id);
        } else {
            self.sparse.remove(id);
        }
    }

    /// A copy of a page of `from`.
    #[inline]
    pub(crate) fn copy(&mut self, from: &Self, id: u32) -> u32 {
        if is_dense(id) {
            self.dense.insert_with(|words| {
                words.copy_from_slice(from.dense.words(id));
                from.dense.count(id)
            })
        } else {
            self.sparse.copy(&from.sparse, id)
        }
    }

    /// The words of a slot of `valid` bits, written out.
    pub(crate) fn expand(&self, slot: Slot, valid: u32, out: &mut PageWords) {
        out.fill(0);
        match slot {
            Slot::Empty => {}
            Slot::Full => {
                kernel::set_bits(out, 0, valid);
            }
            Slot::At(id) => match self.view(id) {
                PageView::Dense(words) => out.copy_from_slice(words),
                PageView::Sparse(v) => scatter(v, out),
            },
        }
    }

    /// A page with these words; `count` of their bits are set, no bit from `valid` on.
    pub(crate) fn insert(&mut self, words: &PageWords, count: u32, valid: u32) -> Slot {
        if count == 0 {
            Slot::Empty
        } else if count == valid {
            Slot::Full
        } else if fits_sparse(words, count) {
            let mut scratch = Scratch::new();
            scratch.gather(words.iter().copied());
            Slot::At(self.sparse.insert(&scratch, count))
        } else {
            Slot::At(self.dense.insert_with(|to| {
                to.copy_from_slice(words);
                count
            }))
        }
    }

    /// Replaces a page by these words.
    pub(crate) fn replace(
        &mut self,
        slot: Slot,
        words: &PageWords,
        count: u32,
        valid: u32,
    ) -> Slot {
        if let Slot::At(id) = slot {
            if is_dense(id) && count != 0 && count != valid && !fits_sparse(words, count) {
                self.dense.words_mut(id).copy_from_slice(words);
                *self.dense.count_mut(id) = count;
                return slot;
            }
            self.remove(id);
        }
        self.insert(words, count, valid)
    }

    /// Sets the bits `lo..hi` of a page of `valid` bits; how many were clear.
    pub(crate) fn set(&mut self, slot: Slot, valid: u32, lo: u32, hi: u32) -> (Slot, u32) {
        let (id, added) = match slot {
            Slot::Full => return (slot, 0),
            Slot::Empty => {
                if hi - lo == valid {
                    return (Slot::Full, valid);
                }
                (self.insert_run(lo, hi), hi - lo)
            }
            Slot::At(id) if is_dense(id) => {
                let added = kernel::set_bits(self.dense.words_mut(id), lo, hi);
                *self.dense.count_mut(id) += added;
                (id, added)
            }
            Slot::At(id) => self.set_sparse(id, lo, hi),
        };
        if self.count(id) == valid {
            self.remove(id);
            return (Slot::Full, added);
        }
        (Slot::At(id), added)
    }

    /// Sets the bits `lo..hi` of a page of `valid` bits, if it is certain not to become
    /// full by that and no room has to be made; how many were clear.
    #[inline]
    pub(crate) fn set_in_place(&mut self, id: u32, valid: u32, lo: u32, hi: u32) -> Option<u32> {
        if !is_dense(id) {
            return None;
        }
        let (words, count) = self.dense.page_mut(id);
        if *count + (hi - lo) >= valid {
            return None;
        }
        let added = kernel::set_bits(words, lo, hi);
        *count += added;
        Some(added)
    }

    /// A page in which only the bits `lo..hi` are set.
    fn insert_run(&mut self, lo: u32, hi: u32) -> u32 {
        if words_touched(lo, hi) > MAX_SPARSE {
            let id = self.dense.insert_zero();
            *self.dense.count_mut(id) = kernel::set_bits(self.dense.words_mut(id), lo, hi);
            return id;
        }
        self.sparse.insert_run(lo, hi)
    }

    fn set_sparse(&mut self, id: u32, lo: u32, hi: u32) -> (u32, u32) {
        if words_touched(lo, hi) <= MAX_SPARSE
            && let Some(done) = self.sparse.set_run(id, lo, hi)
        {
            return done;
        }
        let id = self.densify(id);
        let added = kernel::set_bits(self.dense.words_mut(id), lo, hi);
        *self.dense.count_mut(id) += added;
        (id, added)
    }

    /// Replaces a whole page of 32768 valid bits by its linear form.
    #[inline]
    pub(crate) fn load(&mut self, slot: Slot, bytes: &PageBytes) -> Slot {
        let count = kernel::count_le(bytes);
        let dense = count as usize > MAX_SPARSE * 64
            || (count as usize > MAX_SPARSE && kernel::nonzero_le(bytes, MAX_SPARSE) > MAX_SPARSE);
        if dense && count != 1 << kernel::PAGE_BITS {
            let copy = |words: &mut PageWords| {
                kernel::words_from_le(words, bytes);
                count
            };
            if let Slot::At(id) = slot {
                if is_dense(id) {
                    *self.dense.count_mut(id) = copy(self.dense.words_mut(id));
                    return slot;
                }
                self.remove(id);
            }
            return Slot::At(self.dense.insert_with(copy));
        }
        if let Slot::At(id) = slot {
            self.remove(id);
        }
        if count == 0 {
            return Slot::Empty;
        }
        if dense {
            return Slot::Full;
        }
        let mut scratch = Scratch::new();
        scratch.gather(
            bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|w| u64::from_le_bytes(*w)),
        );
        Slot::At(self.sparse.insert(&scratch, count))
    }

    /// Replaces the words from number `first` on of a dense page by their linear form, if
    /// the page needs no other form then; the bits added and removed.
    pub(crate) fn load_in_place(
        &mut self,
        id: u32,
        valid: u32,
        first: usize,
        bytes: &[u8],
    ) -> Option<()> {
        if !is_dense(id) {
            return None;
        }
        let (words, count) = self.dense.page_mut(id);
        let part = words.get_mut(first..first + bytes.len() / 8)?;
        let keep = *count - kernel::count(part);
        let total = keep + kernel::count_le(bytes);
        if total as usize <= MAX_SPARSE / 2 || total >= valid {
            return None;
        }
        kernel::words_from_le(part, bytes);
        *count = total;
        Some(())
    }

    /// Replaces the words from number `first` on of a page that is empty or sparse by their
    /// linear form, if both are few; the slot then.
    pub(crate) fn load_sparse(
        &mut self,
        slot: Slot,
        valid: u32,
        first: usize,
        bytes: &[u8],
    ) -> Option<Slot> {
        let words = bytes.as_chunks::<8>().0;
        let old = match slot {
            Slot::Empty => View {
                at: &[],
                words: &[],
                count: 0,
            },
            Slot::At(id) if !is_dense(id) => self.sparse.view(id),
            _ => return None,
        };
        if words.len() > MAX_SPARSE {
            return None;
        }
        let place = |word: usize| old.at.iter().filter(|a| usize::from(**a) < word).count();
        let (from, to) = (place(first), place(first + words.len()));
        let mut new = Scratch::new();
        let keep = |part: core::ops::Range<usize>, new: &mut Scratch| {
            for (at, word) in old.at[part.clone()].iter().zip(&old.words[part]) {
                new.push(*at, *word);
            }
        };
        keep(0..from, &mut new);
        let mut count = old.count;
        for word in &old.words[from..to] {
            count -= word.count_ones();
        }
        for (word, at) in words.iter().zip(first..) {
            let word = u64::from_le_bytes(*word);
            if word != 0 {
                count += word.count_ones();
                new.push(at as u16, word);
            }
        }
        keep(to..old.at.len(), &mut new);
        if new.len > MAX_SPARSE {
            return None;
        }
        if count == 0 || count == valid {
            if let Slot::At(id) = slot {
                self.remove(id);
            }
            return Some(if count == 0 { Slot::Empty } else { Slot::Full });
        }
        Some(Slot::At(match slot {
            Slot::At(id) => self.sparse.replace(id, &new, count),
            _ => self.sparse.insert(&new, count),
        }))
    }

    /// Puts a union in the place of sparse page `id`.
    #[inline]
    fn store_union(&mut self, id: u32, sum: &Scratch, count: u32) -> u32 {
        if sum.len <= MAX_SPARSE {
            return self.sparse.replace(id, sum, count);
        }
        self.sparse.remove(id);
        let id = self.dense.insert_zero();
        scatter(sum.view(count), self.dense.words_mut(id));
        *self.dense.count_mut(id) = count;
        id
    }

    /// The dense page with the words of a sparse one, which is removed.
    fn densify(&mut self, id: u32) -> u32 {
        let new = self.dense.insert_zero();
        let old = self.sparse.view(id);
        scatter(old, self.dense.words_mut(new));
        *self.dense.count_mut(new) = old.count;
        self.sparse.remove(id);
        new
    }

    /// Clears the bits `lo..hi` of a page of `valid` bits; how many were set.
    pub(crate) fn clear(&mut self, slot: Slot, valid: u32, lo: u32, hi: u32) -> (Slot, u32) {
        match slot {
            Slot::Empty => (slot, 0),
            Slot::At(id) if is_dense(id) => {
                let words = self.dense.words_mut(id);
                let removed = kernel::clear_bits(words, lo, hi);
                let left = self.dense.count(id) - removed;
                *self.dense.count_mut(id) = left;
                // Looking for a sparser form costs as much as clearing many words.
                let look = left as usize <= MAX_SPARSE / 2 || words_touched(lo, hi) >= 64;
                if left == 0 || (removed != 0 && look) {
                    return (self.shrink(id, valid), removed);
                }
                (slot, removed)
            }
            _ => {
                let mut words = [0; PAGE_WORDS];
                self.expand(slot, valid, &mut words);
                let before = self.slot_count(slot, valid);
                let removed = kernel::clear_bits(&mut words, lo, hi);
                (self.replace(slot, &words, before - removed, valid), removed)
            }
        }
    }

    /// Set bits of a slot of `valid` bits.
    #[inline]
    pub(crate) fn slot_count(&self, slot: Slot, valid: u32) -> u32 {
        match slot {
            Slot::Empty => 0,
            Slot::Full => valid,
            Slot::At(id) => self.count(id),
        }
    }

    /// The smallest form of a page.
    pub(crate) fn shrink(&mut self, id: u32, valid: u32) -> Slot {
        if is_dense(id) {
            let (words, count) = (self.dense.words(id), self.dense.count(id));
            if count != 0 && count != valid && !fits_sparse(words, count) {
                return Slot::At(id);
            }
            let words = *words;
            self.dense.remove(id);
            return self.insert(&words, count, valid);
        }
        if self.count(id) == valid {
            self.remove(id);
            return Slot::Full;
        }
        Slot::At(id)
    }

    /// `page |= page of other`, both of `valid` bits; the slot and the bits added.
    #[inline]
    pub(crate) fn merge(
        &mut self,
        id: u32,
        other: &Self,
        other_id: u32,
        valid: u32,
        scratch: &mut Scratch,
    ) -> (Slot, u32) {
        let before = self.count(id);
        let (id, count) = match (is_dense(id), other.view(other_id)) {
            (true, PageView::Dense(theirs)) => {
                let count = kernel::or_count(self.dense.words_mut(id), theirs);
                *self.dense.count_mut(id) = count;
                (id, count)
            }
            (true, PageView::Sparse(theirs)) => (id, self.or_sparse(id, theirs)),
            (false, PageView::Sparse(theirs)) => {
                let count = scratch.union(self.sparse.view(id), theirs);
                (self.store_union(id, scratch, count), count)
            }
            (false, PageView::Dense(_)) => {
                let new = self.copy(other, other_id);
                let ours = self.sparse.view(id);
                let count = or_into(self.dense.words_mut(new), ours) + self.dense.count(new);
                *self.dense.count_mut(new) = count;
                self.sparse.remove(id);
                (new, count)
            }
        };
        if count == valid {
            self.remove(id);
            return (Slot::Full, count - before);
        }
        (Slot::At(id), count - before)
    }

    /// Ors the words of a sparse page into a dense one; the set bits it has then.
    fn or_sparse(&mut self, id: u32, from: View<'_>) -> u32 {
        let added = or_into(self.dense.words_mut(id), from);
        let count = self.dense.count_mut(id);
        *count += added;
        *count
    }

    /// Bytes that the pages in use take.
    pub(crate) fn used_bytes(&self) -> usize {
        self.dense.used() * PAGE_WORDS * 8 + self.sparse.used_bytes()
    }
}

/// Words that the bits `lo..hi` touch.
#[inline]
const fn words_touched(lo: u32, hi: u32) -> usize {
    ((hi - 1) / 64 - lo / 64 + 1) as usize
}

/// Whether a page is smaller when sparse.
#[inline]
fn fits_sparse(words: &PageWords, count: u32) -> bool {
    count as usize <= MAX_SPARSE
        || (count as usize <= MAX_SPARSE * 64
            && kernel::nonzero_words(words, MAX_SPARSE) <= MAX_SPARSE)
}

/// Writes the words of a sparse page to their places.
#[inline]
fn scatter(from: View<'_>, to: &mut PageWords) {
    for (at, word) in from.at.iter().zip(from.words) {
        to[usize::from(*at)] = *word;
    }
}

/// Ors the words of a sparse page to their places; the bits added.
#[inline]
fn or_into(to: &mut PageWords, from: View<'_>) -> u32 {
    let mut added = 0;
    for (at, word) in from.at.iter().zip(from.words) {
        let to = &mut to[usize::from(*at)];
        added += (word & !*to).count_ones();
        *to |= word;
    }
    added
}
