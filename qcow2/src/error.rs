//! The crate's one error type. Four families matter to a caller: the I/O failed,
//! this is not the format, it is valid but not supported, it is corrupt; and the
//! fifth, that the request itself cannot be met.

use std::{io, path::PathBuf};

use crate::{
    addr::{GuestOffset, HostOffset},
    bitmap::BitmapError,
};

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on an image failed. `Display` says one sentence; a cause is
/// in `source()`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a read, write, sync or open.
    #[error("{action} failed")]
    Io {
        /// What was being done, such as `"reading the L1 table at 0x30000"`.
        action: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },

    /// A file can't be opened or made, or is of a kind that holds no image.
    #[error("{message}")]
    Open {
        /// The whole sentence, in qemu-img's words.
        message: String,
        /// The kind of the system's refusal; `InvalidInput` for an odd kind of file.
        kind: io::ErrorKind,
    },

    /// The file that an image names as its backing file can't be used.
    #[error("Could not open backing file '{}'", path.to_string_lossy().escape_debug())]
    Backing {
        /// The file, or the name in the image if it leads to none.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<Error>,
    },

    /// The bytes are not a qcow2 image at all.
    #[error("Image is not in qcow2 format")]
    NotQcow2,

    /// Valid by the spec, beyond what this crate handles.
    #[error("{0}")]
    Unsupported(String),

    /// A structure of the image breaks the spec.
    #[error("{structure} at {offset:#x}: found {found}, allowed is {allowed}")]
    Corrupt {
        /// The structure in the spec's words, such as `"bitmap directory entry 3"`.
        structure: String,
        /// Where in the image file it stands.
        offset: HostOffset,
        /// What was found.
        found: String,
        /// What the spec or the limit allows.
        allowed: String,
    },

    /// A part of the guest's disk can't be told or read; the rest can.
    #[error("{length} bytes of the disk at {start} can't be read")]
    Guest {
        /// Where the part begins.
        start: GuestOffset,
        /// Its bytes, as far as the fault goes.
        length: u64,
        /// What is wrong.
        #[source]
        source: Box<Error>,
    },

    /// The header can't be used. The sentence is QEMU's for the same fault; field,
    /// value and what is allowed are in `source`.
    #[error("{message}")]
    Header {
        /// QEMU's words, such as `"Active L1 table too large"`.
        message: String,
        /// The [`Corrupt`](Self::Corrupt) error with the particulars.
        #[source]
        source: Box<Error>,
    },

    /// Another process holds a lock that excludes this use.
    #[error("Failed to get {permission} lock")]
    Locked {
        /// QEMU's name of the permission: `"write"`, `shared "write"`, …
        permission: String,
        /// The holder's process id and name where they can be told.
        holder: Option<String>,
    },

    /// The secret opens none of the key slots of an encrypted image.
    #[error("Invalid password, cannot unlock any keyslot")]
    InvalidPassword,

    /// There are no clusters left for what is to be written: the device or the format ends.
    /// What needed them was not begun.
    #[error("no room for new clusters: the image ends at cluster {end}")]
    NoSpace {
        /// The clusters that it can have.
        end: u64,
        /// `ENOSPC`
        #[source]
        source: io::Error,
    },

    /// The request can't be met; the text says why. Nothing was written.
    #[error("{0}")]
    Refused(String),

    /// An action on a stored bitmap was refused.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),

    /// The bits themselves can't be what was asked for.
    #[error(transparent)]
    Bits(#[from] hbitmap::Error),
}

impl Error {
    /// Wraps an I/O error with what was being done.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// No clusters are left in an image that ends at cluster `end`.
    pub(crate) fn no_space(end: u64) -> Self {
        Self::NoSpace {
            end,
            source: rustix::io::Errno::NOSPC.into(),
        }
    }

    /// As [`io`](Self::io), for what is done often: the text is made if there is an error.
    pub(crate) fn io_with(action: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action: action(),
            source,
        }
    }

    /// A file that can't be opened or made.
    pub(crate) fn open(message: String, kind: io::ErrorKind) -> Self {
        Self::Open { message, kind }
    }

    /// A structure that breaks the spec.
    pub fn corrupt(
        structure: impl Into<String>,
        offset: HostOffset,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Corrupt {
            structure: structure.into(),
            offset,
            found: found.into(),
            allowed: allowed.into(),
        }
    }
}
