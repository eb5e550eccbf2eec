//! [`Watch`]: how often each of some clusters is referred to, by a walk over every
//! reference in the image. It's the proof that a cluster is free, which a refcount
//! alone is not.

use super::{Finding, Referrer, Visitor, walk};
use crate::{
    Geometry, Image, Result,
    addr::{HostCluster, HostOffset},
};

/// References to the watched clusters.
#[derive(Debug)]
pub(crate) struct Watch {
    geometry: Geometry,
    /// The watched clusters, sorted.
    clusters: Vec<u64>,
    /// References to each of them.
    counts: Vec<u64>,
    /// What else, bitmaps aside, is said to be in the header's cluster.
    in_header: Option<Referrer>,
}

impl Watch {
    /// Counts the references to `clusters`. A reference that is damaged, such as one
    /// beyond the file's end, counts for the clusters it names.
    pub(crate) fn count(
        image: &Image,
        clusters: impl Iterator<Item = HostCluster>,
    ) -> Result<Self> {
        let mut clusters: Vec<u64> = clusters.map(HostCluster::get).collect();
        clusters.sort_unstable();
        clusters.dedup();
        let counts = vec![0; clusters.len()];
        let mut watch = Self {
            geometry: image.geometry(),
            clusters,
            counts,
            in_header: None,
        };
        walk(&image.metadata(), &mut watch)?;
        Ok(watch)
    }

    /// What refers to the header's cluster as something else: a write of the header would
    /// change that. References of bitmaps are not looked at, so that a bitmap in which they
    /// stand can be removed.
    pub(crate) fn in_header(&self) -> Option<Referrer> {
        self.in_header
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
    fn reference(&mut self, by: Referrer, offset: HostOffset, bytes: u64, times: u64) {
        let first = self.geometry.host_cluster(offset).get();
        if first == 0 && bytes > 0 && !is_of_header_or_bitmap(by) {
            self.in_header = Some(by);
        }
        let last = offset.get().saturating_add(bytes.saturating_sub(1));
        let last = self.geometry.host_cluster(HostOffset(last)).get();
        // Most references are to guest data, below or above all that is watched.
        let beyond = self.clusters.last().is_none_or(|highest| *highest < first);
        if bytes == 0 || beyond || self.clusters.first().is_none_or(|lowest| *lowest > last) {
            return;
        }
        let start = self.clusters.partition_point(|cluster| *cluster < first);
        let end = self.clusters.partition_point(|cluster| *cluster <= last);
        for count in self.counts.get_mut(start..end).unwrap_or_default() {
            *count = count.saturating_add(times);
        }
    }

    /// What is damaged is for `check` to tell.
    fn problem(&mut self, _: Finding) {}
}

const fn is_of_header_or_bitmap(by: Referrer) -> bool {
    matches!(
        by,
        Referrer::Header
            | Referrer::BitmapDirectory
            | Referrer::BitmapTable(_)
            | Referrer::BitmapData(_)
    )
}
