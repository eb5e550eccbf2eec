//! Digests of the linear form of a whole bitmap.

use core::ops::Range;

use sha2::{Digest, Sha256};

use crate::crc::Crc32c;
use crate::tree::kernel;
use crate::tree::node::Slot;
use crate::{HBitmap, tree};

/// Bytes fed at once.
const STEP: usize = 4096;

impl HBitmap {
    /// SHA-256 over the bits as `max(1, ceil(granules / 64))` little-endian 64-bit words:
    /// what QEMU's `x-debug-block-dirty-bitmap-sha256` prints. Neither length nor
    /// granularity are part of it.
    ///
    /// Takes time for every granule of the disk, dirty or not.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        self.feed(|bytes| hash.update(bytes));
        hash.finalize().into()
    }

    /// CRC-32C (Castagnoli) over the same bytes.
    #[must_use]
    pub fn crc32c(&self) -> u32 {
        let mut crc = Crc32c::new();
        self.feed(|bytes| crc.update(bytes));
        crc.finish()
    }

    /// Passes the bytes of the linear form on, without holding more than a page of it.
    fn feed(&self, mut take: impl FnMut(&[u8])) {
        let bits = self.granules();
        if bits == 0 {
            take(&[0; 8]);
        }
        let (zeros, ones) = ([0; STEP], [0xff; STEP]);
        let mut at = 0;
        while at < bits {
            let (slot, level) = self.tree.page_at(at);
            let end = self.end_of(at, level);
            match slot {
                Slot::Empty => repeat(at..end.next_multiple_of(64), &zeros, &mut take),
                Slot::Full => {
                    repeat(at..end / 64 * 64, &ones, &mut take);
                    if !end.is_multiple_of(64) {
                        #[allow(clippy::cast_possible_truncation, reason = "below 64")]
                        take(&kernel::low_mask((end % 64) as u32).to_le_bytes());
                    }
                }
                Slot::At(_) => {
                    let mut page = [0; STEP];
                    let bytes = (end - at).div_ceil(64) * 8;
                    #[allow(clippy::cast_possible_truncation, reason = "at most a page")]
                    if let Some(page) = page.get_mut(..bytes as usize) {
                        self.tree.store(at, end, page);
                        take(page);
                    }
                }
            }
            at = end;
        }
    }

    /// Where the slot of `level` that holds bit `at` ends.
    fn end_of(&self, at: u64, level: u32) -> u64 {
        let span = tree::span_bits(level);
        (((at >> span) + 1) << span).min(self.granules())
    }
}

/// Passes on one byte for every eight bits of the range; it starts and ends at words.
fn repeat(bits: Range<u64>, step: &[u8; STEP], take: &mut impl FnMut(&[u8])) {
    let mut left = (bits.end - bits.start) / 8;
    while left > 0 {
        let n = left.min(STEP as u64);
        #[allow(clippy::cast_possible_truncation, reason = "at most STEP")]
        if let Some(part) = step.get(..n as usize) {
            take(part);
        }
        left -= n;
    }
}
