//! Whether an image's clusters have the space that they claim.

use super::Image;
use crate::{Error, Result, table::Refcounts};

impl Image {
    /// Whether at least a tenth of the clusters in use, and two of them, take up no space:
    /// what preallocation of metadata leaves, and what is not to be expected otherwise.
    /// The bound is where `qemu-img map` begins to tell holes from data.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn clusters_lack_space(&self) -> Result<bool> {
        let error = "asking for the size of the image";
        let size = self.storage.size().map_err(Error::io(error))?;
        let allocated = self.storage.allocated_bytes().map_err(Error::io(error))?;
        let geometry = self.geometry();
        let there = allocated / geometry.cluster_size();
        let many = (there.saturating_mul(10) / 9).max(there.saturating_add(2));
        let in_file = geometry.clusters_for(size);
        if in_file < many {
            return Ok(false);
        }
        let mut refcounts = Refcounts::load(&*self.storage, self.header())?;
        refcounts.at_least_in_use(in_file, many)
    }
}
