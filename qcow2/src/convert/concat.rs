//! [`Concat`]: several disks, one behind the other.

use std::{ops::Range, sync::Arc};

use super::moved;
use crate::{
    Error, Result,
    disk::{Disk, DiskExt, Extent},
    io::Storage,
};

/// Several disks, one behind the other, to be read as one.
#[derive(Debug)]
pub struct Concat {
    name: String,
    /// Each with where it begins.
    disks: Vec<(u64, Arc<dyn Disk>)>,
    size: u64,
}

impl Concat {
    /// The disks in their order.
    ///
    /// # Errors
    /// [`Error::Refused`] if together they are larger than a disk can be.
    pub fn new(disks: Vec<Arc<dyn Disk>>) -> Result<Self> {
        let names: Vec<_> = disks.iter().map(|disk| disk.name()).collect();
        let name = names.join(" + ");
        let (mut size, mut placed) = (0_u64, Vec::with_capacity(disks.len()));
        for disk in disks {
            let end = size.checked_add(disk.size());
            let end = end.filter(|end| i64::try_from(*end).is_ok());
            placed.push((size, disk));
            size = end.ok_or_else(|| {
                Error::Refused("the disks together are larger than a disk can be".into())
            })?;
        }
        Ok(Self {
            name,
            disks: placed,
            size,
        })
    }

    /// The disk at `at`, and where it begins.
    fn at(&self, at: u64) -> Option<(u64, &Arc<dyn Disk>)> {
        let behind = self.disks.partition_point(|(start, _)| *start <= at);
        // Of disks without bytes that begin at the same place the last one counts.
        let (start, disk) = self.disks.get(behind.checked_sub(1)?)?;
        Some((*start, disk))
    }
}

impl Disk for Concat {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
        let Some((start, disk)) = self.at(range.start) else {
            return Ok(());
        };
        let within = range.start - start..range.end.saturating_sub(start).min(disk.size());
        moved::query(&**disk, within, |at| at.saturating_add(start), out)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check_range(offset, out.len())?;
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            let Some((start, disk)) = self.at(at) else {
                break;
            };
            let inside = start.saturating_add(disk.size()).saturating_sub(at);
            let inside = usize::try_from(inside).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at_mut(inside.min(rest.len()));
            disk.read(at - start, part)
                .map_err(|error| moved::error(error, |at| at.saturating_add(start)))?;
            at = at.saturating_add(part.len() as u64);
            rest = behind;
        }
        Ok(())
    }

    fn file(&self) -> Option<&Arc<dyn Storage>> {
        None
    }
}
