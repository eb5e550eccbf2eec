//! [`Disk`]: what a guest sees, whatever holds it. Operations over disks (convert,
//! compare, map, backup) know nothing else.
//!
//! One question comes before all reading: which parts of a range are data, which are
//! zeros, which aren't there, and where are they? The answer is a list of [`Extent`]s:
//!
//! ```no_run
//! use qcow2::disk::{DiskExt, RawDisk};
//!
//! let disk = RawDisk::open("disk.raw")?;
//! for extent in disk.extents(0..1 << 20) {
//!     let extent = extent?;
//!     println!("{:?} at {}, {} bytes", extent.kind, extent.start, extent.length);
//! }
//! # Ok::<(), qcow2::Error>(())
//! ```

mod disk_mut;
mod extent;
mod extents;
mod holes;
mod raw;

use std::{fmt, ops::Range, sync::Arc};

pub use disk_mut::DiskMut;
pub use extent::{Extent, ExtentKind};
pub use extents::Extents;
pub use holes::ExtentsAndHoles;
pub use raw::RawDisk;

use crate::{
    Error, Result,
    addr::GuestOffset,
    io::{FileId, Storage},
};

/// QEMU counts disks in sectors of 512 bytes, and so do we, or the end of a disk would
/// not be where the guest finds it.
pub(crate) const SECTOR: u64 = 512;

/// What a disk is read from: files, and how they are taken. See [`Disk::source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSource {
    /// The image file.
    pub image: FileId,
    /// The file with the guest's data, which may be the same.
    pub data: FileId,
    /// Whether it is a qcow2 image; else it is the disk as it is.
    pub qcow2: bool,
}

/// A disk as the guest sees it. All of it can be asked from many threads at once.
pub trait Disk: fmt::Debug + Send + Sync {
    /// How the disk is called in messages: the path of its file.
    fn name(&self) -> &str;

    /// Bytes of the disk, whole sectors of 512.
    fn size(&self) -> u64;

    /// Appends to `out` what `range` holds from its start on: all of it, or as much as
    /// is told in one go, which is at least one extent. Nothing is told of what lies
    /// past the disk's end. [`DiskExt::extents`] asks until everything was told.
    ///
    /// # Errors
    /// What the first byte's place in the disk suffers from, before anything is appended.
    /// [`Error::Guest`] says how far that goes; behind it there are other answers.
    fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()>;

    /// Reads `out.len()` bytes at `offset`.
    ///
    /// # Errors
    /// [`Error::Guest`] for a part that can't be read, be it because of what the image
    /// holds or because the system refuses; [`Error::Refused`] for a range beyond the
    /// disk's end.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()>;

    /// The file that the host offsets of this disk's own extents (those of depth 0)
    /// count in.
    fn file(&self) -> Option<&Arc<dyn Storage>>;

    /// The disk that unallocated parts are read from.
    fn backing(&self) -> Option<&Arc<dyn Disk>> {
        None
    }

    /// What the disk is read from, without the disks behind it. Two disks with the same
    /// source have the same in every place that they don't read from behind them, as long
    /// as nobody writes to it. `None` if it can't be told.
    fn source(&self) -> Option<DiskSource> {
        None
    }

    /// Where an answer of QEMU's to what there is at `at` ends at the latest, however far
    /// that goes on: some of what it says depends on where its answers end.
    fn qemu_answer_end(&self, at: u64, compressed: bool) -> u64 {
        let _ = (at, compressed);
        u64::MAX
    }

    /// Whether much of the space that the extents of data claim isn't there, so that it is
    /// worth to ask the file for holes: as after preallocation of metadata.
    ///
    /// # Errors
    /// I/O errors.
    fn has_holes(&self) -> Result<bool> {
        Ok(false)
    }
}

/// What every [`Disk`] can do beyond what each does in its way.
pub trait DiskExt: Disk {
    /// The extents of `range`, in order and without gaps; adjoining ones that say the
    /// same are one. A part that can't be told is an error in its place, after which
    /// the others follow.
    fn extents(&self, range: Range<u64>) -> Extents<'_, Self>;

    /// As [`extents`](Self::extents), and data of layers that [have
    /// holes](Disk::has_holes) is told apart by them.
    fn extents_and_holes(&self, range: Range<u64>) -> ExtentsAndHoles<'_, Self>;

    /// Checks that `len` bytes at `offset` are within the disk.
    ///
    /// # Errors
    /// [`Error::Refused`].
    fn check_range(&self, offset: u64, len: usize) -> Result<()> {
        let end = offset.checked_add(len as u64);
        if end.is_some_and(|end| end <= self.size()) {
            return Ok(());
        }
        let (name, size) = (self.name(), self.size());
        Err(Error::Refused(format!(
            "'{name}' has {size} bytes, and {len} were asked for at {offset}"
        )))
    }
}

impl<D: Disk + ?Sized> DiskExt for D {
    fn extents(&self, range: Range<u64>) -> Extents<'_, Self> {
        Extents::new(self, range)
    }

    fn extents_and_holes(&self, range: Range<u64>) -> ExtentsAndHoles<'_, Self> {
        ExtentsAndHoles::new(self, range)
    }
}

impl dyn Disk + '_ {
    /// The disk `depth` steps down the chain: 0 is this one, 1 its backing file.
    #[must_use]
    pub fn layer(&self, depth: u32) -> Option<&dyn Disk> {
        let mut disk: &dyn Disk = self;
        for _ in 0..depth {
            disk = &**disk.backing()?;
        }
        Some(disk)
    }
}

/// A part of the disk that can't be told or read, and why.
pub(crate) fn bad(start: u64, length: u64, source: Error) -> Error {
    Error::Guest {
        start: GuestOffset(start),
        length,
        source: Box::new(source),
    }
}

/// Whether all of `bytes` are 0.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Most data shows at once; for the rest all bytes of a block at once, in a loop
    // without an early end, which the compiler makes wide.
    let (blocks, rest) = bytes.as_chunks::<1024>();
    let zero = |block: &[u8]| block.iter().fold(0, |all, byte| all | byte) == 0;
    bytes.first().is_none_or(|byte| *byte == 0)
        && blocks.iter().all(|block| zero(block))
        && zero(rest)
}
