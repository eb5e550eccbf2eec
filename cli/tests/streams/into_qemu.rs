//! Streams that `qimg` writes, loaded by a real QEMU: its digest, what its NBD clients
//! see, and what it stores when it ends are what the source's image holds.

use std::path::{Path, PathBuf};

use qimg_tests::{QemuSystem, Scratch, qimg, require::have_qemu_system};

use crate::disks::{Disk, emit, live, stored, two_disks, waiting};

/// Loads a stream into a QEMU with fresh images for these disks, and compares.
#[track_caller]
pub(crate) fn load_and_compare(
    scratch: &Scratch,
    machine: &str,
    stream: &Path,
    disks: &[Disk],
    compact: bool,
) {
    let to: Vec<PathBuf> = disks.iter().map(|disk| disk.blank(scratch)).collect();
    let nodes: Vec<_> = disks
        .iter()
        .zip(&to)
        .map(|(disk, image)| (disk.node.as_str(), image.as_path()))
        .collect();
    let mut qemu = waiting(machine, &nodes);
    assert_eq!(qemu.load(stream), Ok(()), "{machine}");
    qemu.activate();
    for disk in disks {
        let expected = live(&disk.truth, true);
        assert_eq!(
            qemu.bitmaps(&disk.node),
            expected,
            "{machine} {}",
            disk.node
        );
    }
    let said = qemu.quit();
    // A compact stream has no description.
    match compact {
        true => assert_eq!(said.lines().count(), 1, "{machine}: {said}"),
        false => assert_eq!(said, "", "{machine}"),
    }
    for (disk, image) in disks.iter().zip(&to) {
        assert_eq!(stored(image), disk.truth, "{machine} {}", disk.node);
    }
}

#[test]
fn on_every_machine_type() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    for (machine, options) in [
        ("none", &[][..]),
        ("none", &["--compact"]),
        ("pc", &["--compact"]),
        ("q35", &["--compact"]),
        ("pc", &[]),
        ("q35", &[]),
        ("none", &["--machine", "none"]),
        ("pc", &["--machine", "pc"]),
        ("q35", &["--machine", "pc-q35"]),
        ("isapc", &[]),
    ] {
        emit(&stream, options, &disks);
        let scratch = Scratch::new();
        if machine == "isapc" {
            // It has no IDE bus of that name; the disks are nodes without a device.
            load_without_device(&scratch, &stream, &disks);
        } else {
            let compact = options.contains(&"--compact");
            load_and_compare(&scratch, machine, &stream, &disks, compact);
        }
    }
}

#[track_caller]
fn load_without_device(scratch: &Scratch, stream: &Path, disks: &[Disk]) {
    let to: Vec<PathBuf> = disks.iter().map(|disk| disk.blank(scratch)).collect();
    let mut qemu = QemuSystem::machine("isapc")
        .args(&["-incoming", "defer"])
        .start();
    for (disk, image) in disks.iter().zip(&to) {
        qemu.qmp(
            "blockdev-add",
            serde_json::json!({
                "driver": "qcow2", "node-name": disk.node,
                "file": { "driver": "file", "filename": image },
            }),
        );
    }
    assert_eq!(qemu.load(stream), Ok(()));
    qemu.cont();
    for disk in disks {
        assert_eq!(qemu.bitmaps(&disk.node), live(&disk.truth, true));
    }
    qemu.quit();
}

/// A bitmap that arrived records the guest's writes at once.
#[test]
fn they_go_on_recording() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    emit(&stream, &["--compact"], &disks);
    let to: Vec<PathBuf> = disks.iter().map(|disk| disk.blank(&scratch)).collect();
    let mut qemu = waiting("pc", &[("drive0", &to[0]), ("drive1", &to[1])]);
    assert_eq!(qemu.load(&stream), Ok(()));
    qemu.cont();
    qemu.write("drive0", 50 << 20, 4096);
    let after = qemu.bitmaps("drive0");
    for (before, after) in disks[0].truth.iter().zip(after) {
        let recorded = match before.state.as_str() {
            "recording" => before.granularity.max(4096),
            _ => 0,
        };
        assert_eq!(
            after.truth.count,
            before.count + recorded,
            "{}",
            before.name
        );
    }
    qemu.quit();
    assert_eq!(stored(&to[1]), disks[1].truth);
}

/// As the README has it: QEMU starts the command itself, or reads a file.
#[test]
fn through_the_command_line() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    emit(&stream, &["--compact"], &disks[..1]);
    let command = format!(
        "exec:{} migrate-bitmaps --emit --compact {}",
        env!("CARGO_BIN_EXE_qimg"),
        disks[0].operand()
    );
    for uri in [format!("file:{}", stream.display()), command] {
        let scratch = Scratch::new();
        let to = disks[0].blank(&scratch);
        let mut qemu = QemuSystem::machine("none")
            .node("drive0", &to)
            .args(&["-incoming", &uri])
            .start();
        assert_eq!(qemu.wait_migrated(), Ok(()), "{uri}");
        qemu.cont();
        assert_eq!(qemu.bitmaps("drive0"), live(&disks[0].truth, true));
        qemu.quit();
        assert_eq!(stored(&to), disks[0].truth);
    }
}

/// There and back: QEMU writes what it loaded, and that is what was sent.
#[test]
fn qemu_passes_them_on() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let (ours, theirs) = (scratch.path("ours"), scratch.path("theirs"));
    emit(&ours, &[], &disks);
    let to: Vec<PathBuf> = disks.iter().map(|disk| disk.blank(&scratch)).collect();
    let mut qemu = waiting("none", &[("drive0", &to[0]), ("drive1", &to[1])]);
    qemu.capabilities(&[]);
    assert_eq!(qemu.load(&ours), Ok(()));
    qemu.cont();
    qemu.migrate_to_file(&theirs);
    qemu.quit();

    let scratch = Scratch::new();
    let back: Vec<PathBuf> = disks.iter().map(|disk| disk.blank(&scratch)).collect();
    let to = [("drive0", back[0].as_path()), ("drive1", back[1].as_path())];
    crate::disks::apply(&theirs, &[], &to).ok();
    for (disk, image) in disks.iter().zip(&back) {
        assert_eq!(stored(image), disk.truth);
        for truth in &disk.truth {
            assert_eq!(qimg!().truth(image, &truth.name), *truth);
        }
    }
}
