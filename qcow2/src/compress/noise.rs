//! [`is_noise`]: clusters that deflate can't make smaller, found without trying it.
//!
//! Encrypted and already compressed files are such, and deflate takes longest over them.
//! Deflate gains by values that are more frequent than others, and by strings that come
//! again within its window; where there is neither, it would be in vain.

/// Bytes that are judged together: not more than a block of deflate's has, so that it can't
/// gain by differences within one.
const BLOCK: usize = 16 << 10;
/// Bytes that tell almost everything else from noise.
const FIRST: usize = 2 << 10;
/// How uneven noise may be, as Pearson's chi-squared. Random bytes have 255 on average, and
/// hardly ever 400; the limit is where Huffman codes would save 0.15 % at best.
const LIMIT: u64 = 512;
/// Bytes behind a string in which it may come again: the window.
const WINDOW: usize = 4096;
/// Strings that are remembered.
const SLOTS: usize = 1024;

/// Whether deflate is in vain. If so, the cluster would not have become smaller than by the
/// fraction above; else it may.
pub(super) fn is_noise(cluster: &[u8]) -> bool {
    let (blocks, rest) = cluster.as_chunks::<BLOCK>();
    let first = blocks.first().and_then(|block| block.get(..FIRST));
    rest.is_empty()
        && first.is_some_and(is_even)
        && blocks.iter().all(|block| is_even(block))
        && !repeats(cluster)
}

/// Whether all values are about as frequent.
fn is_even(bytes: &[u8]) -> bool {
    let mut counts = [0_u64; 256];
    for &byte in bytes {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let len = bytes.len() as u64;
    let squares: u64 = counts.iter().map(|count| count * count).sum();
    // Chi-squared is 256 * squares / len - len.
    squares * 256 <= (LIMIT + len) * len
}

/// Whether a string comes again within the window. Of all strings of four bytes one in 16 is
/// looked at, the same ones everywhere, so that longer ones aren't overlooked.
fn repeats(bytes: &[u8]) -> bool {
    let mut seen = [(0_u32, 0_usize); SLOTS];
    for (at, four) in bytes.windows(4).enumerate() {
        let value = four.try_into().map_or(0, u32::from_le_bytes);
        let hash = value.wrapping_mul(0x9e37_79b1);
        if hash >> 28 != 0 {
            continue;
        }
        let slot = usize::try_from(hash >> 18).unwrap_or(0) % SLOTS;
        if let Some((old, place)) = seen.get_mut(slot) {
            if *old == value && at - *place <= WINDOW {
                return true;
            }
            (*old, *place) = (value, at);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::tests::{noise, text};

    #[test]
    fn noise_is_told_from_what_has_more_of_a_value_or_repeats() {
        for len in [16 << 10, 64 << 10, 2 << 20] {
            let noise = noise(len);
            assert!(is_noise(&noise), "{len}");
            assert!(!is_noise(&text(len)));
            assert!(!is_noise(&vec![0; len]));
            // Half a KiB of something else at the end.
            let mut other = noise.clone();
            other[len - 512..].fill(b' ');
            assert!(!is_noise(&other), "{len}");
            // A string that comes again, as far away as the window reaches.
            let mut again = noise.clone();
            again.copy_within(4000..4100, 8000);
            assert!(!is_noise(&again), "{len}");
            // And beyond it.
            let mut beyond = noise;
            beyond.copy_within(2000..2100, 8000);
            assert!(is_noise(&beyond), "{len}");
        }
        // Too few to tell.
        assert!(!is_noise(&noise(8192)));
        assert!(!is_noise(&[]));
    }
}
