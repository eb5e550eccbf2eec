//! How a disk is cut into chunks.

use std::ops::{Range, RangeInclusive};

use hbitmap::{Granularity, HBitmap};

use super::{SECTOR, Sectors};
use crate::{Error, Result};

/// Granules in a chunk that QEMU writes: 1024 bytes of bitmap.
const CHUNK_GRANULES: u64 = 8192;
/// Granules in a word of the linear form. A chunk starts at a multiple.
const WORD_GRANULES: u64 = 64;
/// QEMU pads buffers to a multiple of this.
const BUFFER_ALIGN: u64 = 32;
/// The largest buffer that QEMU takes.
pub(crate) const MAX_BUFFER: usize = 10 * 1024;

impl Sectors {
    /// The bytes of the disk, the first and the one behind the last. The last sector may
    /// reach past the end of the disk.
    #[must_use]
    pub const fn bytes(self) -> Range<u64> {
        let first = self.first.saturating_mul(SECTOR);
        first..first.saturating_add(self.count as u64 * SECTOR)
    }

    /// Bytes of the linear form of the range: 8 for each 64 granules or part of them.
    #[must_use]
    pub const fn linear_size(self, granularity: Granularity) -> u64 {
        granularity
            .granules(self.count as u64 * SECTOR)
            .div_ceil(WORD_GRANULES)
            * 8
    }

    /// Sizes of a BITS buffer that QEMU takes for the range: with padding or without.
    #[must_use]
    pub const fn buffer_sizes(self, granularity: Granularity) -> RangeInclusive<u64> {
        let needed = self.linear_size(granularity);
        needed..=needed.next_multiple_of(BUFFER_ALIGN)
    }
}

/// How QEMU cuts a disk into chunks: each covers 8192 granules, the last one what is left.
///
/// The number of sectors in a chunk has 32 bits. Where 8192 granules are more (from a
/// granularity of 256 MiB on), a chunk is the largest multiple of 64 granules that fits;
/// QEMU's own sender overflows there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLayout {
    disk_len: u64,
    granularity: Granularity,
    chunk: u64,
}

impl ChunkLayout {
    /// For a disk of `disk_len` bytes and a bitmap of that granularity.
    ///
    /// # Errors
    /// [`Error::Refused`] for granularities that no stream can carry: below 512 bytes or
    /// above 2 GiB; and for disks above [`hbitmap::MAX_LEN`].
    pub fn new(disk_len: u64, granularity: Granularity) -> Result<Self> {
        if !(9..=31).contains(&granularity.bits()) {
            return Err(Error::Refused(format!(
                "a bitmap of granularity {granularity} can't be migrated: \
                 allowed are 512 to 2147483648 bytes"
            )));
        }
        if disk_len > hbitmap::MAX_LEN {
            return Err(hbitmap::Error::LenTooLarge { len: disk_len }.into());
        }
        let mut layout = Self {
            disk_len,
            granularity,
            chunk: granularity.bytes() * CHUNK_GRANULES,
        };
        let most = layout.max_words() * layout.word_bytes();
        layout.chunk = layout.chunk.min(most);
        Ok(layout)
    }

    /// For the disk and the granularity of a bitmap.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(bitmap: &HBitmap) -> Result<Self> {
        Self::new(bitmap.len(), bitmap.granularity())
    }

    /// Bytes of the disk.
    #[must_use]
    pub const fn disk_len(&self) -> u64 {
        self.disk_len
    }

    /// The bitmap's granularity.
    #[must_use]
    pub const fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Sectors of the disk; the last one may be part of a sector.
    #[must_use]
    pub const fn total_sectors(&self) -> u64 {
        self.disk_len.div_ceil(SECTOR)
    }

    /// Bytes of the disk in a chunk.
    #[must_use]
    pub const fn chunk_bytes(&self) -> u64 {
        self.chunk
    }

    /// Bytes of the disk in a word of the linear form: every chunk starts at a multiple.
    #[must_use]
    pub const fn word_bytes(&self) -> u64 {
        self.granularity.bytes() * WORD_GRANULES
    }

    /// The most words that one chunk can cover.
    pub(crate) const fn max_words(&self) -> u64 {
        u32::MAX as u64 / (self.word_bytes() / SECTOR)
    }

    /// Chunks of the disk. A disk of no bytes has one, of 0 sectors.
    #[must_use]
    pub const fn chunks(&self) -> u64 {
        let chunks = self.disk_len.div_ceil(self.chunk);
        if chunks == 0 { 1 } else { chunks }
    }

    /// A range of bytes as a chunk names it. It starts at a multiple of
    /// [`word_bytes`](Self::word_bytes) and ends at one or at the end of the disk.
    ///
    /// # Errors
    /// [`Error::Bits`] if it doesn't, or reaches past the end; [`Error::Refused`] if it
    /// has 2^32 sectors or more.
    pub fn sectors(&self, range: &Range<u64>) -> Result<Sectors> {
        if range.start > range.end || range.end > self.disk_len {
            return Err(hbitmap::Error::OutOfRange {
                start: range.start,
                end: range.end,
                len: self.disk_len,
            }
            .into());
        }
        let align = self.word_bytes();
        for offset in [range.start, range.end] {
            if offset != self.disk_len && !offset.is_multiple_of(align) {
                return Err(hbitmap::Error::Misaligned { offset, align }.into());
            }
        }
        let first = range.start.div_ceil(SECTOR);
        let count = range.end.div_ceil(SECTOR) - first;
        let count = u32::try_from(count)
            .map_err(|_| Error::Refused(format!("no chunk can cover {count} sectors")))?;
        Ok(Sectors { first, count })
    }

    /// The chunk of the layout that holds the byte at `offset`.
    #[must_use]
    pub const fn chunk_at(&self, offset: u64) -> Range<u64> {
        let start = offset - offset % self.chunk;
        let end = start.saturating_add(self.chunk);
        start..if end < self.disk_len {
            end
        } else {
            self.disk_len
        }
    }

    /// Bytes in the BITS buffer of a range, as QEMU pads it.
    #[must_use]
    pub const fn buffer_size(&self, sectors: Sectors) -> u64 {
        *sectors.buffer_sizes(self.granularity).end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(len: u64, granularity: u64) -> ChunkLayout {
        ChunkLayout::new(len, Granularity::from_bytes(granularity).unwrap()).unwrap()
    }

    #[test]
    fn buffers_are_as_large_as_qemus() {
        // 10 MiB and a sector.
        let len = (10 << 20) + 512;
        let sizes = |granularity| {
            let layout = layout(len, granularity);
            let mut at = 0;
            let mut sizes = Vec::new();
            while at < len {
                let chunk = layout.chunk_at(at);
                at = chunk.end;
                sizes.push(layout.buffer_size(layout.sectors(&chunk).unwrap()));
            }
            assert_eq!(sizes.len() as u64, layout.chunks());
            sizes
        };
        assert_eq!(sizes(512), [1024, 1024, 544]);
        assert_eq!(sizes(4096), [352]);
        assert_eq!(sizes(65536), [32]);
    }

    #[test]
    fn the_count_of_sectors_never_overflows() {
        for bits in 9..=31 {
            let layout = layout(hbitmap::MAX_LEN, 1 << bits);
            let chunk = layout.sectors(&layout.chunk_at(0)).unwrap();
            assert_eq!(u64::from(chunk.count) * SECTOR, layout.chunk_bytes());
            let full = 8192 << bits;
            if bits < 28 {
                assert_eq!(layout.chunk_bytes(), full);
            } else {
                let word = 64 << bits;
                assert!(layout.chunk_bytes().is_multiple_of(word));
                assert!((layout.chunk_bytes() + word) / SECTOR > u64::from(u32::MAX));
            }
            let last = layout.chunk_at(hbitmap::MAX_LEN - 1);
            let last = layout.sectors(&last).unwrap();
            assert!(last.first < 1 << 55);
        }
    }

    #[test]
    fn a_disk_of_no_bytes_has_one_chunk() {
        let layout = layout(0, 65536);
        assert_eq!(layout.chunks(), 1);
        let none = layout.sectors(&(0..0)).unwrap();
        assert_eq!((none.first, none.count), (0, 0));
        assert_eq!(layout.buffer_size(none), 0);
    }

    #[test]
    fn part_of_a_sector_is_a_sector() {
        let layout = layout(1000, 512);
        let all = layout.sectors(&(0..1000)).unwrap();
        assert_eq!((all.first, all.count), (0, 2));
        assert_eq!(layout.total_sectors(), 2);
    }

    #[test]
    fn what_no_stream_can_carry_is_refused() {
        for bits in [0, 8, 32, 63] {
            let granularity = Granularity::from_bits(bits).unwrap();
            assert!(matches!(
                ChunkLayout::new(1 << 20, granularity),
                Err(Error::Refused(_))
            ));
        }
        let granularity = Granularity::from_bytes(512).unwrap();
        assert!(ChunkLayout::new(hbitmap::MAX_LEN + 1, granularity).is_err());
        let layout = layout(1 << 50, 512);
        assert!(matches!(
            layout.sectors(&(0..1 << 42)),
            Err(Error::Refused(_))
        ));
        assert!(layout.sectors(&(512..1 << 20)).is_err());
        assert!(layout.sectors(&(0..(1 << 50) + 512)).is_err());
        assert!(
            layout
                .sectors(&Range {
                    start: 1 << 20,
                    end: 0
                })
                .is_err()
        );
    }
}
