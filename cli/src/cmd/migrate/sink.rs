//! Where a stream goes: standard output, a file that appears when it is whole, or a pipe
//! or device.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, IsTerminal, Read, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::error::{Failure, os_text};

/// What every stream begins with.
const MAGIC: &[u8; 4] = b"QEVM";

/// Permissions of a new file, before the umask.
const NEW_FILE: u32 = 0o666;

/// An open output.
#[derive(Debug)]
pub(super) struct Sink {
    to: To,
    bytes: u64,
}

#[derive(Debug)]
enum To {
    /// Standard output, past the buffer that the process shares.
    Standard(File),
    /// Renamed to the path when it is whole.
    File(NamedTempFile, PathBuf),
    /// A pipe or device, written to as it is.
    Direct(File, OsString),
}

impl Sink {
    /// Opens FILE, or standard output. None of `sources` can be written to.
    ///
    /// # Errors
    /// It can't be opened; it is a terminal; it is a file that holds something else than a
    /// stream.
    pub(super) fn open(
        name: Option<&OsStr>,
        sources: impl Iterator<Item = impl AsRef<Path>>,
    ) -> Result<Self, Failure> {
        let to = match name {
            None => standard_output()?,
            Some(name) => named(name, sources)?,
        };
        Ok(Self { to, bytes: 0 })
    }

    /// Whether this is standard output.
    pub(super) const fn is_standard_output(&self) -> bool {
        matches!(self.to, To::Standard(_))
    }

    /// Puts what was written on stable storage and the file in its place; says how many
    /// bytes that are.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn finish(self) -> Result<u64, Failure> {
        match self.to {
            To::Standard(file) => sync(&file).map_err(Failure::Output)?,
            To::Direct(file, name) => sync(&file).map_err(|e| failed(&name, &e))?,
            To::File(file, path) => {
                let failed = |e: io::Error| failed(path.as_os_str(), &e);
                file.as_file().sync_all().map_err(failed)?;
                file.persist(&path).map_err(|e| failed(e.error))?;
                sync(&File::open(folder(&path)).map_err(failed)?).map_err(failed)?;
            }
        }
        Ok(self.bytes)
    }

    /// The message for an error of writing.
    pub(super) fn failure(name: Option<&OsStr>, error: io::Error) -> Failure {
        match name {
            None => Failure::Output(error),
            Some(name) => failed(name, &error),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.to {
            To::Standard(file) | To::Direct(file, _) => file.write(bytes)?,
            To::File(file, _) => file.write(bytes)?,
        };
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed(name: &OsStr, error: &io::Error) -> Failure {
    let (name, reason) = (name.to_string_lossy(), os_text(error));
    // That a temporary file can't be made is told with its name, which says nothing.
    let end = reason.find(" (os error ").unwrap_or(reason.len());
    let reason = reason.get(..end).unwrap_or(&reason);
    Failure::Message(format!("Could not write to '{name}': {reason}"))
}

fn standard_output() -> Result<To, Failure> {
    let out = io::stdout();
    if out.is_terminal() {
        return Err(
            "the stream would go to a terminal: send it into a pipe, or use -o FILE".into(),
        );
    }
    Ok(To::Standard(File::from(out.as_fd().try_clone_to_owned()?)))
}

fn named(name: &OsStr, sources: impl Iterator<Item = impl AsRef<Path>>) -> Result<To, Failure> {
    let failed = |e: io::Error| failed(name, &e);
    let shown = name.to_string_lossy();
    let present = match fs::metadata(name) {
        Ok(present) => present,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return temporary(Path::new(name), None),
        Err(e) => return Err(failed(e)),
    };
    let identity = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    for source in sources {
        if fs::metadata(source).is_ok_and(|source| identity(&source) == identity(&present)) {
            return Err(format!("'{shown}' is an image that the bitmaps come from").into());
        }
    }
    if !present.is_file() {
        let file = OpenOptions::new().write(true).open(name).map_err(failed)?;
        if file.is_terminal() {
            return Err(format!("'{shown}' is a terminal").into());
        }
        return Ok(To::Direct(file, name.to_owned()));
    }
    // Who mixes up the names loses no disk.
    if present.len() > 0 {
        let mut start = [0; MAGIC.len()];
        let read = File::open(name).and_then(|mut file| file.read_exact(&mut start));
        if read.is_err() || start != *MAGIC {
            return Err(
                format!("'{shown}' exists and is no migration stream: it is not replaced").into(),
            );
        }
    }
    // The name may be a link: what it leads to is replaced.
    let path = fs::canonicalize(name).map_err(failed)?;
    temporary(&path, Some(present.permissions()))
}

/// A file beside `path` that takes its place in the end.
fn temporary(path: &Path, permissions: Option<Permissions>) -> Result<To, Failure> {
    let failed = |e: io::Error| failed(path.as_os_str(), &e);
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    let file = tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(Permissions::from_mode(NEW_FILE))
        .tempfile_in(folder(path))
        .map_err(failed)?;
    if let Some(permissions) = permissions {
        file.as_file()
            .set_permissions(permissions)
            .map_err(failed)?;
    }
    Ok(To::File(file, path.to_owned()))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Syncs what can be synced: a pipe can't.
fn sync(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}
