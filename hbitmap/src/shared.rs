//! [`SharedTracker`]: many threads mark ranges dirty, one reads what was marked.
//!
//! # Design
//! The same ladder as the bitmap's, of atomic words: a bit of a node says that something
//! below is marked, another that everything below is. Nodes are made when something
//! below them is first marked and stay until the tracker is dropped, so there is
//! nothing to be reclaimed under a reader, and no lock.
//!
//! A writer marks from the bottom up: first the leaf, then its bit in each node above.
//! A reader takes from the top down: it swaps a node's masks for zero, then goes where
//! they pointed. Whatever the reader has missed below is therefore announced above
//! *after* the reader was there, and found the next time.
//!
//! # Memory ordering
//! Everything is `SeqCst`. That matters where a writer finds a bit above already set and
//! leaves it alone: its look at that bit must not be ordered before its mark below, nor
//! the reader's look below before its swap above. On x86-64 this costs the writer
//! nothing, since every `fetch_or` is a full barrier there anyway. The mark itself is
//! always a read-modify-write, so what a thread did before
//! [`mark`](SharedTracker::mark) happens before what another one does after a
//! [`drain`](SharedTracker::drain) that took the mark.

use alloc::boxed::Box;
use core::array;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use once_cell::race::OnceBox;

use crate::tree::kernel::mask;
use crate::tree::node::Bits;
use crate::{Granularity, HBitmap, Result};

/// log2 of the bits in a leaf: 64 words.
const LEAF_BITS: u32 = 12;

/// Marks of many threads, for one who takes them.
///
/// [`mark`](Self::mark) takes `&self`, never waits and never fails; ranges are rounded
/// out to granules and cut at the end of the disk. Every mark whose `mark` returned
/// before a [`drain`](Self::drain) began has been returned by that drain or one before;
/// one that is made meanwhile, by that drain or the next. None is ever lost.
#[derive(Debug)]
pub struct SharedTracker {
    len: u64,
    granularity: Granularity,
    /// Levels of nodes above the leaves; at least one.
    height: u32,
    root: OnceBox<Node>,
    /// Whether the root node has anything.
    any: AtomicU64,
}

#[derive(Debug)]
struct Node {
    /// Children with something marked.
    any: AtomicU64,
    /// Children marked as a whole.
    full: AtomicU64,
    kids: Kids,
}

#[derive(Debug)]
enum Kids {
    Nodes([OnceBox<Node>; 64]),
    Leaves([OnceBox<Leaf>; 64]),
}

type Leaf = [AtomicU64; 64];

impl Node {
    /// An empty node of a level (1 has leaves below).
    fn new(level: u32) -> Box<Self> {
        let kids = if level == 1 {
            Kids::Leaves(array::from_fn(|_| OnceBox::new()))
        } else {
            Kids::Nodes(array::from_fn(|_| OnceBox::new()))
        };
        Box::new(Self {
            any: AtomicU64::new(0),
            full: AtomicU64::new(0),
            kids,
        })
    }

    /// Sets the bits that say that something below was marked.
    fn announce(to: &AtomicU64, bits: u64) {
        if to.load(SeqCst) & bits != bits {
            to.fetch_or(bits, SeqCst);
        }
    }

    /// Marks the bits `range`, counted from the node's first, which is not empty.
    fn mark(&self, level: u32, range: &Range<u64>) {
        let shift = span_bits(level - 1);
        for i in range.start >> shift..=(range.end - 1) >> shift {
            let start = i << shift;
            let from = range.start.max(start) - start;
            let to = (range.end - start).min(1 << shift);
            let bit = 1 << i;
            if to - from == 1 << shift {
                self.full.fetch_or(bit, SeqCst);
            } else {
                self.mark_kid(i, level, &(from..to));
            }
            Self::announce(&self.any, bit);
        }
    }

    fn mark_kid(&self, i: u64, level: u32, range: &Range<u64>) {
        #[allow(clippy::cast_possible_truncation, reason = "a child's number")]
        let i = i as usize;
        match &self.kids {
            Kids::Nodes(kids) => {
                if let Some(kid) = kids.get(i) {
                    kid.get_or_init(|| Self::new(level - 1))
                        .mark(level - 1, range);
                }
            }
            Kids::Leaves(kids) => {
                if let Some(kid) = kids.get(i) {
                    mark_leaf(kid.get_or_init(new_leaf), range);
                }
            }
        }
    }

    /// Reports what is marked as ranges of bits, and forgets it if `take`.
    fn visit(&self, level: u32, base: u64, take: bool, found: &mut impl FnMut(Range<u64>)) {
        // Above first: see the design.
        let any = look(&self.any, take);
        let full = look(&self.full, take);
        let shift = span_bits(level - 1);
        for i in Bits(any | full) {
            let start = base + (u64::from(i) << shift);
            if full >> i & 1 != 0 {
                found(start..start + (1 << shift));
            }
            // Also below what is marked as a whole, so that nothing stale stays there.
            match &self.kids {
                Kids::Nodes(kids) => {
                    if let Some(kid) = kids.get(i as usize).and_then(OnceBox::get) {
                        kid.visit(level - 1, start, take, found);
                    }
                }
                Kids::Leaves(kids) => {
                    if let Some(kid) = kids.get(i as usize).and_then(OnceBox::get) {
                        visit_leaf(kid, start, take, found);
                    }
                }
            }
        }
    }
}

/// log2 of the bits below a node of `level`, or in a leaf at level 0.
const fn span_bits(level: u32) -> u32 {
    LEAF_BITS + 6 * level
}

fn look(at: &AtomicU64, take: bool) -> u64 {
    // A swap of zero would take the cache line from the writers for nothing.
    let seen = at.load(SeqCst);
    if take && seen != 0 {
        at.swap(0, SeqCst)
    } else {
        seen
    }
}

fn new_leaf() -> Box<Leaf> {
    Box::new(array::from_fn(|_| AtomicU64::new(0)))
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "bits of a leaf are below 4096"
)]
fn mark_leaf(leaf: &Leaf, range: &Range<u64>) {
    let (lo, hi) = (range.start as u32, range.end as u32);
    let (first, last) = (lo / 64, (hi - 1) / 64);
    for (w, word) in (first..=last).zip(leaf.iter().skip(first as usize)) {
        let from = if w == first { lo % 64 } else { 0 };
        let to = if w == last { (hi - 1) % 64 + 1 } else { 64 };
        // Also where the bits are set already: what this thread did before has to happen
        // before what the reader does that takes them.
        word.fetch_or(mask(from, to), SeqCst);
    }
}

/// Reports the runs of bits in each word of a leaf.
fn visit_leaf(leaf: &Leaf, base: u64, take: bool, found: &mut impl FnMut(Range<u64>)) {
    for (word, at) in leaf.iter().zip((base..).step_by(64)) {
        let mut bits = look(word, take);
        while bits != 0 {
            let lo = bits.trailing_zeros();
            let n = (bits >> lo).trailing_ones();
            found(at + u64::from(lo)..at + u64::from(lo + n));
            bits &= !mask(lo, lo + n);
        }
    }
}

impl SharedTracker {
    /// Nothing marked, for a disk of `len` bytes.
    ///
    /// # Errors
    /// [`Error::LenTooLarge`](crate::Error::LenTooLarge).
    pub fn new(len: u64, granularity: Granularity) -> Result<Self> {
        let granules = HBitmap::new(len, granularity)?.granules();
        let mut height = 1;
        while span_bits(height) < 63 && granules > 1 << span_bits(height) {
            height += 1;
        }
        let (root, any) = (OnceBox::new(), AtomicU64::new(0));
        Ok(Self {
            len,
            granularity,
            height,
            root,
            any,
        })
    }

    /// Bytes of the disk.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of the disk a bit.
    #[must_use]
    pub const fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Whether nothing is marked. Marks being made meanwhile may or may not be seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.any.load(SeqCst) == 0
    }

    /// Marks every granule that the range touches. For any number of threads at once.
    pub fn mark(&self, range: Range<u64>) {
        let range = range.start..range.end.min(self.len);
        if range.is_empty() {
            return;
        }
        let bits = self.granularity.outwards(&range);
        self.root
            .get_or_init(|| Node::new(self.height))
            .mark(self.height, &bits);
        Node::announce(&self.any, 1);
    }

    /// What is marked, without taking it: every mark made before, and maybe some of those
    /// made meanwhile.
    ///
    /// # Errors
    /// None that this tracker's own length and granularity could cause.
    pub fn snapshot(&self) -> Result<HBitmap> {
        self.collect(false)
    }

    /// Takes what is marked. For one thread at a time; of several, each gets a part.
    ///
    /// # Errors
    /// None that this tracker's own length and granularity could cause.
    pub fn drain(&self) -> Result<HBitmap> {
        self.collect(true)
    }

    fn collect(&self, take: bool) -> Result<HBitmap> {
        let mut out = HBitmap::new(self.len, self.granularity)?;
        let granules = out.granules();
        if look(&self.any, take) != 0
            && let Some(root) = self.root.get()
        {
            let mut found = |r: Range<u64>| out.tree.set(r.start, r.end.min(granules));
            root.visit(self.height, 0, take, &mut found);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker(len: u64, bits: u32) -> SharedTracker {
        SharedTracker::new(len, Granularity::from_bits(bits).unwrap()).unwrap()
    }

    #[test]
    fn drained_once_and_rounded_out() {
        let t = tracker(1 << 30, 16);
        assert!(t.is_empty());
        t.mark(65535..65537);
        t.mark((1 << 30) - 1..u64::MAX);
        t.mark(Range { start: 9, end: 3 });
        let seen = t.snapshot().unwrap();
        let taken = t.drain().unwrap();
        assert_eq!(seen, taken);
        let ranges: alloc::vec::Vec<_> = taken.ranges().collect();
        assert_eq!(ranges, [0..131_072, (1 << 30) - 65536..1 << 30]);
        assert!(t.is_empty());
        assert!(t.drain().unwrap().is_empty());
    }

    #[test]
    fn whole_disks_take_no_memory() {
        let t = tracker(1 << 63, 0);
        t.mark(0..1 << 63);
        t.mark(5..6);
        assert!(t.drain().unwrap().is_full());
        assert!(t.drain().unwrap().is_empty());
        t.mark((1 << 62) - 3..(1 << 62) + 77);
        let taken = t.drain().unwrap();
        assert_eq!(
            taken.next_dirty_range(0..1 << 63, u64::MAX),
            Some((1 << 62) - 3..(1 << 62) + 77)
        );
        assert_eq!(taken.count(), 80);
    }

    #[test]
    fn a_disk_of_no_bytes() {
        let t = tracker(0, 9);
        t.mark(0..1);
        assert!(t.drain().unwrap().is_empty());
    }
}
