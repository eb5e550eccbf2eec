//! Moves bitmaps between images: granularity, recording state and bits.

use crate::{
    Error, Image, Result,
    bitmap::{Bitmap, BitmapError, BitmapState, edit::lossy},
};

/// A bitmap that is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    /// Its name in the source.
    pub name: Vec<u8>,
    /// Its name in the target.
    pub new_name: Vec<u8>,
}

/// A bitmap that was copied, as read back from both images afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopiedBitmap {
    /// The names in source and target.
    pub request: CopyRequest,
    /// Bytes of disk that a bit stands for.
    pub granularity: u64,
    /// Whether it records writes.
    pub recording: bool,
    /// Dirty granules.
    pub dirty_count: u64,
    /// The bytes of disk they cover.
    pub dirty_bytes: u64,
    /// SHA-256 over the bits of the source.
    pub source_sha256: [u8; 32],
    /// SHA-256 over the bits of the target.
    pub target_sha256: [u8; 32],
}

/// Every bitmap of `source`, under its own name.
///
/// # Errors
/// I/O errors, a corrupt directory: it may hide some.
pub fn all_bitmaps(source: &Image) -> Result<Vec<CopyRequest>> {
    let bitmaps = source.bitmaps()?;
    if let Some(fault) = bitmaps.fault() {
        return Err(Error::Refused(fault.to_string()));
    }
    let whole = |bitmap: Bitmap<'_>| CopyRequest {
        name: bitmap.name().to_vec(),
        new_name: bitmap.name().to_vec(),
    };
    Ok(bitmaps.iter(source).map(whole).collect())
}

/// Copies bitmaps from `source` into `target`, all with one switch of the target's
/// header, and reads them back.
///
/// With `replace` a bitmap of the target that has the new name gives way to the
/// copy; otherwise it's an error.
///
/// # Errors
/// Before anything is written: [`BitmapError`] (not found, inconsistent, disks of
/// different sizes, a name that exists or is asked for twice, version 2). I/O
/// errors; [`Error::Refused`] if what was read back is not the same.
pub fn copy_bitmaps(
    source: &Image,
    target: &mut Image,
    requests: &[CopyRequest],
    replace: bool,
) -> Result<Vec<CopiedBitmap>> {
    let bitmaps = source.bitmaps()?;
    let mut edit = target.edit_bitmaps()?;
    for (index, request) in requests.iter().enumerate() {
        let bitmap = bitmaps.find(source, &request.name)?;
        let twice = requests
            .iter()
            .take(index)
            .any(|other| other.new_name == request.new_name);
        if twice {
            return Err(BitmapError::Exists {
                name: lossy(&request.new_name),
            }
            .into());
        }
        if replace && edit.contains(&request.new_name) {
            edit.remove(&request.new_name)?;
        }
        edit.add_copy(&request.new_name, &bitmap)?;
    }
    edit.commit()?;

    let stored = target.bitmaps()?;
    let mut copied = Vec::with_capacity(requests.len());
    for request in requests {
        let origin = bitmaps.find(source, &request.name)?;
        let copy = stored.find(target, &request.new_name)?;
        copied.push(read_back(request, origin, copy)?);
    }
    Ok(copied)
}

/// Compares a bitmap with its copy.
fn read_back(request: &CopyRequest, origin: Bitmap<'_>, copy: Bitmap<'_>) -> Result<CopiedBitmap> {
    let (from, to) = (origin.load()?, copy.load()?);
    let copied = CopiedBitmap {
        request: request.clone(),
        granularity: to.granularity().bytes(),
        recording: copy.state() == BitmapState::Recording,
        dirty_count: to.count(),
        dirty_bytes: to.dirty_bytes(),
        source_sha256: from.sha256(),
        target_sha256: to.sha256(),
    };
    let same = copied.source_sha256 == copied.target_sha256
        && from.granularity() == to.granularity()
        && origin.state() == copy.state();
    if same {
        return Ok(copied);
    }
    Err(Error::Refused(format!(
        "bitmap '{}' was read back from the target different from the source",
        origin.name_lossy()
    )))
}
