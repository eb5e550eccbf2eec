//! Opens what a user named as an image: regular files and block devices only.
//!
//! A name can lead to anything. Opening a FIFO waits for its other end, opening a
//! terminal or a tape does things to it, and a directory or a socket can't hold an
//! image. So the kind is looked at before the file is opened, and again afterwards,
//! because the name may lead elsewhere by then. The messages are qemu-img's.

use std::{
    fs::{File, FileType, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::{Error, Result};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing can be written.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// Opens an existing file.
///
/// # Errors
/// [`Error::Open`]: the system's refusal, or neither a regular file nor a block device.
pub(super) fn existing(path: &Path, access: Access) -> Result<File> {
    if path.as_os_str().is_empty() {
        return Err(Error::open(
            "The 'file' block driver requires a file name".into(),
            io::ErrorKind::InvalidInput,
        ));
    }
    let fail = |e: io::Error| could_not("open", path, &e);
    let kind = path.metadata().map_err(fail)?.file_type();
    refuse_odd_kind(kind, path, access)?;
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::ReadWrite);
    let (file, found) = open_without_waiting(&mut options, path).map_err(fail)?;
    refuse_odd_kind(found.file_type(), path, access)?;
    block_again(&file).map_err(fail)?;
    if access == Access::ReadWrite {
        refuse_read_only_device(&file, found.file_type())?;
    }
    Ok(file)
}

/// Opens a file to be written anew, and makes it if it isn't there; its content is
/// left alone. With `exclusive` it must not be there. Also says whether it was made.
///
/// # Errors
/// As [`existing`]; with `exclusive` also a file that is there, of whatever kind.
pub(super) fn target(path: &Path, exclusive: bool) -> Result<(File, bool)> {
    if !exclusive
        && path
            .metadata()
            .is_ok_and(|m| m.file_type().is_block_device())
    {
        return existing(path, Access::ReadWrite)
            .map(|device| (device, false))
            .map_err(not_made);
    }
    let fail = |e: io::Error| could_not("create", path, &e);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o644);
    let (file, found, is_new) = match open_without_waiting(&mut options, path) {
        Ok((file, found)) => (file, found, true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !exclusive => {
            if let Ok(there) = path.metadata() {
                refuse_odd_kind_of_target(there.file_type(), path)?;
            }
            // A symbolic link to nowhere has its file made.
            options.create_new(false).create(true);
            let (file, found) = open_without_waiting(&mut options, path).map_err(fail)?;
            (file, found, false)
        }
        Err(e) => return Err(fail(e)),
    };
    refuse_odd_kind_of_target(found.file_type(), path)?;
    block_again(&file).map_err(fail)?;
    Ok((file, is_new))
}

/// The system's words for an error, without the number that [`io::Error`] prints
/// behind them: `No such file or directory`.
#[must_use]
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(code) => text
            .strip_suffix(&format!(" (os error {code})"))
            .map_or(text.clone(), str::to_owned),
        None => text,
    }
}

fn could_not(verb: &str, path: &Path, error: &io::Error) -> Error {
    let message = format!("Could not {verb} '{}': {}", path.display(), reason(error));
    Error::open(message, error.kind())
}

fn open_without_waiting(options: &mut OpenOptions, path: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let file = options.custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

/// Takes back the flag that kept the opening from waiting.
fn block_again(file: &File) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    fcntl_setfl(file, flags - OFlags::NONBLOCK)?;
    Ok(())
}

/// A read-only device can be opened for writing; only the writes fail, and even one of
/// no bytes.
fn refuse_read_only_device(file: &File, kind: FileType) -> Result<()> {
    use std::os::unix::fs::FileExt;
    if !kind.is_block_device() {
        return Ok(());
    }
    match file.write_at(&[], 0) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let message = "The device is not writable: Permission denied";
            Err(Error::open(message.into(), e.kind()))
        }
        _ => Ok(()),
    }
}

/// Devices aren't made; one that is there could not be opened.
fn not_made(error: Error) -> Error {
    match error {
        Error::Open { message, kind } => Error::Open {
            message: format!(
                "Protocol driver 'host_device' does not support creating new images, so an \
                 existing image must be selected as the target; however, opening the given \
                 target as an existing image failed: {message}"
            ),
            kind,
        },
        other => other,
    }
}

fn is_image_kind(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

fn refuse_odd_kind(kind: FileType, path: &Path, access: Access) -> Result<()> {
    if is_image_kind(kind) {
        return Ok(());
    }
    if kind.is_socket() {
        return Err(could_not(
            "open",
            path,
            &io::Error::from(rustix::io::Errno::NXIO),
        ));
    }
    if kind.is_dir() && access == Access::ReadWrite {
        return Err(could_not(
            "open",
            path,
            &io::Error::from(rustix::io::Errno::ISDIR),
        ));
    }
    let message = format!(
        "'file' driver requires '{}' to be a regular file",
        path.display()
    );
    Err(Error::open(message, io::ErrorKind::InvalidInput))
}

fn refuse_odd_kind_of_target(kind: FileType, path: &Path) -> Result<()> {
    if is_image_kind(kind) {
        return Ok(());
    }
    let errno = if kind.is_dir() {
        rustix::io::Errno::ISDIR
    } else if kind.is_socket() {
        rustix::io::Errno::NXIO
    } else {
        rustix::io::Errno::INVAL
    };
    Err(could_not("create", path, &io::Error::from(errno)))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, path::PathBuf};

    use rustix::fs::{CWD, FileType as Node, Mode, mknodat};

    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn names_that_lead_nowhere_get_qemu_s_words() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("nowhere");
        let text = message(existing(&nowhere, Access::ReadOnly));
        assert_eq!(
            text,
            format!(
                "Could not open '{}': No such file or directory",
                nowhere.display()
            )
        );
        std::fs::write(dir.path().join("file"), b"").unwrap();
        let below = dir.path().join("file/x");
        assert!(message(existing(&below, Access::ReadOnly)).ends_with("Not a directory"));
        assert!(message(target(&below, false)).starts_with("Could not create '"));
        assert_eq!(
            message(existing(Path::new(""), Access::ReadOnly)),
            "The 'file' block driver requires a file name"
        );
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        let text = message(existing(&dir.path().join("loop"), Access::ReadWrite));
        assert!(
            text.ends_with("Too many levels of symbolic links"),
            "{text}"
        );
    }

    #[test]
    fn odd_files_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, Node::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let regular = |p: &Path| {
            format!(
                "'file' driver requires '{}' to be a regular file",
                p.display()
            )
        };
        assert_eq!(message(existing(&fifo, Access::ReadOnly)), regular(&fifo));
        assert_eq!(message(existing(&fifo, Access::ReadWrite)), regular(&fifo));
        assert!(message(target(&fifo, false)).ends_with("Invalid argument"));
        assert_eq!(
            message(existing(dir.path(), Access::ReadOnly)),
            regular(dir.path())
        );
        assert!(message(existing(dir.path(), Access::ReadWrite)).ends_with("Is a directory"));
        assert!(message(target(dir.path(), false)).ends_with("Is a directory"));
        for access in [Access::ReadOnly, Access::ReadWrite] {
            assert!(message(existing(&socket, access)).ends_with("No such device or address"));
        }
        let null = PathBuf::from("/dev/null");
        assert_eq!(message(existing(&null, Access::ReadOnly)), regular(&null));
    }

    #[test]
    fn an_exclusive_target_must_be_new_and_others_keep_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        assert!(target(&path, true).unwrap().1);
        std::fs::write(&path, b"bytes").unwrap();
        assert!(message(target(&path, true)).ends_with("File exists"));
        assert!(!target(&path, false).unwrap().1);
        assert_eq!(std::fs::read(&path).unwrap(), b"bytes");
        let (link, end) = (dir.path().join("link"), dir.path().join("end"));
        std::os::unix::fs::symlink(&end, &link).unwrap();
        assert!(target(&link, true).is_err() && !end.exists());
        assert!(!target(&link, false).unwrap().1 && end.exists());
    }

    #[test]
    fn an_open_file_waits_as_usual() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = target(&dir.path().join("image"), false).unwrap();
        assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::NONBLOCK));
    }
}
