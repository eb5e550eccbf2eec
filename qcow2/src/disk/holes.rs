//! [`ExtentsAndHoles`]: extents of data, cut where their file has holes.

use std::ops::Range;

use super::{Disk, DiskExt, Extent, ExtentKind, Extents, bad};
use crate::{Error, Result};

/// The extents of a range, those of data cut where their file has holes. See
/// [`DiskExt::extents_and_holes`](super::DiskExt::extents_and_holes).
#[derive(Debug)]
pub struct ExtentsAndHoles<'a, D: ?Sized> {
    disk: &'a D,
    extents: Extents<'a, D>,
    /// What is left of an extent of data after what was given out.
    rest: Option<Extent>,
}

impl<'a, D: Disk + ?Sized> ExtentsAndHoles<'a, D> {
    pub(super) fn new(disk: &'a D, range: Range<u64>) -> Self {
        Self {
            disk,
            extents: disk.extents(range),
            rest: None,
        }
    }

    /// Cuts `extent` where the file goes from data to a hole, or back, for the first time.
    fn cut(&mut self, extent: Extent) -> Result<Extent> {
        let (ExtentKind::Data, Some(host)) = (extent.kind, extent.host) else {
            return Ok(extent);
        };
        let file = match extent.depth.checked_sub(1) {
            None if self.disk.has_holes()? => self.disk.file(),
            None => return Ok(extent),
            Some(depth) => {
                let backing = self.disk.backing().and_then(|disk| disk.layer(depth));
                match backing {
                    Some(layer) if layer.has_holes()? => layer.file(),
                    _ => return Ok(extent),
                }
            }
        };
        let Some(file) = file else {
            return Ok(extent);
        };
        let range = host.0..host.0.saturating_add(extent.length);
        let data = file.next_data(range).map_err(|e| {
            let error = Error::io(format!("asking for holes at {host}"))(e);
            bad(extent.start.0, extent.length, error)
        })?;
        // As seen from the extent's beginning.
        let start = data.start.saturating_sub(host.0).min(extent.length);
        let end = data.end.saturating_sub(host.0).min(extent.length);
        let (hole, length) = match start {
            0 if end > 0 => (false, end),
            0 => (true, extent.length),
            _ => (true, start),
        };
        let at = extent.start.0 + length;
        self.rest = extent.within(&(at..extent.end()));
        let first = extent.within(&(extent.start.0..at)).unwrap_or(extent);
        Ok(Extent { hole, ..first })
    }
}

impl<D: Disk + ?Sized> Iterator for ExtentsAndHoles<'_, D> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        let extent = match self.rest.take() {
            Some(rest) => Ok(rest),
            None => self.extents.next()?,
        };
        Some(extent.and_then(|extent| self.cut(extent)))
    }
}
