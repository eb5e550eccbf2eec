//! Streams that the QEMU of today writes, applied by `qimg`.

use std::{fs, ops::Range, process::Command};

use qimg_tests::{
    QemuSystem, Scratch, qimg, qmp::LiveBitmap, require::have_qemu_system, testdata::BitmapTruth,
};
use serde_json::json;

use crate::disks::{Disk, apply, blank, stored, two_disks};

/// A QEMU with these disks open.
fn running(machine: &str, disks: &[Disk]) -> QemuSystem {
    let mut start = QemuSystem::machine(machine);
    for disk in disks {
        start = start.node(&disk.node, &disk.image);
    }
    start.start()
}

fn truths(live: Vec<LiveBitmap>) -> Vec<BitmapTruth> {
    live.into_iter().map(|bitmap| bitmap.truth).collect()
}

#[test]
fn of_every_machine_type() {
    if !have_qemu_system() {
        return;
    }
    for machine in ["none", "pc", "q35"] {
        let scratch = Scratch::new();
        let disks = two_disks(&scratch);
        let stream = scratch.path("stream");
        let mut qemu = running(machine, &disks);
        qemu.write("drive0", 30 << 20, 1 << 20);
        let expected: Vec<_> = disks
            .iter()
            .map(|disk| truths(qemu.bitmaps(&disk.node)))
            .collect();
        assert_ne!(expected[0], disks[0].truth);
        qemu.capabilities(&[]);
        qemu.migrate_to_file(&stream);
        qemu.quit();

        let to: Vec<_> = disks.iter().map(|disk| disk.blank(&scratch)).collect();
        let named = [("drive0", to[0].as_path()), ("drive1", to[1].as_path())];
        apply(&stream, &[], &named).ok();
        for (image, expected) in to.iter().zip(&expected) {
            assert_eq!(stored(image), *expected, "{machine}");
        }
        for bitmap in &expected[0] {
            assert_eq!(qimg!().truth(&to[0], &bitmap.name), *bitmap);
        }
    }
}

#[test]
fn of_a_machine_that_is_written_to_meanwhile() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    let mut qemu = running("pc", &disks);
    qemu.capabilities(&[]);
    qemu.cont();
    qemu.begin_migration(&format!("file:{}", stream.display()), 1);
    qemu.wait_under_way();
    qemu.write("drive0", 20 << 20, 1 << 20);
    qemu.write("drive1", 10 << 20, 512);
    // They are busy now: QEMU tells digest and count, and the ranges are ours to work out.
    let expected = [
        after(&disks[0], qemu.bitmaps("drive0"), 20 << 20..21 << 20),
        after(
            &disks[1],
            qemu.bitmaps("drive1"),
            10 << 20..(10 << 20) + 512,
        ),
    ];
    qemu.let_it_end();
    assert_eq!(qemu.wait_migrated(), Ok(()));
    qemu.quit();
    for (disk, expected) in disks.iter().zip(expected) {
        assert_ne!(disk.truth, expected);
        let to = disk.blank(&scratch);
        // The other node's bitmaps have no image here: only a choice leaves them out.
        let map = scratch.path("map.json");
        let listed: Vec<_> = disk
            .truth
            .iter()
            .map(|b| json!({"name": b.name, "alias": b.name}))
            .collect();
        let one = json!([{ "node-name": disk.node, "alias": disk.node, "bitmaps": listed }]);
        fs::write(&map, one.to_string()).unwrap();
        let map = map.display().to_string();
        apply(&stream, &["--map", &map], &[(&disk.node, &to)]).ok();
        assert_eq!(stored(&to), expected);
    }
}

/// What the bitmaps of a disk are after a write of whole granules, ranges included.
fn after(disk: &Disk, live: Vec<LiveBitmap>, write: Range<u64>) -> Vec<BitmapTruth> {
    let mut now = truths(live);
    for (now, before) in now.iter_mut().zip(&disk.truth) {
        now.ranges.clone_from(&before.ranges);
        if now.state == "recording" {
            assert_ne!(now.sha256, before.sha256);
            let end = write.end.next_multiple_of(now.granularity).min(disk.size);
            now.ranges.push(write.start..end);
            now.ranges.sort_by_key(|range| range.start);
        }
    }
    now
}

/// QEMU starts the command itself. What it prints goes back to QEMU, which doesn't read it,
/// unless it is sent elsewhere.
#[test]
fn straight_into_the_command() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let mut qemu = running("none", &disks);
    let expected = [
        truths(qemu.bitmaps("drive0")),
        truths(qemu.bitmaps("drive1")),
    ];
    let to: Vec<_> = disks.iter().map(|disk| disk.blank(&scratch)).collect();
    let done = scratch.path("done");
    let command = format!(
        "exec:{} migrate-bitmaps --apply drive0={} drive1={} >/dev/null; echo $? >{}",
        env!("CARGO_BIN_EXE_qimg"),
        to[0].display(),
        to[1].display(),
        done.display(),
    );
    qemu.capabilities(&[]);
    qemu.begin_migration(&command, 1 << 40);
    assert_eq!(qemu.wait_migrated(), Ok(()), "{}", qemu.messages());
    // QEMU has closed the pipe, and does not wait for the command.
    let code = wait_for(&done);
    assert_eq!(code.trim(), "0", "{}", qemu.messages());
    qemu.quit();
    for (image, expected) in to.iter().zip(expected) {
        assert_eq!(stored(image), expected);
    }
}

/// What a file holds, as soon as it holds a line.
fn wait_for(file: &std::path::Path) -> String {
    for _ in 0..6000 {
        match fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
    panic!("{} was not written", file.display());
}

#[test]
fn with_aliases_and_transient_bitmaps() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    let mut qemu = running("none", &disks);
    qemu.add_bitmap("drive1", "scratch", 65536, false, false);
    qemu.capabilities(&[]);
    qemu.mapping(json!([
        { "node-name": "drive0", "alias": "a", "bitmaps": [
            { "name": "fine", "alias": "fine grained" },
            { "name": "daily", "alias": "no longer", "transform": { "persistent": false } },
        ] },
        { "node-name": "drive1", "alias": "b", "bitmaps": [
            { "name": "scratch", "alias": "kept", "transform": { "persistent": true } },
        ] },
    ]));
    let expected = truths(qemu.bitmaps("drive0"));
    qemu.migrate_to_file(&stream);
    qemu.quit();

    let (a, b) = (disks[0].blank(&scratch), disks[1].blank(&scratch));
    let run = apply(&stream, &[], &[("a", &a), ("b", &b)]).ok();
    assert!(run.stderr.contains("no longer"), "{}", run.stderr);
    let fine = expected.into_iter().find(|b| b.name == "fine").unwrap();
    let fine = BitmapTruth {
        name: "fine grained".into(),
        ..fine
    };
    assert_eq!(stored(&a), [fine]);
    let kept = stored(&b);
    assert_eq!((kept[0].name.as_str(), kept.len()), ("kept", 1));
    assert_eq!((kept[0].state.as_str(), kept[0].count), ("disabled", 0));
}

/// The bitmaps of a postcopy come after the machine has gone over.
#[test]
fn in_postcopy() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    let mut qemu = running("none", &disks);
    qemu.capabilities(&[]);
    qemu.begin_migration(&format!("exec:cat > {}", stream.display()), 1);
    qemu.start_postcopy();
    assert_eq!(qemu.wait_migrated(), Ok(()), "{}", qemu.messages());
    qemu.quit();
    let to: Vec<_> = disks.iter().map(|disk| disk.blank(&scratch)).collect();
    apply(&stream, &[], &[("drive0", &to[0]), ("drive1", &to[1])]).ok();
    for (image, disk) in to.iter().zip(&disks) {
        assert_eq!(stored(image), disk.truth);
    }
}

/// The pipe that the README has, with nothing but `qimg` at both ends.
#[test]
fn without_qemu_in_between() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    for more in ["", "--compact"] {
        for disk in &disks {
            let to = blank(&scratch, &format!("{}-to{more}", disk.node), disk.size);
            let qimg = env!("CARGO_BIN_EXE_qimg");
            let pipe = format!(
                "{qimg} migrate-bitmaps --emit {more} {} | {qimg} migrate-bitmaps --apply {}",
                disk.image.display(),
                to.display(),
            );
            qimg_tests::Run::of(Command::new("sh").args(["-c", &pipe])).ok();
            assert_eq!(stored(&to), disk.truth);
        }
    }
}
