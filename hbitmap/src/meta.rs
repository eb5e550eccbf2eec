//! [`MetaBitmap`]: which parts of a bitmap changed since they were last sent.

use core::ops::Range;

use crate::{Error, Granularity, HBitmap, Result};

/// Which chunks of a bitmap changed, set or reset, since they were last taken: the
/// "dirty dirty" bitmap of live migration. One bit stands for a chunk of the bitmap's
/// linear form.
///
/// Offsets and ranges are in bytes of the disk, as everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaBitmap {
    /// Its granularity is the chunk.
    changed: HBitmap,
}

impl MetaBitmap {
    /// For `bitmap`, in chunks of `chunk` bytes of the disk. Nothing counts as changed;
    /// [`touch_all`](Self::touch_all) is for those who want to send everything once.
    ///
    /// # Errors
    /// [`Error::ChunkTooSmall`] if a chunk is less than a granule.
    pub fn new(bitmap: &HBitmap, chunk: Granularity) -> Result<Self> {
        if chunk < bitmap.granularity() {
            return Err(Error::ChunkTooSmall {
                chunk: chunk.bytes(),
                granularity: bitmap.granularity().bytes(),
            });
        }
        Ok(Self {
            changed: HBitmap::new(bitmap.len(), chunk)?,
        })
    }

    /// Bytes of the disk in a chunk.
    #[must_use]
    pub const fn chunk(&self) -> Granularity {
        self.changed.granularity()
    }

    /// Chunks that changed.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.changed.count()
    }

    /// The bits of this range changed.
    pub fn touch(&mut self, range: Range<u64>) {
        self.changed.set(range);
    }

    /// Every bit changed.
    pub fn touch_all(&mut self) {
        self.changed.set_all();
    }

    /// Whether the chunk that holds this byte changed.
    #[must_use]
    pub fn is_changed(&self, offset: u64) -> bool {
        self.changed.get(offset)
    }

    /// The first run of changed chunks at or after `from`, at most `max_chunks` of them;
    /// from now on they count as unchanged. To be called before the bits are read.
    pub fn take(&mut self, from: u64, max_chunks: u64) -> Option<Range<u64>> {
        self.take_in(from..self.changed.len(), max_chunks)
    }

    /// The same, of the chunks that are at least in part in a range.
    pub fn take_in(&mut self, range: Range<u64>, max_chunks: u64) -> Option<Range<u64>> {
        let bits = self.chunk().bits();
        let end = range.end.min(self.changed.len());
        let first = self.changed.next_dirty(range.start..end)? >> bits << bits;
        // Up to the end of the last chunk that the range reaches.
        let end = ((end - 1) >> bits)
            .saturating_add(1)
            .saturating_mul(self.chunk().bytes());
        let most = max_chunks.saturating_mul(self.chunk().bytes());
        let range = self.changed.next_dirty_range(first..end, most)?;
        self.changed.reset(range.clone());
        Some(range)
    }

    /// The changed chunks as ranges, without taking them.
    #[must_use]
    pub fn ranges(&self) -> crate::Ranges<'_> {
        self.changed.ranges()
    }

    /// Follows the bitmap to another length: the chunks that the old and the new end are
    /// in, and all behind, count as changed.
    ///
    /// # Errors
    /// [`Error::LenTooLarge`].
    pub fn resize(&mut self, len: u64) -> Result<()> {
        let end = self.changed.len().min(len);
        self.changed.resize(len)?;
        self.changed.set(end.saturating_sub(1)..len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> MetaBitmap {
        let b = HBitmap::new(100_000, Granularity::from_bytes(16).unwrap()).unwrap();
        MetaBitmap::new(&b, Granularity::from_bytes(1024).unwrap()).unwrap()
    }

    #[test]
    fn taken_chunks_are_whole_and_taken_once() {
        let mut m = meta();
        m.touch(1030..1031);
        m.touch(2047..2049);
        m.touch(99_999..100_000);
        assert_eq!(m.count(), 3);
        assert_eq!(m.take(1500, 1), Some(1024..2048));
        m.touch(0..1);
        assert_eq!(m.take(1500, 9), Some(2048..3072));
        assert_eq!(m.take(1500, 9), Some(97 * 1024..100_000));
        assert_eq!(m.take(1500, 9), None);
        assert_eq!(m.take(0, 9), Some(0..1024));
        assert_eq!(m.count(), 0);
    }

    #[test]
    fn taken_within_a_range() {
        let mut m = meta();
        m.touch_all();
        assert_eq!(m.take_in(1025..2049, 9), Some(1024..3072));
        assert_eq!(m.take_in(1025..3072, 9), None);
        assert_eq!(m.take_in(0..1024, 9), Some(0..1024));
        assert_eq!(m.take_in(5000..5000, 9), None);
        assert_eq!(m.take_in(99_999..u64::MAX, 9), Some(97 * 1024..100_000));
        assert_eq!(m.take_in(0..u64::MAX, 9), Some(3072..12 * 1024));
    }

    #[test]
    fn chunks_hold_whole_granules() {
        let b = HBitmap::new(100, Granularity::from_bytes(16).unwrap()).unwrap();
        assert!(matches!(
            MetaBitmap::new(&b, Granularity::from_bytes(8).unwrap()),
            Err(Error::ChunkTooSmall {
                chunk: 8,
                granularity: 16
            })
        ));
    }

    #[test]
    fn growth_and_shrinkage_touch_the_end() {
        let mut m = meta();
        m.resize(200_000).unwrap();
        assert_eq!(m.take(0, u64::MAX), Some(97 * 1024..200_000));
        m.resize(5000).unwrap();
        assert_eq!(m.take(0, u64::MAX), Some(4096..5000));
    }
}
