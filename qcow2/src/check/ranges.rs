//! [`Ranges`]: a set of clusters, kept as ranges.

use std::ops::Range;

/// Ranges that are merged once there are this many more than after the last time.
const SLACK: usize = 1 << 16;

/// Clusters of an image. Memory follows the number of ranges that don't touch.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    list: Vec<Range<u64>>,
    /// Length of the list after it was last merged.
    merged: usize,
    /// Whether the list is merged.
    sorted: bool,
}

impl Ranges {
    /// Adds the clusters of `range`.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.list.push(range);
        self.sorted = false;
        if self.list.len() > 2 * self.merged + SLACK {
            self.merge();
        }
    }

    /// Whether any cluster of `range` is in the set.
    ///
    /// [`sort`](Self::sort) must have been called since the last change.
    pub(super) fn touches(&self, range: &Range<u64>) -> bool {
        debug_assert!(self.sorted || self.list.is_empty());
        let after = self.list.partition_point(|known| known.end <= range.start);
        self.list
            .get(after)
            .is_some_and(|known| known.start < range.end)
    }

    /// Whether `cluster` is in the set.
    pub(super) fn contains(&self, cluster: u64) -> bool {
        self.touches(&(cluster..cluster.saturating_add(1)))
    }

    /// Makes the set ready to be asked.
    pub(super) fn sort(&mut self) {
        if !self.sorted {
            self.merge();
        }
    }

    fn merge(&mut self) {
        self.list.sort_unstable_by_key(|range| range.start);
        self.list.dedup_by(|later, kept| {
            let touch = later.start <= kept.end;
            if touch {
                kept.end = kept.end.max(later.end);
            }
            touch
        });
        self.merged = self.list.len();
        self.sorted = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_found_whatever_the_order_they_came_in() {
        let mut ranges = Ranges::default();
        assert!(!ranges.contains(0));
        for range in [10..12, 0..1, 5..5, 11..20, 30..31, 12..13] {
            ranges.insert(range);
        }
        ranges.sort();
        let inside: Vec<_> = (0..40).filter(|c| ranges.contains(*c)).collect();
        let expected: Vec<_> = (0..1).chain(10..20).chain(30..31).collect();
        assert_eq!(inside, expected);
        assert!(ranges.touches(&(1..11)) && !ranges.touches(&(1..10)));
        assert_eq!(ranges.list.len(), 3);
        ranges.insert(1..10);
        ranges.sort();
        assert!(ranges.contains(4));
        assert_eq!(ranges.list.len(), 2);
    }

    #[test]
    fn the_same_range_again_and_again_takes_no_memory() {
        let mut ranges = Ranges::default();
        for index in 0..1_000_000 {
            ranges.insert(index % 7..index % 7 + 1);
        }
        ranges.sort();
        assert!(ranges.list.capacity() < 4 * SLACK);
        assert!(ranges.contains(6) && !ranges.contains(7));
    }
}
