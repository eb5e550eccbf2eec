//! Pages with few non-zero words: only those are kept, in cells of four sizes.

use core::hint::select_unpredictable;

use super::kernel::{mask, or_word};
use super::node::Pool;

/// The most non-zero words a page is kept sparse with: 1 KiB instead of 4.
pub(crate) const MAX_SPARSE: usize = 102;

/// Up to `N` non-zero words of a page. 128 bytes to 1 KiB, so that reading one touches
/// few cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Cell<const N: usize> {
    /// Words in use.
    len: u16,
    /// Set bits, at most 102 × 64.
    count: u16,
    /// Place of each word in the page, ascending.
    at: [u16; N],
    /// The words, none zero.
    words: [u64; N],
}

/// The words of a sparse page: where they are and what they are, ascending.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) at: &'a [u16],
    pub(crate) words: &'a [u64],
    pub(crate) count: u32,
}

impl<const N: usize> Cell<N> {
    const EMPTY: Self = Self {
        len: 0,
        count: 0,
        at: [0; N],
        words: [0; N],
    };

    #[inline]
    fn view(&self) -> View<'_> {
        let n = usize::from(self.len);
        View {
            at: &self.at[..n],
            words: &self.words[..n],
            count: u32::from(self.count),
        }
    }

    /// Takes the words over, of which there are at most `N`.
    #[inline]
    fn write(&mut self, from: &Scratch, count: u32) {
        self.len = from.len as u16;
        self.count = count as u16;
        // All `N`, since a fixed number is copied faster than just those in use.
        self.at.copy_from_slice(&from.at[..N]);
        self.words.copy_from_slice(&from.words[..N]);
    }

    /// The words of another cell, of which there are at most `N`.
    fn copy_of(from: View<'_>) -> Self {
        let mut cell = Self::EMPTY;
        cell.len = from.at.len() as u16;
        cell.count = from.count as u16;
        cell.at[..from.at.len()].copy_from_slice(from.at);
        cell.words[..from.at.len()].copy_from_slice(from.words);
        cell
    }

    /// Sets the bits `lo..hi`; how many were clear, or `None` if there is no room for the
    /// words.
    #[inline]
    fn set_run(&mut self, lo: u32, hi: u32) -> Option<u32> {
        let n = usize::from(self.len);
        let (first, last) = ((lo / 64) as u16, ((hi - 1) / 64) as u16);
        // The words `i..j` of the cell are within the run.
        let i = self.at[..n].iter().filter(|a| **a < first).count();
        let j = if first == last {
            i + usize::from(i < n && self.at[i] == first)
        } else {
            self.at[..n].iter().filter(|a| **a <= last).count()
        };
        let (head, tail) = (mask(lo % 64, 64), mask(0, (hi - 1) % 64 + 1));
        if first == last && i < j {
            let added = or_word(&mut self.words[i], head & tail);
            self.count += added as u16;
            return Some(added);
        }
        let touched = usize::from(last - first) + 1;
        let len = n + touched - (j - i);
        if len > N {
            return None;
        }
        let mut before = 0;
        let (mut old_head, mut old_tail) = (0, 0);
        for k in i..j {
            before += self.words[k].count_ones();
            old_head |= if self.at[k] == first {
                self.words[k]
            } else {
                0
            };
            old_tail |= if self.at[k] == last { self.words[k] } else { 0 };
        }
        self.at.copy_within(j..n, i + touched);
        self.words.copy_within(j..n, i + touched);
        for (at, k) in (first..=last).zip(i..) {
            self.at[k] = at;
            self.words[k] = u64::MAX;
        }
        let k = i + touched - 1;
        if first == last {
            self.words[i] = head & tail;
        } else {
            self.words[i] = head | old_head;
            self.words[k] = tail | old_tail;
        }
        let mut after = self.words[i].count_ones();
        if k > i {
            after += self.words[k].count_ones() + (touched as u32 - 2) * 64;
        }
        self.len = len as u16;
        self.count += (after - before) as u16;
        Some(after - before)
    }
}

/// Words on their way into a cell.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) len: usize,
    pub(crate) at: [u16; 2 * MAX_SPARSE],
    pub(crate) words: [u64; 2 * MAX_SPARSE],
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            len: 0,
            at: [0; 2 * MAX_SPARSE],
            words: [0; 2 * MAX_SPARSE],
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, at: u16, word: u64) {
        self.at[self.len] = at;
        self.words[self.len] = word;
        self.len += 1;
    }

    #[inline]
    pub(crate) fn view(&self, count: u32) -> View<'_> {
        View {
            at: &self.at[..self.len],
            words: &self.words[..self.len],
            count,
        }
    }

    /// The union of two sparse pages; returns its set bits.
    #[inline]
    pub(crate) fn union(&mut self, a: View<'_>, b: View<'_>) -> u32 {
        let (mut i, mut j, mut n, mut shared) = (0, 0, 0, 0);
        while i < a.at.len() && j < b.at.len() && n < self.at.len() {
            let (x, y) = (a.at[i], b.at[j]);
            // Which of the two comes first is anybody's guess, so there is no branch on
            // that; that they meet is rare where it matters.
            let from_a = a.words[i] & u64::from(x <= y).wrapping_neg();
            let from_b = b.words[j] & u64::from(y <= x).wrapping_neg();
            self.at[n] = x.min(y);
            self.words[n] = from_a | from_b;
            if from_a & from_b != 0 {
                shared += (from_a & from_b).count_ones();
            }
            i += select_unpredictable(x <= y, 1, 0);
            j += select_unpredictable(y <= x, 1, 0);
            n += 1;
        }
        self.len = n;
        for (at, words) in [(&a.at[i..], &a.words[i..]), (&b.at[j..], &b.words[j..])] {
            for (at, word) in at.iter().zip(words) {
                self.push(*at, *word);
            }
        }
        a.count + b.count - shared
    }

    /// The non-zero words of a page; there are at most [`MAX_SPARSE`].
    pub(crate) fn gather(&mut self, words: impl Iterator<Item = u64>) {
        self.len = 0;
        for (at, word) in words.enumerate().filter(|(_, word)| *word != 0) {
            self.push(at as u16, word);
        }
    }
}

macro_rules! classes {
    ($($class:literal $field:ident $n:literal),+) => {
        /// Cells by size. A cell's number has its class above bit 29, starting with 1.
        #[derive(Clone, Debug, Default)]
        pub(crate) struct SparsePool {
            $($field: Pool<Cell<$n>>,)+
        }

        impl SparsePool {
            #[inline]
            pub(crate) fn view(&self, id: u32) -> View<'_> {
                let place = id & PLACE;
                match id >> KIND_SHIFT {
                    $($class => self.$field.get(place).view(),)+
                    _ => View { at: &[], words: &[], count: 0 },
                }
            }

            /// A new cell with these words, of which there are at most [`MAX_SPARSE`].
            #[inline]
            pub(crate) fn insert(&mut self, from: &Scratch, count: u32) -> u32 {
                match class_for(from.len) {
                    $($class => {
                        let mut cell = Cell::EMPTY;
                        cell.write(from, count);
                        self.$field.insert(cell) | ($class << KIND_SHIFT)
                    })+
                    _ => 0,
                }
            }

            /// Replaces the words of a cell, which may get another number.
            #[inline]
            pub(crate) fn replace(&mut self, id: u32, with: &Scratch, count: u32) -> u32 {
                let class = class_for(with.len);
                if class == id >> KIND_SHIFT {
                    match class {
                        $($class => self.$field.get_mut(id & PLACE).write(with, count),)+
                        _ => {}
                    }
                    return id;
                }
                self.remove(id);
                self.insert(with, count)
            }

            /// A copy of another pool's cell.
            #[inline]
            pub(crate) fn copy(&mut self, from: &Self, id: u32) -> u32 {
                let place = id & PLACE;
                match id >> KIND_SHIFT {
                    $($class => {
                        self.$field.insert(*from.$field.get(place)) | ($class << KIND_SHIFT)
                    })+
                    _ => id,
                }
            }

            #[inline]
            pub(crate) fn remove(&mut self, id: u32) {
                let place = id & PLACE;
                match id >> KIND_SHIFT {
                    $($class => self.$field.remove(place),)+
                    _ => {}
                }
            }

            /// A cell in which only the bits `lo..hi` are set, in at most [`MAX_SPARSE`]
            /// words.
            #[inline]
            pub(crate) fn insert_run(&mut self, lo: u32, hi: u32) -> u32 {
                match class_for(((hi - 1) / 64 - lo / 64 + 1) as usize) {
                    $($class => {
                        let mut cell = Cell::EMPTY;
                        cell.set_run(lo, hi);
                        self.$field.insert(cell) | ($class << KIND_SHIFT)
                    })+
                    _ => 0,
                }
            }

            /// Sets the bits `lo..hi` of a cell, which may get another number; how many were
            /// clear. `None` if no cell can hold so many words.
            #[inline]
            pub(crate) fn set_run(&mut self, id: u32, lo: u32, hi: u32) -> Option<(u32, u32)> {
                let place = id & PLACE;
                let added = match id >> KIND_SHIFT {
                    $($class => self.$field.get_mut(place).set_run(lo, hi),)+
                    _ => None,
                };
                if let Some(added) = added {
                    return Some((id, added));
                }
                let old = self.view(id);
                let (first, last) = (lo / 64, (hi - 1) / 64);
                let within = |a: &&u16| (first..=last).contains(&u32::from(**a));
                let shared = old.at.iter().filter(within).count();
                let len = old.at.len() + (last - first + 1) as usize - shared;
                match class_for(len) {
                    $($class => {
                        let mut cell = Cell::copy_of(old);
                        let added = cell.set_run(lo, hi)?;
                        self.remove(id);
                        Some((self.$field.insert(cell) | ($class << KIND_SHIFT), added))
                    })+
                    _ => None,
                }
            }

            /// Bytes of the cells in use.
            pub(crate) fn used_bytes(&self) -> usize {
                0 $(+ self.$field.used() * size_of::<Cell<$n>>())+
            }
        }

        /// The smallest class that holds `len` words.
        #[inline]
        const fn class_for(len: usize) -> u32 {
            $(if len <= $n { return $class; })+
            0
        }
    };
}

classes!(1 c12 12, 2 c25 25, 3 c50 50, 4 c102 102);

/// A page's number: its kind in the top three bits (0 is a dense page).
pub(crate) const KIND_SHIFT: u32 = 29;
/// The rest of a page's number.
pub(crate) const PLACE: u32 = (1 << KIND_SHIFT) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_fill_whole_cache_lines() {
        assert_eq!(size_of::<Cell<12>>(), 128);
        assert_eq!(size_of::<Cell<25>>(), 256);
        assert_eq!(size_of::<Cell<50>>(), 512);
        assert_eq!(size_of::<Cell<102>>(), 1024);
    }

    #[test]
    fn union_keeps_order_and_counts() {
        let (a, b) = ([1, 5, 9], [0, 5, 511]);
        let (x, y) = ([1, 2, 4], [8, 3, 1 << 63]);
        let mut s = Scratch::new();
        let count = s.union(
            View {
                at: &a,
                words: &x,
                count: 3,
            },
            View {
                at: &b,
                words: &y,
                count: 4,
            },
        );
        assert_eq!(s.view(count).at, [0, 1, 5, 9, 511]);
        assert_eq!(s.view(count).words, [8, 1, 3, 4, 1 << 63]);
        assert_eq!(count, 6);
    }
}
