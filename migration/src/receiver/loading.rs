//! [`Loading`]: a bitmap on its way in.

use std::ops::Range;

use hbitmap::{DirtyBitmap, Granularity, HBitmap, MAX_LEN};

use super::Loss;
use crate::{BitmapFlags, SECTOR, Sectors};

/// A bitmap between START and COMPLETE: busy, and frozen if it records.
#[derive(Debug)]
pub(super) struct Loading {
    pub(super) bitmap: DirtyBitmap,
    pub(super) flags: BitmapFlags,
    /// Chunks of bits that came.
    pub(super) chunks: u64,
    /// Which parts of the disk have been covered, a bit for each 64 granules.
    covered: HBitmap,
    /// Whether the disk's length is still to be learned from the chunks.
    growing: bool,
}

impl Loading {
    /// A clean bitmap for a disk of `len` bytes, `None` if that isn't known.
    pub(super) fn new(
        name: String,
        granularity: Granularity,
        flags: BitmapFlags,
        len: Option<u64>,
    ) -> hbitmap::Result<Self> {
        let bits = HBitmap::new(len.unwrap_or(0), granularity)?;
        let words = Granularity::from_bits((granularity.bits() + 6).min(63))?;
        let covered = HBitmap::new(bits.len(), words)?;
        let mut bitmap = DirtyBitmap::new(name, bits);
        bitmap.disable()?;
        if flags.enabled {
            bitmap.freeze()?;
            bitmap.set_successor_recording(true)?;
        } else {
            bitmap.set_busy(true)?;
        }
        Ok(Self {
            bitmap,
            flags,
            chunks: 0,
            covered,
            growing: len.is_none(),
        })
    }

    /// Bytes of memory that the stream made it take.
    pub(super) fn memory(&self) -> usize {
        self.bitmap.bits().memory() + self.covered.memory()
    }

    /// Checks a chunk of bits, `data` being `None` for ZEROES: gives its range and bits
    /// without padding, which [`load`](Self::load) takes then.
    pub(super) fn check<'a>(
        &mut self,
        sectors: Sectors,
        data: Option<&'a [u8]>,
    ) -> Result<(Range<u64>, Option<&'a [u8]>), Loss> {
        let range = self.range(sectors)?;
        let len = self.len();
        self.chunks += 1;
        let Some(data) = data else {
            return Ok((range, None));
        };
        let bits = self.bitmap.bits();
        let size = bits.linear_size(range.clone()).map_err(|_| Loss::PastEnd {
            end: range.end,
            len,
        })?;
        let form = fitting(data, size)?;
        if bits.check_padding(range.clone(), form).is_err() {
            return Err(Loss::BitsPastEnd { len });
        }
        Ok((range, Some(form)))
    }

    /// Loads what one or more chunks that follow each other brought.
    pub(super) fn load(&mut self, range: Range<u64>, data: Option<&[u8]>) -> Result<(), Loss> {
        let loaded = match data {
            Some(data) => self.bitmap.load_linear(range.clone(), data),
            None => self.bitmap.load_zeros(range.clone()),
        };
        // The range has been checked, so that it can only be refused for its end.
        loaded.map_err(|_| Loss::PastEnd {
            end: range.end,
            len: self.len(),
        })?;
        self.covered.set(range);
        Ok(())
    }

    /// Whether all of a range has been loaded before.
    pub(super) fn is_covered(&self, range: &Range<u64>) -> bool {
        self.covered.next_clean(range.clone()).is_none()
    }

    /// Bytes of the disk in a word of bits.
    pub(super) const fn word(&self) -> u64 {
        self.bitmap.bits().linear_align()
    }

    /// All has been sent: no longer busy, and recording if it is to.
    pub(super) fn complete(&mut self) -> Result<(), Loss> {
        let len = self.len();
        if let Some(start) = self.covered.next_clean(0..len) {
            let end = self.covered.next_dirty(start..len).unwrap_or(len);
            let missing = start..end;
            return Err(Loss::Uncovered { missing, len });
        }
        let ended = if self.bitmap.is_frozen() {
            self.bitmap.reclaim()
        } else {
            self.bitmap.set_busy(false)
        };
        // It has been taken by us; that it can't be given back means that it is none.
        ended.map_err(|_| Loss::NotComplete)
    }

    /// Bytes of the disk, as far as they are known.
    const fn len(&self) -> u64 {
        self.bitmap.bits().len()
    }

    /// The bytes of the disk that a chunk is about.
    fn range(&mut self, sectors: Sectors) -> Result<Range<u64>, Loss> {
        let align = self.word();
        let start = sectors.first.saturating_mul(SECTOR);
        let end = sectors
            .first
            .saturating_add(sectors.count.into())
            .saturating_mul(SECTOR);
        if end > MAX_LEN {
            let len = self.len();
            return Err(Loss::PastEnd { end, len });
        }
        if !start.is_multiple_of(align) {
            return Err(Loss::Misaligned { start, align });
        }
        let whole = end.is_multiple_of(align);
        if self.growing && end >= self.len() {
            self.growing = whole;
            let len = self.len();
            self.bitmap
                .resize(end)
                .and_then(|()| self.covered.resize(end))
                .map_err(|_| Loss::PastEnd { end, len })?;
        }
        let len = self.len();
        // The disk's last sector may be part of one.
        let last = len.next_multiple_of(SECTOR);
        if end > last {
            return Err(Loss::PastEnd { end, len });
        }
        if end < last && !whole {
            return Err(Loss::ShortChunk { end, align, len });
        }
        Ok(start.min(len)..end.min(len))
    }
}

/// The first `size` bytes of a buffer, which may be padded to a multiple of 32.
fn fitting(data: &[u8], size: usize) -> Result<&[u8], Loss> {
    let (found, needed) = (data.len() as u64, size as u64);
    let most = needed.next_multiple_of(32);
    match data.get(..size) {
        Some(form) if found <= most => Ok(form),
        _ => Err(Loss::BufferSize {
            found,
            needed,
            most,
        }),
    }
}
