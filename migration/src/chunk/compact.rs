//! A bitmap in as few bytes as QEMU takes.
//!
//! Chunks may overlap, and the last one wins. So one ZEROES stands for all that is clean,
//! and buffers bring the words that aren't. A gap of clean words between two of them is
//! worth a chunk of its own from three words on.

use std::{io::Write, ops::Range};

use hbitmap::HBitmap;

use super::{ChunkLayout, ChunkWriter, layout::MAX_BUFFER};
use crate::{Output, Result};

/// Bytes of a word of the linear form.
const WORD: usize = 8;
/// Words in the largest buffer.
const MAX_WORDS: u64 = (MAX_BUFFER / WORD) as u64;
/// Bytes of a BITS chunk beside its buffer: flags, first sector, sectors, size.
const BITS_HEAD: u64 = 1 + 8 + 4 + 8;
/// Bytes of a ZEROES chunk.
const ZEROES_LEN: u64 = 1 + 8 + 4;
/// The longest gap that costs less as data than as a chunk's head.
const MAX_GAP: u64 = BITS_HEAD / WORD as u64;

/// Writes a bitmap in as few bytes as QEMU takes: buffers of the words that are dirty, and
/// ZEROES before them for the rest. All is data where that takes less. A disk of no bytes
/// is one ZEROES chunk of 0 sectors.
///
/// The cost follows what is dirty. Where buffers are full, at 10240 bytes, the result can
/// be a few bytes larger than the least.
///
/// # Errors
/// Those of [`ChunkLayout::of`] and [`ChunkWriter::start`].
pub fn write_compact<W: Write>(
    w: &mut Output<W>,
    chunks: &mut ChunkWriter,
    node: &str,
    bitmap: &str,
    bits: &HBitmap,
) -> Result<()> {
    let layout = ChunkLayout::of(bits)?;
    let mut scan = Scan::new(bits, &layout);
    if layout.disk_len() == 0 {
        return chunks.zeroes(w, node, bitmap, layout.sectors(&(0..0))?);
    }
    let zeroes = zeroes_pay(&mut scan)?;
    // What ZEROES has covered so far.
    let mut covered = 0;
    let mut at = 0;
    loop {
        let run = if zeroes {
            scan.next_run(at)?
        } else {
            scan.words(at)?
        };
        let start = run.as_ref().map_or(scan.total, |run| run.start);
        // Before the buffers behind a gap. Where buffers are all there is, none comes.
        while covered.max(at) < start {
            let from = covered.max(at);
            covered = scan.cover(from);
            let sectors = layout.sectors(&scan.bytes(from, covered))?;
            chunks.zeroes(w, node, bitmap, sectors)?;
        }
        let Some(run) = run else {
            return Ok(());
        };
        at = run.start + run.len;
        let sectors = layout.sectors(&scan.bytes(run.start, at))?;
        chunks.bits(w, node, bitmap, sectors, scan.data(&run))?;
    }
}

/// Whether ZEROES and buffers of dirty words take less than buffers of all words.
fn zeroes_pay(scan: &mut Scan<'_>) -> Result<bool> {
    let buffer = scan.buffer;
    let data = |words: u64| words * WORD as u64 + words.div_ceil(buffer) * BITS_HEAD;
    let all = data(scan.total);
    // No more ZEROES than one for each stretch that one can cover.
    let margin = ZEROES_LEN * (1 + scan.total / scan.most);
    let (mut sum, mut covered, mut at) = (0, 0, 0);
    loop {
        let run = scan.next_run(at)?;
        let start = run.as_ref().map_or(scan.total, |run| run.start);
        while covered.max(at) < start {
            sum += ZEROES_LEN;
            covered = scan.cover(covered.max(at));
        }
        let Some(run) = run else {
            return Ok(sum < all);
        };
        sum += BITS_HEAD + run.len * WORD as u64;
        at = run.start + run.len;
        // Even if all that is left is dirty.
        if sum + margin + data(scan.total - at) < all {
            return Ok(true);
        }
    }
}

/// Words that make a buffer.
#[derive(Debug)]
struct Run {
    /// The first one, counted from the start of the disk.
    start: u64,
    len: u64,
}

/// The words of a bitmap, in windows of the largest buffer.
struct Scan<'a> {
    bits: &'a HBitmap,
    /// Bytes of the disk in a word.
    word: u64,
    /// Words of the disk.
    total: u64,
    /// The most words in one chunk, by its 32 bits of sectors.
    most: u64,
    /// The most words in one buffer.
    buffer: u64,
    window: Box<[u8]>,
    /// What words are in the window.
    from: u64,
    to: u64,
}

impl<'a> Scan<'a> {
    fn new(bits: &'a HBitmap, layout: &ChunkLayout) -> Self {
        let word = layout.word_bytes();
        Self {
            bits,
            word,
            total: bits.len().div_ceil(word),
            most: layout.max_words(),
            buffer: layout.max_words().min(MAX_WORDS),
            window: vec![0; MAX_BUFFER].into_boxed_slice(),
            from: 0,
            to: 0,
        }
    }

    fn bytes(&self, start: u64, end: u64) -> Range<u64> {
        start.saturating_mul(self.word)..end.saturating_mul(self.word).min(self.bits.len())
    }

    /// Where a ZEROES from word `from` on ends.
    fn cover(&self, from: u64) -> u64 {
        from.saturating_add(self.most).min(self.total)
    }

    /// The next words that are worth a buffer, at or behind word `at`: they start and end
    /// with a dirty one.
    fn next_run(&mut self, at: u64) -> Result<Option<Run>> {
        let Some(start) = self.next_dirty(at) else {
            return Ok(None);
        };
        if !(self.from..self.to).contains(&start) {
            self.load(start)?;
        }
        let mut len = self.run_len(start);
        if start + len + MAX_GAP >= self.to && self.to < self.total && start > self.from {
            // It may go on behind the window.
            self.load(start)?;
            len = self.run_len(start);
        }
        Ok(Some(Run { start, len }))
    }

    /// The first dirty word at or behind `at`; the window is looked at first.
    fn next_dirty(&self, mut at: u64) -> Option<u64> {
        if (self.from..self.to).contains(&at) {
            let words = self.words_in(at, self.to);
            if let Some(clean) = words.iter().position(|word| *word != [0; WORD]) {
                return Some(at + clean as u64);
            }
            at = self.to;
        }
        let dirty = self.bits.next_dirty(self.bytes(at, self.total))?;
        Some(dirty / self.word)
    }

    /// Words that are in the window.
    fn words_in(&self, start: u64, end: u64) -> &[[u8; WORD]] {
        let place = |word: u64| usize::try_from(word - self.from).unwrap_or(usize::MAX);
        let (words, _) = self.window.as_chunks();
        words.get(place(start)..place(end)).unwrap_or_default()
    }

    /// Words from `start` to the last dirty one before a gap or the end of the window.
    fn run_len(&self, start: u64) -> u64 {
        let (mut len, mut gap) = (0, 0);
        for word in self.words_in(start, self.to) {
            gap += 1;
            if *word != [0; WORD] {
                len += gap;
                gap = 0;
            } else if gap > MAX_GAP {
                break;
            }
        }
        len
    }

    /// As many words from `at` on as a buffer holds.
    fn words(&mut self, at: u64) -> Result<Option<Run>> {
        if at == self.total {
            return Ok(None);
        }
        self.load(at)?;
        Ok(Some(Run {
            start: at,
            len: self.to - at,
        }))
    }

    fn load(&mut self, from: u64) -> Result<()> {
        self.from = from;
        self.to = (from + self.buffer).min(self.total);
        let range = self.bytes(self.from, self.to);
        self.bits.write_linear(range, &mut self.window)?;
        Ok(())
    }

    /// The bytes of a run in the window.
    fn data(&self, run: &Run) -> &[u8] {
        self.words_in(run.start, run.start + run.len).as_flattened()
    }
}

#[cfg(test)]
mod tests {
    use hbitmap::Granularity;

    use super::*;

    /// The chunks: first word and words; whether there is a buffer.
    fn written(bits: &HBitmap) -> (usize, Vec<(u64, u64, bool)>) {
        let mut w = Output::new(Vec::new());
        let mut chunks = ChunkWriter::new();
        chunks.complete(&mut w, "n", "b").unwrap(); // The names, out of the way.
        write_compact(&mut w, &mut chunks, "n", "b", bits).unwrap();
        let bytes = w.into_inner().unwrap().split_off(5);
        let word = bits.linear_align() / 512;
        let mut list = Vec::new();
        let mut rest = &bytes[..];
        while let Some((head, tail)) = rest.split_first_chunk::<13>() {
            let first = u64::from_be_bytes(head[1..9].try_into().unwrap());
            let count = u64::from(u32::from_be_bytes(head[9..].try_into().unwrap()));
            assert!(first.is_multiple_of(word));
            rest = tail;
            if head[0] == 0x40 {
                let (size, tail) = rest.split_first_chunk::<8>().unwrap();
                let size = u64::from_be_bytes(*size);
                assert_eq!(size, count.div_ceil(word) * 8);
                rest = &tail[usize::try_from(size).unwrap()..];
            } else {
                assert_eq!(head[0], 0x42);
            }
            list.push((first / word, count.div_ceil(word), head[0] == 0x40));
        }
        assert!(rest.is_empty());
        (bytes.len(), list)
    }

    /// A bitmap of so many words of which some are dirty.
    fn bitmap(words: u64, dirty: impl IntoIterator<Item = u64>) -> HBitmap {
        let granularity = Granularity::from_bytes(512).unwrap();
        let mut bits = HBitmap::new(words * 32768, granularity).unwrap();
        for word in dirty {
            bits.set(word * 32768 + 512..word * 32768 + 1024);
        }
        bits
    }

    #[test]
    fn one_zeroes_and_the_words_that_are_dirty() {
        let (len, list) = written(&bitmap(1000, [10, 11, 14, 18, 999]));
        assert_eq!(
            list,
            [
                (0, 1000, false),
                (10, 5, true), // 11 to 14 is a gap of two
                (18, 1, true), // 14 to 18 is one of three
                (999, 1, true)
            ]
        );
        assert_eq!(len, 13 + 3 * 21 + 7 * 8);
    }

    #[test]
    fn nothing_and_everything() {
        assert_eq!(written(&bitmap(0, [])).1, [(0, 0, false)]);
        assert_eq!(written(&bitmap(1, [])).1, [(0, 1, false)]);
        assert_eq!(written(&bitmap(1, [0])).1, [(0, 1, true)]);
        assert_eq!(written(&bitmap(1 << 20, [])).1, [(0, 1 << 20, false)]);
        let (_, list) = written(&bitmap(3000, 0..3000));
        assert_eq!(
            list,
            [(0, 1280, true), (1280, 1280, true), (2560, 440, true)]
        );
    }

    #[test]
    fn data_alone_where_that_is_less() {
        // A ZEROES for one clean word costs more than the word.
        assert_eq!(written(&bitmap(4, [0, 1, 3])).1, [(0, 4, true)]);
        assert_eq!(written(&bitmap(2, [1])).1, [(0, 2, true)]);
        assert_eq!(written(&bitmap(3, [2])).1, [(0, 3, false), (2, 1, true)]);
        // Four gaps of three words save 12 bytes, a fifth makes it 15.
        let comb = |gaps: u64| bitmap(4 * gaps + 1, (0..=gaps).map(|i| i * 4));
        assert_eq!(written(&comb(4)).1, [(0, 17, true)]);
        assert_eq!(written(&comb(5)).1.len(), 7);
    }

    #[test]
    fn zeroes_come_before_the_buffers_they_reach_over() {
        let (_, list) = written(&bitmap(5000, (0..1290).chain(1300..1310)));
        assert_eq!(
            list,
            [
                (0, 1280, true),
                (1280, 10, true),
                (1290, 3710, false),
                (1300, 10, true)
            ]
        );
    }

    #[test]
    fn a_run_that_reaches_behind_the_window_is_one_buffer() {
        // The second run starts within the window of the first, and ends behind it.
        let (_, list) = written(&bitmap(5000, [0].into_iter().chain(1000..2000)));
        assert_eq!(list, [(0, 1, true), (1, 4999, false), (1000, 1000, true)]);
        // A gap across the end of the window.
        let (_, list) = written(&bitmap(5000, (0..1279).chain(1281..1290)));
        assert_eq!(
            list,
            [(0, 1279, true), (1279, 3721, false), (1281, 9, true)]
        );
    }

    #[test]
    fn as_few_zeroes_as_32_bits_of_sectors_allow() {
        let granularity = Granularity::from_bytes(65536).unwrap();
        let mut bits = HBitmap::new(16 << 40, granularity).unwrap();
        let most = u64::from(u32::MAX) / 8192;
        let (len, list) = written(&bits);
        assert_eq!(list.len(), 9); // 8 chunks of less than 2 TiB each don't suffice.
        assert_eq!(len, 9 * 13);
        assert_eq!(list[1], (most, most, false));
        // What is all dirty needs none.
        bits.set(0..2 << 40);
        bits.set(14 << 40..16 << 40);
        let zeroes = written(&bits).1.into_iter().filter(|chunk| !chunk.2);
        assert_eq!(zeroes.count(), 7);
    }

    #[test]
    fn huge_granules() {
        for bits in 28..=31 {
            let granularity = Granularity::from_bits(bits).unwrap();
            let mut bits = HBitmap::new(1 << 52, granularity).unwrap();
            bits.set_all();
            bits.reset(1 << 50..1 << 51);
            let (_, list) = written(&bits);
            let most = u64::from(u32::MAX) / (bits.linear_align() / 512);
            assert!(list.iter().all(|chunk| chunk.1 <= most));
        }
    }
}
