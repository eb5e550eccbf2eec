//! [`Storage`]: what an image needs from the thing that holds its bytes.

use std::{fmt, io, ops::Range, path::Path};

use positioned_io::ReadAt;

/// Which file something is stored in: equal for all names of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of the file with the number `inode` (`st_ino`) on a device (`st_dev`).
    #[must_use]
    pub const fn new(device: u64, inode: u64) -> Self {
        Self { device, inode }
    }
}

/// Positioned reads (from [`ReadAt`]) plus shared positioned writes, syncs and
/// the few things beyond them that an image needs.
///
/// Writes take `&self`, as `pwrite` does, so that many threads can write through
/// one handle; that is why this is not `positioned_io::WriteAt`, which wants
/// `&mut self`.
pub trait Storage: ReadAt + fmt::Debug + Send + Sync {
    /// Bytes that can be read, of a block device too.
    fn size(&self) -> io::Result<u64>;

    /// Writes all of `data` at `offset`; a regular file grows as needed.
    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns when everything written so far is on stable storage.
    fn sync(&self) -> io::Result<()>;

    /// Sets the length; new bytes read as zeros. A block device refuses any
    /// length beyond its own and ignores shorter ones.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Makes `range` read as zeros, allocated or not.
    fn zero(&self, range: Range<u64>) -> io::Result<()>;

    /// Gives the range's space back where that can be done; afterwards it reads
    /// as zeros if this returns `Ok`.
    fn punch_hole(&self, range: Range<u64>) -> io::Result<()>;

    /// Reserves the space of `range`, whose bytes stay as they are; those past the end are
    /// zeros, and the storage gets longer. A storage without such a thing as space only
    /// gets longer.
    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        match self.size()? < range.end {
            true => self.set_len(range.end),
            false => Ok(()),
        }
    }

    /// Writes zeros to `range`, one by one.
    fn write_zeros(&self, range: Range<u64>) -> io::Result<()> {
        const PIECE: u64 = 1 << 20;
        let length = range.end.saturating_sub(range.start);
        let zeros = vec![0; usize::try_from(length.min(PIECE)).unwrap_or(0)];
        let mut at = range.start;
        while at < range.end {
            let piece = usize::try_from((range.end - at).min(PIECE)).unwrap_or(0);
            self.write_all_at(at, zeros.get(..piece).unwrap_or_default())?;
            at += piece as u64;
        }
        Ok(())
    }

    /// Whether writing past the end makes it longer (false for block devices).
    fn can_grow(&self) -> bool;

    /// Bytes that the storage really takes up (`st_blocks × 512`; 0 for block devices).
    fn allocated_bytes(&self) -> io::Result<u64>;

    /// The name under which it was opened, of a file or a device.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Which file it is, whatever its names; `None` if that can't be told.
    fn id(&self) -> Option<FileId> {
        None
    }

    /// The first stretch of `range` that may hold anything but zeros; empty if none
    /// does. The bytes before it read as zeros. Where this can't be told it is all of
    /// `range`.
    fn next_data(&self, range: Range<u64>) -> io::Result<Range<u64>> {
        Ok(range)
    }

    /// Reads `out.len()` bytes at `offset`; what lies past the end reads as zeros,
    /// as it does for QEMU.
    fn read_padded(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_at(offset.saturating_add(done as u64), rest) {
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(read) => done += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
