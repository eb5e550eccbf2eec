//! Initialization vectors: 16 bytes made of a sector's number.

use super::{cipher::OneBlock, modes::Block};

/// How a sector's number becomes its vector.
#[derive(Debug)]
pub(super) enum IvGenerator {
    /// Its low 32 bits, little-endian, then zeros.
    Plain,
    /// All 64 bits.
    Plain64,
    /// As `Plain64`, encrypted with a digest of the key.
    Essiv(Box<dyn OneBlock>),
}

impl IvGenerator {
    /// The vector of sector `number`.
    pub(super) fn vector(&self, number: u64) -> Block {
        let number = match self {
            Self::Plain => number & u64::from(u32::MAX),
            Self::Plain64 | Self::Essiv(_) => number,
        };
        let mut block = Block::from(u128::from(number).to_le_bytes());
        if let Self::Essiv(cipher) = self {
            cipher.encrypt(&mut block);
        }
        block
    }
}
