//! `qemu-img`, one process per call.

use std::{ffi::OsStr, path::Path};

use serde_json::Value;

use crate::run::Run;

/// Runs `qemu-img` with `args`.
pub fn qemu_img<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    Run::new("qemu-img", args)
}

/// `qemu-img create -f qcow2 [-o OPTIONS] IMAGE SIZE`.
#[track_caller]
pub fn create(image: &Path, size: &str, options: &str) {
    let mut args: Vec<&OsStr> = ["create", "-q", "-f", "qcow2"].map(OsStr::new).to_vec();
    if !options.is_empty() {
        args.extend(["-o".as_ref(), OsStr::new(options)]);
    }
    args.extend([image.as_os_str(), size.as_ref()]);
    qemu_img(args).ok();
}

/// `qemu-img bitmap ACTIONS IMAGE NAME`, which must succeed.
#[track_caller]
pub fn bitmap(actions: &[&str], image: &Path, name: &str) {
    let mut args: Vec<&OsStr> = ["bitmap", "-f", "qcow2"].map(OsStr::new).to_vec();
    args.extend(actions.iter().map(OsStr::new));
    args.extend([image.as_os_str(), name.as_ref()]);
    qemu_img(args).ok();
}

/// `qemu-img info --output=json` of a qcow2 image.
#[track_caller]
pub fn info(image: &Path) -> Value {
    let args: [&OsStr; 6] = [
        "info".as_ref(),
        "-U".as_ref(),
        "-f".as_ref(),
        "qcow2".as_ref(),
        "--output=json".as_ref(),
        image.as_os_str(),
    ];
    qemu_img(args).ok().json()
}

/// Bitmaps as `qemu-img info` lists them: name, granularity, flags.
#[track_caller]
pub fn bitmaps(image: &Path) -> Vec<(String, u64, Vec<String>)> {
    let info = info(image);
    let listed = &info["format-specific"]["data"]["bitmaps"];
    let listed = listed.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    listed
        .iter()
        .map(|b| {
            let flags = b["flags"].as_array().unwrap().iter().map(text).collect();
            (text(&b["name"]), b["granularity"].as_u64().unwrap(), flags)
        })
        .collect()
}

/// `qemu-img check` must find nothing at all: no error, no leaked cluster.
#[track_caller]
pub fn assert_clean(image: &Path) {
    let args: [&OsStr; 4] = [
        "check".as_ref(),
        "-f".as_ref(),
        "qcow2".as_ref(),
        image.as_os_str(),
    ];
    let run = qemu_img(args).ok();
    assert!(
        run.stdout.contains("No errors were found on the image."),
        "{}\n{}",
        run.command,
        run.stdout
    );
}

/// `qemu-img compare` must find the guest's view of both images the same.
#[track_caller]
pub fn assert_same_content(a: &Path, b: &Path) {
    let args: [&OsStr; 3] = ["compare".as_ref(), a.as_os_str(), b.as_os_str()];
    qemu_img(args).ok();
}
