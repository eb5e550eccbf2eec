//! [`BitmapError`]: why an action on a bitmap was refused. The texts are the ones
//! that `qemu-img bitmap` prints.

/// An action on a bitmap that can't be done. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// The image has a bitmap of this name.
    #[error("Bitmap already exists: {name}")]
    Exists {
        /// The bitmap's name.
        name: String,
    },
    /// The image has no bitmap of this name.
    #[error("Dirty bitmap '{name}' not found")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// It was in use when its writer ended, or its image was written by a program
    /// that doesn't keep bitmaps: its bits can't be relied on.
    #[error("Bitmap '{name}' is inconsistent and cannot be used")]
    Inconsistent {
        /// The bitmap's name.
        name: String,
    },
    /// It is valid by the spec, or nearly, and must not be used by this crate.
    #[error("Bitmap '{name}' cannot be used: {reason}")]
    Unusable {
        /// The bitmap's name.
        name: String,
        /// What stands in the way.
        reason: String,
    },
    /// Not a granularity that a stored bitmap can have.
    #[error("Granularity must be power of 2 and at least 512")]
    Granularity,
    /// A bitmap needs a name.
    #[error("Bitmap name cannot be empty")]
    EmptyName,
    /// More than 1023 bytes.
    #[error("Name length exceeds maximum (1023 characters)")]
    NameTooLong,
    /// Version 2 of the format has no header extensions for bitmaps.
    #[error("Cannot store dirty bitmaps in qcow2 v2 files")]
    Version2,
    /// It would take more than [`MAX_BITMAP_BYTES`](super::MAX_BITMAP_BYTES).
    #[error("Too much space will be occupied by the bitmap. Use larger granularity")]
    TooLarge,
    /// The directory has 65535 entries.
    #[error("Maximum number of persistent bitmaps is already reached")]
    TooMany,
    /// The directory would be longer than 64 MiB less 1 KiB.
    #[error("Not enough space in the bitmap directory")]
    DirectoryFull,
    /// A disk without bytes has nothing to record.
    #[error("Cannot store dirty bitmaps for a disk of size 0")]
    EmptyDisk,
    /// Only bitmaps over disks of one size can be merged.
    #[error(
        "Bitmaps are of different sizes (destination size is {target}, source size is {origin}) \
         and can't be merged"
    )]
    DifferentSizes {
        /// Bytes of the disk of the bitmap that is merged into.
        target: u64,
        /// Bytes of the disk of the other.
        origin: u64,
    },
}

impl BitmapError {
    /// Whether it is about storing the bitmap in this image, rather than about the
    /// bitmap: `qemu-img` words these as "Can't make bitmap 'b' persistent in …".
    #[must_use]
    pub fn is_about_storing(&self) -> bool {
        matches!(
            self,
            Self::NameTooLong
                | Self::Version2
                | Self::TooLarge
                | Self::TooMany
                | Self::DirectoryFull
                | Self::EmptyDisk
        )
    }
}
