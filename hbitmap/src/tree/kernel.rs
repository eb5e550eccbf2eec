//! The loops over words that everything rests on, written so that the compiler turns
//! them into vector code. Nothing here knows about levels.

/// Words in a page.
pub(crate) const PAGE_WORDS: usize = 512;
/// log2 of the bits in a page.
pub(crate) const PAGE_BITS: u32 = 15;

/// The words of a page that is held in full.
pub(crate) type PageWords = [u64; PAGE_WORDS];
/// The linear form of a page.
pub(crate) type PageBytes = [u8; PAGE_WORDS * 8];

/// The bits `lo..hi` of a word, `0 <= lo < hi <= 64`.
#[inline]
pub(crate) const fn mask(lo: u32, hi: u32) -> u64 {
    (u64::MAX << lo) & (u64::MAX >> (64 - hi))
}

/// The lowest `n` bits, `n <= 64`.
#[inline]
pub(crate) const fn low_mask(n: u32) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}

/// Calls `each(word index, mask)` for the words that the bits `lo..hi` touch.
#[inline]
pub(crate) fn for_masks(lo: u32, hi: u32, mut each: impl FnMut(usize, u64)) {
    if lo >= hi {
        return;
    }
    let (first, last) = (lo / 64, (hi - 1) / 64);
    for w in first..=last {
        let from = if w == first { lo % 64 } else { 0 };
        let to = if w == last { (hi - 1) % 64 + 1 } else { 64 };
        each(w as usize, mask(from, to));
    }
}

/// Words that are worked on side by side.
const LANES: usize = 4;
type Lanes = [u64; LANES];

/// Adds three bits in each place: sum and carry.
#[inline(always)]
fn full_add(a: Lanes, b: Lanes, c: Lanes) -> (Lanes, Lanes) {
    let (mut sum, mut carry) = ([0; LANES], [0; LANES]);
    for i in 0..LANES {
        let half = a[i] ^ b[i];
        sum[i] = half ^ c[i];
        carry[i] = (a[i] & b[i]) | (half & c[i]);
    }
    (sum, carry)
}

/// Set bits, added over the lanes.
#[inline(always)]
fn ones(lanes: Lanes) -> u32 {
    lanes.iter().map(|w| w.count_ones()).sum()
}

/// Counts the set bits of a stream of lanes. Where there is no instruction to count
/// bits, adding eight words bit by bit first (Harley and Seal) takes a third of the time
/// that counting each would.
#[derive(Clone, Copy)]
struct Counter {
    ones: Lanes,
    twos: Lanes,
    fours: Lanes,
    eights: u32,
}

impl Counter {
    #[inline(always)]
    const fn new() -> Self {
        Self {
            ones: [0; LANES],
            twos: [0; LANES],
            fours: [0; LANES],
            eights: 0,
        }
    }

    /// Adds eight lanes.
    #[inline(always)]
    fn add(&mut self, w: [Lanes; 8]) {
        let (s, a) = full_add(self.ones, w[0], w[1]);
        let (s, b) = full_add(s, w[2], w[3]);
        let (t, x) = full_add(self.twos, a, b);
        let (s, a) = full_add(s, w[4], w[5]);
        let (s, b) = full_add(s, w[6], w[7]);
        let (t, y) = full_add(t, a, b);
        let (f, e) = full_add(self.fours, x, y);
        (self.ones, self.twos, self.fours) = (s, t, f);
        self.eights += ones(e);
    }

    #[inline(always)]
    fn total(self) -> u32 {
        8 * self.eights + 4 * ones(self.fours) + 2 * ones(self.twos) + ones(self.ones)
    }
}

/// Words that [`Counter`] takes at once.
const BLOCK: usize = 8 * LANES;

/// The lanes of a block.
#[inline(always)]
fn lanes(block: &[u64; BLOCK]) -> [Lanes; 8] {
    let mut out = [[0; LANES]; 8];
    for (to, from) in out.iter_mut().zip(block.as_chunks::<LANES>().0) {
        *to = *from;
    }
    out
}

/// Set bits in `words`.
#[inline]
pub(crate) fn count(words: &[u64]) -> u32 {
    let (blocks, rest) = words.as_chunks::<BLOCK>();
    let mut counter = Counter::new();
    for block in blocks {
        counter.add(lanes(block));
    }
    counter.total() + rest.iter().map(|w| w.count_ones()).sum::<u32>()
}

/// Set bits in whole words of bytes.
#[inline]
pub(crate) fn count_le(bytes: &[u8]) -> u32 {
    let (blocks, rest) = bytes.as_chunks::<{ BLOCK * 8 }>();
    let mut counter = Counter::new();
    for block in blocks {
        let mut words = [0; BLOCK];
        for (to, from) in words.iter_mut().zip(block.as_chunks::<8>().0) {
            *to = u64::from_le_bytes(*from);
        }
        counter.add(lanes(&words));
    }
    let rest = rest.as_chunks::<8>().0.iter();
    let rest = rest.map(|word| u64::from_le_bytes(*word).count_ones());
    counter.total() + rest.sum::<u32>()
}

/// `dst |= src`; the set bits that `dst` has then.
#[inline]
pub(crate) fn or_count(dst: &mut PageWords, src: &PageWords) -> u32 {
    let mut counter = Counter::new();
    let blocks = dst.as_chunks_mut::<BLOCK>().0.iter_mut();
    for (d, s) in blocks.zip(src.as_chunks::<BLOCK>().0) {
        for (d, s) in d.iter_mut().zip(s) {
            *d |= s;
        }
        counter.add(lanes(d));
    }
    counter.total()
}

/// Sets the bits `lo..hi`, which are some; how many were clear.
#[inline]
pub(crate) fn set_bits(words: &mut PageWords, lo: u32, hi: u32) -> u32 {
    let (first, last) = (lo as usize / 64, (hi as usize - 1) / 64);
    let (head, tail) = (mask(lo % 64, 64), mask(0, (hi - 1) % 64 + 1));
    if first == last {
        return or_word(&mut words[first], head & tail);
    }
    let mut added = or_word(&mut words[first], head) + or_word(&mut words[last], tail);
    let between = &mut words[first + 1..last];
    if !between.is_empty() {
        added += between.len() as u32 * 64 - count(between);
        between.fill(u64::MAX);
    }
    added
}

/// Sets bits of a word; how many were clear.
#[inline]
pub(crate) fn or_word(word: &mut u64, bits: u64) -> u32 {
    let added = (bits & !*word).count_ones();
    *word |= bits;
    added
}

/// Clears the bits `lo..hi`; how many were set.
#[inline]
pub(crate) fn clear_bits(words: &mut PageWords, lo: u32, hi: u32) -> u32 {
    let mut removed = 0;
    for_masks(lo, hi, |w, m| {
        removed += (m & words[w]).count_ones();
        words[w] &= !m;
    });
    removed
}

/// Non-zero words, or more than `limit` as soon as that is known.
#[inline]
pub(crate) fn nonzero_words(words: &PageWords, limit: usize) -> usize {
    let mut n = 0;
    for block in words.as_chunks::<64>().0 {
        n += block.iter().filter(|w| **w != 0).count();
        if n > limit {
            break;
        }
    }
    n
}

/// As [`nonzero_words`], for the linear form of a page.
#[inline]
pub(crate) fn nonzero_le(bytes: &PageBytes, limit: usize) -> usize {
    let mut n = 0;
    for block in bytes.as_chunks::<512>().0 {
        n += block
            .as_chunks::<8>()
            .0
            .iter()
            .filter(|w| **w != [0; 8])
            .count();
        if n > limit {
            break;
        }
    }
    n
}

/// Non-zero words.
pub(crate) fn nonzero(words: &PageWords) -> u32 {
    words.iter().map(|w| u32::from(*w != 0)).sum()
}

/// Words that are copied at once. From 2 KiB on the C library uses an instruction for
/// copying that takes seven times as long on some processors (Zen 3) unless source and
/// target lie favourably; the compiler must not know that the pieces make up a page.
#[inline]
fn piece() -> usize {
    core::hint::black_box(128)
}

/// Little-endian bytes to words. Bytes that are missing at the end count as zero.
#[inline]
pub(crate) fn words_from_le(dst: &mut [u64], src: &[u8]) {
    let (whole, rest) = src.as_chunks::<8>();
    let full = whole.len().min(dst.len());
    for (dst, src) in dst.chunks_mut(piece()).zip(whole.chunks(piece())) {
        for (d, s) in dst.iter_mut().zip(src) {
            *d = u64::from_le_bytes(*s);
        }
    }
    if let Some((d, zero)) = dst.get_mut(full..).and_then(<[u64]>::split_first_mut) {
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        *d = u64::from_le_bytes(last);
        zero.fill(0);
    }
}

/// Words to little-endian bytes, as many as fit into `dst`.
#[inline]
pub(crate) fn words_to_le(dst: &mut [u8], src: &[u64]) {
    let (whole, rest) = dst.as_chunks_mut::<8>();
    for (dst, src) in whole.chunks_mut(piece()).zip(src.chunks(piece())) {
        for (d, s) in dst.iter_mut().zip(src) {
            *d = s.to_le_bytes();
        }
    }
    if let Some(last) = src.get(whole.len()) {
        for (to, from) in rest.iter_mut().zip(last.to_le_bytes()) {
            *to = from;
        }
    }
}
