//! Runs of set bits, in order: one walk down the tree for all of them.

use core::ops::Range;

use super::kernel::{PAGE_BITS, PAGE_WORDS};
use super::node::{Node, Slot};
use super::pages::PageView;
use super::{Tree, span_bits};

/// The most levels of nodes: 15 + 8 × 6 = 63 bits.
const MAX_HEIGHT: usize = 8;

/// The runs of set bits of a tree, within a range.
#[derive(Clone, Debug)]
pub(crate) struct Runs<'a> {
    /// Bits of the current word that are still to be told.
    word: u64,
    /// Number of the current word's first bit.
    at: u64,
    /// Words of the current page after the current one.
    words: Words<'a>,
    /// A full range that is still to be told, after the current word.
    full: Range<u64>,
    /// Bits from here on are not told.
    end: u64,
    tree: &'a Tree,
    /// The nodes on the way to the current page, the lowest one last.
    path: [Frame<'a>; MAX_HEIGHT],
    depth: usize,
}

/// The words of a page.
#[derive(Clone, Debug)]
enum Words<'a> {
    Dense(core::slice::Iter<'a, u64>),
    Sparse {
        base: u64,
        rest: core::iter::Zip<core::slice::Iter<'a, u16>, core::slice::Iter<'a, u64>>,
    },
}

/// A node and its children that are still to be visited.
#[derive(Clone, Copy, Debug)]
struct Frame<'a> {
    node: Option<&'a Node>,
    left: u64,
    base: u64,
    level: u32,
}

impl<'a> Runs<'a> {
    /// The runs of the bits `lo..hi`, `hi <= len`.
    pub(crate) fn new(tree: &'a Tree, lo: u64, hi: u64) -> Self {
        let none = Frame {
            node: None,
            left: 0,
            base: 0,
            level: 0,
        };
        let mut runs = Self {
            word: 0,
            at: 0,
            words: Words::Dense([].iter()),
            full: 0..0,
            end: hi,
            tree,
            path: [none; MAX_HEIGHT],
            depth: 0,
        };
        if lo < hi {
            runs.enter(tree.root(), tree.height(), 0, lo);
            // What the path down to `lo` did not reach begins after it.
            runs.cut_front(lo);
        }
        runs
    }

    /// Starts on a slot; of what lies before `lo` no node is entered.
    fn enter(&mut self, slot: Slot, level: u32, base: u64, lo: u64) {
        match slot {
            Slot::Empty => {}
            Slot::Full => self.full = base..base + self.tree.valid(level, base),
            Slot::At(id) if level == 0 => self.enter_page(id, base, lo),
            Slot::At(id) => {
                let node = self.tree.node(id);
                let shift = span_bits(level - 1);
                let first = if lo > base {
                    ((lo - base) >> shift) as u32
                } else {
                    0
                };
                let left = node.any & (u64::MAX << first);
                self.path[self.depth] = Frame {
                    node: Some(node),
                    left,
                    base,
                    level,
                };
                self.depth += 1;
                if lo > base && left >> first & 1 != 0 {
                    // The child that holds `lo` is entered now, since it is cut.
                    self.path[self.depth - 1].left &= left - 1;
                    let start = base + (u64::from(first) << shift);
                    self.enter(node.slot(first), level - 1, start, lo);
                }
            }
        }
    }

    #[inline]
    fn enter_page(&mut self, id: u32, base: u64, lo: u64) {
        let skip = lo.saturating_sub(base).min((1 << PAGE_BITS) - 1) as usize / 64;
        match self.tree.pages.view(id) {
            PageView::Dense(words) => {
                self.at = (base + skip as u64 * 64).wrapping_sub(64);
                self.words = Words::Dense(words[skip..PAGE_WORDS].iter());
            }
            PageView::Sparse(v) => {
                let skip = v.at.partition_point(|a| usize::from(*a) < skip);
                let rest = v.at[skip..].iter().zip(&v.words[skip..]);
                self.words = Words::Sparse { base, rest };
            }
        }
        self.next_word();
    }

    /// Drops the bits before `lo` from what has been entered.
    fn cut_front(&mut self, lo: u64) {
        if !self.full.is_empty() {
            self.full.start = self.full.start.max(lo);
        }
        if self.word != 0 && self.at < lo {
            // The page was entered at the word that holds `lo`.
            self.word &= u64::MAX << (lo - self.at);
        }
    }

    /// The next non-zero word of the current page. `false` if there is none.
    #[inline]
    fn next_word(&mut self) -> bool {
        match &mut self.words {
            Words::Dense(words) => {
                for word in words.by_ref() {
                    self.at = self.at.wrapping_add(64);
                    if *word != 0 {
                        self.word = *word;
                        return true;
                    }
                }
            }
            Words::Sparse { base, rest } => {
                if let Some((at, word)) = rest.next() {
                    self.at = *base + u64::from(*at) * 64;
                    self.word = *word;
                    return true;
                }
            }
        }
        self.word = 0;
        false
    }

    /// Goes on to what comes next: a word or a full range. `false` at the end.
    #[inline]
    fn advance(&mut self) -> bool {
        self.next_word() || self.next_slot()
    }

    /// Goes on to the next page or full range.
    fn next_slot(&mut self) -> bool {
        self.words = Words::Dense([].iter());
        while self.depth > 0 {
            let frame = &mut self.path[self.depth - 1];
            let (Some(node), false) = (frame.node, frame.left == 0) else {
                self.depth -= 1;
                continue;
            };
            let i = frame.left.trailing_zeros();
            frame.left &= frame.left - 1;
            let level = frame.level - 1;
            let base = frame.base + (u64::from(i) << span_bits(level));
            if base >= self.end {
                self.depth = 0;
                break;
            }
            self.enter(node.slot(i), level, base, 0);
            if self.word != 0 || !self.full.is_empty() {
                return true;
            }
        }
        false
    }

    /// Goes on with a run that reaches up to `end`, where a word or range has ended.
    #[inline(never)]
    fn extend(&mut self, mut end: u64) -> u64 {
        loop {
            if self.word == 0 && self.full.is_empty() && !self.advance() {
                return end;
            }
            if !self.full.is_empty() {
                if self.full.start != end {
                    return end;
                }
                end = self.full.end;
                self.full = 0..0;
                continue;
            }
            if self.at != end || self.word & 1 == 0 {
                return end;
            }
            let n = self.word.trailing_ones();
            end += u64::from(n);
            if n < 64 {
                self.word &= u64::MAX << n;
                return end;
            }
            self.word = 0;
        }
    }

    /// The run that begins with what `advance` found.
    #[inline(never)]
    fn next_full(&mut self) -> Option<Range<u64>> {
        let Range { start, end } = core::mem::take(&mut self.full);
        let end = self.extend(end);
        self.cut_end(start, end)
    }

    /// Cuts a run at the end of the range; `None` ends the walk.
    #[inline]
    fn cut_end(&mut self, start: u64, end: u64) -> Option<Range<u64>> {
        if start < self.end {
            return Some(start..end.min(self.end));
        }
        (self.word, self.depth, self.full) = (0, 0, 0..0);
        self.words = Words::Dense([].iter());
        None
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<u64>;

    #[inline]
    fn next(&mut self) -> Option<Range<u64>> {
        while self.word == 0 {
            if !self.full.is_empty() {
                return self.next_full();
            }
            if !self.advance() {
                return None;
            }
        }
        let start = self.at + u64::from(self.word.trailing_zeros());
        // With the zeros below the run filled, the lowest clear bit is its end.
        let filled = self.word | (self.word - 1);
        let n = filled.trailing_ones();
        let mut end = self.at + u64::from(n);
        self.word &= filled.wrapping_add(1);
        if n == 64 {
            self.word = 0;
            end = self.extend(end);
        }
        self.cut_end(start, end)
    }
}
