//! [`NewFile`]: a file that gets its name when it is complete.

use std::{
    fs::{self, File, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::{FileStorage, LockMode};
use crate::{Error, Result};

/// A file to be written anew. It has no name until [`publish`](Self::publish): whatever
/// interrupts the writing, a file of that name is as it was, or absent.
///
/// Where that can't be, the file of that name is written in place: a device, one that has
/// several names or an owner that a new file couldn't have, or in a directory where none
/// can be made.
#[derive(Debug)]
pub struct NewFile {
    storage: Arc<FileStorage>,
    /// The name that it is to have.
    path: PathBuf,
    way: Way,
    /// The file that it replaces, locked meanwhile.
    replaced: Option<FileStorage>,
}

/// How the file gets its name.
#[derive(Debug)]
enum Way {
    /// It has it.
    InPlace,
    /// It has none.
    Unnamed,
    /// It has another one.
    Renamed(PathBuf),
}

impl NewFile {
    /// Makes the file that is to be called `path`. A file of that name is locked as one
    /// that is written.
    ///
    /// # Errors
    /// As [`FileStorage::create`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let Ok(there) = path.symlink_metadata() else {
            if let Some((storage, way)) = make(path, None) {
                return Ok(Self::new(storage, path, way, None));
            }
            let (storage, _) = FileStorage::create(path, false)?;
            return Ok(Self::new(storage, path, Way::InPlace, None));
        };
        let (storage, _) = FileStorage::create(path, false)?;
        // A link stays one: the file that it leads to is replaced.
        let place = match there.is_symlink() {
            true => path.canonicalize().ok(),
            false => Some(path.to_owned()),
        };
        let metadata = fs::metadata(path).ok();
        if let (Some(place), Some(metadata)) = (place, metadata)
            && !storage.is_block_device()
            && metadata.nlink() == 1
            && let Some((new, way)) = make(&place, Some(&metadata))
        {
            return Ok(Self::new(new, &place, way, Some(storage)));
        }
        Ok(Self::new(storage, path, Way::InPlace, None))
    }

    fn new(storage: FileStorage, path: &Path, way: Way, replaced: Option<FileStorage>) -> Self {
        Self {
            storage: Arc::new(storage),
            path: path.to_owned(),
            way,
            replaced,
        }
    }

    /// The file's bytes.
    #[must_use]
    pub fn storage(&self) -> &Arc<FileStorage> {
        &self.storage
    }

    /// Whether it may hold something already: it is written in place.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        matches!(self.way, Way::InPlace)
    }

    /// Gives the file its name, in place of a file that has it. With `durable` that is on
    /// stable storage afterwards; the bytes are the caller's business.
    ///
    /// # Errors
    /// I/O errors.
    pub fn publish(mut self, durable: bool) -> Result<()> {
        let naming = |path: &Path| {
            let path = path.display();
            Error::io(format!("giving the new file its name '{path}'"))
        };
        match &self.way {
            Way::InPlace => {}
            Way::Unnamed => {
                let named = match self.replaced {
                    None => link(&self.storage, &self.path),
                    Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
                };
                match named {
                    Ok(()) => {}
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                        let other = other_name(&self.path);
                        link(&self.storage, &other).map_err(naming(&self.path))?;
                        let renamed = fs::rename(&other, &self.path);
                        renamed.map_err(|e| {
                            fs::remove_file(&other).ok();
                            naming(&self.path)(e)
                        })?;
                    }
                    Err(e) => return Err(naming(&self.path)(e)),
                }
            }
            Way::Renamed(other) => {
                fs::rename(other, &self.path).map_err(naming(&self.path))?;
            }
        }
        self.way = Way::InPlace;
        match durable {
            true => self.storage.sync_directory(),
            false => Ok(()),
        }
    }
}

impl Drop for NewFile {
    /// A file that isn't to get its name goes.
    fn drop(&mut self) {
        if let Way::Renamed(other) = &self.way {
            fs::remove_file(other).ok();
        }
    }
}

/// Makes a file that can be called `path` later; like the one of that name, `old`. `None`
/// if it can't be made.
fn make(path: &Path, old: Option<&fs::Metadata>) -> Option<(FileStorage, Way)> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    path.file_name()?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let unnamed = rustix::fs::openat(CWD, directory, flags, Mode::from_raw_mode(0o644));
    let (file, way) = match unnamed {
        Ok(file) if Path::new("/proc/self/fd").exists() => (File::from(file), Way::Unnamed),
        _ => {
            let other = other_name(path);
            let mut options = fs::OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o644);
            (options.open(&other).ok()?, Way::Renamed(other))
        }
    };
    let undo = |way: Way| {
        if let Way::Renamed(other) = way {
            fs::remove_file(other).ok();
        }
        None
    };
    if let Some(old) = old {
        let Ok(new) = file.metadata() else {
            return undo(way);
        };
        let same_owner = (new.uid(), new.gid()) == (old.uid(), old.gid());
        if !same_owner
            && std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid())).is_err()
        {
            return undo(way);
        }
        if file
            .set_permissions(Permissions::from_mode(old.mode() & 0o7777))
            .is_err()
        {
            return undo(way);
        }
    }
    match FileStorage::from_file(file, path, LockMode::Create) {
        Ok(storage) => Some((storage, way)),
        Err(_) => undo(way),
    }
}

/// A name beside `path` that nobody else uses.
fn other_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.new", std::process::id()));
    path.with_file_name(name)
}

fn link(storage: &FileStorage, path: &Path) -> io::Result<()> {
    let file = format!("/proc/self/fd/{}", storage.file().as_raw_fd());
    Ok(rustix::fs::linkat(
        CWD,
        file,
        CWD,
        path,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::io::Storage;

    #[test]
    fn the_name_comes_last_and_the_old_file_stays_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let names = || fs::read_dir(dir.path()).unwrap().count();
        let new = NewFile::create(&path).unwrap();
        new.storage().write_all_at(0, b"first").unwrap();
        assert_eq!(names(), 0);
        drop(new);
        assert_eq!(names(), 0);
        let new = NewFile::create(&path).unwrap();
        new.storage().write_all_at(0, b"first").unwrap();
        new.publish(true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let link = dir.path().join("link");
        symlink("image", &link).unwrap();
        let new = NewFile::create(&link).unwrap();
        assert!(!new.is_in_place());
        assert!(matches!(
            NewFile::create(&path),
            Ok(_) | Err(Error::Locked { .. })
        ));
        new.storage().write_all_at(0, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        new.publish(true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(), 2);
    }

    #[test]
    fn a_file_of_two_names_is_written_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("image"), dir.path().join("other"));
        fs::write(&path, b"old").unwrap();
        fs::hard_link(&path, &other).unwrap();
        let new = NewFile::create(&path).unwrap();
        assert!(new.is_in_place());
        new.storage().write_all_at(0, b"new").unwrap();
        new.publish(false).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"new");
    }

    #[test]
    fn what_cannot_be_made_is_said_as_for_any_target() {
        let dir = tempfile::tempdir().unwrap();
        let text = |path: &Path| NewFile::create(path).unwrap_err().to_string();
        assert!(text(&dir.path().join("no/where")).ends_with("No such file or directory"));
        assert!(text(dir.path()).ends_with("Is a directory"));
    }
}
