//! [`Error`]: why an operation was refused. Nothing is changed where one is returned,
//! unless the operation's own documentation says otherwise.

use alloc::string::String;

/// What this crate's functions return.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Why an operation on a bitmap was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A granularity is a power of two between 1 byte and 2^63 bytes.
    #[error("granularity {bytes} is not a power of two")]
    GranularityNotPowerOfTwo {
        /// The bytes a bit that were asked for.
        bytes: u64,
    },

    /// The exponent of a granularity is 0 to 63.
    #[error("granularity 2^{bits} is larger than 2^63 bytes")]
    GranularityTooLarge {
        /// The exponent that was asked for.
        bits: u32,
    },

    /// A bitmap covers at most 2^63 bytes (8 EiB).
    #[error("a length of {len} bytes is larger than 2^63")]
    LenTooLarge {
        /// The length that was asked for, in bytes.
        len: u64,
    },

    /// Two bitmaps of one operation cover disks of different lengths.
    #[error("bitmaps of different lengths: {ours} and {theirs} bytes")]
    LenMismatch {
        /// Bytes that the bitmap operated on covers.
        ours: u64,
        /// Bytes that the other one covers.
        theirs: u64,
    },

    /// A range of the linear form starts or ends between two of its 64-bit words.
    #[error("offset {offset} is not a multiple of {align}")]
    Misaligned {
        /// The offending start or end, in bytes of the disk.
        offset: u64,
        /// What it has to be a multiple of ([`linear_align`](crate::HBitmap::linear_align)).
        align: u64,
    },

    /// A range that is reversed or reaches past the end of the disk.
    #[error("range {start}..{end} is not within 0..{len}")]
    OutOfRange {
        /// Start of the range, in bytes.
        start: u64,
        /// End of the range, in bytes.
        end: u64,
        /// Bytes that the bitmap covers.
        len: u64,
    },

    /// A buffer is too small for the range's linear form, or the form is larger than
    /// memory can be.
    #[error("a buffer of {given} bytes for {needed} bytes of bitmap")]
    BufferSize {
        /// Bytes that the linear form of the range takes.
        needed: u64,
        /// Bytes that there are.
        given: u64,
    },

    /// A bit is set where the linear form has padding.
    #[error("byte {byte} has bits set past the end of the range")]
    TrailingBits {
        /// Offset of the first such byte in the buffer.
        byte: u64,
    },

    /// The layered form is damaged, cut short, too large or not this format.
    #[error("layered bitmap, byte {offset}: {problem}")]
    Layered {
        /// Offset from the first byte of the header: where the field or chunk that is
        /// wrong starts.
        offset: u64,
        /// What is wrong with it.
        problem: LayeredProblem,
    },

    /// A chunk that a [`MetaBitmap`](crate::MetaBitmap) counts in is a whole number of
    /// granules of at least one.
    #[error("a chunk of {chunk} bytes holds no whole granule of {granularity} bytes")]
    ChunkTooSmall {
        /// Bytes of the disk in a chunk.
        chunk: u64,
        /// Bytes of the disk in a granule.
        granularity: u64,
    },

    /// The bitmap is in use by an operation.
    #[error("Bitmap '{name}' is currently in use by another operation and cannot be used")]
    Busy {
        /// Name of the bitmap.
        name: String,
    },

    /// The bitmap is not in use by an operation, and only one may do this.
    #[error("Bitmap '{name}' is not in use by an operation")]
    NotBusy {
        /// Name of the bitmap.
        name: String,
    },

    /// The bitmap's bits can't be relied upon, since it was not stored properly.
    #[error("Bitmap '{name}' is inconsistent and cannot be used")]
    Inconsistent {
        /// Name of the bitmap.
        name: String,
    },

    /// There is no successor to be abdicated to or reclaimed.
    #[error("Bitmap '{name}' has no successor")]
    NotFrozen {
        /// Name of the bitmap.
        name: String,
    },

    /// Reading from or writing to the stream that was passed in failed.
    #[cfg(feature = "std")]
    #[error("layered bitmap, byte {offset}: input or output failed")]
    Io {
        /// Bytes that had been read or written before.
        offset: u64,
        /// The stream's answer.
        #[source]
        source: std::io::Error,
    },
}

/// What is wrong with a layered form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayeredProblem {
    /// The first eight bytes are something else.
    #[error("not a layered bitmap")]
    Magic,
    /// A version that this crate does not know.
    #[error("version {0} is not supported")]
    Version(u16),
    /// A reserved field is not zero.
    #[error("a reserved field is not zero")]
    Reserved,
    /// The granularity's exponent is above 63.
    #[error("granularity 2^{0} is larger than 2^63 bytes")]
    Granularity(u8),
    /// The length is above 2^63.
    #[error("a length of {0} bytes is larger than 2^63")]
    Len(u64),
    /// The caller's limit is exceeded.
    #[error("{found} exceeds the limit of {limit}")]
    Limit {
        /// The number found.
        found: u64,
        /// The limit given.
        limit: u64,
    },
    /// The checksum does not match the bytes.
    #[error("the checksum is {stored:#010x}, the bytes give {computed:#010x}")]
    Checksum {
        /// The CRC-32C that is stored.
        stored: u32,
        /// The CRC-32C of what was read.
        computed: u32,
    },
    /// The input ends in the middle.
    #[error("the input ends here")]
    Truncated,
    /// There is more input after the last chunk.
    #[error("there is more input after the end")]
    TrailingData,
    /// A mask or word that the one valid form of a bitmap does not have.
    #[error("a mask or word that no valid bitmap has")]
    NotCanonical,
    /// The number of dirty granules is not what the header says.
    #[error("the header counts {stored} dirty granules, the chunks hold {found}")]
    Count {
        /// What the header says.
        stored: u64,
        /// What the chunks hold.
        found: u64,
    },
}
