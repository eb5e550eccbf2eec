//! What a disk says, told as by one in which its bytes stand elsewhere.

use std::ops::Range;

use crate::{
    Error, Result,
    addr::GuestOffset,
    disk::{Disk, DiskExt, Extent, ExtentKind, bad},
};

/// Extents told in one go.
const AT_ONCE: usize = 1024;

/// As [`Disk::query`], of `range` in `disk`, whose byte n stands at `place(n)`. Host offsets
/// are left out, and holes are zeros.
pub(super) fn query(
    disk: &dyn Disk,
    range: Range<u64>,
    place: impl Fn(u64) -> u64,
    out: &mut Vec<Extent>,
) -> Result<()> {
    for (index, extent) in disk.extents_and_holes(range).take(AT_ONCE).enumerate() {
        match extent {
            Ok(extent) => out.push(Extent {
                start: GuestOffset(place(extent.start.0)),
                kind: if extent.hole {
                    ExtentKind::Zero
                } else {
                    extent.kind
                },
                hole: false,
                host: None,
                ..extent
            }),
            // It is told when it is the first.
            Err(_) if index > 0 => break,
            Err(e) => return Err(error(e, place)),
        }
    }
    Ok(())
}

/// The error of a part of the disk, with the place of that part.
pub(super) fn error(error: Error, place: impl Fn(u64) -> u64) -> Error {
    match error {
        Error::Guest {
            start,
            length,
            source,
        } => bad(place(start.0), length, *source),
        other => other,
    }
}
