//! What the fuzz targets do with their input, and the inputs they start from.
//!
//! The bodies are here and not in `fuzz/`, so that the stable test `fuzz_replay` can
//! run every seed and every finding through them. Each must end for any input whatever,
//! in time and in memory that follow the input's size, and panics when something that
//! was accepted does not hold.

mod disk;
mod encrypted;
mod image;
mod layered;
mod stream;
mod written;

use std::{fs, path::PathBuf};

pub use disk::disk;
pub use encrypted::encrypted;
pub use image::{directory_and_tables, header, image};
pub use layered::layered;
pub use stream::{apply, stream};
pub use written::written;

/// A body that takes any bytes.
pub type Body = fn(&[u8]);

/// Name and body of every target; `fuzz/fuzz_targets/` has a file for each.
pub const TARGETS: [(&str, Body); 9] = [
    ("header", header),
    ("directory_and_tables", directory_and_tables),
    ("layered", layered),
    ("image", image),
    ("disk", disk),
    ("written", written),
    ("encrypted", encrypted),
    ("stream", stream),
    ("apply", apply),
];

/// An input with a name for messages.
pub type Input = (String, Vec<u8>);

/// Inputs made from `testdata/`, or out of thin air, for the target.
///
/// # Panics
/// When the target has none.
#[must_use]
pub fn seeds(target: &str) -> Vec<Input> {
    let seeds = match target {
        "header" => image::header_seeds(),
        "directory_and_tables" => image::directory_seeds(),
        "layered" => layered::seeds(),
        "image" | "disk" => image::image_seeds(),
        "written" => written::seeds(),
        "encrypted" => encrypted::seeds(),
        "stream" => stream::seeds(),
        "apply" => stream::apply_seeds(),
        other => panic!("no target {other}"),
    };
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds
}

/// Files in `fuzz/findings/TARGET/`: what once went wrong, and inputs that reach far.
///
/// # Panics
/// When there are none.
#[must_use]
pub fn findings(target: &str) -> Vec<Input> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "fuzz", "findings", target]
        .iter()
        .collect();
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    let read = |path: PathBuf| (path.display().to_string(), fs::read(path).unwrap());
    paths.into_iter().map(read).collect()
}
