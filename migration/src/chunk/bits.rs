//! A bitmap as QEMU's chunks.

use std::{io::Write, ops::Range};

use hbitmap::HBitmap;

use super::{ChunkLayout, ChunkWriter};
use crate::{Error, Output, Result};

/// Writes a range of a bitmap as QEMU does: chunk after chunk of its [`ChunkLayout`], those
/// that are clean as ZEROES. The range is one of chunks; `0..bits.len()` is the whole disk.
/// A disk of no bytes is one ZEROES chunk of 0 sectors.
///
/// Clean chunks are found through the upper levels of the bitmap, and cost their 13 bytes.
///
/// # Errors
/// [`Error::Bits`] for a range that doesn't start at a multiple of 64 granules or end at
/// one or at the end of the disk; those of [`ChunkLayout::of`] and [`ChunkWriter::start`].
pub fn write_bits<W: Write>(
    w: &mut Output<W>,
    chunks: &mut ChunkWriter,
    node: &str,
    bitmap: &str,
    bits: &HBitmap,
    range: Range<u64>,
) -> Result<()> {
    let layout = ChunkLayout::of(bits)?;
    // Nothing is written if the range can't be.
    bits.linear_size(range.clone())?;
    let mut at = range.start;
    if layout.disk_len() == 0 {
        return chunks.zeroes(w, node, bitmap, layout.sectors(&range)?);
    }
    while at < range.end {
        let chunk = at..layout.chunk_at(at).end.min(range.end);
        let dirty = bits.next_dirty(at..range.end).unwrap_or(range.end);
        let sectors = layout.sectors(&chunk)?;
        if dirty < chunk.end {
            at = chunk.end;
            let len = usize::try_from(layout.buffer_size(sectors))
                .map_err(|_| Error::Refused("a chunk is larger than memory".into()))?;
            let data = chunks.bits_space(w, node, bitmap, sectors, len)?;
            bits.write_linear(chunk, data)?;
        } else {
            // All that are whole and clean; the first and the last one may be shorter.
            let len = chunk.end - at;
            let times = if len == layout.chunk_bytes() {
                (dirty - at) / len
            } else {
                1
            };
            chunks.zeroes_run(w, node, bitmap, sectors, times)?;
            at += times * len;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hbitmap::Granularity;

    use super::*;

    fn written(bits: &HBitmap, range: Range<u64>) -> Vec<u8> {
        let mut w = Output::new(Vec::new());
        let mut chunks = ChunkWriter::new();
        chunks.complete(&mut w, "n", "b").unwrap(); // The names, out of the way.
        write_bits(&mut w, &mut chunks, "n", "b", bits, range).unwrap();
        w.into_inner().unwrap().split_off(5)
    }

    fn bitmap(len: u64, granularity: u64) -> HBitmap {
        HBitmap::new(len, Granularity::from_bytes(granularity).unwrap()).unwrap()
    }

    #[test]
    fn the_chunks_of_an_odd_disk() {
        // As in QEMU's capture 10-odd-size.
        let len = (10 << 20) + 512;
        let mut bits = bitmap(len, 512);
        bits.set((4 << 20)..(8 << 20));
        bits.set(len - 512..len);
        let got = written(&bits, 0..len);
        assert_eq!(got[..13], *b"\x42\0\0\0\0\0\0\0\0\0\0\x20\0");
        assert_eq!(
            got[13..34],
            *b"\x40\0\0\0\0\0\0\x20\0\0\0\x20\0\0\0\0\0\0\0\x04\0"
        );
        assert!(got[34..1058].iter().all(|byte| *byte == 0xff));
        assert_eq!(
            got[1058..1079],
            *b"\x40\0\0\0\0\0\0\x40\0\0\0\x10\x01\0\0\0\0\0\0\x02\x20"
        );
        assert_eq!(got.len(), 1079 + 544);
        assert_eq!(got[1079 + 512], 1);
        assert_eq!(got.iter().skip(1079).filter(|byte| **byte != 0).count(), 1);
        // Chunk after chunk is the same.
        let mut parts = Vec::new();
        for start in [0, 4 << 20, 8 << 20] {
            parts.extend(written(&bits, start..len.min(start + (4 << 20))));
        }
        assert_eq!(parts, got);
    }

    #[test]
    fn a_range_that_starts_within_a_chunk_goes_on_with_the_layout() {
        let bits = bitmap((20 << 20) + 512, 512);
        let got = written(&bits, 1 << 20..(20 << 20) + 512);
        let counts: Vec<_> = got.chunks(13).map(|chunk| chunk[9..].to_vec()).collect();
        let count = |sectors: u32| sectors.to_be_bytes().to_vec();
        assert_eq!(
            counts,
            [6144, 8192, 8192, 8192, 8192, 1].map(count).to_vec()
        );
    }

    #[test]
    fn a_clean_chunk_costs_13_bytes() {
        let mut bits = bitmap(16 << 40, 65536);
        assert_eq!(written(&bits, 0..16 << 40).len(), 13 * 32768);
        bits.set((3 << 40) + 5..(3 << 40) + 6);
        assert_eq!(written(&bits, 0..16 << 40).len(), 13 * 32768 + 8 + 1024);
    }

    #[test]
    fn a_disk_of_no_bytes() {
        assert_eq!(
            written(&bitmap(0, 512), 0..0),
            b"\x42\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        assert_eq!(written(&bitmap(1 << 20, 512), 0..0), b"");
    }

    #[test]
    fn a_range_that_is_not_of_words_writes_nothing() {
        let bits = bitmap(1 << 30, 65536);
        let mut w = Output::new(Vec::new());
        for range in [65536..1 << 30, 0..65536, 0..(1 << 30) + 1] {
            let done = write_bits(&mut w, &mut ChunkWriter::new(), "n", "b", &bits, range);
            assert!(matches!(done, Err(Error::Bits(_))));
        }
        assert_eq!(w.offset(), 0);
    }
}
