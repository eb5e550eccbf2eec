//! What the requests go to.

use std::sync::Arc;

use qcow2::{Error, Result, disk::Disk};

use crate::disk::Writable;

/// A disk to be read or written.
#[derive(Debug)]
pub(super) enum Target {
    /// To be read.
    Read(Arc<dyn Disk>),
    /// To be written.
    Write {
        disk: Writable,
        /// Whether syncs reach the disk.
        syncs: bool,
    },
}

impl Target {
    fn disk(&self) -> &dyn Disk {
        match self {
            Self::Read(disk) => &**disk,
            Self::Write { disk, .. } => disk.disk(),
        }
    }

    /// Bytes of the disk.
    pub(super) fn size(&self) -> u64 {
        self.disk().size()
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.disk().read(offset, out)
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        match self {
            Self::Read(disk) => Err(Error::Refused(format!("'{}' is read-only", disk.name()))),
            Self::Write { disk, .. } => disk.disk().write(offset, data),
        }
    }

    /// What was written is on stable storage, unless nobody wants that.
    pub(super) fn flush(&self) -> Result<()> {
        match self {
            Self::Write { disk, syncs: true } => disk.disk().flush(),
            Self::Read(_) | Self::Write { .. } => Ok(()),
        }
    }

    /// Whatever was written is complete.
    pub(super) fn close(self) -> Result<()> {
        match self {
            Self::Read(_) => Ok(()),
            Self::Write { disk, .. } => disk.disk().finish(),
        }
    }
}
