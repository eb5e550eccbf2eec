//! [`Packed`]: compressed clusters on their way into a file.

use std::ops::Range;

use super::Compressor;
use crate::Result;

/// Compressed clusters in memory, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    bytes: Vec<u8>,
    /// Of the last one, before it was known to be smaller.
    last: Vec<u8>,
}

impl Packed {
    /// Compresses `cluster`, which is a whole one, and puts it behind the others. Returns
    /// where it is among [`bytes`](Self::bytes); `None` if it would not become smaller.
    ///
    /// # Errors
    /// As [`Compressor::compress`].
    pub(crate) fn add(
        &mut self,
        compressor: &Compressor,
        cluster: &[u8],
    ) -> Result<Option<Range<usize>>> {
        if !compressor.compress(cluster, &mut self.last)? {
            return Ok(None);
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&self.last);
        Ok(Some(start..self.bytes.len()))
    }

    /// All of them.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
