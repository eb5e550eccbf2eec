//! A command that is killed before its n-th write, or whose n-th write or sync fails,
//! for every n: QEMU finds the image sound but for leaks, and every bitmap as it was or
//! as it would have been.
//!
//! The real binary on a real file, with strace(1) between it and the kernel; what a
//! power cut can leave is replayed in memory by the library's own tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use qimg_tests::{
    Qsd, Run, Scratch,
    qemu_img::{create, qemu_img},
    qimg,
    require::{have_qemu, skipped, tool},
    testdata::BitmapTruth,
};

use crate::layouts::{Numbers, guest_writes};

/// Everything through which a command can change what is on the disk.
const CALLS: [&str; 6] = [
    "pwrite64",
    "fdatasync",
    "fsync",
    "ftruncate",
    "fallocate",
    "sync_file_range",
];

/// More writes than any of these commands needs.
const ENOUGH: usize = 200;

fn can_trace() -> bool {
    if tool("strace").is_none() {
        return false;
    }
    let can = Run::new("strace", ["-qq", "true"]).code == 0;
    if !can {
        let required = std::env::var_os("QIMG_REQUIRE_QEMU").is_some_and(|value| value == "1");
        assert!(!required, "strace cannot trace here");
        skipped("strace cannot trace here");
    }
    can
}

/// The bitmaps, where `check` finds leaks at most.
fn truth(image: &Path) -> Vec<BitmapTruth> {
    let args = ["check".as_ref(), "-fqcow2".as_ref(), image.as_os_str()];
    let check = qemu_img(args);
    assert!([0, 3].contains(&check.code), "{check:?}");
    let mut qsd = Qsd::open_read_only(image);
    let truth = qsd.truth();
    qsd.quit();
    truth
}

/// Two images with bitmaps that saw writes; 512-byte clusters, so that there are many
/// small writes.
fn images(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let paths = (scratch.path("a.qcow2"), scratch.path("b.qcow2"));
    for (seed, path) in [&paths.0, &paths.1].into_iter().enumerate() {
        create(path, "12M", "cluster_size=512");
        let mut qsd = Qsd::open(path);
        let name = ["one", "other"][seed];
        qsd.add_bitmap(name, 512, false);
        guest_writes(&mut qsd, &mut Numbers::new(seed as u64), 9);
        qsd.add_bitmap("two", 4096, false);
        guest_writes(&mut qsd, &mut Numbers::new(9), 3);
        qsd.quit();
    }
    paths
}

/// Runs `args` on copies of both images with the n-th call of each kind tampered with,
/// and holds what is left against before and after.
fn tampered(args: &[&str], how: &str) {
    let scratch = Scratch::new();
    let originals = images(&scratch);
    let work = Scratch::new();
    let fresh = || (work.copy(&originals.0), work.copy(&originals.1));
    let run = |more: &[&str]| {
        let mut command = vec!["-f", "-qq", "-o", "/dev/null"];
        command.extend(more);
        let mut strace = std::process::Command::new("strace");
        strace.args(command).arg(qimg!().command().get_program());
        Run::of(strace.args(args).current_dir(work.dir()))
    };

    let (a, b) = fresh();
    let before = [truth(&a), truth(&b)];
    run(&["-e", "trace=none"]).ok();
    let after = [truth(&a), truth(&b)];
    assert_ne!(before, after, "the command does nothing");

    let mut points = 0;
    for call in CALLS {
        let mut survived = 0;
        for n in 1..ENOUGH {
            fresh();
            let inject = format!("inject={call}:{how}:when={n}");
            let run = run(&["-e", &format!("trace={call}"), "-e", &inject]);
            let left = [truth(&a), truth(&b)];
            if run.code == 0 {
                // Fewer calls than n, or one that is free to fail (a hint to the
                // kernel): all of it was done.
                assert_eq!(left, after, "{args:?} {inject} ended with 0");
                survived += 1;
                if survived == 3 {
                    break;
                }
                continue;
            }
            points += 1;
            for i in 0..2 {
                assert!(
                    left[i] == before[i] || left[i] == after[i],
                    "{args:?} {inject}: neither before nor after\n{:#?}",
                    left[i]
                );
            }
        }
    }
    assert!(points >= 4, "{args:?}: only {points} points");
}

const COMMANDS: [&[&str]; 8] = [
    &["bitmap", "--add", "a.qcow2", "new"],
    &["bitmap", "--remove", "a.qcow2", "one"],
    &["bitmap", "--clear", "a.qcow2", "one"],
    &["bitmap", "--disable", "a.qcow2", "two"],
    &["bitmap", "--merge", "two", "a.qcow2", "one"],
    &[
        "bitmap",
        "--add",
        "--disable",
        "--merge",
        "one",
        "a.qcow2",
        "sum",
    ],
    &["migrate-bitmaps", "a.qcow2", "b.qcow2", "--bitmap", "one"],
    &[
        "migrate-bitmaps",
        "a.qcow2",
        "b.qcow2",
        "--bitmap",
        "one",
        "--remove-source",
    ],
];

#[test]
fn killed_before_any_write_every_bitmap_is_as_before_or_as_after() {
    if !have_qemu() || !can_trace() {
        return;
    }
    for args in COMMANDS {
        tampered(args, "error=EIO:signal=KILL");
    }
}

#[test]
fn a_write_or_sync_that_fails_loses_no_bitmap() {
    if !have_qemu() || !can_trace() {
        return;
    }
    for args in COMMANDS {
        tampered(args, "error=EIO");
    }
}

#[test]
fn a_full_disk_loses_no_bitmap() {
    if !have_qemu() || !can_trace() {
        return;
    }
    let scratch = Scratch::new();
    let (original, _) = images(&scratch);
    let work = Scratch::new();
    let image = work.copy(&original);
    let before = (fs::read(&image).unwrap(), truth(&image));
    let mut strace = std::process::Command::new("strace");
    strace
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64"])
        .args(["-e", "inject=pwrite64:error=ENOSPC"])
        .arg(qimg!().command().get_program())
        .args(["bitmap", "--add", "a.qcow2", "new"])
        .current_dir(work.dir());
    let run = Run::of(&mut strace).code(1);
    assert!(run.stderr.contains("No space left on device"), "{run:?}");
    assert_eq!(truth(&image), before.1);
}
