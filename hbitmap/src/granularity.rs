//! [`Granularity`]: how many bytes of the disk one bit stands for, and the way
//! between ranges of bytes and ranges of bits.

use core::fmt;
use core::ops::Range;

use crate::{Error, Result};

/// Bytes of the disk that one bit stands for: a power of two, 1 to 2^63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Granularity {
    /// log2 of the bytes, 0 to 63.
    bits: u32,
}

impl Granularity {
    /// From bytes a bit.
    ///
    /// # Errors
    /// [`Error::GranularityNotPowerOfTwo`].
    pub const fn from_bytes(bytes: u64) -> Result<Self> {
        if bytes.is_power_of_two() {
            Ok(Self {
                bits: bytes.trailing_zeros(),
            })
        } else {
            Err(Error::GranularityNotPowerOfTwo { bytes })
        }
    }

    /// From log2 of bytes a bit, which is how qcow2 stores it.
    ///
    /// # Errors
    /// [`Error::GranularityTooLarge`] above 63.
    pub const fn from_bits(bits: u32) -> Result<Self> {
        if bits <= 63 {
            Ok(Self { bits })
        } else {
            Err(Error::GranularityTooLarge { bits })
        }
    }

    /// Bytes of the disk a bit.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.bits
    }

    /// log2 of the bytes of the disk a bit.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// Granules that cover `len` bytes; the last one may be part of a granule.
    #[must_use]
    pub const fn granules(self, len: u64) -> u64 {
        // `len.div_ceil(bytes)` as shifts.
        (len >> self.bits) + (len & (self.bytes() - 1) != 0) as u64
    }

    /// The granules that a non-empty range of bytes touches.
    pub(crate) const fn outwards(self, range: &Range<u64>) -> Range<u64> {
        range.start >> self.bits..self.granules(range.end)
    }

    /// The granules that lie wholly within a range of bytes of a disk of `len` bytes,
    /// whose last granule ends at `len`. May be reversed, which means none.
    pub(crate) const fn inwards(self, range: &Range<u64>, len: u64) -> Range<u64> {
        let end = if range.end >= len {
            self.granules(len)
        } else {
            range.end >> self.bits
        };
        self.granules(range.start)..end
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.bytes(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two() {
        for bytes in [0, 3, 65535, u64::MAX] {
            assert!(matches!(
                Granularity::from_bytes(bytes),
                Err(Error::GranularityNotPowerOfTwo { bytes: b }) if b == bytes
            ));
        }
        assert_eq!(Granularity::from_bytes(1).unwrap().bits(), 0);
        assert_eq!(Granularity::from_bytes(1 << 63).unwrap().bits(), 63);
        assert!(matches!(
            Granularity::from_bits(64),
            Err(Error::GranularityTooLarge { bits: 64 })
        ));
    }

    #[test]
    fn granules_round_up_without_overflow() {
        let g = Granularity::from_bits(63).unwrap();
        assert_eq!(g.granules(0), 0);
        assert_eq!(g.granules(1), 1);
        assert_eq!(g.granules(u64::MAX), 2);
        assert_eq!(
            Granularity::from_bits(0).unwrap().granules(1 << 63),
            1 << 63
        );
    }

    #[test]
    fn set_rounds_out_and_reset_rounds_in() {
        let g = Granularity::from_bytes(16).unwrap();
        assert_eq!(g.outwards(&(15..17)), 0..2);
        assert_eq!(g.inwards(&(1..47), 100), 1..2);
        assert_eq!(g.inwards(&(90..100), 100), 6..7);
        assert!(g.inwards(&(1..15), 100).is_empty());
    }
}
