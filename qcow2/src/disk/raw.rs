//! [`RawDisk`]: a disk stored as it is, in a file or on a block device.

use std::{ops::Range, path::Path, sync::Arc};

use super::{Disk, DiskExt, Extent, ExtentKind, SECTOR, bad};
use crate::{
    Error, Result,
    addr::{GuestOffset, HostOffset},
    io::{Access, FileStorage, LockMode, Storage},
};

/// Extents told in one go.
const AT_ONCE: usize = 1024;

/// A disk stored as it is. Holes of the file are extents of zeros; a last sector that
/// the file holds a part of is filled up with zeros.
#[derive(Debug)]
pub struct RawDisk {
    name: String,
    storage: Arc<dyn Storage>,
    /// Bytes stored.
    stored: u64,
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

    /// The disk in `storage`, called `name` in messages.
    ///
    /// # Errors
    /// I/O errors.
    pub fn new(name: &str, storage: Arc<dyn Storage>) -> Result<Self> {
        let stored = storage
            .size()
            .map_err(Error::io(format!("asking for the size of '{name}'")))?;
        Ok(Self {
            name: name.to_owned(),
            storage,
            stored,
        })
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
                start: GuestOffset(at),
                length: end - at,
                kind,
                compressed: false,
                host: Some(HostOffset(at)),
                hole: false,
                depth: 0,
            });
        };
        for _ in 0..AT_ONCE {
            if at >= end {
                break;
            }
            let data = self.storage.next_data(at..end);
            let data = data.map_err(Error::io(format!(
                "asking for holes of '{}' at {at:#x}",
                self.name
            )))?;
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
            .map_err(Error::io(format!("reading '{}' at {offset:#x}", self.name)))
            .map_err(|error| bad(offset, out.len() as u64, error))
    }

    fn file(&self) -> Option<&Arc<dyn Storage>> {
        Some(&self.storage)
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
