//! [`Counts`]: how often each cluster was referred to, in the packed form of refcount
//! blocks, so that a block compares with its counts as bytes.

use std::collections::BTreeMap;

use crate::{Geometry, format::refcount};

/// A refcount table has at most 2^20 entries (8 MiB), so blocks beyond that many have
/// no stored refcounts, and few counts in any real image.
const DENSE_BLOCKS: u64 = 1 << 20;

/// References to each cluster. A block's worth of counts takes memory once one of its
/// clusters is referred to.
#[derive(Debug)]
pub(super) struct Counts {
    geometry: Geometry,
    /// log2 of the clusters of a block.
    block_bits: u32,
    dense: Vec<Option<Box<[u8]>>>,
    sparse: BTreeMap<u64, Box<[u8]>>,
    /// Clusters of the file; references beyond can make it a little longer.
    clusters: u64,
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
    pub(super) fn add(&mut self, cluster: u64, times: u64) -> bool {
        self.clusters = self.clusters.max(cluster.saturating_add(1));
        let (block, index) = self.place(cluster);
        let (order, max) = (self.geometry.refcount_order(), self.geometry.refcount_max());
        let counts = self.block_mut(block);
        let before = refcount::get(counts, order, index).unwrap_or(max);
        let sum = before.checked_add(times).filter(|sum| *sum <= max);
        refcount::set(counts, order, index, sum.unwrap_or(max)) && sum.is_some()
    }

    fn block_mut(&mut self, block: u64) -> &mut [u8] {
        let bytes = usize::try_from(self.geometry.cluster_size()).unwrap_or(0);
        let new = || vec![0; bytes].into_boxed_slice();
        if block >= DENSE_BLOCKS {
            return self.sparse.entry(block).or_insert_with(new);
        }
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        if self.dense.len() <= index {
            self.dense.resize_with(index + 1, || None);
        }
        match self.dense.get_mut(index) {
            Some(slot) => slot.get_or_insert_with(new),
            None => &mut [],
        }
    }

    /// References to `cluster`.
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let (block, index) = self.place(cluster);
        let order = self.geometry.refcount_order();
        self.block(block)
            .and_then(|counts| refcount::get(counts, order, index))
            .unwrap_or(0)
    }

    /// The counts of a block, packed; `None` where no cluster is referred to.
    pub(super) fn block(&self, block: u64) -> Option<&[u8]> {
        if block >= DENSE_BLOCKS {
            return self.sparse.get(&block).map(|counts| &**counts);
        }
        self.dense.get(usize::try_from(block).ok()?)?.as_deref()
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
}
