//! Runs of set bits, in order: one walk down the tree for all of them.
//!
//! Words are decoded some at a time into a small buffer, without asking of each bit what
//! it is: guessing wrong costs the processor more than the decoding.

use core::ops::Range;

use super::kernel::{PAGE_BITS, PAGE_WORDS, PageWords};
use super::node::{Node, Slot};
use super::pages::PageView;
use super::sparse::View;
use super::{Tree, span_bits};

/// The most levels of nodes: 15 + 8 × 6 = 63 bits.
const MAX_HEIGHT: usize = 8;
/// Runs that are decoded at once, or a few more.
const BATCH: usize = 32;
/// Room for them, for those of one more word, and for one that may not be one.
const ROOM: usize = BATCH + 32 + 2;

/// A run of set bits.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    end: u64,
}

/// The runs of set bits of a tree, within a range.
#[derive(Clone, Debug)]
pub(crate) struct Runs<'a> {
    /// Decoded runs.
    runs: [Run; ROOM],
    /// The next one to be told.
    next: usize,
    /// Those before this one are complete.
    ready: usize,
    /// Those before this one are decoded; at most one of them may go on.
    decoded: usize,
    /// Bits from here on are not told.
    end: u64,
    words: Words<'a>,
    tree: &'a Tree,
    /// The nodes on the way to the current page, the lowest one last.
    path: [Frame<'a>; MAX_HEIGHT],
    depth: usize,
}

/// What is left of the current page.
#[derive(Clone, Copy, Debug)]
enum Words<'a> {
    None,
    Dense {
        words: &'a PageWords,
        base: u64,
        /// Number of the current 64 words.
        block: usize,
        /// Which of these are to be decoded still; none is zero.
        left: u64,
    },
    Sparse {
        view: View<'a>,
        base: u64,
        next: usize,
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
            runs: [Run { start: 0, end: 0 }; ROOM],
            next: 0,
            ready: 0,
            decoded: 0,
            end: hi,
            words: Words::None,
            tree,
            path: [none; MAX_HEIGHT],
            depth: 0,
        };
        if lo < hi {
            runs.enter(tree.root(), tree.height(), 0, lo);
            runs.refill();
            // The walk began at the word or full range that holds `lo`.
            while runs.next < runs.decoded && runs.runs[runs.next].end <= lo {
                runs.next += 1;
            }
            let first = &mut runs.runs[runs.next];
            first.start = first.start.max(lo);
        }
        runs
    }

    /// Starts on a slot; of what lies before `lo` no node is entered.
    #[inline]
    fn enter(&mut self, slot: Slot, level: u32, base: u64, lo: u64) {
        match slot {
            Slot::Empty => {}
            Slot::Full => self.push(base, base + self.tree.valid(level, base)),
            Slot::At(id) if level == 0 => self.enter_page(id, base, lo),
            Slot::At(id) => self.enter_node(id, level, base, lo),
        }
    }

    fn enter_node(&mut self, id: u32, level: u32, base: u64, lo: u64) {
        let node = self.tree.node(id);
        let shift = span_bits(level - 1);
        let first = if lo > base {
            ((lo - base) >> shift) as u32
        } else {
            0
        };
        let mut left = node.any & (u64::MAX << first);
        let cut = lo > base && left >> first & 1 != 0;
        if cut {
            left &= left - 1;
        }
        self.path[self.depth] = Frame {
            node: Some(node),
            left,
            base,
            level,
        };
        self.depth += 1;
        if cut {
            // The child that holds `lo` is entered now.
            let start = base + (u64::from(first) << shift);
            self.enter(node.slot(first), level - 1, start, lo);
        }
    }

    #[inline]
    fn enter_page(&mut self, id: u32, base: u64, lo: u64) {
        let skip = lo.saturating_sub(base).min((1 << PAGE_BITS) - 1) as usize / 64;
        self.words = match self.tree.pages.view(id) {
            PageView::Dense(words) => {
                let block = skip / 64;
                let left = nonzero_mask(words, block) & (u64::MAX << (skip % 64));
                Words::Dense {
                    words,
                    base,
                    block,
                    left,
                }
            }
            PageView::Sparse(view) => {
                let next = view
                    .at
                    .iter()
                    .take_while(|a| usize::from(**a) < skip)
                    .count();
                Words::Sparse { view, base, next }
            }
        };
    }

    /// Goes on to the next page or full range. `false` if there is none.
    fn next_slot(&mut self) -> bool {
        self.words = Words::None;
        while let Some(last) = self.depth.checked_sub(1) {
            let frame = &mut self.path[last];
            let (Some(node), false) = (frame.node, frame.left == 0) else {
                self.depth = last;
                continue;
            };
            let i = frame.left.trailing_zeros();
            frame.left &= frame.left - 1;
            let level = frame.level - 1;
            let base = frame.base + (u64::from(i) << span_bits(level));
            if base >= self.end {
                self.depth = 0;
                return false;
            }
            self.enter(node.slot(i), level, base, 0);
            if level == 0 || node.full >> i & 1 != 0 {
                return true;
            }
        }
        false
    }

    /// Adds a run, which may continue the last one.
    #[inline]
    fn push(&mut self, start: u64, end: u64) {
        if let Some(last) = self.decoded.checked_sub(1)
            && self.runs[last].end == start
        {
            self.runs[last].end = end;
            return;
        }
        self.runs[self.decoded] = Run { start, end };
        self.decoded += 1;
    }

    /// Decodes more runs, until some are complete or nothing is left.
    #[inline(never)]
    fn refill(&mut self) {
        // The last one goes on, maybe.
        if self.next < self.decoded {
            self.runs[0] = self.runs[self.next];
            self.decoded = 1;
        } else {
            self.decoded = 0;
        }
        self.next = 0;
        while self.decoded <= BATCH {
            let more = match &mut self.words {
                Words::None => false,
                Words::Dense {
                    words,
                    base,
                    block,
                    left,
                } => decode_dense(words, *base, block, left, &mut self.runs, &mut self.decoded),
                Words::Sparse { view, base, next } => {
                    decode_sparse(*view, *base, next, &mut self.runs, &mut self.decoded)
                }
            };
            if !more && !self.next_slot() {
                self.ready = self.decoded;
                self.cut_end();
                return;
            }
        }
        self.ready = self.decoded - 1;
        self.cut_end();
    }

    /// Drops what lies behind the end of the range.
    #[inline]
    fn cut_end(&mut self) {
        let Some(last) = self.decoded.checked_sub(1) else {
            return;
        };
        if self.runs[last].end < self.end {
            return;
        }
        while let Some(last) = self.decoded.checked_sub(1)
            && self.runs[last].start >= self.end
        {
            self.decoded = last;
        }
        if let Some(last) = self.decoded.checked_sub(1) {
            self.runs[last].end = self.runs[last].end.min(self.end);
        }
        self.ready = self.decoded;
        self.depth = 0;
        self.words = Words::None;
    }
}

/// Which of 64 words of a page are not zero.
#[inline]
fn nonzero_mask(words: &PageWords, block: usize) -> u64 {
    let mut mask = 0;
    if let Some(block) = words.as_chunks::<64>().0.get(block) {
        for word in block {
            mask = mask >> 1 | (word | word.wrapping_neg()) & (1 << 63);
        }
    }
    mask
}

/// Decodes words of a dense page until there are enough runs (`true`) or no words.
#[inline]
fn decode_dense(
    words: &PageWords,
    base: u64,
    block: &mut usize,
    left: &mut u64,
    runs: &mut [Run; ROOM],
    decoded: &mut usize,
) -> bool {
    let (mut n, mut mask) = (*decoded, *left);
    while n <= BATCH {
        while mask == 0 {
            *block += 1;
            if *block == PAGE_WORDS / 64 {
                *decoded = n;
                return false;
            }
            mask = nonzero_mask(words, *block);
        }
        let at = *block * 64 + mask.trailing_zeros() as usize;
        mask &= mask - 1;
        n = decode(words[at], base + at as u64 * 64, runs, n);
    }
    (*decoded, *left) = (n, mask);
    true
}

/// Decodes words of a sparse page until there are enough runs (`true`) or no words.
#[inline]
fn decode_sparse(
    view: View<'_>,
    base: u64,
    next: &mut usize,
    runs: &mut [Run; ROOM],
    decoded: &mut usize,
) -> bool {
    let mut n = *decoded;
    for (at, word) in view.at[*next..].iter().zip(&view.words[*next..]) {
        if n > BATCH {
            *decoded = n;
            return true;
        }
        *next += 1;
        n = decode(*word, base + u64::from(*at) * 64, runs, n);
    }
    *decoded = n;
    false
}

/// Adds the runs of a word that is not zero; the runs there are then.
#[inline(always)]
fn decode(word: u64, at: u64, runs: &mut [Run; ROOM], mut n: usize) -> usize {
    let run = |starts: u64, ends: u64| Run {
        start: at + u64::from(starts.trailing_zeros()),
        end: at + u64::from(ends.trailing_zeros()) + 1,
    };
    let mut starts = word & !(word << 1);
    let mut ends = word & !(word >> 1);
    if word & 1 != 0 && n > 0 && runs[n - 1].end == at {
        runs[n - 1].end = run(starts, ends).end;
        (starts, ends) = (starts & (starts - 1), ends & (ends - 1));
        if starts == 0 {
            return n;
        }
    }
    // Two without asking whether there is a second one: mostly there are one or two.
    runs[n] = run(starts, ends);
    (starts, ends) = (starts & (starts - 1), ends & (ends - 1));
    runs[n + 1] = run(starts, ends);
    n += 1 + usize::from(starts != 0);
    (starts, ends) = (starts & starts.wrapping_sub(1), ends & ends.wrapping_sub(1));
    while starts != 0 {
        runs[n] = run(starts, ends);
        n += 1;
        (starts, ends) = (starts & (starts - 1), ends & (ends - 1));
    }
    n
}

impl Iterator for Runs<'_> {
    type Item = Range<u64>;

    #[inline]
    fn next(&mut self) -> Option<Range<u64>> {
        if self.next >= self.ready {
            self.refill();
            if self.ready == 0 {
                return None;
            }
        }
        let run = self.runs[self.next];
        self.next += 1;
        Some(run.start..run.end)
    }
}
