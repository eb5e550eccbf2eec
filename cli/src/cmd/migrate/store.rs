//! Bitmaps into an image: gathered as one edit, and read back once it is made true.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use hbitmap::HBitmap;
use qcow2::{
    Error, Image,
    bitmap::{Bitmap, BitmapEdit, BitmapError, BitmapState},
};

use super::report::Facts;
use crate::{cmd::bitmap::Digests, progname};

/// A bitmap to be stored.
#[derive(Clone, Debug)]
pub(super) struct New {
    /// Its name.
    pub(super) name: Vec<u8>,
    /// Its bits.
    pub(super) bits: Arc<HBitmap>,
    /// Whether it records writes.
    pub(super) recording: bool,
}

/// Whether a bitmap in this state is replaced by one of its name: an inconsistent one, of
/// which no bit can be relied on, is even without `force`.
pub(super) fn gives_way(state: &BitmapState, force: bool) -> bool {
    force || *state == BitmapState::Inconsistent
}

/// Warns of bitmaps that an edit of the image does away with.
pub(super) fn warn_of_void(image: &Image) {
    if image.bitmaps().is_ok_and(|bitmaps| bitmaps.is_voided()) {
        progname::warning(format_args!(
            "'{}' was written by a program that doesn't keep bitmaps: those that it has are void \
             and go away",
            image.name()
        ));
    }
}

/// Puts the bitmaps into an edit, to be committed. Those of the same names are replaced if
/// they [give way](gives_way).
///
/// # Errors
/// What [`BitmapEdit`] says against one of them; I/O errors.
pub(super) fn prepare<'i>(
    image: &'i mut Image,
    bitmaps: &[New],
    force: bool,
) -> Result<BitmapEdit<'i>, Error> {
    gather(image, bitmaps, force, &mut |_, e| Err(e))
}

/// Which of the bitmaps [`prepare`] would refuse, and why.
///
/// # Errors
/// I/O errors.
pub(super) fn refused(
    image: &mut Image,
    bitmaps: &[New],
    force: bool,
) -> Result<Vec<(usize, Error)>, Error> {
    let mut refused = Vec::new();
    gather(image, bitmaps, force, &mut |place, e| {
        refused.push((place, e));
        Ok(())
    })?;
    Ok(refused)
}

fn gather<'i>(
    image: &'i mut Image,
    bitmaps: &[New],
    force: bool,
    refused: &mut dyn FnMut(usize, Error) -> Result<(), Error>,
) -> Result<BitmapEdit<'i>, Error> {
    let present = image.bitmaps()?;
    let replaced: HashSet<Vec<u8>> = present
        .iter(image)
        .filter(|bitmap| gives_way(&bitmap.state(), force))
        .map(|bitmap| bitmap.name().to_vec())
        .collect();
    drop(present);
    let mut edit = image.edit_bitmaps()?;
    // First all that goes: what is replaced must not count as one more.
    for new in bitmaps {
        if replaced.contains(&new.name) && edit.contains(&new.name) {
            edit.remove(&new.name)?;
        }
    }
    for (place, new) in bitmaps.iter().enumerate() {
        let bits = Arc::clone(&new.bits);
        if let Err(e) = edit.add_with_bits(&new.name, bits, new.recording) {
            refused(place, e)?;
        }
    }
    Ok(edit)
}

/// Reads bitmaps from the image in which they were stored, and compares them bit for bit.
///
/// # Errors
/// I/O errors; [`Error::Refused`] if one isn't the same.
pub(super) fn read_back<'n>(
    image: &Image,
    bitmaps: impl Iterator<Item = &'n New>,
    digests: &mut Digests,
) -> Result<Vec<Facts>, Error> {
    let stored = image.bitmaps()?;
    let by_name: HashMap<&[u8], Bitmap<'_>> = stored
        .iter(image)
        .map(|bitmap| (bitmap.name(), bitmap))
        .collect();
    let mut compare = |new: &New| {
        if let Some(bitmap) = by_name.get(new.name.as_slice()) {
            let bits = bitmap.load()?;
            let recording = bitmap.state() == BitmapState::Recording;
            if bits == *new.bits && recording == new.recording {
                return Ok(Facts::of(&bits, recording, digests));
            }
        }
        Err(Error::Refused(format!(
            "bitmap '{}' was read back different from what was stored",
            String::from_utf8_lossy(&new.name)
        )))
    };
    bitmaps.map(&mut compare).collect()
}

/// The words for an error about the image `shown`.
pub(super) fn words(shown: &str, error: &Error) -> String {
    match error {
        Error::Bitmap(fault @ BitmapError::DifferentSizes { .. }) => fault.to_string(),
        Error::Bitmap(fault @ BitmapError::Exists { .. }) => {
            format!("'{shown}': {fault} (--force replaces it)")
        }
        other => format!("'{shown}': {}", crate::error::chain(other)),
    }
}
