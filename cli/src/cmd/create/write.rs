//! Makes the files that `create` was asked for.

use super::plan::Qcow2Plan;
use crate::opts::{Reference, Values};

/// A raw image.
///
/// # Errors
/// In qemu-img's words.
pub(super) fn raw(file: &Reference, values: &Values, replace: bool) -> Result<(), String> {
    let _ = (file, values, replace);
    Err("raw images can't be created yet".into())
}

/// A qcow2 image.
///
/// # Errors
/// In qemu-img's words.
pub(super) fn qcow2(file: &Reference, plan: &Qcow2Plan, replace: bool) -> Result<(), String> {
    let _ = (file, plan, replace);
    Err("qcow2 images can't be created yet".into())
}
