//! The records in `testdata/` against the QEMU that is installed: what another NBD
//! client and another day said must be what our own helpers see.

use std::{collections::BTreeSet, fs};

use qimg_tests::{
    ImageBytes, QemuSystem, Qsd, Run, Scratch,
    qemu_img::create,
    qmp::LiveBitmap,
    require::{have_qemu, have_qemu_system},
    testdata::{BitmapTruth, damaged, dir, recorded, stream_dir, streams},
};

#[test]
fn every_image_has_a_record_and_every_record_an_image() {
    let mut images = BTreeSet::new();
    for entry in fs::read_dir(dir().join("qcow2")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "qcow2") {
            images.insert(path);
        }
    }
    let of_records: BTreeSet<_> = recorded().into_iter().map(|r| r.image).collect();
    assert_eq!(images, of_records);
}

#[test]
fn qemu_and_our_nbd_client_see_what_the_records_say() {
    if !have_qemu() {
        return;
    }
    for recorded in recorded() {
        let listed = recorded.record["listed"].as_array().unwrap();
        if listed.is_empty() {
            continue;
        }
        // A copy: QEMU takes locks, and a chain needs its neighbours.
        let mut qsd = Qsd::open_read_only(&recorded.image);
        assert_eq!(
            qsd.truth(),
            recorded.bitmaps(),
            "{}",
            recorded.image.display()
        );
        qsd.quit();
    }
}

#[test]
fn every_stream_has_a_record_and_every_image_belongs_to_one() {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(stream_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext != "json") {
            files.insert(path);
        }
    }
    let of_records: BTreeSet<_> = streams()
        .into_iter()
        .flat_map(|s| {
            let images = s.images.into_iter().map(|(_, image, _)| image);
            images.chain([s.file])
        })
        .collect();
    assert_eq!(files, of_records);
}

/// Streams that a file and a plain QEMU 10 are not enough for.
const NOT_FOR_LOADING: [&str; 6] = [
    "08-zero-size",  // QEMU writes it, and aborts when it reads it
    "15-pc-running", // the destination needs the capability `xbzrle`
    "17-q35-paused", // and a UUID
    "18-mapped-ram", // and capabilities
    "19-multifd",    // one connection of several
    "31-old-block",  // a section that QEMU 10 no longer knows
];

/// What the records say is what the QEMU of today makes of the streams.
#[test]
fn qemu_loads_the_streams_and_sees_what_the_records_say() {
    if !have_qemu_system() {
        return;
    }
    for recorded in streams() {
        if NOT_FOR_LOADING.contains(&recorded.name.as_str()) {
            continue;
        }
        let scratch = Scratch::new();
        let machine = match recorded.machine() {
            "" => "none",
            named => named,
        };
        let bitmaps = recorded.bitmaps();
        let mut start = QemuSystem::machine(machine);
        let mut disks: Vec<_> = bitmaps.iter().map(|b| (&b.node_alias, b.size)).collect();
        disks.sort();
        disks.dedup();
        for (node, size) in &disks {
            let image = scratch.path(node);
            create(&image, &size.to_string(), "");
            start = start.node(node, &image);
        }
        let mut qemu = start.args(&["-incoming", "defer"]).start();
        assert_eq!(qemu.load(&recorded.file), Ok(()), "{}", recorded.name);
        qemu.activate();
        for (node, _) in &disks {
            let mut expected: Vec<_> = bitmaps
                .iter()
                .filter(|b| b.node_alias == **node)
                .map(|b| LiveBitmap {
                    truth: BitmapTruth {
                        name: b.alias.clone(),
                        ..b.truth.clone()
                    },
                    persistent: b.persistent,
                    busy: false,
                })
                .collect();
            expected.sort_by(|a, b| a.truth.name.cmp(&b.truth.name));
            assert_eq!(qemu.bitmaps(node), expected, "{} {node}", recorded.name);
        }
        qemu.quit();
    }
}

#[test]
fn damage_is_where_the_cases_say() {
    let good = fs::read(dir().join("bad/good.qcow2")).unwrap();
    let mut names = BTreeSet::new();
    for case in damaged() {
        assert!(names.insert(case.name.clone()), "{} twice", case.name);
        let short = case.bytes.len().min(good.len());
        assert!(
            case.bytes[..short] != good[..short] || case.bytes.len() < good.len(),
            "{} is not damaged",
            case.name
        );
        assert!(
            ["refuse", "bitmaps", "corrupt", "leaks", "fine", "either"]
                .contains(&case.must.as_str()),
            "{}",
            case.name
        );
    }
    assert!(names.len() > 100);
}

#[test]
fn qemu_says_to_damaged_images_what_the_cases_say() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    for case in damaged() {
        let name = format!("{}.qcow2", case.name);
        fs::write(scratch.path(&name), &case.bytes).unwrap();
        let args = ["info", "-f", "qcow2", name.as_str()];
        let run = Run::of(
            std::process::Command::new("qemu-img")
                .current_dir(scratch.dir())
                .args(args),
        );
        let expected = case.qemu["info"]["exit"].as_i64().unwrap();
        assert_eq!(i64::from(run.code), expected, "{run:?}");
    }
}

#[test]
fn a_killed_daemon_leaves_every_bitmap_in_use() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.copy(&qimg_tests::testdata::qcow2("three-bitmaps.qcow2"));
    let qsd = Qsd::open(&image);
    qsd.kill();
    let bytes = ImageBytes::load(&image);
    for name in ["daily", "weekly", "frozen"] {
        assert_eq!(bytes.bitmap_flags(name) & 1, 1, "{name}");
    }
}

#[test]
fn writes_over_nbd_reach_the_recording_bitmap_only() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.path("a.qcow2");
    qimg_tests::qemu_img::create(&image, "8M", "");
    let mut qsd = Qsd::open(&image);
    qsd.add_bitmap("on", 65536, false);
    qsd.add_bitmap("off", 4096, true);
    let (socket, export) = qsd.export(&[], true);
    let mut nbd = qimg_tests::Nbd::connect(&socket, &export, &[]);
    nbd.write(4096, 512, 7);
    nbd.zero(1 << 20, 65536);
    nbd.trim(2 << 20, 65536);
    nbd.flush();
    drop(nbd);
    qsd.unexport(&export);
    let granules = [0, 1 << 20, 2 << 20].map(|start| start..start + 65536);
    assert_eq!(qsd.dirty("on"), granules);
    assert_eq!(qsd.dirty("off"), []);
    qsd.quit();
    qimg_tests::qemu_img::assert_clean(&image);
}
