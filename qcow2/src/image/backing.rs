//! Backing chains: which files are opened because an image names them, and how.
//!
//! The names are in the images, and so in the hand of whoever made those. By default
//! none is followed; where one is, it is a plain file name, the chain has an end, and
//! no file is in it twice.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{DataFilePolicy, Image, OpenOptions, guest::Backing, relative_to};
use crate::{
    Error, Result,
    disk::{Disk, RawDisk},
    format::{ImageFormat, probe::PROBE_LEN},
    io::{Access, FileStorage, LockMode, Storage},
};

/// The most files of a chain, the first image included.
pub const MAX_CHAIN: usize = 200;

/// What may be done about a backing file, whose name is in the image's header and so in
/// the hand of whoever made the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackingPolicy {
    /// It isn't opened, and what would be read from it can't be read; the default. All
    /// that needs no guest data works.
    #[default]
    Deny,
    /// It isn't opened, and what would be read from it is zeros: the image by itself.
    Ignore,
    /// The file that the header names is opened, and the one behind it, …, if it is a
    /// plain name: no protocol, no `json:`. A relative one counts from the directory of
    /// the image that names it, or from the working directory with `file:` in front, as
    /// for QEMU. The format is the one that the header states; where it
    /// states none, qcow2 is told from raw by the first bytes.
    Follow,
}

/// The files of the chain so far, by device and inode.
#[derive(Debug, Default)]
pub(super) struct Chain {
    files: HashSet<(u64, u64)>,
}

impl Chain {
    /// Takes a file into the chain.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is in it already, or the chain is long enough.
    fn push(&mut self, file: &FileStorage) -> Result<()> {
        let identity = file.identity();
        let identity = identity.map_err(Error::io("reading the file's status"))?;
        if !self.files.insert(identity) {
            let name = file.path().display();
            let text = format!("Backing file '{name}' creates an infinite loop.");
            return Err(Error::Refused(text));
        }
        if self.files.len() > MAX_CHAIN {
            let text = format!("The backing chain is longer than {MAX_CHAIN} images");
            return Err(Error::Refused(text));
        }
        Ok(())
    }
}

impl OpenOptions {
    /// As [`open_file`](Self::open_file), for an image of which `chain` is in front.
    pub(super) fn open_in_chain(&self, file: FileStorage, chain: &mut Chain) -> Result<Image> {
        let path = file.path().to_owned();
        let follow = self.backing == BackingPolicy::Follow;
        if follow {
            chain.push(&file)?;
        }
        // Without locks the holder of a bitmap in use is told from a crash by his lock.
        let unlocked = self.lock_mode() == LockMode::None;
        let has_writer = unlocked && file.writer_present().unwrap_or(false);
        if self.writable && !matches!(file.lock_mode(), LockMode::ReadWrite | LockMode::Create) {
            let text = "an image is not written without a writer's locks";
            return Err(Error::Refused(text.into()));
        }
        let mut image = self.open_storage(&path.to_string_lossy(), Arc::new(file))?;
        image.has_writer = has_writer;
        image.data_file = self.open_data_file(&image)?;
        if follow && let Some(name) = image.backing_name() {
            let disk = self.open_backing(&path, name, &image, chain);
            let disk = disk.map_err(|source| Error::Backing {
                path: backing_path(&path, name).unwrap_or_else(|_| OsStr::from_bytes(name).into()),
                source: Box::new(source),
            })?;
            image.guest.backing = Backing::Open(disk);
        }
        Ok(image)
    }

    /// Opens the file that the image at `path` calls `name`.
    fn open_backing(
        &self,
        path: &Path,
        name: &[u8],
        image: &Image,
        chain: &mut Chain,
    ) -> Result<Arc<dyn Disk>> {
        let path = backing_path(path, name)?;
        let lock = match self.lock_mode() {
            LockMode::None => LockMode::None,
            _ => LockMode::Read,
        };
        let file = self.open_allowed(&path, Access::ReadOnly, lock)?;
        let stated = image.header_area().extensions().backing_format();
        let format = match stated {
            None | Some([]) => probe(&file)?,
            Some(b"qcow2") => ImageFormat::Qcow2,
            // The names of QEMU's drivers below a format.
            Some(b"raw" | b"file" | b"host_device") => ImageFormat::Raw,
            Some(other) => {
                let other = other.escape_ascii();
                return Err(Error::Unsupported(format!(
                    "backing files in the format '{other}' are not supported"
                )));
            }
        };
        match format {
            ImageFormat::Raw => {
                chain.push(&file)?;
                Ok(Arc::new(RawDisk::new(
                    &path.to_string_lossy(),
                    Arc::new(file),
                )?))
            }
            ImageFormat::Qcow2 => {
                let options = Self {
                    writable: false,
                    lock: Some(lock),
                    // A name that the user gave was for the first image.
                    data_file: match self.data_file {
                        DataFilePolicy::Leave => DataFilePolicy::Leave,
                        _ => DataFilePolicy::Follow,
                    },
                    metadata_only: false,
                    secrets: self.secrets.behind(),
                    ..self.clone()
                };
                Ok(Arc::new(options.open_in_chain(file, chain)?))
            }
            ImageFormat::Other(name) => Err(Error::Unsupported(format!(
                "the backing file is in {name} format, which is not supported"
            ))),
        }
    }

    /// Opens a file that an image names if it is where it may be.
    ///
    /// # Errors
    /// [`Error::Refused`] if it isn't below one of the directories allowed.
    pub(super) fn open_allowed(
        &self,
        path: &Path,
        access: Access,
        lock: LockMode,
    ) -> Result<FileStorage> {
        let file = FileStorage::open(path, access, lock)?;
        if !self.allowed.is_empty() && !self.allowed.iter().any(|dir| leads_into(dir, path, &file))
        {
            let path = path.display();
            return Err(Error::Refused(format!(
                "'{path}' is in none of the directories that files may be opened in"
            )));
        }
        Ok(file)
    }
}

/// The file that the image at `path` calls `name`.
fn backing_path(path: &Path, name: &[u8]) -> Result<PathBuf> {
    match name.strip_prefix(b"file:") {
        Some(name) => Ok(OsStr::from_bytes(name).into()),
        None => relative_to(path, name),
    }
}

/// Whether `path`, under which `file` was opened, leads to a place below `dir`.
fn leads_into(dir: &Path, path: &Path, file: &FileStorage) -> bool {
    let place = || -> std::io::Result<PathBuf> {
        let place = path.canonicalize()?;
        let there = fs::metadata(&place)?;
        // The name may lead elsewhere by now.
        match file.identity()? == (there.dev(), there.ino()) {
            true => Ok(place),
            false => Err(std::io::ErrorKind::NotFound.into()),
        }
    };
    match (dir.canonicalize(), place()) {
        (Ok(dir), Ok(place)) => place.starts_with(dir),
        _ => false,
    }
}

fn probe(file: &FileStorage) -> Result<ImageFormat> {
    let mut head = [0; PROBE_LEN];
    file.read_padded(0, &mut head)
        .map_err(Error::io("reading the first bytes of the backing file"))?;
    Ok(ImageFormat::probe(&head))
}

impl Image {
    /// The name of the backing file in the header: bytes of the image, to be escaped
    /// before printing. `None` if there is none.
    #[must_use]
    pub fn backing_name(&self) -> Option<&[u8]> {
        let name = self.header().backing_file.as_deref();
        name.filter(|name| !name.is_empty())
    }

    /// This image with `disk` behind it, whatever its header says.
    #[must_use]
    pub fn with_backing(mut self, disk: Arc<dyn Disk>) -> Self {
        self.guest.backing = Backing::Open(disk);
        self
    }

    /// This image with its guest data in `storage`, for one with an external data file.
    #[must_use]
    pub fn with_data_file(mut self, storage: Arc<dyn Storage>) -> Self {
        self.data_file = Some(storage);
        self
    }
}

#[cfg(test)]
mod tests;
