//! Sources that can't be read, and a conversion that is cut short.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::{MIB, content, raw};
use crate::pair::Pair;

#[test]
fn what_cannot_be_read_ends_it_or_is_salvaged() {
    let Some(pair) = Pair::new() else { return };
    raw(&pair, "a", &vec![0x55; MIB]);
    pair.make(&["convert", "-f", "raw", "-c", "-O", "qcow2", "a", "packed"]);
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let path = pair.work().join("packed");
    let mut bytes = fs::read(&path).unwrap();
    let place = |entry: u64| usize::try_from(entry & 0x00ff_ffff_ffff_fe00).unwrap();
    let l2 = place(word(&bytes, place(word(&bytes, 40))));
    let data = usize::try_from(word(&bytes, l2 + 24) & ((1 << 54) - 1)).unwrap();
    bytes[data..data + 60].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let words = ["convert", "-O", "raw", "packed", "t"];
    let (theirs, ours) = (pair.qemu(&words), pair.ours(&words));
    assert_eq!((theirs.code, ours.code), (Some(1), Some(1)));
    assert!(
        ours.stderr
            .lines()
            .last()
            .unwrap()
            .ends_with(": Input/output error")
    );
    let words = ["convert", "--salvage", "-O", "raw", "packed", "t"];
    let theirs = pair.qemu(&words);
    let saved = fs::read(pair.work().join("t")).unwrap();
    let ours = pair.ours(&words);
    assert_eq!((theirs.code, ours.code), (Some(0), Some(0)));
    assert!(fs::read(pair.work().join("t")).unwrap() == saved);
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&theirs.stderr), sorted(&ours.stderr));
}

/// Whatever its name, nothing but what was there before may open.
#[test]
fn a_kill_leaves_no_target_that_opens() {
    let Some(pair) = Pair::new() else { return };
    raw(&pair, "a", &content(40 * MIB));
    raw(&pair, "old", b"old");
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = names(&pair.work());
    for (target, wait) in [
        ("new", 5),
        ("new", 50),
        ("new", 150),
        ("old", 100),
        ("old", 200),
    ] {
        let mut running = Command::new(env!("CARGO_BIN_EXE_qimg"))
            .current_dir(pair.work())
            .args([
                "convert", "-r", "64M", "-f", "raw", "-O", "qcow2", "a", target,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(wait));
        running.kill().unwrap();
        let mut said = String::new();
        running
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        running.wait().unwrap();
        assert_eq!(said, "");
        assert_eq!(names(&pair.work()), before, "{target} after {wait} ms");
        assert_eq!(fs::read(pair.work().join("old")).unwrap(), b"old");
    }
}
