//! New raw images: a file of the disk's length.

use std::path::Path;

use super::{
    Created, Preallocation, Target,
    options::{Backing, SECTOR},
    write::{empty, reserve},
};
use crate::{Error, Result, io::Storage};

/// What a new raw image is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawOptions {
    /// Bytes of the disk, rounded up to a multiple of 512.
    pub size: Option<u64>,
    /// Whether space is reserved, or written; `Metadata` doesn't exist here.
    pub preallocation: Preallocation,
    /// Ask the file system not to copy on write.
    pub nocow: bool,
    /// A raw file has no place for one: refused.
    pub backing: Option<Backing>,
}

/// Makes a raw image at `path`, over whatever is there; with `exclusive` nothing may
/// be there. A device must be large enough. Its first sector becomes zeros, so that it isn't
/// taken for the image that was there; the rest stays as it is.
///
/// # Errors
/// As [`create`](super::create).
pub fn create_raw(
    path: impl AsRef<Path>,
    options: &RawOptions,
    exclusive: bool,
) -> Result<Created> {
    let size = check(options)?;
    let target = Target::open(path.as_ref(), exclusive)?;
    let result = fill(&target, size, options);
    if result.is_err() {
        target.discard();
    }
    result.map(|()| Created {
        virtual_size: size,
        locking: target.storage.locking(),
        data_file: None,
    })
}

fn check(options: &RawOptions) -> Result<u64> {
    if options.backing.is_some() {
        let message = "Backing file not supported for file format 'raw'";
        return Err(Error::Refused(message.into()));
    }
    let Some(size) = options.size else {
        return Err(Error::Refused(
            "Image creation needs a size parameter".into(),
        ));
    };
    size.checked_next_multiple_of(SECTOR)
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or_else(|| Error::Refused("Could not resize file: Invalid argument".into()))
}

impl RawOptions {
    /// Whether `size` bytes can be preallocated in `storage` as asked for. A device has the
    /// space that it has, which must be enough.
    ///
    /// # Errors
    /// [`Error::Refused`] in qemu-img's words; I/O errors.
    pub fn check_target(&self, storage: &dyn Storage, size: u64) -> Result<()> {
        let refused = |text: String| Err(Error::Refused(text));
        let mode = self.preallocation;
        if storage.can_grow() {
            return match mode {
                Preallocation::Metadata => {
                    refused(format!("Unsupported preallocation mode: {}", mode.name()))
                }
                _ => Ok(()),
            };
        }
        if mode != Preallocation::Off {
            return refused(format!("Unsupported preallocation mode '{}'", mode.name()));
        }
        let there = storage
            .size()
            .map_err(Error::io("asking for the target's size"))?;
        match there < size {
            true => refused("Cannot grow device files".into()),
            false => Ok(()),
        }
    }
}

fn fill(target: &Target, size: u64, options: &RawOptions) -> Result<()> {
    let storage = &target.storage;
    options.check_target(storage, size)?;
    let resizing = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::FileTooLarge => {
            Error::Refused("The image size is too large for file format 'raw'".into())
        }
        _ => Error::io("setting the target's length")(e),
    };
    if storage.can_grow() {
        // An impossible size must not cost the bytes that are there.
        if storage.size().map_err(resizing)? < size {
            storage.set_len(size).map_err(resizing)?;
        }
        storage.set_len(0).map_err(resizing)?;
        if options.nocow {
            // As for qcow2: where it isn't known it isn't missed.
            storage.set_no_copy_on_write().ok();
        }
        storage.set_len(size).map_err(resizing)?;
        reserve(storage, options.preallocation, 0..size)?;
    } else {
        empty(storage)?;
    }
    storage.sync().map_err(Error::io("syncing the target"))?;
    storage.sync_directory()
}
