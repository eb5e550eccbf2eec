//! What the tests of streams share.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
};

use qimg_tests::{Run, Scratch, qimg, testdata::BitmapTruth};
use serde_json::Value;

/// A capture in `testdata/stream/`, or what belongs to it.
pub(crate) fn captured(name: &str) -> PathBuf {
    qimg_tests::testdata::dir().join("stream").join(name)
}

/// The size of the disk in an image.
pub(crate) fn disk_size(image: &Path) -> u64 {
    let info: [&OsStr; 4] = [
        "info".as_ref(),
        "-U".as_ref(),
        "--output=json".as_ref(),
        image.as_ref(),
    ];
    qimg!().run(info).ok().json()["virtual-size"]
        .as_u64()
        .unwrap()
}

/// An image without bitmaps.
pub(crate) fn blank(scratch: &Scratch, name: &str, size: u64) -> PathBuf {
    let path = scratch.path(name);
    let words = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"];
    let size = size.to_string();
    let words = words.iter().map(OsStr::new);
    qimg!()
        .run(words.chain([path.as_os_str(), size.as_ref()]))
        .ok();
    path
}

/// `qimg migrate-bitmaps WORDS`.
pub(crate) fn migrate<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Run {
    let words: Vec<_> = words
        .into_iter()
        .map(|word| word.as_ref().to_owned())
        .collect();
    let command = ["migrate-bitmaps".into()];
    qimg!().run(command.into_iter().chain(words))
}

/// `qimg migrate-bitmaps --emit OPTIONS IMAGE`: the stream.
pub(crate) fn emit(options: &[&str], images: &[&str]) -> Vec<u8> {
    let words = ["--emit"].iter().chain(options).chain(images);
    migrate(words).ok().raw_stdout
}

/// `qimg migrate-bitmaps --apply WORDS` with these bytes on standard input.
pub(crate) fn apply(scratch: &Scratch, stream: &[u8], words: &[&str]) -> Run {
    let file = scratch.path("applied.stream");
    fs::write(&file, stream).unwrap();
    let mut command = qimg!().command();
    command.args(["migrate-bitmaps", "--apply"]).args(words);
    finish(command.stdin(File::open(&file).unwrap()))
}

/// Runs a command whose standard input is set.
pub(crate) fn finish(command: &mut std::process::Command) -> Run {
    let shown = format!("{command:?}");
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    Run {
        command: shown,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        raw_stdout: output.stdout,
    }
}

/// Path as text, for a command line.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The names of an image's bitmaps, in the order of its directory.
pub(crate) fn names(image: &Path) -> Vec<String> {
    let list: [&OsStr; 4] = [
        "bitmap".as_ref(),
        "--list".as_ref(),
        "--output=json".as_ref(),
        image.as_ref(),
    ];
    let list = qimg!().run(list).ok().json();
    let bitmaps = list["bitmaps"].as_array().unwrap().clone();
    let name = |bitmap: &Value| bitmap["name"].as_str().unwrap().to_owned();
    bitmaps.iter().map(name).collect()
}

/// What the image says of each of its bitmaps, in the order of its directory.
pub(crate) fn truths(image: &Path) -> Vec<BitmapTruth> {
    let truth = |name: &String| qimg!().truth(image, name);
    names(image).iter().map(truth).collect()
}

/// An image with the bitmaps `daily` and `fine` (disabled), with different bits.
pub(crate) fn source(scratch: &Scratch, name: &str) -> PathBuf {
    let path = blank(scratch, name, 10 << 20);
    let stream = fs::read(captured("02-multi-bitmap.stream")).unwrap();
    let bitmaps = ["--bitmap", "daily=p-on", "--bitmap", "fine=p-off"];
    let words: Vec<&str> = bitmaps.into_iter().chain([text(&path)]).collect();
    apply(scratch, &stream, &words).ok();
    assert_eq!(names(&path), ["daily", "fine"]);
    path
}

/// An image of 1 MiB with the bitmaps `bm0` and `late` (disabled, clean): a short stream.
pub(crate) fn small_source(scratch: &Scratch, name: &str) -> PathBuf {
    let path = blank(scratch, name, 1 << 20);
    let stream = fs::read(captured("01-single.stream")).unwrap();
    apply(scratch, &stream, &[text(&path)]).ok();
    qimg!().bitmap(&["--add", "--disable"], &path, "late");
    path
}

/// Runs `run` and sees that the files are byte for byte as before.
#[track_caller]
pub(crate) fn unchanged(files: &[&Path], run: impl FnOnce() -> Run) -> Run {
    let read = || -> Vec<Vec<u8>> { files.iter().map(|file| fs::read(file).unwrap()).collect() };
    let before = read();
    let run = run();
    assert!(before == read(), "{} changed a file", run.command);
    run
}
