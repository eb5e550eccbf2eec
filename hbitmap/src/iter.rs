//! [`Ranges`]: the dirty ranges of a bitmap, in order.

use core::iter::FusedIterator;
use core::ops::Range;

use crate::HBitmap;

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
        Ranges {
            bitmap: self,
            left: self.clip(range),
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
    bitmap: &'a HBitmap,
    left: Range<u64>,
}

impl Iterator for Ranges<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let found = self.bitmap.next_dirty_range(self.left.clone(), u64::MAX)?;
        self.left.start = found.end;
        Some(found)
    }
}

impl FusedIterator for Ranges<'_> {}
