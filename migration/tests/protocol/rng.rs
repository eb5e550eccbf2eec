//! Numbers that are the same in each run.

use std::ops::Range;

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which isn't 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A range on a disk: mostly small, sometimes large, sometimes past the end.
    pub(crate) fn range(&mut self, len: u64) -> Range<u64> {
        let start = self.below(len + 1);
        let most = match self.below(8) {
            0 => len + 1,
            1..3 => len / 16 + 1,
            _ => len / 1024 + 1,
        };
        start..start + self.below(most)
    }
}
