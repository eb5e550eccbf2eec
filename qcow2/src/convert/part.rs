//! [`Part`]: a part of a disk, to be read as a disk.

use std::{ops::Range, sync::Arc};

use super::moved;
use crate::{
    Result,
    disk::{Disk, DiskExt, Extent, ExtentKind, SECTOR},
    io::Storage,
};

/// Bytes of a disk from anywhere to anywhere in it, as a disk of their own. Its last sector
/// is filled with zeros.
#[derive(Debug)]
pub struct Part {
    disk: Arc<dyn Disk>,
    /// Within the disk.
    range: Range<u64>,
    /// Whole sectors.
    size: u64,
}

impl Part {
    /// What of `range` lies within `disk`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, range: Range<u64>) -> Self {
        let end = range.end.min(disk.size());
        let range = range.start.min(end)..end;
        // No disk is so large that this overflows.
        let size = (range.end - range.start).next_multiple_of(SECTOR);
        Self { disk, range, size }
    }

    /// What isn't in sectors of the disk is told as data: to be read, whatever it is.
    fn is_askew(&self) -> bool {
        !self.range.start.is_multiple_of(SECTOR) || !self.range.end.is_multiple_of(SECTOR)
    }
}

impl Disk for Part {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() {
            return Ok(());
        }
        if self.is_askew() {
            out.push(Extent::new(range, ExtentKind::Data));
            return Ok(());
        }
        let start = self.range.start;
        let within = range.start + start..range.end + start;
        moved::query(&*self.disk, within, |at| at.saturating_sub(start), out)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check_range(offset, out.len())?;
        let stored = (self.range.end - self.range.start).saturating_sub(offset);
        let stored = usize::try_from(stored).unwrap_or(usize::MAX).min(out.len());
        let (data, rest) = out.split_at_mut(stored);
        rest.fill(0);
        if data.is_empty() {
            return Ok(());
        }
        let start = self.range.start;
        let read = self.disk.read(start + offset, data);
        read.map_err(|error| moved::error(error, |at| at.saturating_sub(start)))
    }

    fn file(&self) -> Option<&Arc<dyn Storage>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{disk::RawDisk, io::memory::MemoryStorage};

    fn disk() -> (Vec<u8>, Arc<dyn Disk>) {
        let bytes: Vec<u8> = (0..4096_u32).map(|n| n.to_le_bytes()[0] | 1).collect();
        let storage = MemoryStorage::from_bytes(&bytes);
        let disk = RawDisk::new("raw", Arc::new(storage)).unwrap();
        (bytes, Arc::new(disk))
    }

    #[test]
    fn it_reads_as_those_bytes_and_zeros_up_to_a_sector() {
        let (bytes, disk) = disk();
        for range in [0..4096, 512..1024, 3..5, 100..4096, 4096..9999, 5000..6000] {
            let part = Part::new(Arc::clone(&disk), range.clone());
            let (start, end) = (range.start.min(4096) as usize, range.end.min(4096) as usize);
            let expected = &bytes[start..end.max(start)];
            assert_eq!(part.size(), expected.len().next_multiple_of(512) as u64);
            let mut read = vec![9; expected.len().next_multiple_of(512)];
            part.read(0, &mut read).unwrap();
            assert!(read.starts_with(expected));
            assert!(read[expected.len()..].iter().all(|&byte| byte == 0));
            let told: u64 = part
                .extents(0..u64::MAX)
                .map(|extent| extent.unwrap().length)
                .sum();
            assert_eq!(told, part.size());
            assert!(part.read(part.size(), &mut [0]).is_err());
        }
    }
}
