//! `bitmap --dump --with-zeroes`: what is dirty, cut where the guest reads zeros.

use std::{io, ops::Range, sync::Arc};

use hbitmap::HBitmap;
use qcow2::disk::{Disk, DiskExt};

use super::Target;
use crate::{
    cmd, disk,
    error::{Failure, chain},
    output::escape_control,
    progname,
};

/// A part of what is dirty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Where it is on the disk.
    pub(super) range: Range<u64>,
    /// Whether the guest reads zeros there, as far as that is known without reading.
    pub(super) zero: bool,
}

/// The disk whose dirty parts are asked about.
#[derive(Debug)]
pub(super) struct Zeroes {
    disk: Arc<dyn Disk>,
}

impl Zeroes {
    /// Opens the disk with the files that it is based on.
    ///
    /// # Errors
    /// One of them can't be opened.
    pub(super) fn open(target: &Target) -> Result<Self, Failure> {
        let mut spec = cmd::image_spec(&target.file, target.format.as_deref(), target.image_opts)?;
        cmd::share(&mut spec, target.force_share)?;
        let disk = disk::open(&spec)?;
        Ok(Self { disk })
    }

    /// Calls `each` with the parts of what is dirty in `bits`, in order; of those that adjoin,
    /// one is zeros and the other is not. Where it can't be told, which is said on standard
    /// error, the part counts as data: who reads it finds out why.
    pub(super) fn for_each(
        &self,
        bits: &HBitmap,
        mut each: impl FnMut(Part) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut warned = false;
        let mut extents = self.disk.extents_and_holes(0..0);
        for dirty in bits.ranges() {
            let mut last: Option<Part> = None;
            let mut at = dirty.start;
            let mut put = |range: Range<u64>, zero: bool| {
                if range.is_empty() {
                    return Ok(());
                }
                match &mut last {
                    Some(last) if last.zero == zero => {
                        last.range.end = range.end;
                        Ok(())
                    }
                    _ => last.replace(Part { range, zero }).map_or(Ok(()), &mut each),
                }
            };
            extents.restart(dirty.clone());
            for extent in extents.by_ref() {
                let extent = match extent {
                    Ok(extent) => extent,
                    Err(error) => {
                        if !std::mem::replace(&mut warned, true) {
                            let error = escape_control(&chain(&error)).into_owned();
                            progname::warning(format_args!("{error} (counted as data)"));
                        }
                        continue;
                    }
                };
                put(at..extent.start.get().max(at), false)?;
                put(extent.range(), extent.reads_as_zeros())?;
                at = extent.end();
            }
            put(at..dirty.end, false)?;
            if let Some(last) = last {
                each(last)?;
            }
        }
        Ok(())
    }
}
