//! The sources' dirty bitmaps: copied, or left behind and said so.

use std::sync::Arc;

use qcow2::{
    Image,
    bitmap::{BitmapState, CopyRequest, copy_bitmaps},
};

use super::{source::Sources, target::Written};
use crate::{
    error::{Failure, chain},
    output::escape_control,
    progname,
};

/// The one source, which has bitmaps.
fn source(sources: &Sources) -> Result<&Arc<Image>, Failure> {
    if sources.are_several() {
        return Err("Copying bitmaps only possible with single source".into());
    }
    let image = sources.qcow2().map(|(_, image)| image).next();
    image
        .filter(|image| image.header().version > 2)
        .ok_or_else(|| "Source lacks bitmap support".into())
}

/// Those to be copied, and those that can't be.
fn chosen(image: &Image) -> Result<(Vec<CopyRequest>, Vec<String>), Failure> {
    let bitmaps = image.bitmaps().map_err(|e| chain(&e))?;
    if let Some(fault) = bitmaps.fault() {
        return Err(fault.to_string().into());
    }
    let (mut whole, mut broken) = (Vec::new(), Vec::new());
    for bitmap in bitmaps.iter(image) {
        match bitmap.state() {
            BitmapState::Recording | BitmapState::Disabled => whole.push(CopyRequest {
                name: bitmap.name().to_vec(),
                new_name: bitmap.name().to_vec(),
            }),
            _ => broken.push(escape_control(&bitmap.name_lossy()).into_owned()),
        }
    }
    Ok((whole, broken))
}

/// Before anything is written: that they can be copied.
///
/// # Errors
/// In qemu-img's words.
pub(super) fn check(sources: &Sources, skip_broken: bool) -> Result<(), Failure> {
    let (_, broken) = chosen(source(sources)?)?;
    match broken.first() {
        Some(name) if !skip_broken => Err(format!(
            "Cannot copy inconsistent bitmap '{name}'\n\
             Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it"
        )
        .into()),
        _ => Ok(()),
    }
}

/// Copies them into what was written.
///
/// # Errors
/// That it can't be done; nothing has its name then.
pub(super) fn copy(
    sources: &Sources,
    written: Written,
    skip_broken: bool,
) -> Result<Written, Failure> {
    let image = source(sources)?;
    let (whole, broken) = chosen(image)?;
    if skip_broken {
        for name in broken {
            progname::warning(format_args!("Skipping inconsistent bitmap '{name}'"));
        }
    }
    if whole.is_empty() {
        return Ok(written);
    }
    written.edit(|target| {
        copy_bitmaps(image, target, &whole, false)
            .map(drop)
            .map_err(|error| format!("Failed to copy bitmaps: {}", chain(&error)))
    })
}

/// Says which bitmaps aren't in the copy.
pub(super) fn tell_of_those_left(sources: &Sources) {
    for (name, image) in sources.qcow2() {
        let count = image.bitmaps().map_or(0, |list| list.iter(image).count());
        if count == 0 {
            continue;
        }
        let name = name.to_string_lossy();
        let name = escape_control(&name);
        let plural = if count == 1 { "" } else { "s" };
        progname::warning(format_args!(
            "{count} dirty bitmap{plural} of '{name}' left behind (--bitmaps copies them)"
        ));
    }
}
