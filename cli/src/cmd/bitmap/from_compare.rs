//! `bitmap --from-compare`: a bitmap of where a disk differs from an older copy of it.

use std::{ffi::OsStr, sync::Arc};

use hbitmap::{Granularity, SharedTracker};
use qcow2::{
    bitmap::BitmapEdit,
    compare::{CompareError, Which, differences},
    disk::Disk,
};

use super::BitmapArgs;
use crate::{
    cmd, disk,
    error::{Failure, chain},
    output::{Progress, escape_control},
};

/// Makes dirty in the bitmap, which was added before, where the disk isn't as the one in the
/// image `old`.
pub(super) fn fill(
    edit: &mut BitmapEdit<'_>,
    args: &BitmapArgs,
    old: &OsStr,
) -> Result<(), Failure> {
    let spec = cmd::image_spec(old, args.source_format.as_deref(), false)?;
    let old_disk = disk::open(&spec)?;
    let image = edit.image();
    let granularity = args.granularity.filter(|bytes| *bytes != 0);
    let granularity = granularity.unwrap_or(edit.default_granularity());
    let failed = |text: &str| {
        let name = &args.bitmap;
        Failure::Message(format!(
            "Operation from-compare on bitmap {name} failed: {text}"
        ))
    };
    let tracker =
        || SharedTracker::new(image.virtual_size(), Granularity::from_bytes(granularity)?);
    let marks = tracker().map_err(|e| failed(&chain(&e)))?;
    let mut progress = Progress::new(Some(old_disk.size().min(image.size())));
    let compared = differences(&*old_disk, image, &marks, &mut |done| progress.at(done));
    drop(progress);
    compared.map_err(|error| {
        let (which, at, source) = match &error {
            CompareError::Extent { which, at, source }
            | CompareError::Read { which, at, source } => (which, at, source),
        };
        let name = match which {
            Which::First => old,
            Which::Second => &args.target.file,
        };
        let (name, reason) = (name.to_string_lossy(), chain(&**source));
        let reason = escape_control(&reason);
        failed(&format!("reading '{name}' at {at}: {reason}"))
    })?;
    let bits = marks.snapshot().map_err(|e| failed(&chain(&e)))?;
    edit.merge_bits(args.bitmap.as_bytes(), Arc::new(bits))
        .map_err(|e| failed(&chain(&e)))
}
