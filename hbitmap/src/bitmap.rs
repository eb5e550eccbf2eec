//! [`HBitmap`]: which bytes of a disk are dirty.

use core::fmt;
use core::ops::Range;

use crate::tree::Tree;
use crate::{Error, Granularity, Result};

/// The most bytes a bitmap covers: 2^63, 8 EiB.
pub const MAX_LEN: u64 = 1 << 63;

/// Which bytes of a disk are dirty, one bit for each granule of
/// [`granularity`](Self::granularity) bytes. The last granule ends with the disk.
///
/// All offsets and ranges are in bytes of the disk. Ranges that reach past its end are
/// cut there, reversed ones are empty. [`set`](Self::set) rounds outwards and
/// [`reset`](Self::reset) inwards, so that no byte that was dirtied is ever called clean.
///
/// Memory and time follow the parts that are neither wholly clean nor wholly dirty, not
/// the size of the disk.
#[derive(Clone)]
pub struct HBitmap {
    /// Bytes of the disk.
    len: u64,
    granularity: Granularity,
    pub(crate) tree: Tree,
}

impl HBitmap {
    /// A clean bitmap for a disk of `len` bytes.
    ///
    /// # Errors
    /// [`Error::LenTooLarge`] above [`MAX_LEN`].
    pub fn new(len: u64, granularity: Granularity) -> Result<Self> {
        if len > MAX_LEN {
            return Err(Error::LenTooLarge { len });
        }
        Ok(Self {
            len,
            granularity,
            tree: Tree::new(granularity.granules(len)),
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

    /// Granules, which is the number of bits: `len / granularity` rounded up.
    #[must_use]
    pub const fn granules(&self) -> u64 {
        self.tree.len()
    }

    /// Dirty granules. Takes constant time.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.tree.count()
    }

    /// Bytes of the disk that the dirty granules cover. Takes constant time.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        if self.tree.count() == 0 {
            return 0;
        }
        let whole = self.tree.count() - 1;
        let last = if self.get(self.len - 1) {
            self.len - self.start_of(self.granules() - 1)
        } else {
            self.granularity.bytes()
        };
        (whole << self.granularity.bits()) + last
    }

    /// Whether nothing is dirty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.tree.count() == 0
    }

    /// Whether everything is dirty. A disk of no bytes is both, clean and dirty.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.tree.is_full()
    }

    /// Bytes of memory that the bits take, without what the allocator keeps in reserve.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.tree.used_bytes()
    }

    /// Whether the byte at `offset` is dirty; `false` past the end.
    #[must_use]
    pub fn get(&self, offset: u64) -> bool {
        offset < self.len && self.tree.get(offset >> self.granularity.bits())
    }

    /// Marks every granule dirty that the range touches; returns how many were clean.
    pub fn set(&mut self, range: Range<u64>) -> u64 {
        let range = self.clip(range);
        if range.is_empty() {
            return 0;
        }
        let bits = self.granularity.outwards(&range);
        let before = self.tree.count();
        self.tree.set(bits.start, bits.end);
        self.tree.count() - before
    }

    /// Marks every granule clean that lies wholly in the range (the last one ends with
    /// the disk); returns how many were dirty.
    pub fn reset(&mut self, range: Range<u64>) -> u64 {
        let range = self.clip(range);
        let bits = self.granularity.inwards(&range, self.len);
        if range.is_empty() || bits.is_empty() {
            return 0;
        }
        let before = self.tree.count();
        self.tree.clear(bits.start, bits.end);
        before - self.tree.count()
    }

    /// Marks everything dirty.
    pub fn set_all(&mut self) {
        self.tree.set_all();
    }

    /// Marks everything clean.
    pub fn reset_all(&mut self) {
        self.tree.clear_all();
    }

    /// The first dirty byte of the range.
    #[must_use]
    pub fn next_dirty(&self, range: Range<u64>) -> Option<u64> {
        let range = self.clip(range);
        let bit = self.tree.next_one(range.start >> self.granularity.bits())?;
        self.within(bit, &range)
    }

    /// The first clean byte of the range.
    #[must_use]
    pub fn next_clean(&self, range: Range<u64>) -> Option<u64> {
        let range = self.clip(range);
        let bit = self
            .tree
            .next_zero(range.start >> self.granularity.bits())?;
        self.within(bit, &range)
    }

    /// The first run of dirty bytes in the range, cut to the range and to `max_len` bytes.
    /// `None` if there is none or `max_len` is 0.
    #[must_use]
    pub fn next_dirty_range(&self, range: Range<u64>, max_len: u64) -> Option<Range<u64>> {
        let range = self.clip(range);
        let start = self.next_dirty(range.clone())?;
        let limit = range.end.min(start.saturating_add(max_len));
        let end = self.next_clean(start..limit).unwrap_or(limit);
        (start < end).then_some(start..end)
    }

    /// Makes everything dirty that is dirty in `other`. Where the granularities differ,
    /// bits are rounded outwards.
    ///
    /// # Errors
    /// [`Error::LenMismatch`].
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.len != other.len {
            return Err(Error::LenMismatch {
                ours: self.len,
                theirs: other.len,
            });
        }
        if self.granularity == other.granularity {
            self.tree.merge(&other.tree);
        } else if other.is_full() {
            self.set_all();
        } else {
            // Ranges that touch the same granules here are set as one.
            let mut run = 0..0;
            for range in other.ranges() {
                let bits = self.granularity.outwards(&range);
                if bits.start <= run.end {
                    run.end = bits.end;
                } else {
                    self.tree.set(run.start, run.end);
                    run = bits;
                }
            }
            self.tree.set(run.start, run.end);
        }
        Ok(())
    }

    /// Changes the length. New bytes are clean, except those of a granule that was dirty
    /// and that the old end cut short.
    ///
    /// # Errors
    /// [`Error::LenTooLarge`].
    pub fn resize(&mut self, len: u64) -> Result<()> {
        if len > MAX_LEN {
            return Err(Error::LenTooLarge { len });
        }
        self.tree.resize(self.granularity.granules(len));
        self.len = len;
        Ok(())
    }

    /// The part of a range that is on the disk; an empty one may start at its end.
    pub(crate) fn clip(&self, range: Range<u64>) -> Range<u64> {
        range.start.min(self.len)..range.end.min(self.len)
    }

    /// First byte of a granule.
    const fn start_of(&self, bit: u64) -> u64 {
        bit << self.granularity.bits()
    }

    /// The first byte of a granule that is in the range.
    fn within(&self, bit: u64, range: &Range<u64>) -> Option<u64> {
        let at = self.start_of(bit).max(range.start);
        (at < range.end).then_some(at)
    }
}

impl PartialEq for HBitmap {
    /// Same length, granularity and dirty granules.
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len
            && self.granularity == other.granularity
            && self.tree.same_bits(&other.tree)
    }
}

impl Eq for HBitmap {}

impl fmt::Debug for HBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HBitmap")
            .field("len", &self.len)
            .field("granularity", &self.granularity.bytes())
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}
