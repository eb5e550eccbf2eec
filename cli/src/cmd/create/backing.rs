//! The backing image of a new one: that it can be opened, and how large its disk is.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use crate::{
    cmd::beside,
    image,
    opts::{ImageSpec, Value, Values},
};

/// Checks the backing file that `values` names for the image `name`, and takes its size
/// where none was given. With `unsafe_` it is not opened.
///
/// # Errors
/// In qemu-img's words, without the new image's name in front.
pub(super) fn complete(values: &mut Values, name: &OsStr, unsafe_: bool) -> Result<(), String> {
    let backing = values.text("backing_file").unwrap_or_default().to_owned();
    let format = values.text("backing_fmt").map(ToOwned::to_owned);
    if backing.is_empty() {
        return Err("Expected backing file name, got empty string".into());
    }
    if backing.as_bytes() == name.as_bytes() {
        return Err(
            "Error: Trying to create an image with the same filename as the backing file".into(),
        );
    }
    if !unsafe_ {
        let path = beside(name, backing.as_bytes());
        let unusable = |text: String| format!("{text}\nCould not open backing image.");
        let mut spec = ImageSpec::from_name(&path, format.as_deref()).map_err(unusable)?;
        // Only its size is asked for: as for qemu-img, a writer is no obstacle.
        spec.force_share.get_or_insert(true);
        let image = image::open(&spec, image::Use::Read).map_err(unusable)?;
        if format.is_none() {
            let detected = image.format();
            return Err(format!(
                "Backing file specified without backing format\nDetected format of {detected}."
            ));
        }
        values.default("size", Value::Size(image.virtual_size()));
    } else if format.is_none() {
        return Err("Backing file specified without backing format".into());
    }
    Ok(())
}
