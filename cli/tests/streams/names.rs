//! Names and aliases, and whether a bitmap is to be stored where it arrives.

use std::fs;

use qimg_tests::{Scratch, require::have_qemu_system, testdata::BitmapTruth};
use serde_json::json;

use crate::disks::{Disk, emit, live, stored, two_disks, waiting};

fn renamed(disk: &Disk, from: &str, to: &str) -> BitmapTruth {
    let truth = disk.truth.iter().find(|truth| truth.name == from).unwrap();
    BitmapTruth {
        name: to.to_owned(),
        ..truth.clone()
    }
}

#[test]
fn given_on_the_command_line() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    let options = [
        "--node-alias",
        "vda",
        "--bitmap",
        "fine=since monday",
        "--bitmap",
        "frozen",
    ];
    emit(&stream, &options, &disks[..1]);
    let to = disks[0].blank(&scratch);
    let mut qemu = waiting("none", &[("vda", &to)]);
    assert_eq!(qemu.load(&stream), Ok(()));
    qemu.activate();
    let expected = [
        renamed(&disks[0], "frozen", "frozen"),
        renamed(&disks[0], "fine", "since monday"),
    ];
    assert_eq!(qemu.bitmaps("vda"), live(&expected, true));
    qemu.quit();
    assert_eq!(stored(&to), expected);
}

#[test]
fn given_in_a_map_on_either_side() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    let map = json!([
        { "node-name": "drive0", "alias": "a", "bitmaps": [
            { "name": "fine", "alias": "x" },
            { "name": "daily", "alias": "y", "transform": { "persistent": false } },
        ] },
        { "node-name": "drive1", "alias": "b", "bitmaps": [] },
    ]);
    let file = scratch.path("map.json");
    fs::write(&file, map.to_string()).unwrap();
    emit(&stream, &["--map", &file.display().to_string()], &disks);
    // QEMU names them back by a map of its own.
    let to = disks[0].blank(&scratch);
    let mut qemu = waiting("none", &[("vda", &to)]);
    qemu.capabilities(&[]);
    qemu.mapping(json!([{ "node-name": "vda", "alias": "a", "bitmaps": [
        { "name": "fine again", "alias": "x" },
        { "name": "daily again", "alias": "y" },
    ] }]));
    assert_eq!(qemu.load(&stream), Ok(()));
    qemu.activate();
    let mut expected = live(
        &[
            renamed(&disks[0], "daily", "daily again"),
            renamed(&disks[0], "fine", "fine again"),
        ],
        true,
    );
    expected[0].persistent = false;
    assert_eq!(qemu.bitmaps("vda"), expected);
    qemu.quit();
    assert_eq!(stored(&to), [renamed(&disks[0], "fine", "fine again")]);
}

#[test]
fn transient_ones_are_not_stored_by_qemu() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disks = two_disks(&scratch);
    let stream = scratch.path("stream");
    for options in [
        &["--persistent=off"][..],
        &["--persistent=off", "--compact"],
    ] {
        emit(&stream, options, &disks);
        let scratch = Scratch::new();
        let to: Vec<_> = disks.iter().map(|disk| disk.blank(&scratch)).collect();
        let mut qemu = waiting("none", &[("drive0", &to[0]), ("drive1", &to[1])]);
        assert_eq!(qemu.load(&stream), Ok(()));
        qemu.activate();
        for disk in &disks {
            assert_eq!(qemu.bitmaps(&disk.node), live(&disk.truth, false));
        }
        qemu.quit();
        assert_eq!(stored(&to[0]), []);
        assert_eq!(stored(&to[1]), []);
    }
}

/// Without NODE= the node is called after the file, made well-formed.
#[test]
fn a_node_is_called_after_its_file() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let disk = &two_disks(&scratch)[1];
    for (file, node) in [("vm-1.a.qcow2", "vm-1.a"), ("disk.qcow2", "disk")] {
        let image = scratch.path(file);
        fs::copy(&disk.image, &image).unwrap();
        let stream = scratch.path("stream");
        let args = [
            "migrate-bitmaps".as_ref(),
            "--emit".as_ref(),
            "-o".as_ref(),
            stream.as_os_str(),
            image.as_os_str(),
        ];
        qimg_tests::qimg!().run(args).ok();
        let to = disk.blank(&scratch);
        let mut qemu = waiting("none", &[(node, &to)]);
        assert_eq!(qemu.load(&stream), Ok(()));
        qemu.activate();
        assert_eq!(qemu.bitmaps(node), live(&disk.truth, true));
        qemu.quit();
        fs::remove_file(&to).unwrap();
    }
}
