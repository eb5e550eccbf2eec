//! What the requests go to.

use std::{path::Path, sync::Arc};

use qcow2::{
    Error, Result,
    disk::Disk,
    image::GuestWriter,
    io::{Access, FileStorage, LockMode, Storage as _},
};

use crate::{
    disk,
    image::{self, words},
    opts::{Driver, ImageSpec},
};

/// A disk to be read or written.
#[derive(Debug)]
pub(super) enum Target {
    /// To be read.
    Disk(Arc<dyn Disk>),
    /// A qcow2 image to be written, and whether syncs reach the disk.
    Qcow2(Box<GuestWriter>, bool),
    /// A raw disk to be written, its size, and whether syncs reach the disk.
    Raw(FileStorage, u64, bool),
}

impl Target {
    /// The image that `spec` names, to be written.
    ///
    /// # Errors
    /// What stands behind `Could not open 'NAME': `.
    pub(super) fn writable(spec: &ImageSpec, syncs: bool) -> std::result::Result<Self, String> {
        if spec.read_only {
            return Err("Block node is read-only".into());
        }
        let path = Path::new(&spec.file.path);
        let failed = |error: Error| words(&error, path);
        let lock = LockMode::ReadWrite;
        let file = FileStorage::open(path, Access::ReadWrite, lock).map_err(failed)?;
        image::protocol(&file, path, spec)?;
        let driver = match spec.driver {
            Some(driver) => driver,
            None => image::probe(&file)?,
        };
        if driver != Driver::Qcow2 {
            let size = file.size().map_err(|e| crate::error::os_text(&e))?;
            return Ok(Self::Raw(file, size.next_multiple_of(512), syncs));
        }
        let options = disk::options(spec, &file)?.writable(true).lock(lock);
        let image = options.open_file(file).map_err(failed)?;
        let writer = image.into_writer().map_err(failed)?;
        Ok(Self::Qcow2(Box::new(writer), syncs))
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Disk(disk) => disk.size(),
            Self::Qcow2(writer, _) => writer.size(),
            Self::Raw(_, size, _) => *size,
        }
    }

    /// Whether writes have the disk for themselves, so that more threads are of no use.
    pub(super) fn writes_in_turn(&self) -> bool {
        matches!(self, Self::Qcow2(..))
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        match self {
            Self::Disk(disk) => disk.read(offset, out),
            Self::Qcow2(writer, _) => writer.read(offset, out),
            Self::Raw(file, _, _) => {
                let read = file.read_padded(offset, out);
                read.map_err(Error::io(format!("reading at {offset:#x}")))
            }
        }
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        match self {
            Self::Disk(disk) => Err(Error::Refused(format!("'{}' is read-only", disk.name()))),
            Self::Qcow2(writer, _) => writer.write(offset, data),
            Self::Raw(file, size, _) => {
                let end = offset.checked_add(data.len() as u64);
                if end.is_none_or(|end| end > *size) {
                    let text = format!("{} bytes at {offset} of {size}", data.len());
                    return Err(Error::Refused(text));
                }
                let written = file.write_all_at(offset, data);
                written.map_err(Error::io(format!("writing at {offset:#x}")))
            }
        }
    }

    /// What was written is on stable storage, unless nobody wants that.
    pub(super) fn flush(&self) -> Result<()> {
        match self {
            Self::Qcow2(writer, true) => writer.flush(),
            Self::Raw(file, _, true) => file.sync().map_err(Error::io("syncing")),
            Self::Disk(_) | Self::Qcow2(..) | Self::Raw(..) => Ok(()),
        }
    }

    /// All that was written is on stable storage.
    pub(super) fn close(self) -> Result<()> {
        match self {
            Self::Disk(_) => Ok(()),
            Self::Qcow2(writer, _) => writer.close().map(drop),
            Self::Raw(file, _, true) => file.sync().map_err(Error::io("syncing")),
            Self::Raw(_, _, false) => Ok(()),
        }
    }
}
