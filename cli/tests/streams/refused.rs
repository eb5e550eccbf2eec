//! Where QEMU fails, aborts or silently loses bitmaps, the command says why and leaves
//! the image as it was.

use std::{fs, path::Path};

use qimg_tests::{
    Qsd, Scratch, qemu_img,
    require::{have_qemu, have_qemu_system},
    testdata::{self, BitmapTruth},
};

use crate::disks::{Disk, apply, blank, emit, stored, two_disks, waiting};

/// Applies a stream that must be refused, and not be written.
#[track_caller]
fn refused(stream: &Path, more: &[&str], to: &[(&str, &Path)], word: &str) {
    let before: Vec<_> = to
        .iter()
        .map(|(_, image)| fs::read(image).unwrap())
        .collect();
    let run = apply(stream, more, to).code(1);
    assert!(run.stderr.contains(word), "{}", run.stderr);
    for ((_, image), before) in to.iter().zip(before) {
        assert!(before == fs::read(image).unwrap(), "the image was written");
    }
}

#[test]
fn a_disk_of_another_size() {
    if !have_qemu() {
        return;
    }
    let stream = testdata::stream("10-odd-size").file;
    let scratch = Scratch::new();
    for (n, size) in [10 << 20, (10 << 20) + 1024, 1 << 20, 1 << 30]
        .iter()
        .enumerate()
    {
        let image = blank(&scratch, &format!("{n}"), *size);
        refused(&stream, &[], &[("n0", &image)], "disk");
    }
}

#[test]
fn an_unknown_node_or_too_many_images() {
    if !have_qemu() {
        return;
    }
    let stream = testdata::stream("03-multi-node").file;
    let scratch = Scratch::new();
    let image = blank(&scratch, "a", 1 << 20);
    let other = blank(&scratch, "b", 3 << 20);
    refused(&stream, &[], &[("disk0", &image)], "disk2");
    refused(
        &stream,
        &[],
        &[("disk0", &image), ("disk3", &other)],
        "disk2",
    );
}

/// QEMU ejects the node when the destination holds a consistent bitmap of that name.
#[test]
fn a_name_that_is_taken() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    emit(&stream, &[], &disks[1..]);
    let to = disks[1].blank(&scratch);
    qemu_img::bitmap(&["--add"], &to, "daily");
    refused(&stream, &[], &[("drive1", &to)], "daily");
    apply(&stream, &["--force"], &[("drive1", &to)]).ok();
    assert_eq!(stored(&to), disks[1].truth);
}

#[test]
fn an_inconsistent_one_gives_way() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    emit(&stream, &[], &disks[1..]);
    let to = disks[1].blank(&scratch);
    qemu_img::bitmap(&["--add"], &to, "daily");
    Qsd::open(&to).kill();
    apply(&stream, &[], &[("drive1", &to)]).ok();
    assert_eq!(stored(&to), disks[1].truth);
}

/// The source of a migration leaves its bitmaps in use: they are not to be sent again.
#[test]
fn an_image_that_was_migrated_from() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disk = Disk::new(&scratch, "n0", 1 << 20, &[("b", 65536, true, &[(0, 512)])]);
    let mut qemu = qimg_tests::QemuSystem::machine("none")
        .node("n0", &disk.image)
        .start();
    qemu.capabilities(&[]);
    qemu.migrate_to_file(&scratch.path("stream"));
    qemu.quit();
    let out = scratch.path("out").display().to_string();
    let args = ["migrate-bitmaps", "--emit", "-o", &out, &disk.operand()];
    let run = qimg_tests::qimg!().run(args).code(1);
    assert!(run.stderr.contains("inconsistent"), "{}", run.stderr);
    assert!(!Path::new(&out).exists(), "a stream was left behind");
}

/// A stream of a whole machine that ends too early: nothing is written; with --partial
/// what was complete is stored.
#[test]
fn a_stream_that_was_cut() {
    if !have_qemu() {
        return;
    }
    let recorded = testdata::stream("02-multi-bitmap");
    let whole = fs::read(&recorded.file).unwrap();
    let scratch = Scratch::new();
    let cut = scratch.path("cut");
    let last_complete = whole
        .windows(5)
        .rposition(|w| w == b"\x24\x04p-on")
        .unwrap_or_else(|| {
            let name = whole.windows(4).rposition(|w| w == b"p-on").unwrap();
            name - 2
        });
    for end in [20, 300, whole.len() / 2, last_complete] {
        fs::write(&cut, &whole[..end]).unwrap();
        let image = blank(&scratch, &format!("at-{end}"), 10 << 20);
        refused(&cut, &["--persistent=on"], &[("n0", &image)], "ends");
    }
    // The three others are complete.
    let image = blank(&scratch, "partial", 10 << 20);
    let run = apply(&cut, &["--persistent=on", "--partial"], &[("n0", &image)]).code(1);
    assert!(run.stderr.contains("p-on"), "{}", run.stderr);
    let mut expected: Vec<BitmapTruth> = recorded.bitmaps().into_iter().map(|b| b.truth).collect();
    expected.retain(|truth| truth.name != "p-on");
    expected.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(stored(&image), expected);
}

/// QEMU keeps bits behind the end of the disk, and its digest is another then; it also
/// loses every bitmap for one buffer of the wrong size, and says "completed".
#[test]
fn what_qemu_takes_or_loses_without_a_word() {
    if !have_qemu_system() {
        return;
    }
    let good = fs::read(testdata::stream("minimal").file).unwrap();
    let buffer = good
        .windows(8)
        .position(|w| w == b"\0\0\0\0\0\0\0\x20")
        .unwrap()
        + 8;
    let mut behind = good.clone();
    behind[buffer + 2] = 1;
    let mut size = good.clone();
    size[buffer - 1] = 0x40;
    let extra = [0; 32];
    size.splice(buffer..buffer, extra);
    for (what, bytes, word) in [
        ("behind", behind, "end of the disk"),
        ("size", size, "64 bytes"),
    ] {
        let scratch = Scratch::new();
        let stream = scratch.path(what);
        fs::write(&stream, bytes).unwrap();
        let to = blank(&scratch, "to", 1 << 20);
        refused(&stream, &[], &[("n0", &to)], word);
        let mut qemu = waiting("none", &[("n0", &to)]);
        assert_eq!(qemu.load(&stream), Ok(()), "{what}");
        qemu.activate();
        let found = qemu.bitmaps("n0");
        match what {
            "behind" => assert_ne!(
                found[0].truth.sha256,
                testdata::stream("01-single").bitmaps()[0].truth.sha256
            ),
            _ => assert_eq!(found, []),
        }
    }
}
