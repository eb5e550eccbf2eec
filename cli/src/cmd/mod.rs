//! One file for each command: its arguments and what it does.

pub(crate) mod bench;
pub(crate) mod bitmap;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod dd;
pub(crate) mod info;
pub(crate) mod man;
pub(crate) mod map;
pub(crate) mod measure;
pub(crate) mod migrate;
pub(crate) mod stream;

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use crate::{
    error::Failure,
    image::{self, Opened, Use},
    opts::ImageSpec,
    progname,
};

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

/// `-U` on top of what the image's own options say.
///
/// # Errors
/// They must not say the contrary.
pub(crate) fn share(spec: &mut ImageSpec, force_share: bool) -> Result<(), Failure> {
    match (force_share, spec.force_share) {
        (true, Some(false)) => Err("--force-share/-U conflicts with image options".into()),
        (true, _) => {
            spec.force_share = Some(true);
            Ok(())
        }
        (false, _) => Ok(()),
    }
}

/// Opens the image that `spec` names.
///
/// # Errors
/// As by [`open_failure`].
pub(crate) fn open(spec: &ImageSpec, what_for: Use) -> Result<Opened, Failure> {
    image::open(spec, what_for).map_err(|message| open_failure(&spec.given, message))
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

/// Whether `-T` and `-t` take this word.
pub(crate) fn is_cache_mode(word: &str) -> bool {
    let modes = ["none", "writeback", "writethrough", "directsync", "unsafe"];
    modes.contains(&word)
}

/// A name as found in the header of `image`, seen from here: relative names count from
/// the directory of `image`; names with a protocol stay as they are.
pub(crate) fn beside(image: &OsStr, name: &[u8]) -> OsString {
    let colon = name.iter().position(|&byte| byte == b':' || byte == b'/');
    let has_protocol = colon.is_some_and(|at| name.get(at) == Some(&b':'));
    let image = image
        .as_bytes()
        .strip_prefix(b"file:")
        .unwrap_or(image.as_bytes());
    let directory = match image.iter().rposition(|&byte| byte == b'/') {
        Some(slash) if !has_protocol && !name.starts_with(b"/") => {
            image.get(..=slash).unwrap_or_default()
        }
        _ => b"",
    };
    OsString::from_vec([directory, name].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_names_count_from_the_images_directory() {
        for (image, name, seen) in [
            ("a", "b", "b"),
            ("dir/a", "b", "dir/b"),
            ("dir/a", "../b", "dir/../b"),
            ("./a", "b", "./b"),
            ("file:dir/a", "b", "dir/b"),
            ("dir/a", "/b", "/b"),
            ("dir/a", "nbd:b", "nbd:b"),
            ("dir/a", "x/b:c", "dir/x/b:c"),
        ] {
            assert_eq!(
                beside(OsStr::new(image), name.as_bytes()),
                seen,
                "{image} {name}"
            );
        }
    }
}
