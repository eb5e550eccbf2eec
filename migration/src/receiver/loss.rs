//! [`Loss`]: why a bitmap of a stream can't be had.

use std::ops::Range;

/// Why a bitmap was lost, while others may have arrived. Offsets and lengths are in bytes
/// of the disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// No node here has this alias.
    #[error("no node has this alias")]
    UnknownNode,

    /// No bitmap of the node has this alias.
    #[error("no bitmap of the node has this alias")]
    UnknownBitmap,

    /// The node has a bitmap of this name already.
    #[error("the node has a bitmap '{name}' already")]
    NameTaken {
        /// Its name here.
        name: String,
    },

    /// BITS or COMPLETE came without a START before.
    #[error("it was never started")]
    NeverStarted,

    /// A second START.
    #[error("it was started twice")]
    StartedTwice,

    /// START came when the disk had been written here already, so that writes are missing.
    #[error("it was started after the first write to the disk here")]
    StartedLate,

    /// A chunk starts between two of the words that bitmaps are sent in.
    #[error("a chunk starts at byte {start}, allowed are multiples of {align} (64 granules)")]
    Misaligned {
        /// Where it starts.
        start: u64,
        /// Bytes of the disk in 64 granules.
        align: u64,
    },

    /// A chunk ends between two words, and not at the end of the disk.
    #[error(
        "a chunk ends at byte {end}, allowed are multiples of {align} (64 granules) and \
         the disk's end at {len}: is the disk of another size?"
    )]
    ShortChunk {
        /// Where it ends.
        end: u64,
        /// Bytes of the disk in 64 granules.
        align: u64,
        /// Bytes of the disk here.
        len: u64,
    },

    /// A chunk reaches past the end of the disk.
    #[error("a chunk ends at byte {end}, the disk at {len}: is the disk of another size?")]
    PastEnd {
        /// Where it ends; more than 2^64 - 1 is told as that.
        end: u64,
        /// Bytes of the disk here.
        len: u64,
    },

    /// A buffer's size is not that of its range.
    #[error("a chunk of {found} bytes, its range allows {needed} to {most}")]
    BufferSize {
        /// Bytes of the buffer.
        found: u64,
        /// Bytes that the range takes.
        needed: u64,
        /// The same rounded up to 32.
        most: u64,
    },

    /// A granule behind the last one of the disk is dirty.
    #[error("a chunk has bits set past the end of the disk at {len}")]
    BitsPastEnd {
        /// Bytes of the disk.
        len: u64,
    },

    /// COMPLETE came though a part of the disk had not been covered.
    #[error(
        "it ended though bytes {} to {} of {len} never came: is the disk of another size?",
        missing.start, missing.end
    )]
    Uncovered {
        /// The first such part.
        missing: Range<u64>,
        /// Bytes of the disk.
        len: u64,
    },

    /// BITS came after COMPLETE.
    #[error("bits came after its end")]
    AfterComplete,

    /// The stream ended without its COMPLETE.
    #[error("the stream ended before it was complete")]
    NotComplete,

    /// All bitmaps together would take more memory than the limit.
    #[error("the bitmaps take more than {limit} bytes of memory")]
    Memory {
        /// The limit ([`Limits::memory`](crate::Limits::memory)).
        limit: usize,
    },
}
