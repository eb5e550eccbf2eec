//! The layered form: a bitmap of any size in as many bytes as its dirty parts need.
//!
//! Top level first, and below it a chunk only where the level above says that there is
//! something to be said: what is wholly clean or wholly dirty is one bit. Each bitmap
//! has exactly one layered form; readers refuse every other.
//!
//! # Layout
//! All numbers are little-endian. *Granule* *k* of the disk is bit *k*; the bits from
//! the last granule on are not *valid* and always zero.
//!
//! Header, 36 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic: `89 48 42 4d 0d 0a 1a 0a` |
//! | 8 | 2 | version: 1 |
//! | 10 | 1 | log2 of the granularity in bytes, 0 to 63 |
//! | 11 | 5 | reserved, zero |
//! | 16 | 8 | length of the disk in bytes, at most 2^63 |
//! | 24 | 8 | dirty granules |
//! | 32 | 4 | CRC-32C of bytes 0 to 31 |
//!
//! With *n* granules (length / granularity, rounded up) a bitmap in which 0 or *n* are
//! dirty ends here. Otherwise there are *h* + 1 levels, *h* being the least number with
//! 2^(15 + 6*h*) ≥ *n*. A slot of level *l* stands for 2^(15 + 6*l*) granules, aligned
//! to that. Level *h* has one slot, the whole disk. Then follow, level by level from *h*
//! down to 0, and in a level by ascending position, the chunks of all slots that hold
//! both clean and dirty granules, taking only valid ones into account. "Dirty" below
//! means that at least one valid granule is, "full" that all valid ones are.
//!
//! Chunk of a slot of level 1 and above, 20 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | bit *i*: slot *i* of the 64 below is dirty |
//! | 8 | 8 | bit *i*: slot *i* is full |
//! | 16 | 4 | CRC-32C |
//!
//! The slots below that are dirty and not full are those that have chunks.
//!
//! Chunk of a slot of level 0, a *page* of 8 blocks of 64 words of 64 granules:
//!
//! | bytes | field |
//! |---|---|
//! | 1 | bit *i*: block *i* is dirty |
//! | 1 | bit *i*: block *i* is full |
//! | 16 for each block that is dirty and not full | 8: bit *i*: word *i* is dirty; 8: bit *i*: word *i* is full |
//! | 8 for each word that is dirty and not full | the granules, lowest bit first |
//! | 4 | CRC-32C |
//!
//! The CRC-32C of a chunk is taken over its level (1 byte), the number of its first
//! granule (8 bytes) and its bytes up to the CRC, so that chunks can't be swapped.
//! Nothing follows the last chunk.
//!
//! A bitmap of 16 TiB at 64 KiB with one dirty granule takes 36 + 3 × 20 + 30 bytes.

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::Limits;

use crate::crc::Crc32c;

/// First bytes of the form. As in PNG, they show damage by text-mode transfers.
pub(crate) const MAGIC: [u8; 8] = *b"\x89HBM\r\n\x1a\n";
/// The one version there is.
const VERSION: u16 = 1;
/// Bytes of the header.
const HEADER: usize = 36;

/// The checksum of a chunk: over where it belongs and what it says.
fn checksum(level: u8, base: u64, bytes: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(&[level]);
    crc.update(&base.to_le_bytes());
    crc.update(bytes);
    crc.finish()
}
