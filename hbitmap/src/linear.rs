//! The linear form: the bits of a range as 64-bit little-endian words, lowest bit
//! first. Clusters of a qcow2 bitmap and chunks of QEMU's migration stream hold it.
//!
//! A range starts at a multiple of [`linear_align`](HBitmap::linear_align) and ends at
//! one or at the end of the disk. Granule *k* of the range is bit *k* % 8 of byte
//! *k* / 8. Parts can be loaded in any order; each replaces what was there.

use core::iter::FusedIterator;
use core::ops::Range;

use crate::{Chunk, Error, HBitmap, Result};

impl HBitmap {
    /// Bytes of the disk that ranges of the linear form are counted in: 64 granules. At
    /// granularities above 2^57, where no disk has that many, 2^63.
    #[must_use]
    pub const fn linear_align(&self) -> u64 {
        let bits = self.granularity().bits() + 6;
        if bits < 63 { 1 << bits } else { 1 << 63 }
    }

    /// Bytes of the linear form of a range: 8 for each 64 granules or part of them.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Misaligned`]; [`Error::BufferSize`] when it is more
    /// than memory could hold.
    pub fn linear_size(&self, range: Range<u64>) -> Result<usize> {
        let bits = self.linear_bits(&range)?;
        let needed = (bits.end - bits.start).div_ceil(64) * 8;
        usize::try_from(needed)
            .ok()
            .filter(|n| isize::try_from(*n).is_ok())
            .ok_or(Error::BufferSize {
                needed,
                given: isize::MAX as u64,
            })
    }

    /// Writes the linear form of a range; what `out` has beyond it becomes zero.
    ///
    /// # Errors
    /// As [`linear_size`](Self::linear_size), and [`Error::BufferSize`] if `out` is
    /// shorter than that.
    pub fn write_linear(&self, range: Range<u64>, out: &mut [u8]) -> Result<()> {
        let needed = self.linear_size(range.clone())?;
        let bits = self.linear_bits(&range)?;
        let given = out.len() as u64;
        let Some((form, padding)) = out.split_at_mut_checked(needed) else {
            return Err(Error::BufferSize {
                needed: needed as u64,
                given,
            });
        };
        self.tree.store(bits.start, bits.end, form);
        padding.fill(0);
        Ok(())
    }

    /// Whether a range is all clean, all dirty or neither. It need not be aligned: the
    /// granules that it touches count.
    #[must_use]
    pub fn chunk_kind(&self, range: Range<u64>) -> Chunk {
        let range = self.clip(range);
        if range.is_empty() {
            return Chunk::Zeros;
        }
        let bits = self.granularity().outwards(&range);
        self.tree.kind(bits.start, bits.end)
    }

    /// The linear form in chunks of `chunk` bytes of the disk each (the last one is what is
    /// left), told as runs of chunks of one kind: what is all clean or all dirty is one
    /// item, however long; a chunk of data comes alone.
    ///
    /// # Errors
    /// [`Error::Misaligned`] if `chunk` is not a multiple of
    /// [`linear_align`](Self::linear_align), or 0.
    pub fn linear_chunks(&self, chunk: u64) -> Result<LinearChunks<'_>> {
        let align = self.linear_align();
        if chunk == 0 || !chunk.is_multiple_of(align) {
            return Err(Error::Misaligned {
                offset: chunk,
                align,
            });
        }
        Ok(LinearChunks {
            bitmap: self,
            chunk,
            at: 0,
        })
    }

    /// Replaces the bits of a range by its linear form. `data` may end after the byte that
    /// holds the last granule; whatever it has beyond the last granule is ignored
    /// ([`check_padding`](Self::check_padding) is for those who want to refuse it).
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Misaligned`]; [`Error::BufferSize`] if `data` is too
    /// short.
    pub fn load_linear(&mut self, range: Range<u64>, data: &[u8]) -> Result<()> {
        let bits = self.linear_bits(&range)?;
        let needed = (bits.end - bits.start).div_ceil(8);
        let given = data.len() as u64;
        if given < needed {
            return Err(Error::BufferSize { needed, given });
        }
        self.tree.load(bits.start, bits.end, data);
        Ok(())
    }

    /// Whether `data` is zero beyond the last granule of the range.
    ///
    /// # Errors
    /// [`Error::TrailingBits`], and those of [`load_linear`](Self::load_linear).
    pub fn check_padding(&self, range: Range<u64>, data: &[u8]) -> Result<()> {
        let bits = self.linear_bits(&range)?;
        let granules = bits.end - bits.start;
        let (whole, rest) = (granules / 8, granules % 8);
        let given = data.len() as u64;
        let short = Error::BufferSize {
            needed: granules.div_ceil(8),
            given,
        };
        let Some(mut tail) = usize::try_from(whole).ok().and_then(|n| data.get(n..)) else {
            return Err(short);
        };
        let mut at = whole;
        if rest != 0 {
            let Some((first, after)) = tail.split_first() else {
                return Err(short);
            };
            if first >> rest != 0 {
                return Err(Error::TrailingBits { byte: at });
            }
            (tail, at) = (after, at + 1);
        }
        match tail.iter().position(|b| *b != 0) {
            Some(i) => Err(Error::TrailingBits {
                byte: at + i as u64,
            }),
            None => Ok(()),
        }
    }

    /// Makes a range of the linear form all clean.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Misaligned`].
    pub fn load_zeros(&mut self, range: Range<u64>) -> Result<()> {
        let bits = self.linear_bits(&range)?;
        self.tree.clear(bits.start, bits.end);
        Ok(())
    }

    /// Makes a range of the linear form all dirty.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Misaligned`].
    pub fn load_ones(&mut self, range: Range<u64>) -> Result<()> {
        let bits = self.linear_bits(&range)?;
        self.tree.set(bits.start, bits.end);
        Ok(())
    }

    /// Ends loading. Levels and counts are kept up to date by each load, so there is
    /// nothing that could fail or be forgotten here.
    pub const fn finish(&mut self) {}

    /// The granules of a range that is on the disk and aligned.
    fn linear_bits(&self, range: &Range<u64>) -> Result<Range<u64>> {
        let len = self.len();
        if range.start > range.end || range.end > len {
            return Err(Error::OutOfRange {
                start: range.start,
                end: range.end,
                len,
            });
        }
        let align = self.linear_align();
        for offset in [range.start, range.end] {
            if offset != len && !offset.is_multiple_of(align) {
                return Err(Error::Misaligned { offset, align });
            }
        }
        let granules = self.granularity();
        // A range that is empty at an end of the disk between two words has no granules.
        let end = granules.granules(range.end);
        Ok((range.start >> granules.bits()).min(end)..end)
    }
}

/// The chunks of a bitmap's linear form. See [`HBitmap::linear_chunks`].
#[derive(Clone, Debug)]
pub struct LinearChunks<'a> {
    bitmap: &'a HBitmap,
    /// Bytes of the disk in a chunk.
    chunk: u64,
    /// Where the next one starts.
    at: u64,
}

impl Iterator for LinearChunks<'_> {
    type Item = (Range<u64>, Chunk);

    fn next(&mut self) -> Option<(Range<u64>, Chunk)> {
        let (start, len) = (self.at, self.bitmap.len());
        if start >= len {
            return None;
        }
        let end = start.saturating_add(self.chunk).min(len);
        let (kind, end) = match self.bitmap.next_dirty(start..len) {
            None => (Chunk::Zeros, len),
            Some(dirty) if dirty >= end => (Chunk::Zeros, dirty - dirty % self.chunk),
            Some(dirty) if dirty > start => (Chunk::Data, end),
            Some(_) => match self.bitmap.next_clean(start..len) {
                None => (Chunk::Ones, len),
                Some(clean) if clean >= end => (Chunk::Ones, clean - clean % self.chunk),
                Some(_) => (Chunk::Data, end),
            },
        };
        self.at = end;
        Some((start..end, kind))
    }
}

impl FusedIterator for LinearChunks<'_> {}
