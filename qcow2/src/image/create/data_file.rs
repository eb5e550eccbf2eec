//! The external data file of a new image.

use std::path::Path;

use super::{
    layout::Layout,
    options::{Checked, Preallocation},
    write::reserve,
};
use crate::{
    Error, Result,
    io::{FileStorage, Storage},
};

/// What became of the external data file.
///
/// One that holds no data is as good as none: its length becomes the disk's. One
/// that holds data is never emptied:
///
/// - with `data_file_raw` its bytes are the new disk's (so that a raw disk gets dirty
///   bitmaps); if it is longer than the disk the image is refused, for half of it
///   would be out of reach;
/// - otherwise its bytes stay where they are, unreachable, as nothing of the disk is
///   mapped; with `preallocation=metadata` everything would be, and a new disk shows
///   old data: refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFile {
    /// There was none, or it held no data.
    Made,
    /// It held data, and does still.
    Kept,
}

/// A data file that is ready, and locked.
pub(super) struct Prepared {
    pub(super) storage: FileStorage,
    pub(super) outcome: DataFile,
    is_new: bool,
}

impl Prepared {
    /// Removes it if it was made here; called after a failure, to which one of this
    /// adds nothing.
    pub(super) fn discard(&self) {
        if self.is_new {
            self.storage.remove().ok();
        }
    }
}

/// Opens or makes the data file at `path` and gives it its length, on stable storage.
///
/// # Errors
/// As [`create`](super::create), and [`Error::Refused`] as [`DataFile`] says.
pub(super) fn prepare(
    image: &FileStorage,
    path: &Path,
    checked: &Checked<'_>,
    layout: &Layout,
) -> Result<Prepared> {
    let same = path.metadata().is_ok_and(|m| {
        use std::os::unix::fs::MetadataExt;
        image
            .identity()
            .is_ok_and(|image| image == (m.dev(), m.ino()))
    });
    if same {
        let message = format!("'{}' can't be its own data file", path.display());
        return Err(Error::Refused(message));
    }
    let (storage, is_new) = FileStorage::create(path, false)?;
    let mut prepared = Prepared {
        storage,
        outcome: DataFile::Made,
        is_new,
    };
    let result = prepared.settle(checked, layout);
    if result.is_err() {
        prepared.discard();
    }
    result.map(|()| prepared)
}

impl Prepared {
    fn settle(&mut self, checked: &Checked<'_>, layout: &Layout) -> Result<()> {
        let storage = &self.storage;
        let holds_data = storage
            .holds_data()
            .map_err(Error::io("looking for data in the data file"))?;
        if !holds_data {
            if checked.options.nocow {
                storage.set_no_copy_on_write().ok();
            }
            if storage.can_grow() {
                storage.set_len(layout.data_file_bytes).map_err(resizing)?;
            }
        } else {
            self.outcome = DataFile::Kept;
            let size = storage
                .size()
                .map_err(Error::io("asking for the data file's size"))?;
            let name = storage.path().display();
            if checked.options.data_file_raw {
                if size > layout.data_file_bytes && storage.can_grow() {
                    return Err(Error::Refused(format!(
                        "Data file '{name}' holds {size} bytes, more than the disk's {}",
                        checked.size
                    )));
                }
            } else if checked.preallocate {
                return Err(Error::Refused(format!(
                    "Data file '{name}' holds data, which preallocation would make the new disk's"
                )));
            }
        }
        grow(storage, layout)?;
        let mode = match (checked.options.preallocation, self.outcome) {
            // Its bytes are the disk's.
            (Preallocation::Full, DataFile::Kept) => Preallocation::Falloc,
            (mode, _) => mode,
        };
        reserve(storage, mode, 0..layout.data_file_bytes)?;
        storage.sync().map_err(Error::io("syncing the data file"))
    }
}

/// Makes the data file as long as it must be.
pub(super) fn grow(storage: &dyn Storage, layout: &Layout) -> Result<()> {
    let size = storage
        .size()
        .map_err(Error::io("asking for the data file's size"))?;
    if size >= layout.data_file_bytes {
        return Ok(());
    }
    if !storage.can_grow() {
        return Err(Error::Refused(
            "Could not resize image: Cannot grow device files".into(),
        ));
    }
    storage.set_len(layout.data_file_bytes).map_err(resizing)
}

fn resizing(source: std::io::Error) -> Error {
    Error::io("setting the data file's length")(source)
}
