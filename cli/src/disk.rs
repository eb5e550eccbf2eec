//! From an image as the command line names it to the guest's disk in it, with everything
//! that belongs to it: data file, backing files.

use std::{path::Path, sync::Arc};

use qcow2::{
    BackingPolicy, DataFilePolicy, Error, Image, OpenOptions,
    disk::{Disk, DiskMut, RawDisk},
    format::{Autoclear, ExtensionType, HeaderArea},
    image::{GuestWriter, SnapshotDisk},
    io::{Access, FileStorage, LockMode},
};

use crate::{
    cmd,
    error::{Failure, os_text},
    image,
    opts::{Backing, Driver, ImageSpec, Secret, SnapshotParam},
    progname,
};

/// A disk in the kind of image that it was found in.
#[derive(Debug)]
pub(crate) enum Source {
    /// A qcow2 image.
    Qcow2(Arc<Image>),
    /// A raw disk.
    Raw(Arc<RawDisk>),
}

impl Source {
    /// The disk.
    pub(crate) fn disk(&self) -> Arc<dyn Disk> {
        match self {
            Self::Qcow2(image) => Arc::clone(image) as Arc<dyn Disk>,
            Self::Raw(disk) => Arc::clone(disk) as Arc<dyn Disk>,
        }
    }

    /// The disk as the internal snapshot that `-l` names has it.
    ///
    /// # Errors
    /// In qemu-img's words.
    pub(crate) fn snapshot(&self, which: &SnapshotParam) -> Result<Arc<dyn Disk>, Failure> {
        let failed = |text: String| format!("Failed to load snapshot: {text}");
        let Self::Qcow2(image) = self else {
            let text = "Block format 'raw' used by device '' does not support temporarily loading \
                        internal snapshots";
            return Err(failed(text.into()).into());
        };
        let words = |error: &Error| failed(image::words(error, Path::new(image.name())));
        let snapshots = image.snapshots().map_err(|e| words(&e))?;
        let Some(snapshot) = which.find(snapshots) else {
            return Err(failed("Can't find snapshot".into()).into());
        };
        let disk = SnapshotDisk::new(image, snapshot).map_err(|e| words(&e))?;
        Ok(Arc::new(disk))
    }
}

/// Opens the disk in the image that `spec` names, for reading.
///
/// # Errors
/// `Could not open 'NAME': …`, in qemu-img's words.
pub(crate) fn open(spec: &ImageSpec) -> Result<Arc<dyn Disk>, Failure> {
    open_source(spec).map(|source| source.disk())
}

/// As [`open`], with the kind of image.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_source(spec: &ImageSpec) -> Result<Source, Failure> {
    open_named(spec).map_err(|message| cmd::open_failure(&spec.given, message))
}

/// As [`open_source`].
///
/// # Errors
/// What stands behind `Could not open 'NAME': `.
pub(crate) fn open_named(spec: &ImageSpec) -> Result<Source, String> {
    let path = Path::new(&spec.file.path);
    let failed = |error: Error| words(&error, path);
    let lock = match spec.force_share {
        Some(true) => LockMode::None,
        _ => LockMode::Read,
    };
    let file = FileStorage::open(path, Access::ReadOnly, lock).map_err(failed)?;
    image::protocol(&file, path, spec)?;
    let driver = match spec.driver {
        Some(driver) => driver,
        None => image::probe(&file)?,
    };
    if driver != Driver::Qcow2 {
        let disk = RawDisk::new(&path.to_string_lossy(), Arc::new(file));
        return Ok(Source::Raw(Arc::new(disk.map_err(failed)?)));
    }
    let options = options(spec, &file)?.lock(lock);
    let image = options.open_file(file).map_err(failed)?;
    warn_of_voided_bitmaps(image.header_area());
    Ok(Source::Qcow2(Arc::new(image)))
}

/// A disk that is open for writing.
#[derive(Debug)]
pub(crate) enum Writable {
    /// Stored as it is.
    Raw(RawDisk),
    /// In a qcow2 image.
    Qcow2(Box<GuestWriter>),
}

impl Writable {
    /// The disk, whatever it is stored in.
    pub(crate) fn disk(&self) -> &dyn DiskMut {
        match self {
            Self::Raw(disk) => disk,
            Self::Qcow2(disk) => &**disk,
        }
    }
}

/// Opens the disk in the image that `spec` names, for reading and writing.
///
/// # Errors
/// `Could not open 'NAME': …`; also for an image in which a write could hit what belongs to
/// somebody else, or whose bitmaps can't record it.
pub(crate) fn open_writable(spec: &ImageSpec) -> Result<Writable, Failure> {
    open_writable_named(spec).map_err(|message| cmd::open_failure(&spec.given, message))
}

fn open_writable_named(spec: &ImageSpec) -> Result<Writable, String> {
    if spec.read_only {
        return Err("Block node is read-only".into());
    }
    let path = Path::new(&spec.file.path);
    let failed = |error: Error| words(&error, path);
    let file = FileStorage::open(path, Access::ReadWrite, LockMode::ReadWrite).map_err(failed)?;
    image::protocol(&file, path, spec)?;
    let driver = match spec.driver {
        Some(driver) => driver,
        None => image::probe(&file)?,
    };
    if driver != Driver::Qcow2 {
        let disk = RawDisk::new_writable(&path.to_string_lossy(), Arc::new(file));
        return Ok(Writable::Raw(disk.map_err(failed)?));
    }
    let options = options(spec, &file)?
        .writable(true)
        .on_repair(image::tell_repair(&spec.given));
    let image = options.open_file(file).map_err(failed)?;
    warn_of_voided_bitmaps(image.header_area());
    let writer = image.into_writer().map_err(failed)?;
    Ok(Writable::Qcow2(Box::new(writer)))
}

/// With all files that belong to it, and the secrets of those that are encrypted.
///
/// # Errors
/// There is no such secret, or `encrypt.format` isn't what the header says.
pub(crate) fn options(spec: &ImageSpec, file: &FileStorage) -> Result<OpenOptions, String> {
    let mut options = OpenOptions::new()
        .secrets_required(true)
        .backing(match spec.backing {
            Backing::Header => BackingPolicy::Follow,
            Backing::Nothing => BackingPolicy::Ignore,
        })
        .data_file(match &spec.data_file {
            Some(reference) => DataFilePolicy::At(reference.path.clone().into()),
            None => DataFilePolicy::Follow,
        });
    let encrypted = image::check_encrypt_options(file, spec)?;
    // Of an image that isn't encrypted it doesn't matter whether there is such a secret.
    let first = spec.key_secret.as_ref().filter(|_| encrypted);
    let behind = spec.backing_secrets.iter().map(Option::as_ref);
    for (depth, id) in std::iter::once(first).chain(behind).enumerate() {
        if let Some(id) = id {
            options = options.backing_secret(depth, Secret::find(id)?);
        }
    }
    Ok(options)
}

/// Another program has made the image's bitmaps worthless.
fn warn_of_voided_bitmaps(area: &HeaderArea) {
    let valid = area
        .header()
        .autoclear_features
        .contains(Autoclear::BITMAPS);
    if !valid && area.extensions().get(ExtensionType::BITMAPS).is_some() {
        progname::voided_bitmaps(area.header().version);
    }
}

/// The system's words for what is behind `error`, or for what can't be done at all; of a
/// damaged image QEMU's I/O error.
pub(crate) fn os_reason(error: &Error) -> String {
    if matches!(error, Error::Unsupported(_)) {
        return "Operation not supported".into();
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return os_text(error);
        }
        cause = error.source();
    }
    "Input/output error".into()
}

/// As [`image::words`], and what is wrong with a backing file.
fn words(error: &Error, path: &Path) -> String {
    match error {
        Error::Backing { path, source } => {
            format!("Could not open backing file: {}", words(source, path))
        }
        other => image::words(other, path),
    }
}
