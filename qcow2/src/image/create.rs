//! Makes new images: [`create`] for qcow2, [`create_raw`] for raw files.
//!
//! ```text
//! options ──► Checked (options.rs: what may be combined) ──► Layout (layout.rs: what
//!   goes where) ──► write (write.rs: tables, sync, header, sync)
//! ```
//!
//! The new image becomes valid last. An old image in the same file is made invalid
//! first; then everything is written but the first sector, with the magic number;
//! then, when all that is on stable storage, the first sector. Whatever interrupts
//! this leaves a file that is no image.
//!
//! Without preallocation the bytes are those that qemu-img 10.0.2 writes, as long as
//! one refcount block counts them all. The differences:
//!
//! - Where one doesn't (an L1 table of thousands of clusters: tiny clusters under a
//!   huge disk), qemu-img grows its refcount table step by step and leaves gaps. Here
//!   the tables are computed and stand one behind the other: header, refcount table,
//!   refcount blocks, L1 table.
//! - With `preallocation=metadata` the L2 tables follow the L1 table and the data
//!   clusters follow them; qemu-img has each table before its data. The file is as
//!   long, unless qemu-img's growing left gaps.
//! - Wrong options are found before a file is touched; qemu-img has emptied it by then.
//! - An external data file that is there keeps its bytes (see [`DataFile`]); qemu-img
//!   empties it.
//!
//! A relative name of a data file counts from the working directory, when the image is
//! made and whenever QEMU opens it; that of a backing file from the image's directory.

mod data_file;
mod layout;
mod options;
mod raw;
#[cfg(test)]
mod tests;
mod write;

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

pub use data_file::DataFile;
pub use options::{Backing, CreateOptions, Preallocation, Version};
pub use raw::{RawOptions, create_raw};

use crate::{
    Error, Result,
    io::{FileStorage, Locking, Storage},
};
pub(crate) use layout::Layout;
pub(in crate::image) use layout::TablePlaces;
pub(crate) use options::Checked;
pub(in crate::image) use write::check_room;
pub use write::empty;

/// What [`create`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Bytes of the guest's disk: the size asked for, rounded up to 512.
    pub virtual_size: u64,
    /// Whether the target was locked meanwhile.
    pub locking: Locking,
    /// What became of the external data file, if there is one.
    pub data_file: Option<DataFile>,
}

/// Makes a qcow2 image at `path`, over whatever is there; with `exclusive` nothing
/// may be there. Returns when it is on stable storage.
///
/// The caller has looked at the backing file: that it can be opened, and its size.
///
/// # Errors
/// [`Error::Refused`] and [`Error::Unsupported`] for options that don't go together,
/// in qemu-img's words, before anything is touched; [`Error::Open`];
/// [`Error::Locked`] for a target in use; [`Error::Io`]. A file that was made is
/// removed then; one that was there is left empty once it has been changed.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions, exclusive: bool) -> Result<Created> {
    let path = path.as_ref();
    let checked = options.check()?;
    let layout = Layout::new(&checked)?;
    refuse_own_backing(path, options)?;
    let target = Target::open(path, exclusive)?;
    let result = target.fill(&checked, &layout);
    if result.is_err() {
        target.discard();
    }
    result
}

/// Writes a qcow2 image into `storage`, over whatever is there. `data_file` is the
/// external data file, if the options name one; it must hold what the guest's disk is
/// to hold, and only its length is changed here, upwards.
///
/// # Errors
/// As [`create`]. The storage holds no image then.
pub fn create_in(
    storage: &dyn Storage,
    data_file: Option<&dyn Storage>,
    options: &CreateOptions,
) -> Result<u64> {
    let checked = options.check()?;
    if options.data_file.is_some() != data_file.is_some() {
        return Err(Error::Refused(
            "The options and the storage differ over a data file".into(),
        ));
    }
    let layout = Layout::new(&checked)?;
    if let Some(data_file) = data_file {
        data_file::grow(data_file, &layout)?;
        data_file
            .sync()
            .map_err(Error::io("syncing the data file"))?;
    }
    write::write(storage, &checked, &layout)?;
    Ok(checked.size)
}

/// A file about to become an image.
struct Target {
    storage: FileStorage,
    is_new: bool,
}

impl Target {
    fn open(path: &Path, exclusive: bool) -> Result<Self> {
        let (storage, is_new) = FileStorage::create(path, exclusive)?;
        Ok(Self { storage, is_new })
    }

    fn fill(&self, checked: &Checked<'_>, layout: &Layout) -> Result<Created> {
        let data_file = checked
            .options
            .data_file
            .as_deref()
            .map(|name| data_file::prepare(&self.storage, as_path(name), checked, layout))
            .transpose()?;
        let filled = self.fill_image(checked, layout);
        match (&filled, &data_file) {
            (Err(_), Some(prepared)) => prepared.discard(),
            (Ok(()), Some(prepared)) => prepared.storage.sync_directory()?,
            _ => {}
        }
        filled?;
        Ok(Created {
            virtual_size: checked.size,
            locking: self.storage.locking(),
            data_file: data_file.map(|prepared| prepared.outcome),
        })
    }

    fn fill_image(&self, checked: &Checked<'_>, layout: &Layout) -> Result<()> {
        if checked.options.nocow {
            // A request that most file systems don't know, and do well without.
            self.storage.set_no_copy_on_write().ok();
        }
        write::write(&self.storage, checked, layout)?;
        self.storage.sync_directory()
    }

    /// After a failure: no file if there was none, otherwise none that looks like an
    /// image; the failure has been reported, one of this adds nothing.
    fn discard(&self) {
        if self.is_new {
            self.storage.remove().ok();
        }
    }
}

fn as_path(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

/// Where the image will look for its backing file.
fn beside(image: &Path, name: &[u8]) -> PathBuf {
    let name = as_path(name);
    image
        .parent()
        .map_or_else(|| name.to_owned(), |directory| directory.join(name))
}

/// An image over itself would have destroyed its backing file.
fn refuse_own_backing(path: &Path, options: &CreateOptions) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let Some(backing) = &options.backing else {
        return Ok(());
    };
    let same = path.as_os_str().as_bytes() == backing.file
        || matches!(
            (path.metadata(), beside(path, &backing.file).metadata()),
            (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino())
        );
    if same {
        let message = "Error: Trying to create an image with the same filename as the backing file";
        return Err(Error::Refused(message.into()));
    }
    Ok(())
}
