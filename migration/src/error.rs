//! The crate's one error type: the transport failed, the stream is damaged, it is sound
//! but beyond what this crate reads, or the request can't be met.

use std::{borrow::Cow, fmt::Display, io};

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a stream can't be read or written. Offsets count bytes from the stream's start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The transport refused a read.
    #[error("reading the stream failed at offset {offset:#x}")]
    Read {
        /// Where in the stream.
        offset: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },

    /// The transport refused a write or a flush.
    #[error("writing the stream failed at offset {offset:#x}")]
    Write {
        /// Where in the stream.
        offset: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },

    /// A disk whose data is to be sent can't be read.
    #[error("reading the disk failed at offset {offset:#x}")]
    Disk {
        /// Where on the disk.
        offset: u64,
        /// The system's answer; `UnexpectedEof` if the disk is shorter than was said.
        #[source]
        source: io::Error,
    },

    /// The stream ends too early.
    #[error("the stream ends at offset {offset:#x}, within {structure}")]
    Truncated {
        /// Where it ends.
        offset: u64,
        /// What is cut off, such as `"the footer of section 'dirty-bitmap'"`.
        structure: Cow<'static, str>,
    },

    /// Bytes that no stream may have.
    #[error("{structure} at offset {offset:#x}: found {found}, allowed is {allowed}")]
    Invalid {
        /// Where the structure starts.
        offset: u64,
        /// The structure, such as `"START chunk"`.
        structure: Cow<'static, str>,
        /// What was found.
        found: String,
        /// What is allowed.
        allowed: String,
    },

    /// A stream that QEMU could load and this crate can't, named.
    #[error("{feature} (at offset {offset:#x}) can't be read: {reason}")]
    Unsupported {
        /// Where it starts.
        offset: u64,
        /// What it is, such as `"a multifd stream"`.
        feature: Cow<'static, str>,
        /// Why it can't be read past.
        reason: Cow<'static, str>,
    },

    /// A name, alias or other part of the request that no stream can carry.
    #[error("{0}")]
    Refused(String),

    /// The bits themselves can't be what was asked for.
    #[error(transparent)]
    Bits(#[from] hbitmap::Error),
}

impl Error {
    /// Where in the stream the fault is, if it is in one.
    #[must_use]
    pub const fn offset(&self) -> Option<u64> {
        match self {
            Self::Read { offset, .. }
            | Self::Write { offset, .. }
            | Self::Truncated { offset, .. }
            | Self::Invalid { offset, .. }
            | Self::Unsupported { offset, .. } => Some(*offset),
            Self::Disk { .. } | Self::Refused(_) | Self::Bits(_) => None,
        }
    }
}

/// Bytes that no stream may have.
pub(crate) fn invalid(
    offset: u64,
    structure: impl Into<Cow<'static, str>>,
    found: impl Display,
    allowed: impl Display,
) -> Error {
    Error::Invalid {
        offset,
        structure: structure.into(),
        found: found.to_string(),
        allowed: allowed.to_string(),
    }
}

/// What this crate can't read past.
pub(crate) fn unsupported(
    offset: u64,
    feature: impl Into<Cow<'static, str>>,
    reason: impl Into<Cow<'static, str>>,
) -> Error {
    Error::Unsupported {
        offset,
        feature: feature.into(),
        reason: reason.into(),
    }
}
