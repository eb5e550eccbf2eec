//! [`Packed`]: compressed clusters on their way into a file.

use std::ops::Range;

use super::Compressor;
use crate::Result;

/// Compressed clusters in memory, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    /// Room for them. It is kept for those that come next, and what isn't used of it never
    /// touched.
    room: Vec<u8>,
    /// Bytes of the clusters at its front.
    used: usize,
}

impl Packed {
    /// Forgets the clusters, and makes room for others that are `len` bytes in all before
    /// they are compressed, each one `cluster_size`.
    pub(crate) fn begin(&mut self, len: usize, cluster_size: usize) {
        self.used = 0;
        // All but the last cluster become smaller, or nothing is kept of them.
        let before = len.saturating_sub(cluster_size);
        let needed = before.saturating_add(Compressor::room(cluster_size));
        if self.room.len() < needed {
            // Nothing of the old content is copied.
            self.room = Vec::new();
            self.room = vec![0; needed];
        }
    }

    /// Compresses `cluster`, which is a whole one, and puts it behind the others. Returns
    /// where it is among [`bytes`](Self::bytes); `None` if it would not become smaller.
    ///
    /// # Errors
    /// As [`Compressor::compress_into`].
    pub(crate) fn add(
        &mut self,
        compressor: &Compressor,
        cluster: &[u8],
    ) -> Result<Option<Range<usize>>> {
        let room = self.room.get_mut(self.used..).unwrap_or_default();
        let Some(len) = compressor.compress_into(cluster, room)? else {
            return Ok(None);
        };
        let start = self.used;
        self.used = start.saturating_add(len);
        Ok(Some(start..self.used))
    }

    /// All of them.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.room.get(..self.used).unwrap_or_default()
    }
}
