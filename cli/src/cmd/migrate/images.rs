//! The images that bitmaps come from or go to.

use std::{ffi::OsStr, os::unix::fs::MetadataExt};

use hbitmap::HBitmap;
use qcow2::{
    Error, Image,
    bitmap::{Bitmap, BitmapState, Bitmaps},
};

use crate::{
    cmd,
    error::{Failure, chain},
    image::Use,
    output::{Escaped, escape_control},
};

/// Opens a qcow2 image; `lacks` says of a raw one why it is of no use, such as "has no
/// bitmaps".
///
/// # Errors
/// `Could not open …`; it is raw.
pub(super) fn open(name: &OsStr, what_for: Use, lacks: &str) -> Result<Image, Failure> {
    let spec = cmd::image_spec(name, None, false)?;
    cmd::open(&spec, what_for)?.into_qcow2().ok_or_else(|| {
        let shown = name.to_string_lossy();
        Failure::Message(format!(
            "'{shown}' is a raw image and {lacks}: a qcow2 image is needed"
        ))
    })
}

/// What a raw image lacks as a source.
pub(super) const NO_BITMAPS: &str = "has no bitmaps";
/// And as a destination.
pub(super) const HOLDS_NONE: &str = "can't hold bitmaps";

/// Refuses two names of one file. The lock alone would tell them apart, with a message that
/// leads astray.
pub(super) fn refuse_same_file<'a>(names: impl Iterator<Item = &'a OsStr>) -> Result<(), Failure> {
    let mut seen: Vec<((u64, u64), &OsStr)> = Vec::new();
    for name in names {
        let Ok(metadata) = std::fs::metadata(name) else {
            continue;
        };
        let identity = (metadata.dev(), metadata.ino());
        if let Some((_, other)) = seen.iter().find(|(known, _)| *known == identity) {
            return Err(format!(
                "'{}' and '{}' are the same image",
                other.to_string_lossy(),
                name.to_string_lossy()
            )
            .into());
        }
        seen.push((identity, name));
    }
    Ok(())
}

/// A bitmap as an image has it.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Its name.
    pub(super) name: Vec<u8>,
    /// Its bits.
    pub(super) bits: HBitmap,
    /// Whether it records writes.
    pub(super) recording: bool,
}

/// Bitmaps that a message names.
const NAMED: usize = 5;

/// Refuses bitmaps that are inconsistent, all of them at once. `all` says that the command
/// line names none: it could name the others, then.
///
/// # Errors
/// One of them is.
pub(super) fn refuse_inconsistent<'a>(
    shown: &str,
    bitmaps: impl Iterator<Item = &'a Bitmap<'a>>,
    all: bool,
) -> Result<(), Failure> {
    let unusable = |state| matches!(state, BitmapState::Inconsistent | BitmapState::Live);
    let mut names = bitmaps.filter(|bitmap| unusable(bitmap.state()));
    let listed: Vec<String> = names
        .by_ref()
        .take(NAMED)
        .map(|bitmap| format!("'{}'", Escaped(bitmap.name())))
        .collect();
    let more = match names.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let list = format!("{}{more}", listed.join(", "));
    let others = if all { OTHERS } else { "" };
    match listed.len() {
        0 => Ok(()),
        1 => Err(
            format!("'{shown}': Bitmap {list} is inconsistent and cannot be used{others}").into(),
        ),
        _ => Err(
            format!("'{shown}': Bitmaps {list} are inconsistent and cannot be used{others}").into(),
        ),
    }
}

/// What the command line can do about bitmaps that stand in the way.
const OTHERS: &str = "; --bitmap NAME moves the others";

/// Reads the bits of a bitmap. `all` says that the command line names none: it could
/// name the others, then.
///
/// # Errors
/// The bits can't be relied on, or can't be read.
pub(super) fn load(shown: &str, bitmap: &Bitmap<'_>, all: bool) -> Result<Loaded, Failure> {
    match bitmap.load() {
        Ok(bits) => Ok(Loaded {
            name: bitmap.name().to_vec(),
            bits,
            recording: bitmap.state() == BitmapState::Recording,
        }),
        Err(e) => {
            let others = match &e {
                Error::Bitmap(_) if all => OTHERS,
                _ => "",
            };
            let text = escape_control(&chain(&e)).into_owned();
            Err(format!("'{shown}': {text}{others}").into())
        }
    }
}

/// The image's bitmaps, all of them.
///
/// # Errors
/// I/O errors; a directory with a fault, which may hide some.
pub(super) fn bitmaps(shown: &str, image: &Image) -> Result<Bitmaps, Failure> {
    let text = |e: &Error| format!("'{shown}': {}", chain(e));
    let bitmaps = image.bitmaps().map_err(|e| text(&e))?;
    match bitmaps.fault() {
        Some(fault) => Err(text(fault).into()),
        None => Ok(bitmaps),
    }
}
