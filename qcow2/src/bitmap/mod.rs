//! Dirty bitmaps stored in an image: list, load, edit.
//!
//! ```text
//! header extension ─► directory ─► table of a bitmap ─► clusters of bits
//!                     (entries:     (offset, or          (linear form,
//!                      name, flags)  all 0, or all 1)     lowest bit first)
//! ```
//!
//! [`Bitmap`] is one of them as it is stored. [`BitmapEdit`] gathers actions and
//! commits them with one write of the header. Their bits stream through, cluster by
//! cluster; only [`Bitmap::load`] makes an [`HBitmap`].

mod commit;
mod content;
mod copy;
mod directory;
mod edit;
mod error;
mod slot;
mod stored;
mod writer;

use hbitmap::HBitmap;

pub use copy::{CopiedBitmap, CopyRequest, all_bitmaps, copy_bitmaps};
pub use directory::Bitmaps;
pub use edit::{BitmapEdit, MAX_GRANULARITY, MIN_GRANULARITY};
pub use error::BitmapError;
pub use stored::MAX_BITMAP_BYTES;

use crate::{
    Image, Result,
    addr::HostOffset,
    bitmap::stored::StoredBits,
    format::{BitmapDirectoryEntry, BitmapFlags},
};

/// What can be said of a stored bitmap without looking at its bits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BitmapState {
    /// Valid, and every write to the disk is to be recorded in it (flag `auto`).
    Recording,
    /// Valid as of when it was disabled.
    Disabled,
    /// Its writer ended without storing it (flag `in_use`), or a program that keeps
    /// no bitmaps wrote to the image: the bits can't be relied on.
    Inconsistent,
    /// In use by a program that has the image open for writing now.
    Live,
    /// It breaks the spec, or has features that forbid its use; the text says which.
    Corrupt(String),
}

impl BitmapState {
    /// One word: `recording`, `disabled`, `inconsistent`, `live` or `corrupt`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Recording => "recording",
            Self::Disabled => "disabled",
            Self::Inconsistent => "inconsistent",
            Self::Live => "live",
            Self::Corrupt(_) => "corrupt",
        }
    }

    /// Whether the bits can be relied on.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        matches!(self, Self::Recording | Self::Disabled)
    }
}

/// One bitmap of an image.
#[derive(Clone, Copy, Debug)]
pub struct Bitmap<'a> {
    image: &'a Image,
    entry: &'a BitmapDirectoryEntry,
    /// Where the entry stands.
    offset: HostOffset,
    /// The autoclear bit is off: nothing about the bitmaps holds any more.
    voided: bool,
    /// Its table lies on that of another bitmap.
    overlaps: bool,
}

impl<'a> Bitmap<'a> {
    /// The name, 1 to 1023 bytes, usually UTF-8.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        &self.entry.name
    }

    /// The name for people; what isn't UTF-8 is replaced.
    #[must_use]
    pub fn name_lossy(&self) -> String {
        edit::lossy(&self.entry.name)
    }

    /// The directory entry.
    #[must_use]
    pub fn entry(&self) -> &'a BitmapDirectoryEntry {
        self.entry
    }

    /// Where its directory entry stands in the image file.
    pub(crate) fn offset(&self) -> HostOffset {
        self.offset
    }

    /// Bytes of disk that a bit stands for; `None` if the exponent is past 63.
    #[must_use]
    pub fn granularity(&self) -> Option<u64> {
        1_u64.checked_shl(u32::from(self.entry.granularity_bits))
    }

    /// What can be said of it without its bits. A table that turns out broken is
    /// found by [`load`](Self::load) only.
    #[must_use]
    pub fn state(&self) -> BitmapState {
        if self.entry.flags.contains(BitmapFlags::IN_USE) {
            return if self.image.has_writer() {
                BitmapState::Live
            } else {
                BitmapState::Inconsistent
            };
        }
        if self.voided {
            return BitmapState::Inconsistent;
        }
        if self.overlaps {
            return BitmapState::Corrupt("its table lies on another bitmap's".into());
        }
        if let Err(e) = self.check_entry() {
            return BitmapState::Corrupt(e.to_string());
        }
        if self.entry.flags.contains(BitmapFlags::AUTO) {
            BitmapState::Recording
        } else {
            BitmapState::Disabled
        }
    }

    /// What spec and limits say of the directory entry.
    fn check_entry(&self) -> Result<()> {
        let (geometry, size) = (self.image.geometry(), self.image.virtual_size());
        self.entry.check(geometry, size, self.offset)
    }

    /// # Errors
    /// [`BitmapError::Inconsistent`] or [`BitmapError::Unusable`] if the bits must
    /// not be used.
    pub fn require_usable(&self) -> Result<()> {
        let name = self.name_lossy();
        match self.state() {
            BitmapState::Recording | BitmapState::Disabled => Ok(()),
            BitmapState::Inconsistent | BitmapState::Live => {
                Err(BitmapError::Inconsistent { name }.into())
            }
            BitmapState::Corrupt(reason) => Err(BitmapError::Unusable { name, reason }.into()),
        }
    }

    /// The stored bits, after a check of the state and the table.
    pub(crate) fn open_bits(&self) -> Result<StoredBits> {
        self.require_usable()?;
        edit::open_bits(self.image, self.entry)
    }

    /// Reads the bits.
    ///
    /// # Errors
    /// As [`require_usable`](Self::require_usable); [`Error::Corrupt`] for a broken
    /// table; I/O errors.
    ///
    /// [`Error::Corrupt`]: crate::Error::Corrupt
    pub fn load(&self) -> Result<HBitmap> {
        self.open_bits()?.load()
    }
}
