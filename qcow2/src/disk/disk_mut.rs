//! [`DiskMut`]: a disk that can be written, whatever holds it.

use std::ops::Range;

use super::Disk;
use crate::Result;

/// A disk that can be written: what an operation over disks needs of its target.
///
/// What was written can be read at once, and is on stable storage after
/// [`flush`](Self::flush). Many threads can use one disk; of writes to the same place at
/// the same time any may win, byte by byte.
///
/// An `Arc<dyn DiskMut>` is an `Arc<dyn Disk>` wherever one is asked for (trait
/// upcasting), so that the disk that is written can be compared, told and read, too:
///
/// ```
/// use std::sync::Arc;
/// use qcow2::disk::{Disk, DiskMut};
///
/// fn readable(target: &Arc<dyn DiskMut>) -> Arc<dyn Disk> {
///     Arc::clone(target) as Arc<dyn Disk>
/// }
/// ```
pub trait DiskMut: Disk {
    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// [`Error::Refused`](crate::Error::Refused) for a range beyond the disk's end;
    /// [`Error::NoSpace`](crate::Error::NoSpace); I/O errors. Of the range any part may have been written then.
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Makes `range` read as zeros. With `unmap` its space is given back where that can
    /// be done; else it stays, or becomes, reserved where the format can say so.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn zero(&self, range: Range<u64>, unmap: bool) -> Result<()>;

    /// Says that nobody needs what is in `range`. Afterwards any part of it reads as
    /// zeros or as before.
    ///
    /// # Errors
    /// As [`write`](Self::write). That space can't be given back is none.
    fn discard(&self, range: Range<u64>) -> Result<()>;

    /// Returns when all that was written is on stable storage.
    ///
    /// # Errors
    /// I/O errors. What was written since the last flush may be lost then.
    fn flush(&self) -> Result<()>;

    /// Flushes, and completes what an image keeps beside the disk, such as its bitmaps.
    /// Afterwards the disk can be read only. A disk that is dropped without this has all
    /// that was flushed, but a qcow2 image's bitmaps stay marked as in use.
    ///
    /// # Errors
    /// I/O errors; also those of an earlier failure.
    fn finish(&self) -> Result<()>;
}
