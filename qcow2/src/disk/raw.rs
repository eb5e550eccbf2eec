//! [`RawDisk`]: a disk stored as it is, in a file or on a block device.

use std::{ops::Range, path::Path, sync::Arc};

use super::{Disk, DiskExt, DiskMut, DiskSource, Extent, ExtentKind, SECTOR, bad};
use crate::{
    Error, Result,
    addr::HostOffset,
    io::{Access, FileStorage, LockMode, Storage},
};

/// Stretches of data told in one go: few, since each takes two system calls, and whoever
/// asks may want to go on further behind.
const AT_ONCE: usize = 2;

/// A disk stored as it is. Holes of the file are extents of zeros; a last sector that
/// the file holds a part of is filled up with zeros.
#[derive(Debug)]
pub struct RawDisk {
    name: String,
    storage: Arc<dyn Storage>,
    /// Bytes stored.
    stored: u64,
    writable: bool,
}

impl RawDisk {
    /// Opens a file or block device for reading, with the locks of a reader.
    ///
    /// # Errors
    /// As [`FileStorage::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = FileStorage::open(path, Access::ReadOnly, LockMode::Read)?;
        Self::new(&path.to_string_lossy(), Arc::new(file))
    }

    /// Opens a file or block device for reading and writing, with the locks of a writer.
    ///
    /// # Errors
    /// As [`FileStorage::open`].
    pub fn open_writable(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = FileStorage::open(path, Access::ReadWrite, LockMode::ReadWrite)?;
        Self::new_writable(&path.to_string_lossy(), Arc::new(file))
    }

    /// The disk in `storage`, which was opened for writing, as [`DiskMut`]. Its size is
    /// that of the storage now, and stays.
    ///
    /// # Errors
    /// I/O errors.
    pub fn new_writable(name: &str, storage: Arc<dyn Storage>) -> Result<Self> {
        Ok(Self {
            writable: true,
            ..Self::new(name, storage)?
        })
    }

    /// The disk in `storage`, called `name` in messages, to be read.
    ///
    /// # Errors
    /// I/O errors.
    pub fn new(name: &str, storage: Arc<dyn Storage>) -> Result<Self> {
        let stored = storage.size().map_err(Error::io_with(|| {
            format!("asking for the size of '{name}'")
        }))?;
        Ok(Self {
            name: name.to_owned(),
            storage,
            stored,
            writable: false,
        })
    }

    /// Whether `range` can be changed.
    fn check_change(&self, range: &Range<u64>) -> Result<()> {
        let len = range.end.saturating_sub(range.start);
        self.check_range(range.start, usize::try_from(len).unwrap_or(usize::MAX))?;
        if self.writable {
            return Ok(());
        }
        let name = &self.name;
        Err(Error::Refused(format!("'{name}' was opened read-only")))
    }

    /// The part of `range` that is stored: the last sector may not be whole.
    fn stored_part(&self, range: &Range<u64>) -> Range<u64> {
        range.start.min(self.stored)..range.end.min(self.stored)
    }
}

impl Disk for RawDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        // A file ends below 2^63.
        self.stored.next_multiple_of(SECTOR)
    }

    fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
        let end = range.end.min(self.size());
        let mut at = range.start;
        let mut tell = |kind, at: u64, end: u64| {
            out.push(Extent {
                host: Some(HostOffset(at)),
                ..Extent::new(at..end, kind)
            });
        };
        for _ in 0..AT_ONCE {
            if at >= end {
                break;
            }
            let data = self.storage.next_data(at..end);
            let data = data.map_err(Error::io_with(|| {
                format!("asking for holes of '{}' at {at:#x}", self.name)
            }))?;
            let start = data.start.clamp(at, end);
            if at < start {
                tell(ExtentKind::Zero, at, start);
            }
            at = data.end.clamp(start, end);
            if start < at {
                tell(ExtentKind::Data, start, at);
            } else {
                at = end;
            }
        }
        Ok(())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check_range(offset, out.len())?;
        self.storage
            .read_padded(offset, out)
            .map_err(Error::io_with(|| {
                format!("reading '{}' at {offset:#x}", self.name)
            }))
            .map_err(|error| bad(offset, out.len() as u64, error))
    }

    fn file(&self) -> Option<&Arc<dyn Storage>> {
        Some(&self.storage)
    }

    fn source(&self) -> Option<DiskSource> {
        let file = self.storage.id()?;
        Some(DiskSource {
            image: file,
            data: file,
            qcow2: false,
        })
    }
}

impl DiskMut for RawDisk {
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_change(&(offset..offset.saturating_add(data.len() as u64)))?;
        self.storage
            .write_all_at(offset, data)
            .map_err(Error::io_with(|| {
                format!("writing '{}' at {offset:#x}", self.name)
            }))
    }

    fn zero(&self, range: Range<u64>, unmap: bool) -> Result<()> {
        self.check_change(&range)?;
        let range = self.stored_part(&range);
        if range.is_empty() {
            return Ok(());
        }
        if unmap && self.storage.punch_hole(range.clone()).is_ok() {
            return Ok(());
        }
        self.storage
            .zero(range.clone())
            .or_else(|_| self.storage.write_zeros(range.clone()))
            .map_err(Error::io_with(|| {
                format!("writing zeros to '{}' at {:#x}", self.name, range.start)
            }))
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        self.check_change(&range)?;
        let range = self.stored_part(&range);
        if !range.is_empty() {
            // Where it can't be done the space stays, with what is in it.
            let _ = self.storage.punch_hole(range);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.storage
            .sync()
            .map_err(Error::io_with(|| format!("syncing '{}'", self.name)))
    }

    fn finish(&self) -> Result<()> {
        match self.writable {
            true => self.flush(),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn told(disk: &RawDisk, range: Range<u64>) -> Vec<(u64, u64, ExtentKind)> {
        disk.extents(range)
            .map(|extent| {
                let extent = extent.unwrap();
                assert_eq!(extent.host, Some(HostOffset(extent.start.0)));
                (extent.start.0, extent.end(), extent.kind)
            })
            .collect()
    }

    #[test]
    fn holes_are_zeros_and_a_part_of_a_sector_is_filled_up() {
        use ExtentKind::{Data, Zero};
        let mut temp = tempfile::NamedTempFile::new().unwrap();
        let file = temp.as_file_mut();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(&[7; 4096], 1 << 20).unwrap();
        file.write_all_at(&[8; 10], 3 << 20).unwrap();
        let disk = RawDisk::open(temp.path()).unwrap();
        assert_eq!(disk.size(), (3 << 20) + 512);
        let at = 1 << 20;
        let expected = [
            (0, at, Zero),
            (at, at + 4096, Data),
            (at + 4096, 3 << 20, Zero),
            (3 << 20, (3 << 20) + 10, Data),
            ((3 << 20) + 10, (3 << 20) + 512, Zero),
        ];
        assert_eq!(told(&disk, 0..u64::MAX), expected);
        assert_eq!(told(&disk, at + 1..at + 9), [(at + 1, at + 9, Data)]);
        assert_eq!(told(&disk, 5..6), [(5, 6, Zero)]);
        let mut bytes = [1; 522];
        disk.read((3 << 20) - 10, &mut bytes).unwrap();
        assert_eq!(bytes[..10], [0; 10]);
        assert_eq!(bytes[10..20], [8; 10]);
        assert_eq!(bytes[20..], [0; 502]);
        assert!(disk.read(3 << 20, &mut [0; 513]).is_err());
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_changes() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        temp.as_file().write_all_at(&[7; 1 << 20], 0).unwrap();
        temp.as_file().write_all_at(&[7; 100], 1 << 20).unwrap();
        let disk: Arc<dyn DiskMut> = Arc::new(RawDisk::open_writable(temp.path()).unwrap());
        disk.write(5, b"hello").unwrap();
        disk.zero(4096..8192 + 3, false).unwrap();
        disk.zero(65536..131_072, true).unwrap();
        disk.discard(262_144..524_288).unwrap();
        disk.zero(disk.size() - 500..disk.size(), false).unwrap();
        disk.flush().unwrap();
        disk.finish().unwrap();
        let mut expected = vec![7; 1 << 20];
        expected[5..10].copy_from_slice(b"hello");
        expected[4096..8195].fill(0);
        expected[65536..131_072].fill(0);
        expected[262_144..524_288].fill(0);
        expected.extend([7; 12]);
        expected.extend([0; 500]);
        let mut bytes = vec![1; expected.len()];
        disk.read(0, &mut bytes).unwrap();
        assert!(bytes == expected);
        let length = temp.as_file().metadata().unwrap().len();
        assert_eq!(length, (1 << 20) + 100, "zeros made it no longer");
        // Past the end nothing can be changed.
        assert!(disk.write(disk.size() - 1, &[1, 2]).is_err());
        assert!(disk.zero(0..disk.size() + 1, true).is_err());
        assert!(disk.discard(u64::MAX - 1..u64::MAX).is_err());
        disk.write(disk.size() - 1, &[9]).unwrap();
        let mut last = [1; 3];
        disk.read(disk.size() - 3, &mut last).unwrap();
        assert_eq!(last, [0, 0, 9]);
        let readable: Arc<dyn Disk> = disk;
        assert_eq!(readable.size(), (1 << 20) + 512);
    }

    #[test]
    fn one_that_was_opened_to_be_read_is_not_written() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        temp.as_file().write_all_at(&[7; 4096], 0).unwrap();
        let disk = RawDisk::open(temp.path()).unwrap();
        let error = disk.write(0, &[1]).unwrap_err().to_string();
        assert!(error.ends_with("was opened read-only"), "{error}");
        assert!(disk.zero(0..512, true).is_err());
        assert!(disk.discard(0..512).is_err());
        disk.finish().unwrap();
    }

    #[test]
    fn more_extents_than_are_told_in_one_go() {
        let mut temp = tempfile::NamedTempFile::new().unwrap();
        let file = temp.as_file_mut();
        for index in 0..3000_u64 {
            file.write_all_at(&[1; 4096], index * 8192).unwrap();
        }
        let disk = RawDisk::open(temp.path()).unwrap();
        assert_eq!(told(&disk, 0..u64::MAX).len(), 5999);
    }
}
