//! The chunks of a `dirty-bitmap` section.

mod bits;
mod compact;
mod decode;
mod encode;
mod flags;
mod layout;

use hbitmap::Granularity;

pub use bits::write_bits;
pub use compact::write_compact;
pub(crate) use decode::{Decoded, Names, decode};
pub use encode::ChunkWriter;
pub(crate) use encode::counted;
pub use layout::ChunkLayout;

/// Bytes in a sector, the unit of a chunk's range, whatever the disk's own sectors are.
pub const SECTOR: u64 = 512;

/// What a START chunk says of a bitmap, beside its granularity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BitmapFlags {
    /// Bit 0: it records writes.
    pub enabled: bool,
    /// Bit 1: it is to be stored in the destination's image.
    pub persistent: bool,
}

/// A range of the disk in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sectors {
    /// The first; a multiple of 64 granules. Below 2^55, so that bytes fit 64 bits.
    pub first: u64,
    /// How many; a multiple of 64 granules, except at the end of the disk.
    pub count: u32,
}

/// One chunk, without the names before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Flags 0, or names or the end of the list alone.
    Empty,
    /// START: a bitmap begins.
    Start {
        /// Bytes of the disk that a bit stands for: a power of two, 512 to 2^31.
        granularity: Granularity,
        /// Its state.
        flags: BitmapFlags,
    },
    /// BITS with ZEROES: the range is clean.
    Zeroes(Sectors),
    /// BITS: the linear form of the range, as 64-bit little-endian words, and padding up
    /// to a multiple of 32 bytes.
    Bits(Sectors, &'a [u8]),
    /// COMPLETE: every bit has been sent.
    Complete,
}
