//! The loops over words that everything rests on, written so that the compiler turns
//! them into vector code. Nothing here knows about levels.

/// Words in a page.
pub(crate) const PAGE_WORDS: usize = 512;
/// log2 of the bits in a page.
pub(crate) const PAGE_BITS: u32 = 15;

/// The words of a page that is held in full.
pub(crate) type PageWords = [u64; PAGE_WORDS];

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

/// Set bits in `words`.
#[inline]
pub(crate) fn count(words: &[u64]) -> u32 {
    words.iter().map(|w| w.count_ones()).sum()
}

/// `dst |= src`; the set bits that `dst` has then.
#[inline]
pub(crate) fn or_count(dst: &mut PageWords, src: &PageWords) -> u32 {
    let mut n = 0;
    for (d, s) in dst.iter_mut().zip(src) {
        *d |= s;
        n += d.count_ones();
    }
    n
}

/// Sets the bits `lo..hi`; how many were clear.
#[inline]
pub(crate) fn set_bits(words: &mut PageWords, lo: u32, hi: u32) -> u32 {
    let mut added = 0;
    for_masks(lo, hi, |w, m| {
        added += (m & !words[w]).count_ones();
        words[w] |= m;
    });
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

/// Non-zero words.
pub(crate) fn nonzero(words: &PageWords) -> u32 {
    words.iter().map(|w| u32::from(*w != 0)).sum()
}

/// Little-endian bytes to words. Bytes that are missing at the end count as zero.
#[inline]
pub(crate) fn words_from_le(dst: &mut [u64], src: &[u8]) {
    let (whole, rest) = src.as_chunks::<8>();
    let full = whole.len().min(dst.len());
    for (d, s) in dst.iter_mut().zip(whole) {
        *d = u64::from_le_bytes(*s);
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
    for (d, s) in whole.iter_mut().zip(src) {
        *d = s.to_le_bytes();
    }
    if let Some(last) = src.get(whole.len()) {
        for (to, from) in rest.iter_mut().zip(last.to_le_bytes()) {
            *to = from;
        }
    }
}
