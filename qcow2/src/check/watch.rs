//! [`Watch`]: how often each of some clusters is referred to, by a walk over every
//! reference in the image. It's the proof that a cluster is free, which a refcount
//! alone is not.

use std::collections::HashMap;

use hbitmap::{Granularity, HBitmap};

use super::{Finding, Referrer, Visitor, walk};
use crate::{Geometry, Image, Result, addr::HostCluster, addr::HostOffset};

/// References to the watched clusters.
#[derive(Debug)]
pub(crate) struct Watch {
    geometry: Geometry,
    /// The lowest cluster that is watched.
    first: u64,
    /// Which are watched, counted from the lowest one: nearly every reference is to
    /// another cluster, and this is the quickest way to see it.
    watched: HBitmap,
    counts: HashMap<u64, u64>,
}

impl Watch {
    /// Counts the references to `clusters`, in memory that follows their number.
    ///
    /// # Errors
    /// Whatever keeps the walk from seeing every reference.
    pub(crate) fn count(
        image: &Image,
        clusters: impl Iterator<Item = HostCluster>,
    ) -> Result<Self> {
        let counts: HashMap<u64, u64> = clusters.map(|cluster| (cluster.0, 0)).collect();
        let first = counts.keys().copied().min().unwrap_or(0);
        let last = counts.keys().copied().max().unwrap_or(0);
        let mut watched = HBitmap::new(last - first + 1, Granularity::from_bits(0)?)?;
        for cluster in counts.keys() {
            watched.set(cluster - first..cluster - first + 1);
        }
        let mut watch = Self {
            geometry: image.geometry(),
            first,
            watched,
            counts,
        };
        walk(&image.metadata(), &mut watch)?;
        Ok(watch)
    }

    /// How often `cluster` is referred to.
    pub(crate) fn references(&self, cluster: HostCluster) -> u64 {
        let index = self.clusters.binary_search(&cluster.get()).ok();
        index
            .and_then(|index| self.counts.get(index))
            .copied()
            .unwrap_or(0)
    }
}

impl Visitor for Watch {
    #[inline]
    fn reference(&mut self, _: Referrer, offset: HostOffset, bytes: u64, times: u64) {
        if bytes == 0 {
            return;
        }
        let bits = self.geometry.cluster_bits();
        let from = offset.0 >> bits;
        let to = offset.0.saturating_add(bytes - 1) >> bits;
        if to < self.first || from - from.min(self.first) >= self.watched.len() {
            return;
        }
        let from = from.saturating_sub(self.first);
        let to = (to - self.first).saturating_add(1).min(self.watched.len());
        for range in self.watched.ranges_in(from..to) {
            for cluster in range {
                if let Some(count) = self.counts.get_mut(&(cluster + self.first)) {
                    *count = count.saturating_add(times);
                }
            }
        }
    }

    /// What is wrong elsewhere is no reason to leave the bitmaps alone.
    fn problem(&mut self, _: Finding) {}
}
