//! Bitmaps that we write are loaded, enabled, merged and extended by QEMU, and
//! `qemu-img check` finds nothing after any of our commands.

use std::path::Path;

use qimg_tests::{
    Nbd, Qimg, Qsd, Scratch,
    qemu_img::{assert_clean, bitmaps, create},
    qimg,
    require::have_qemu,
    testdata::BitmapTruth,
};

use crate::layouts::{self, Numbers, guest_writes};

/// What QEMU, started afresh, says about the image's bitmaps.
fn truth(image: &Path) -> Vec<BitmapTruth> {
    let mut qsd = Qsd::open_read_only(image);
    let truth = qsd.truth();
    qsd.quit();
    truth
}

fn find<'a>(truth: &'a [BitmapTruth], name: &str) -> &'a BitmapTruth {
    truth.iter().find(|b| b.name == name).unwrap()
}

/// Runs our command, then lets QEMU look at what it left.
#[track_caller]
fn ours(qimg: &Qimg, actions: &[&str], image: &Path, name: &str) -> Vec<BitmapTruth> {
    qimg.bitmap(actions, image, name);
    assert_clean(image);
    truth(image)
}

#[test]
fn qemu_takes_up_what_we_write_on_every_layout() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    for (seed, layout) in layouts::all().into_iter().enumerate() {
        let image = layout.create(&scratch);
        let mut numbers = Numbers::new(1000 + seed as u64);
        let what = &layout.name;

        // A new bitmap of ours records QEMU's writes.
        let new = ours(&qimg, &["--add", "-g", "32k"], &image, "a");
        assert_eq!((find(&new, "a").count, new.len()), (0, 1), "{what}");
        assert_eq!(find(&new, "a").state, "recording", "{what}");
        let mut qsd = Qsd::open(&image);
        guest_writes(&mut qsd, &mut numbers, 10);
        let recorded = qsd.truth();
        qsd.quit();
        assert!(find(&recorded, "a").count > 0, "{what}");
        assert_eq!(qimg.truth(&image, "a"), *find(&recorded, "a"), "{what}");

        // Add, disable and merge in one command, to a finer granularity.
        let merged = ours(
            &qimg,
            &["--add", "-g", "4k", "--disable", "--merge", "a"],
            &image,
            "b",
        );
        let (a, b) = (find(&merged, "a"), find(&merged, "b"));
        assert_eq!(a, find(&recorded, "a"), "{what}");
        assert_eq!((b.state.as_str(), b.granularity), ("disabled", 4096));
        assert_eq!(b.ranges, a.ranges, "{what}");

        // QEMU enables ours, merges into it and extends it.
        let mut qsd = Qsd::open(&image);
        qsd.add_bitmap("c", 65536, false);
        guest_writes(&mut qsd, &mut numbers, 5);
        qsd.bitmap("enable", "b");
        qsd.merge("b", &["c"]);
        guest_writes(&mut qsd, &mut numbers, 5);
        let extended = qsd.truth();
        qsd.quit();
        assert_clean(&image);
        for bitmap in &extended {
            assert_eq!(qimg.truth(&image, &bitmap.name), *bitmap, "{what}");
        }

        // Back to us: coarser from finer, clear, remove; the others stay as they are.
        let coarse = ours(
            &qimg,
            &["--add", "-g", "1M", "--merge", "b", "--merge", "c"],
            &image,
            "d",
        );
        assert_eq!(find(&coarse, "b"), find(&extended, "b"), "{what}");
        let cleared = ours(&qimg, &["--clear"], &image, "b");
        assert_eq!(find(&cleared, "b").count, 0, "{what}");
        assert_eq!(find(&cleared, "d"), find(&coarse, "d"), "{what}");
        let removed = ours(&qimg, &["--remove"], &image, "a");
        let names: Vec<_> = removed.iter().map(|b| b.name.as_str()).collect();
        assert_eq!(names, ["b", "c", "d"], "{what}");

        // And QEMU goes on writing to all of it.
        let mut qsd = Qsd::open(&image);
        guest_writes(&mut qsd, &mut numbers, 3);
        qsd.quit();
        assert_clean(&image);
        for name in ["b", "c", "d"] {
            ours(&qimg, &["--remove"], &image, name);
        }
        assert_eq!(bitmaps(&image), [], "{what}");
    }
}

#[test]
fn merge_from_another_image_is_what_qemu_then_sees() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let (from, to) = (scratch.path("from.qcow2"), scratch.path("to.qcow2"));
    qimg_tests::qemu_img::create(&from, "20M", "cluster_size=4k");
    qimg_tests::qemu_img::create(&to, "20M", "cluster_size=64k,refcount_bits=1");
    let mut qsd = Qsd::open(&from);
    qsd.add_bitmap("src", 4096, false);
    guest_writes(&mut qsd, &mut Numbers::new(7), 20);
    qsd.quit();
    let before = std::fs::read(&from).unwrap();

    let source = from.display().to_string();
    let actions = [
        "--add", "-g", "128k", "--merge", "src", "-b", &source, "-F", "qcow2",
    ];
    let merged = ours(&qimg, &actions, &to, "dst");

    let other = scratch.path("other.qcow2");
    qimg_tests::qemu_img::create(&other, "20M", "cluster_size=64k,refcount_bits=1");
    qimg_tests::qemu_img::bitmap(&actions, &other, "dst");
    assert_eq!(merged, truth(&other));
    assert!(
        before == std::fs::read(&from).unwrap(),
        "the source changed"
    );
}

#[test]
fn many_bitmaps_live_beside_each_other() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let image = scratch.path("many.qcow2");
    qimg_tests::qemu_img::create(&image, "1M", "cluster_size=512");
    for n in 0..40 {
        // Long names make the directory need several clusters.
        let name = format!("bitmap {n:03} {}", "x".repeat(80));
        qimg.bitmap(&["--add", "-g", "512"], &image, &name);
    }
    assert_clean(&image);
    assert_eq!(truth(&image).len(), 40);
    for n in (0..40).step_by(2) {
        let name = format!("bitmap {n:03} {}", "x".repeat(80));
        qimg.bitmap(&["--remove"], &image, &name);
    }
    assert_clean(&image);
    let left = truth(&image);
    assert_eq!(left.len(), 20);
    assert!(left.iter().all(|b| b.state == "recording" && b.count == 0));
}

#[test]
fn an_untouched_bitmap_keeps_its_bytes() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let image = scratch.copy(&qimg_tests::testdata::qcow2("three-bitmaps.qcow2"));
    let before = qimg_tests::ImageBytes::load(&image);
    qimg.bitmap(&["--add"], &image, "new");
    let after = qimg_tests::ImageBytes::load(&image);
    assert_eq!(after.autoclear(), before.autoclear());
    let entry = |image: &qimg_tests::ImageBytes, name: &str| {
        let entries = image.directory();
        let (_, at) = entries.into_iter().find(|(n, _)| n == name).unwrap();
        image.bytes[at].to_vec()
    };
    for name in ["daily", "weekly", "frozen"] {
        // Same table, same flags: nothing of it was rewritten.
        assert_eq!(entry(&after, name), entry(&before, name), "{name}");
    }
    assert_clean(&image);
}

/// QEMU reads "all ones" into whole words, behind the end of the disk too, and its digest
/// tells: such a piece has to be stored bit by bit.
#[test]
fn all_dirty_up_to_the_end_of_an_odd_disk() {
    if !have_qemu() {
        return;
    }
    let qimg = qimg!();
    // Bits of 4 KiB: a part of a word, a whole one, and whole clusters of 64 KiB with a
    // part of a word behind.
    for size in [
        512,
        4096 * 63,
        4096 * 64,
        4096 * 64 + 512,
        (2 << 30) + 4096 * 65,
    ] {
        let scratch = Scratch::new();
        let (image, other) = (scratch.path("a.qcow2"), scratch.path("b.qcow2"));
        create(&image, &size.to_string(), "");
        create(&other, &size.to_string(), "");
        let mut qsd = Qsd::open(&image);
        qsd.add_bitmap("theirs", 4096, false);
        let (socket, export) = qsd.export(&[], true);
        let mut nbd = Nbd::connect(&socket, &export, &[]);
        for offset in (0..size).step_by(1 << 30) {
            let length = (size - offset).min(1 << 30);
            nbd.zero(offset, u32::try_from(length).unwrap());
        }
        drop(nbd);
        qsd.unexport(&export);
        qsd.quit();
        let expected = find(&truth(&image), "theirs").clone();
        assert_eq!(expected.count, size.next_multiple_of(4096));

        // By a copy, by a merge into nothing, and by a merge from another granularity.
        let args = [image.as_os_str(), other.as_os_str()];
        let copy = ["migrate-bitmaps".as_ref()].into_iter().chain(args);
        qimg.run(copy).ok();
        assert_clean(&other);
        assert_eq!(truth(&other), std::slice::from_ref(&expected), "{size}");
        ours(&qimg, &["--add", "-g", "4k"], &image, "copy");
        ours(&qimg, &["--add", "-g", "64k"], &image, "wide");
        ours(&qimg, &["--merge", "theirs"], &image, "copy");
        ours(&qimg, &["--merge", "theirs"], &image, "wide");
        ours(&qimg, &["--add", "-g", "4k"], &image, "back");
        let found = ours(&qimg, &["--merge", "wide"], &image, "back");
        for name in ["copy", "back"] {
            let found = find(&found, name);
            assert_eq!(found.sha256, expected.sha256, "{size} {name}");
            assert_eq!(found.ranges, expected.ranges, "{size} {name}");
        }
    }
}
