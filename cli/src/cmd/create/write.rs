//! Makes the files that `create` was asked for.

use std::path::Path;

use qcow2::io::{FileStorage, Storage};

use super::plan::Qcow2Plan;
use crate::{
    error::os_text,
    image::words,
    opts::{Reference, Values},
};

/// A raw image. What was there before stays until the new size is known to be possible.
///
/// # Errors
/// In qemu-img's words.
pub(super) fn raw(file: &Reference, values: &Values, replace: bool) -> Result<(), String> {
    match values.text("preallocation") {
        None | Some("off") => {}
        Some(mode @ ("metadata" | "falloc" | "full")) => {
            return Err(format!("Unsupported preallocation mode: {mode}"));
        }
        Some(other) => return Err(format!("invalid parameter value: {other}")),
    }
    // Disks are whole sectors.
    let size = values.number("size").unwrap_or_default();
    let size = size.checked_next_multiple_of(512);
    let size = size.filter(|size| i64::try_from(*size).is_ok());
    let size = size.ok_or("Could not resize file: Invalid argument")?;
    let path = Path::new(&file.path);
    let is_new = std::fs::symlink_metadata(path).is_err();
    let storage = FileStorage::create(path, !replace).map_err(|e| words(&e, path))?;
    let made = if storage.is_block_device() {
        fits(&storage, size)
    } else {
        resize(&storage, size)
    };
    if made.is_err() && is_new {
        let _ = std::fs::remove_file(path);
    }
    made
}

/// A device keeps its size; the disk must fit.
fn fits(device: &FileStorage, size: u64) -> Result<(), String> {
    match device.size() {
        Ok(there) if size <= there => Ok(()),
        Ok(_) => Err("Cannot grow device files".into()),
        Err(e) => Err(format!("Could not resize file: {}", os_text(&e))),
    }
}

/// Leaves a file of `size` zeros, on stable storage.
fn resize(storage: &FileStorage, size: u64) -> Result<(), String> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::FileTooLarge => {
            "The image size is too large for file format 'raw'".to_owned()
        }
        _ => format!("Could not resize file: {}", os_text(&e)),
    };
    let before = storage.size().map_err(failed)?;
    if size > before {
        storage.set_len(size).map_err(failed)?;
    }
    storage.set_len(0).map_err(failed)?;
    storage.set_len(size).map_err(failed)?;
    storage.sync().map_err(failed)
}

/// A qcow2 image.
///
/// # Errors
/// In qemu-img's words.
pub(super) fn qcow2(file: &Reference, plan: &Qcow2Plan, replace: bool) -> Result<(), String> {
    let _ = (file, plan, replace);
    Err("qcow2 images can't be created yet".into())
}
