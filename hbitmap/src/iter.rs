//! [`Ranges`]: the dirty ranges of a bitmap, in order.

use core::iter::FusedIterator;
use core::ops::Range;

use crate::HBitmap;
use crate::tree::Runs;

impl HBitmap {
    /// The dirty ranges in bytes, ascending, none touching the next; the last one ends
    /// with the disk at most.
    #[must_use]
    pub fn ranges(&self) -> Ranges<'_> {
        self.ranges_in(0..self.len())
    }

    /// The dirty ranges within a range, cut to it.
    #[must_use]
    pub fn ranges_in(&self, range: Range<u64>) -> Ranges<'_> {
        let within = self.clip(range);
        let bits = if within.is_empty() {
            0..0
        } else {
            self.granularity().outwards(&within)
        };
        Ranges {
            runs: Runs::new(&self.tree, bits.start, bits.end),
            shift: self.granularity().bits(),
            within,
        }
    }
}

impl<'a> IntoIterator for &'a HBitmap {
    type Item = Range<u64>;
    type IntoIter = Ranges<'a>;

    fn into_iter(self) -> Ranges<'a> {
        self.ranges()
    }
}

/// The dirty ranges of a bitmap. See [`HBitmap::ranges`].
#[derive(Clone, Debug)]
pub struct Ranges<'a> {
    runs: Runs<'a>,
    /// log2 of the granularity.
    shift: u32,
    /// What the ranges are cut to.
    within: Range<u64>,
}

impl Iterator for Ranges<'_> {
    type Item = Range<u64>;

    #[inline]
    fn next(&mut self) -> Option<Range<u64>> {
        let run = self.runs.next()?;
        let start = (run.start << self.shift).max(self.within.start);
        Some(start..(run.end << self.shift).min(self.within.end))
    }
}

impl FusedIterator for Ranges<'_> {}
