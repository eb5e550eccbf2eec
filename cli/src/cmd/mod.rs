//! One file for each command: its arguments and what it does.

pub(crate) mod bitmap;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod create;
pub(crate) mod info;
pub(crate) mod man;
pub(crate) mod migrate;

use std::ffi::{OsStr, OsString};

use crate::{error::Failure, opts::ImageSpec, progname};

/// The image that FILENAME means under `--format` or `--image-opts`; warnings about the
/// notation are printed.
///
/// # Errors
/// As by [`open_failure`].
pub(crate) fn image_spec(
    name: &OsStr,
    format: Option<&str>,
    image_opts: bool,
) -> Result<ImageSpec, Failure> {
    let spec = match image_opts {
        true => ImageSpec::from_options(name),
        false => ImageSpec::from_name(name, format),
    };
    let spec = spec.map_err(|message| open_failure(name, message))?;
    for text in &spec.warnings {
        progname::warning(text);
    }
    Ok(spec)
}

/// `Could not open 'name': message`.
pub(crate) fn open_failure(name: &OsStr, message: impl std::fmt::Display) -> Failure {
    Failure::Message(format!(
        "Could not open '{}': {message}",
        name.to_string_lossy()
    ))
}

/// The one operand of a command that takes one image.
pub(crate) fn one_file(mut files: Vec<OsString>) -> Result<OsString, Failure> {
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(file),
        _ => Err(Failure::Hinted("Expecting one image file name".into())),
    }
}

/// `--format` and `--image-opts` exclude each other.
pub(crate) fn exclusive(format: Option<&str>, image_opts: bool) -> Result<(), Failure> {
    match (format, image_opts) {
        (Some(_), true) => Err("--image-opts and --format are mutually exclusive".into()),
        _ => Ok(()),
    }
}
