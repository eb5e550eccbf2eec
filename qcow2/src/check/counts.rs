//! [`Counts`]: how often each cluster was referred to.
//!
//! Nearly every cluster is referred to once. A block (as many clusters as a refcount
//! block has refcounts) therefore begins as bits, which stay in the processor's cache
//! where numbers would not; numbers are made, in the packed form of a refcount block,
//! when one of its clusters is referred to again. So a block's counts compare with the
//! stored refcounts as bytes.

use std::collections::BTreeMap;

use crate::{Geometry, format::refcount};

/// A refcount table has at most 2^20 entries (8 MiB), so blocks beyond that many have
/// no stored refcounts, and few counts in any real image.
const DENSE_BLOCKS: u64 = 1 << 20;

/// References to each cluster. A block takes memory once one of its clusters is referred to.
#[derive(Debug)]
pub(super) struct Counts {
    geometry: Geometry,
    /// log2 of the clusters of a block.
    block_bits: u32,
    dense: Vec<Option<Block>>,
    sparse: BTreeMap<u64, Block>,
    /// Clusters of the file; references beyond can make it a little longer.
    clusters: u64,
}

/// The counts of a block.
#[derive(Debug)]
pub(super) struct Block {
    order: u32,
    /// For 64 clusters each.
    bits: Box<[Bits]>,
    /// For 64 clusters each, one bit a cluster: an active entry refers to it without the
    /// copied flag.
    not_copied: Option<Box<[u64]>>,
    /// The counts, packed, once one is above 1.
    numbers: Option<Box<[u8]>>,
}

/// Two bits for each of 64 clusters, which are set together.
#[derive(Clone, Copy, Debug, Default)]
struct Bits {
    /// It is referred to.
    referred: u64,
    /// An active entry with the copied flag refers to it.
    copied: u64,
}

impl Counts {
    /// No references to any of the `clusters` of a file.
    pub(super) fn new(geometry: Geometry, clusters: u64) -> Self {
        let block_bits = geometry.refcount_block_entries().trailing_zeros();
        Self {
            geometry,
            block_bits,
            dense: Vec::new(),
            sparse: BTreeMap::new(),
            clusters,
        }
    }

    /// Clusters that are compared: those of the file, and any counted beyond its end.
    pub(super) const fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Counts in a block.
    pub(super) const fn block_entries(&self) -> u64 {
        self.geometry.refcount_block_entries()
    }

    /// Index of the block with `cluster`'s count, and the count's index in it.
    #[allow(clippy::cast_possible_truncation, reason = "masked to less than 2^24")]
    const fn place(&self, cluster: u64) -> (u64, usize) {
        (
            cluster >> self.block_bits,
            (cluster & ((1 << self.block_bits) - 1)) as usize,
        )
    }

    /// Counts `times` references to `cluster`; `false`, with the count at its largest,
    /// if they are more than it can hold.
    #[inline]
    pub(super) fn add(&mut self, cluster: u64, times: u64) -> bool {
        self.clusters = self.clusters.max(cluster.saturating_add(1));
        let max = self.geometry.refcount_max();
        let (block, index) = self.place(cluster);
        let Some(block) = self.block_mut(block) else {
            return false;
        };
        if times == 1
            && block.numbers.is_none()
            && let Some(bits) = block.bits.get_mut(index / 64)
            && bits.referred >> (index % 64) & 1 == 0
        {
            bits.referred |= 1 << (index % 64);
            return true;
        }
        block.add_again(index, times, max)
    }

    /// Notes that an active entry refers to `cluster`, with the copied flag or without.
    #[inline]
    pub(super) fn mark(&mut self, cluster: u64, copied: bool) {
        let (block, index) = self.place(cluster);
        let Some(block) = self.block_mut(block) else {
            return;
        };
        let bit = 1 << (index % 64);
        if copied {
            if let Some(bits) = block.bits.get_mut(index / 64) {
                bits.copied |= bit;
            }
            return;
        }
        let words = block.bits.len();
        let words = block
            .not_copied
            .get_or_insert_with(|| vec![0; words].into_boxed_slice());
        if let Some(word) = words.get_mut(index / 64) {
            *word |= bit;
        }
    }

    #[inline]
    fn block_mut(&mut self, block: u64) -> Option<&mut Block> {
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        if self.dense.get(index).is_none_or(Option::is_none) {
            return self.new_block(block);
        }
        self.dense.get_mut(index)?.as_mut()
    }

    #[cold]
    fn new_block(&mut self, block: u64) -> Option<&mut Block> {
        let order = self.geometry.refcount_order();
        let words = usize::try_from(self.geometry.refcount_block_entries() / 64).unwrap_or(0);
        let new = || Block {
            order,
            bits: vec![Bits::default(); words].into_boxed_slice(),
            not_copied: None,
            numbers: None,
        };
        if block >= DENSE_BLOCKS {
            return Some(self.sparse.entry(block).or_insert_with(new));
        }
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        if self.dense.len() <= index {
            self.dense.resize_with(index + 1, || None);
        }
        Some(self.dense.get_mut(index)?.get_or_insert_with(new))
    }

    /// References to `cluster`.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let (block, index) = self.place(cluster);
        self.block(block).map_or(0, |block| block.get(index))
    }

    /// The counts of a block; `None` where no cluster is referred to.
    pub(super) fn block(&self, block: u64) -> Option<&Block> {
        if block >= DENSE_BLOCKS {
            return self.sparse.get(&block);
        }
        self.dense.get(usize::try_from(block).ok()?)?.as_ref()
    }

    /// One more than the last block below 2^20 with a reference.
    pub(super) fn dense_blocks(&self) -> u64 {
        self.dense.len() as u64
    }

    /// The blocks from 2^20 on with references.
    pub(super) fn sparse_blocks(&self) -> impl Iterator<Item = u64> {
        self.sparse.keys().copied()
    }
}

impl Block {
    #[cold]
    fn add_again(&mut self, index: usize, times: u64, max: u64) -> bool {
        if self.numbers.is_none() {
            let mut numbers = Vec::new();
            self.pack_bits(&mut numbers);
            self.numbers = Some(numbers.into_boxed_slice());
        }
        let Some(numbers) = &mut self.numbers else {
            return false;
        };
        let before = refcount::get(numbers, self.order, index).unwrap_or(max);
        let sum = before.checked_add(times).filter(|sum| *sum <= max);
        refcount::set(numbers, self.order, index, sum.unwrap_or(max)) && sum.is_some()
    }

    fn get(&self, index: usize) -> u64 {
        match &self.numbers {
            Some(numbers) => refcount::get(numbers, self.order, index).unwrap_or(0),
            None => {
                let word = self.bits.get(index / 64).map_or(0, |bits| bits.referred);
                word >> (index % 64) & 1
            }
        }
    }

    /// The counts as a refcount block has them; `room` is for those that are still bits.
    pub(super) fn packed<'a>(&'a self, room: &'a mut Vec<u8>) -> &'a [u8] {
        match &self.numbers {
            Some(numbers) => numbers,
            None => {
                self.pack_bits(room);
                room
            }
        }
    }

    fn pack_bits(&self, out: &mut Vec<u8>) {
        out.clear();
        let words = self.bits.iter().map(|bits| bits.referred);
        if self.order == 0 {
            out.extend(words.flat_map(u64::to_le_bytes));
            return;
        }
        out.resize((self.bits.len() * 8) << self.order, 0);
        let chunks = out.chunks_exact_mut(8 << self.order);
        for (mut word, chunk) in words.zip(chunks) {
            while word != 0 {
                let index = word.trailing_zeros() as usize;
                // Fits: 1 is in range of every width, the index in that of the chunk.
                let _ = refcount::set(chunk, self.order, index, 1);
                word &= word - 1;
            }
        }
    }

    /// Whether active entries refer to any of the clusters.
    pub(super) fn has_flags(&self) -> bool {
        self.not_copied.is_some() || self.bits.iter().any(|bits| bits.copied != 0)
    }

    /// Whether all copied flags of active entries fit the refcounts `stored`, packed;
    /// `None` are zeros. `equal` tells that they are those of this block.
    pub(super) fn copied_flags_fit(&self, stored: Option<&[u8]>, equal: bool) -> bool {
        let one = |index: usize| {
            stored.and_then(|stored| refcount::get(stored, self.order, index)) == Some(1)
        };
        let ones = |word: usize| {
            (0..64)
                .filter(|bit| one(word * 64 + bit))
                .fold(0, |w, b| w | 1 << b)
        };
        let not_copied = |word: usize| {
            self.not_copied
                .as_ref()
                .and_then(|words| words.get(word))
                .copied()
                .unwrap_or(0)
        };
        self.bits.iter().enumerate().all(|(word, bits)| {
            let (with, without) = (bits.copied, not_copied(word));
            if with | without == 0 {
                return true;
            }
            let bits_are_counts = equal && self.numbers.is_none();
            let ones = if bits_are_counts {
                bits.referred
            } else {
                ones(word)
            };
            with & !ones == 0 && without & ones == 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_up_to_the_largest_refcount_of_each_width() {
        for order in 0..=6 {
            let geometry = Geometry::new(9, order, false).unwrap();
            let mut counts = Counts::new(geometry, 10);
            for cluster in [0, 1, 9, 5000, (1 << 52) + 3] {
                assert!(counts.add(cluster, 1));
                assert_eq!(
                    (counts.get(cluster), counts.get(cluster + 1)),
                    (1, 0),
                    "{order}"
                );
                assert!(counts.add(cluster, geometry.refcount_max() - 1));
                assert!(!counts.add(cluster, 1));
                assert_eq!(counts.get(cluster), geometry.refcount_max());
                assert_eq!(
                    counts.get(cluster.wrapping_sub(1)),
                    if cluster == 1 { counts.get(0) } else { 0 }
                );
            }
            assert_eq!(counts.clusters(), (1 << 52) + 4);
            assert_eq!(counts.sparse_blocks().count(), 1);
        }
    }

    #[test]
    fn a_far_cluster_costs_one_block() {
        let geometry = Geometry::new(9, 6, false).unwrap();
        let mut counts = Counts::new(geometry, 0);
        assert!(counts.add(u64::MAX >> 9, 2));
        assert_eq!((counts.dense_blocks(), counts.get(u64::MAX >> 9)), (0, 2));
        assert!(counts.block(7).is_none());
    }

    #[test]
    fn bits_and_numbers_pack_alike() {
        for order in 0..=6 {
            let geometry = Geometry::new(9, order, false).unwrap();
            let mut counts = Counts::new(geometry, 64);
            for cluster in [0, 3, 9, 63] {
                assert!(counts.add(cluster, 1));
            }
            let (mut bits, mut numbers) = (Vec::new(), Vec::new());
            bits.extend(counts.block(0).unwrap().packed(&mut Vec::new()));
            assert_eq!(bits.len(), 512);
            let listed: Vec<_> = (0..64)
                .filter(|i| refcount::get(&bits, order, *i) == Some(1))
                .collect();
            assert_eq!(listed, [0, 3, 9, 63]);
            // Nothing more is counted, but the block is numbers now.
            let _ = counts.add(5, 0);
            assert!(counts.block(0).unwrap().numbers.is_some());
            numbers.extend(counts.block(0).unwrap().packed(&mut Vec::new()));
            assert_eq!(bits, numbers, "{order}");
        }
    }

    #[test]
    fn copied_flags_are_compared_with_ones() {
        for order in 1..=6 {
            let geometry = Geometry::new(9, order, false).unwrap();
            let mut stored = vec![0; 512];
            assert!(
                refcount::set(&mut stored, order, 7, 1) && refcount::set(&mut stored, order, 8, 2)
            );
            let fit = |cluster, copied| {
                let mut counts = Counts::new(geometry, 64);
                assert!(counts.add(cluster, 1));
                counts.mark(cluster, copied);
                let block = counts.block(0).unwrap();
                let zeros = block.copied_flags_fit(None, false);
                assert_eq!(zeros, !copied);
                block.copied_flags_fit(Some(&stored), false)
            };
            assert!(fit(7, true) && fit(8, false) && fit(9, false));
            assert!(!fit(7, false) && !fit(8, true) && !fit(9, true));
        }
    }
}
