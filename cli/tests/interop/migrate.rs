//! `qimg migrate-bitmaps`: what QEMU says of the source before is what it says of the
//! target after; what is refused is refused before a byte is written.

use std::{fs, path::Path};

use qimg_tests::{
    ImageBytes, Qsd, Run, Scratch,
    qemu_img::{assert_clean, bitmap, create},
    qimg,
    require::have_qemu,
    testdata::{self, BitmapTruth},
};

use crate::layouts::{self, Numbers, guest_writes};

fn truth(image: &Path) -> Vec<BitmapTruth> {
    let mut qsd = Qsd::open_read_only(image);
    let truth = qsd.truth();
    qsd.quit();
    truth
}

fn migrate(more: &[&str], from: &Path, to: &Path) -> Run {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    let mut args = vec!["migrate-bitmaps"];
    args.extend([from.as_str(), to.as_str()]);
    args.extend(more);
    qimg!().run(args)
}

/// A source with three bitmaps that saw writes.
fn source(scratch: &Scratch, size: &str) -> std::path::PathBuf {
    let image = scratch.path("source.qcow2");
    create(&image, size, "cluster_size=64k");
    let mut qsd = Qsd::open(&image);
    qsd.add_bitmap("daily", 65536, false);
    guest_writes(&mut qsd, &mut Numbers::new(3), 12);
    qsd.add_bitmap("fine", 4096, false);
    guest_writes(&mut qsd, &mut Numbers::new(4), 12);
    qsd.bitmap("disable", "daily");
    qsd.add_bitmap("empty", 1 << 20, false);
    qsd.quit();
    image
}

#[test]
fn everything_arrives_on_every_layout() {
    if !have_qemu() {
        return;
    }
    for layout in layouts::all() {
        let scratch = Scratch::new();
        let from = source(&scratch, &layout.size.to_string());
        let to = layout.create(&scratch);
        let expected = truth(&from);
        let before = fs::read(&from).unwrap();
        migrate(&[], &from, &to).ok();
        assert_clean(&to);
        assert_eq!(truth(&to), expected, "{}", layout.name);
        assert!(before == fs::read(&from).unwrap(), "the source changed");
    }
}

#[test]
fn json_tells_what_moved() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let from = source(&scratch, "32M");
    let to = scratch.path("to.qcow2");
    create(&to, "32M", "");
    let run = migrate(&["--output=json"], &from, &to).ok();
    let report = run.json();
    for bitmap in truth(&to) {
        // The digest of each bitmap is in the report, as read back.
        assert!(run.stdout.contains(&bitmap.sha256), "{bitmap:?}\n{report}");
        assert!(run.stdout.contains(&format!("\"{}\"", bitmap.name)));
    }
}

#[test]
fn named_ones_arrive_under_their_new_names() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let from = source(&scratch, "32M");
    let to = scratch.path("to.qcow2");
    create(&to, "32M", "");
    bitmap(&["--add"], &to, "daily");
    let more = ["--bitmap", "daily=from-source", "--bitmap", "fine"];
    migrate(&more, &from, &to).ok();
    assert_clean(&to);
    let (before, after) = (truth(&from), truth(&to));
    let names: Vec<_> = after.iter().map(|b| b.name.as_str()).collect();
    assert_eq!(names, ["daily", "fine", "from-source"]);
    assert_eq!(after[2].ranges, before[0].ranges);
    assert_eq!(after[2].sha256, before[0].sha256);
    assert_eq!(after[1], before[2]);
}

#[test]
fn with_remove_source_they_are_only_in_the_target() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let from = source(&scratch, "32M");
    let to = scratch.path("to.qcow2");
    create(&to, "32M", "");
    let expected = truth(&from);
    let more = ["--bitmap", "daily", "--remove-source"];
    migrate(&more, &from, &to).ok();
    assert_clean(&from);
    assert_clean(&to);
    assert_eq!(truth(&to), expected[..1]);
    assert_eq!(truth(&from), expected[1..]);
}

#[test]
fn with_force_a_name_that_exists_is_replaced() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let from = source(&scratch, "32M");
    let to = scratch.path("to.qcow2");
    create(&to, "32M", "");
    bitmap(&["--add", "-g", "512"], &to, "daily");
    let before = fs::read(&to).unwrap();
    migrate(&[], &from, &to).code(1);
    assert!(before == fs::read(&to).unwrap(), "refused, yet written");
    migrate(&["--force"], &from, &to).ok();
    assert_clean(&to);
    assert_eq!(truth(&to), truth(&from));
}

#[test]
fn refusals_come_before_anything_is_written() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let from = source(&scratch, "32M");
    let target = |name: &str, size: &str, options: &str| {
        let path = scratch.path(name);
        create(&path, size, options);
        path
    };
    let raw = scratch.path("target.raw");
    fs::write(&raw, vec![0; 32 << 20]).unwrap();
    let taken = target("taken.qcow2", "32M", "");
    bitmap(&["--add"], &taken, "fine");
    let good = target("good.qcow2", "32M", "");
    let crashed = scratch.path("crashed.qcow2");
    fs::copy(&from, &crashed).unwrap();
    Qsd::open(&crashed).kill();

    let cases: [(&str, &Path, &Path, &[&str]); 8] = [
        (
            "another size",
            &from,
            &target("small.qcow2", "16M", ""),
            &[],
        ),
        ("v2", &from, &target("v2.qcow2", "32M", "compat=0.10"), &[]),
        ("raw", &from, &raw, &[]),
        ("name exists", &from, &taken, &[]),
        ("inconsistent", &crashed, &good, &[]),
        ("no such bitmap", &from, &good, &["--bitmap", "missing"]),
        (
            "twice the same name",
            &from,
            &good,
            &["--bitmap", "daily=x", "--bitmap", "fine=x"],
        ),
        ("onto itself", &from, &from, &[]),
    ];
    let mut messages = Vec::new();
    for (what, from, to, more) in cases {
        let before = (fs::read(from).unwrap(), fs::read(to).unwrap());
        let run = migrate(more, from, to).code(1);
        assert!(!run.stderr.is_empty(), "{what}");
        let after = (fs::read(from).unwrap(), fs::read(to).unwrap());
        assert!(before == after, "{what}: an image changed");
        messages.push(run.stderr);
    }
    // Each fault has a message of its own.
    messages.sort();
    messages.dedup();
    assert_eq!(messages.len(), cases.len(), "{messages:#?}");
}

/// Needs no QEMU.
#[test]
fn a_recorded_image_gives_its_bitmaps_to_an_empty_one() {
    let scratch = Scratch::new();
    let to = scratch.path("to.qcow2");
    let args = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=1k"];
    let path = to.display().to_string();
    qimg!()
        .run(args.into_iter().chain([path.as_str(), "4M"]))
        .ok();
    migrate(&[], &testdata::qcow2("refcount-1.qcow2"), &to).ok();
    let record = testdata::recorded()
        .into_iter()
        .find(|r| r.image.ends_with("refcount-1.qcow2"))
        .unwrap();
    for bitmap in record.bitmaps() {
        assert_eq!(qimg!().truth(&to, &bitmap.name), bitmap);
    }
    assert_eq!(ImageBytes::load(&to).autoclear() & 1, 1);
}
