//! Pages with few non-zero words: only those are kept, in cells of five sizes.

use super::kernel::PAGE_WORDS;
use super::node::Pool;

/// The most non-zero words a page is kept sparse with: 1 KiB instead of 4.
pub(crate) const MAX_SPARSE: usize = 102;

/// Up to `N` non-zero words of a page. 64 bytes to 1 KiB, so that reading one touches
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
    #[inline]
    fn view(&self) -> View<'_> {
        let n = usize::from(self.len);
        View {
            at: &self.at[..n],
            words: &self.words[..n],
            count: u32::from(self.count),
        }
    }

    #[inline]
    fn write(&mut self, from: View<'_>) {
        self.len = from.at.len() as u16;
        self.count = from.count as u16;
        for (to, from) in self.at.iter_mut().zip(from.at) {
            *to = *from;
        }
        for (to, from) in self.words.iter_mut().zip(from.words) {
            *to = *from;
        }
    }

    /// Sets the bits `bits` of word `at`; how many were clear, or `None` if there is no
    /// room for another word.
    #[inline]
    fn or_word(&mut self, at: u16, bits: u64) -> Option<u32> {
        let n = usize::from(self.len);
        let i = self.at[..n].iter().take_while(|a| **a < at).count();
        if i < n && self.at[i] == at {
            let added = (bits & !self.words[i]).count_ones();
            self.words[i] |= bits;
            self.count += added as u16;
            return Some(added);
        }
        if n == N {
            return None;
        }
        self.at.copy_within(i..n, i + 1);
        self.words.copy_within(i..n, i + 1);
        self.at[i] = at;
        self.words[i] = bits;
        self.len += 1;
        self.count += bits.count_ones() as u16;
        Some(bits.count_ones())
    }
}

impl<const N: usize> From<View<'_>> for Cell<N> {
    #[inline]
    fn from(from: View<'_>) -> Self {
        let mut cell = Self {
            len: 0,
            count: 0,
            at: [0; N],
            words: [0; N],
        };
        cell.write(from);
        cell
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
        let (mut i, mut j, mut n, mut count) = (0, 0, 0, 0);
        while i < a.at.len() && j < b.at.len() {
            let (x, y) = (a.at[i], b.at[j]);
            let from_a = if x <= y { a.words[i] } else { 0 };
            let from_b = if y <= x { b.words[j] } else { 0 };
            self.at[n] = x.min(y);
            self.words[n] = from_a | from_b;
            count += (from_a | from_b).count_ones();
            i += usize::from(x <= y);
            j += usize::from(y <= x);
            n += 1;
        }
        self.len = n;
        for (at, words) in [(&a.at[i..], &a.words[i..]), (&b.at[j..], &b.words[j..])] {
            for (at, word) in at.iter().zip(words) {
                count += word.count_ones();
                self.push(*at, *word);
            }
        }
        count
    }

    /// The non-zero words of a page; there are at most [`MAX_SPARSE`].
    pub(crate) fn gather(&mut self, words: &[u64; PAGE_WORDS]) {
        self.len = 0;
        for (at, word) in words.iter().enumerate() {
            if *word != 0 {
                self.push(at as u16, *word);
            }
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
            pub(crate) fn insert(&mut self, from: View<'_>) -> u32 {
                match class_for(from.at.len()) {
                    $($class => self.$field.insert(Cell::from(from)) | ($class << KIND_SHIFT),)+
                    _ => 0,
                }
            }

            /// Replaces the words of a cell, which may get another number.
            #[inline]
            pub(crate) fn replace(&mut self, id: u32, with: View<'_>) -> u32 {
                let class = class_for(with.at.len());
                if class == id >> KIND_SHIFT {
                    match class {
                        $($class => self.$field.get_mut(id & PLACE).write(with),)+
                        _ => {}
                    }
                    return id;
                }
                self.remove(id);
                self.insert(with)
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

            /// See [`Cell::or_word`].
            #[inline]
            pub(crate) fn or_word(&mut self, id: u32, at: u16, bits: u64) -> Option<u32> {
                let place = id & PLACE;
                match id >> KIND_SHIFT {
                    $($class => self.$field.get_mut(place).or_word(at, bits),)+
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

classes!(1 c6 6, 2 c12 12, 3 c25 25, 4 c50 50, 5 c102 102);

/// A page's number: its kind in the top three bits (0 is a dense page).
pub(crate) const KIND_SHIFT: u32 = 29;
/// The rest of a page's number.
pub(crate) const PLACE: u32 = (1 << KIND_SHIFT) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_fill_whole_cache_lines() {
        assert_eq!(size_of::<Cell<6>>(), 64);
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
