//! From an image as the command line names it to an open one.

use qcow2::{
    DataFilePolicy, Error, Image, OpenOptions,
    io::{Access, FileStorage, LockMode, Locking, Storage},
};

use crate::{
    cmd,
    error::Failure,
    image::words,
    opts::{Driver, ImageSpec},
    progname,
};

/// What an image turned out to be.
#[derive(Debug)]
pub(crate) enum Opened {
    /// A qcow2 image.
    Qcow2(Box<Image>),
    /// Anything else: the file itself.
    Raw(FileStorage),
}

/// Opens the image that `spec` names, for writing or not, with `locks`.
///
/// # Errors
/// `Could not open 'NAME': …`, in qemu-img's words.
pub(crate) fn open(spec: &ImageSpec, writable: bool, locks: LockMode) -> Result<Opened, Failure> {
    let name = spec.given.as_os_str();
    let path = spec.file.path.as_ref();
    let failed = |e: Error| cmd::open_failure(name, words(&e, path));
    if writable && spec.read_only {
        return Err(cmd::open_failure(name, "Block node is read-only"));
    }
    let access = if writable {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    };
    let locks = if spec.force_share == Some(true) {
        LockMode::None
    } else {
        locks
    };
    let file = FileStorage::open(&spec.file.path, access, locks).map_err(failed)?;
    if file.locking() == Locking::Unsupported {
        progname::warning(format_args!(
            "'{}' can't be locked: other users of it are not noticed",
            name.to_string_lossy()
        ));
    }
    let is_qcow2 = match spec.driver {
        Some(driver) => driver == Driver::Qcow2,
        None => has_magic(&file).map_err(failed)?,
    };
    if !is_qcow2 {
        return Ok(Opened::Raw(file));
    }
    let data_file = match &spec.data_file {
        Some(reference) => DataFilePolicy::At(reference.path.clone().into()),
        // Who only reads bitmaps has no use for the guest's data.
        None if !writable => DataFilePolicy::Leave,
        None => DataFilePolicy::Follow,
    };
    let options = OpenOptions::new()
        .writable(writable)
        .lock(locks)
        .data_file(data_file);
    let image = options.open_file(file).map_err(failed)?;
    Ok(Opened::Qcow2(Box::new(image)))
}

/// Whether the file begins as a qcow2 image does.
fn has_magic(file: &FileStorage) -> Result<bool, Error> {
    let mut magic = [0; 4];
    file.read_padded(0, &mut magic)
        .map_err(Error::io("reading the first bytes"))?;
    Ok(magic == qcow2::format::header::MAGIC)
}
