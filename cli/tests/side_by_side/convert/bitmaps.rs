//! Dirty bitmaps that are left behind, or can't be copied.

use std::{ffi::OsStr, fs, os::unix::fs::FileExt, process::Command};

use super::ours;
use crate::pair::Pair;

#[test]
fn bitmaps_left_behind_are_named_but_not_by_qemu_imgs_name() {
    let Some(pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a", "1M"]);
    pair.make(&["bitmap", "--add", "a", "b0"]);
    let run = |words: &[&OsStr]| {
        let output = Command::new(env!("CARGO_BIN_EXE_qimg"))
            .current_dir(pair.work())
            .args(words)
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let words = ["convert", "-O", "qcow2", "a", "t"].map(OsStr::new);
    assert_eq!(
        run(&words),
        "qimg: warning: 1 dirty bitmap of 'a' left behind (--bitmaps copies them)\n"
    );
    let words = ["convert", "--bitmaps", "-O", "qcow2", "a", "t"].map(OsStr::new);
    assert_eq!(run(&words), "");
    ours(&pair, "convert -O qcow2 a t");
}

/// The in-use flag of the only bitmap, set as by a program that crashed.
#[test]
fn bitmaps_that_are_inconsistent() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a", "1M"]);
    pair.make(&["bitmap", "--add", "a", "b0"]);
    let path = pair.work().join("a");
    let bytes = fs::read(&path).unwrap();
    let magic = 0x2385_2875_u32.to_be_bytes();
    let extension = bytes.windows(4).position(|word| word == magic).unwrap();
    let at = extension + 8 + 16;
    let directory = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let flags = u32::from_be_bytes(
        bytes[usize::try_from(directory).unwrap() + 12..][..4]
            .try_into()
            .unwrap(),
    );
    file.write_all_at(&(flags | 1).to_be_bytes(), directory + 12)
        .unwrap();
    for line in [
        "convert --bitmaps -O qcow2 a t",
        "convert --bitmaps --skip-broken-bitmaps -O qcow2 a t",
        "convert --bitmaps -O raw a t",
        "convert -O qcow2 a t",
    ] {
        pair.same_line(line);
    }
    pair.finish();
}
