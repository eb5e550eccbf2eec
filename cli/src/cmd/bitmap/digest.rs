//! [`Digests`]: SHA-256 of bitmaps, as far as time allows.

use hbitmap::HBitmap;

/// Bytes of bits that are hashed for one stream: the bitmaps of 32 TiB of disk at the
/// finest granularity. Every bit counts in a digest, and a chunk of 13 bytes can stand for
/// 512 MiB of clean ones, so that a small stream could keep us busy for days.
const MOST: u64 = 8 << 30;

/// Where a digest stands that was not computed.
pub(crate) const NO_DIGEST: &str = "not computed, the bits are too many";

/// Computes digests.
#[derive(Debug)]
pub(crate) struct Digests {
    /// Bytes of bits that may still be hashed.
    left: u64,
}

impl Digests {
    /// For the bitmaps of a stream, which may be anybody's.
    pub(crate) const fn of_a_stream() -> Self {
        Self { left: MOST }
    }

    /// For bitmaps out of images, which are bounded in size.
    pub(crate) const fn of_images() -> Self {
        Self { left: u64::MAX }
    }

    /// The digest of a bitmap; `None` if it has more bits than may still be hashed.
    pub(crate) fn compute(&mut self, bits: &HBitmap) -> Option<[u8; 32]> {
        let bytes = bits.granules().div_ceil(8);
        self.left = self.left.checked_sub(bytes)?;
        Some(bits.sha256())
    }
}

#[cfg(test)]
mod tests {
    use hbitmap::Granularity;

    use super::*;

    #[test]
    fn what_is_hashed_is_bounded_over_all_bitmaps() {
        let bitmap = |len: u64| {
            let granularity = Granularity::from_bytes(512).unwrap();
            HBitmap::new(len, granularity).unwrap()
        };
        let mut digests = Digests { left: 4096 };
        let small = bitmap(2048 * 8 * 512);
        assert_eq!(digests.compute(&small), Some(small.sha256()));
        assert_eq!(digests.compute(&bitmap(1 << 63)), None);
        assert!(digests.compute(&small).is_some());
        assert_eq!(digests.compute(&small), None);
        assert!(digests.compute(&bitmap(0)).is_some());
    }
}
