//! Images that qemu-io wrote: the same bytes read, and the same extents told, as by
//! qemu-img.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic in a test's helper is its message"
)]

mod support;

use std::sync::Arc;

use qcow2::disk::{Disk, DiskExt, Extent, RawDisk};
use support::{
    Qemu,
    disk::{
        Random, agree, assert_same_bytes, assert_same_map, open, our_map, read_all, scribble,
        their_map,
    },
};

/// An image of `size` bytes with the options, written to at random.
fn written(qemu: &Qemu, name: &str, options: &str, size: u64, random: &mut Random) {
    qemu.img(&format!("create -q -f qcow2 -o {options} {name} {size}"));
    scribble(qemu, name, size, options, random);
}

#[test]
fn every_cluster_size() {
    let Some(qemu) = Qemu::find() else { return };
    let mut random = Random(1);
    for bits in 9..=21 {
        for kind in ["", ",compression_type=zstd", ",compat=0.10"] {
            let options = format!("cluster_size={}{kind}", 1 << bits);
            let size = (2 << 20) + random.below(1000) * 512;
            written(&qemu, "a", &options, size, &mut random);
            agree(&qemu, "a", &options, &mut random);
        }
    }
}

#[test]
fn subclusters() {
    let Some(qemu) = Qemu::find() else { return };
    let mut random = Random(2);
    for bits in 14..=21 {
        for kind in ["", ",compression_type=zstd"] {
            let options = format!("extended_l2=on,cluster_size={}{kind}", 1 << bits);
            let size = (3 << 20) + random.below(1000) * 512;
            written(&qemu, "a", &options, size, &mut random);
            agree(&qemu, "a", &options, &mut random);
        }
    }
}

#[test]
fn external_data_files() {
    let Some(qemu) = Qemu::find() else { return };
    let mut random = Random(3);
    for kind in ["cluster_size=4096", "cluster_size=65536", "extended_l2=on"] {
        for raw in ["off", "on"] {
            let file = qemu.path("data").display().to_string();
            let options = format!("{kind},data_file={file},data_file_raw={raw}");
            written(&qemu, "a", &options, 3 << 20, &mut random);
            agree(&qemu, "a", &options, &mut random);
            if raw == "on" {
                let disk = RawDisk::open(qemu.path("data")).unwrap();
                let image = open(qemu.path("a")).unwrap();
                let bytes = read_all(&image, &mut random);
                assert_same_bytes(&read_all(&disk, &mut random), &bytes, &options);
            }
        }
    }
}

#[test]
fn chains_of_different_sizes_and_kinds() {
    let Some(qemu) = Qemu::find() else { return };
    let mut random = Random(4);
    for round in 0..12 {
        let size = |random: &mut Random| (1 + random.below(4000)) * 512;
        let mut below = if round % 2 == 0 {
            let bytes = size(&mut random) - random.below(400);
            let content: Vec<u8> = (0..bytes).map(|n| (n / 300).to_le_bytes()[0]).collect();
            std::fs::write(qemu.path("0"), content).unwrap();
            "raw"
        } else {
            written(
                &qemu,
                "0",
                "cluster_size=65536",
                size(&mut random),
                &mut random,
            );
            "qcow2"
        };
        for layer in 1..=4 {
            let cluster = 1 << (9 + random.below(9));
            let extended = cluster >= 16384 && random.below(2) == 0;
            let extended = if extended { ",extended_l2=on" } else { "" };
            let options = format!("cluster_size={cluster}{extended}");
            let size = size(&mut random);
            let (name, backing) = (layer.to_string(), layer - 1);
            qemu.img(&format!(
                "create -q -f qcow2 -o {options} -b {backing} -F {below} {name} {size}"
            ));
            scribble(&qemu, &name, size, &options, &mut random);
            let what = format!("round {round}, layer {layer}, {options}");
            agree(&qemu, &name, &what, &mut random);
            below = "qcow2";
        }
    }
}

#[test]
fn raw_files_with_holes() {
    let Some(qemu) = Qemu::find() else { return };
    let mut random = Random(5);
    for size in [1000, 1 << 20, (3 << 20) + 1] {
        let file = std::fs::File::create(qemu.path("r")).unwrap();
        file.set_len(size).unwrap();
        for _ in 0..20 {
            let at = random.below(size);
            let len = usize::try_from((size - at).min(9000)).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![9; len], at).unwrap();
        }
        let disk = RawDisk::open(qemu.path("r")).unwrap();
        assert_same_map(&our_map(&disk), &their_map(&qemu, "-f raw r"), "raw");
        qemu.img("create -q -f qcow2 -b r -F raw a");
        agree(&qemu, "a", "over raw", &mut random);
    }
}

#[test]
fn preallocated_metadata_has_holes_until_most_of_it_is_written() {
    let Some(qemu) = Qemu::find() else { return };
    for options in [
        "cluster_size=65536",
        "cluster_size=4096",
        "cluster_size=65536,refcount_bits=1",
        "cluster_size=65536,refcount_bits=64",
        "cluster_size=16384,extended_l2=on",
    ] {
        let options = format!("{options},preallocation=metadata");
        qemu.img(&format!("create -q -f qcow2 -o {options} a 8M"));
        let mut found = Vec::new();
        for part in 0..16 {
            let image = open(qemu.path("a")).unwrap();
            let ours = our_map(&image);
            let what = format!("{options}, {part} of 16 parts");
            assert_same_map(&ours, &their_map(&qemu, "a"), &what);
            let hole = |e: &&(u64, u64, u64, bool, bool, bool, bool, Option<u64>)| e.4 && e.5;
            found.push(ours.iter().filter(hole).count());
            // Every other part, then those in between.
            let at = part * 2 % 16 + part / 8;
            qemu.io("a", &[&format!("write -P 7 {} 512k", at * 512 * 1024)]);
        }
        if !options.contains("extended_l2") {
            assert!(found[8] > 5 && found[15] == 0, "{options}: {found:?}");
        }
    }
}

#[test]
fn snapshots_show_what_was() {
    let Some(qemu) = Qemu::find() else { return };
    let mut random = Random(6);
    for options in [
        "cluster_size=4096",
        "cluster_size=65536,compression_type=zstd",
        "extended_l2=on",
        "compat=0.10",
    ] {
        written(&qemu, "a", options, 2 << 20, &mut random);
        for name in ["first", "1", "zwei"] {
            qemu.img(&format!("snapshot -c {name} a"));
            scribble(&qemu, "a", 2 << 20, options, &mut random);
        }
        agree(&qemu, "a", options, &mut random);
        let image = Arc::new(open(qemu.path("a")).unwrap());
        let names: Vec<_> = image
            .snapshots()
            .unwrap()
            .into_iter()
            .map(|s| s.name)
            .collect();
        assert_eq!(names, [&b"first"[..], b"1", b"zwei"]);
        // "1" is an ID, too, and that of another one.
        for name in ["first", "1", "2", "zwei"] {
            qemu.img(&format!("convert -l {name} -O raw a theirs"));
            let disk = image.snapshot_disk(name.as_bytes()).unwrap();
            let what = format!("{name} of {options}");
            let bytes = read_all(&disk, &mut random);
            assert_same_bytes(&bytes, &qemu.bytes("theirs"), &what);
            let told: Vec<Extent> = disk.extents(0..disk.size()).map(Result::unwrap).collect();
            for extent in told.iter().filter(|extent| extent.reads_as_zeros()) {
                let range = extent.range();
                let start = usize::try_from(range.start).unwrap();
                let end = usize::try_from(range.end).unwrap();
                assert!(bytes[start..end].iter().all(|byte| *byte == 0), "{what}");
            }
        }
        assert!(image.snapshot_disk(b"none").is_err());
    }
}

#[test]
fn a_snapshot_keeps_its_size() {
    let Some(qemu) = Qemu::find() else { return };
    qemu.img("create -q -f qcow2 a 1M");
    qemu.io("a", &["write -P 1 0 1M"]);
    qemu.img("snapshot -c one a");
    qemu.img("resize -q a 2M");
    qemu.io("a", &["write -P 2 512k 1M"]);
    let image = Arc::new(open(qemu.path("a")).unwrap());
    let disk = image.snapshot_disk(b"one").unwrap();
    assert_eq!((image.size(), disk.size()), (2 << 20, 1 << 20));
    assert_eq!(read_all(&disk, &mut Random(7)), vec![1; 1 << 20]);
}

#[test]
fn disks_end_with_whole_sectors() {
    let Some(qemu) = Qemu::find() else { return };
    let mut random = Random(8);
    written(&qemu, "a", "cluster_size=4096", 100 << 10, &mut random);
    let mut bytes = qemu.bytes("a");
    bytes[24..32].copy_from_slice(&((99 << 10) + 100_u64).to_be_bytes());
    std::fs::write(qemu.path("a"), bytes).unwrap();
    agree(&qemu, "a", "size of no whole sectors", &mut random);
    assert_eq!(open(qemu.path("a")).unwrap().size(), 99 << 10);
}

#[test]
fn tables_of_a_large_disk() {
    let Some(qemu) = Qemu::find() else { return };
    for options in ["cluster_size=4096", "cluster_size=65536", "extended_l2=on"] {
        qemu.img(&format!("create -q -f qcow2 -o {options} a 100G"));
        let mut random = Random(9);
        let mut commands = Vec::new();
        for _ in 0..300 {
            let at = random.below(100 << 20) << 10;
            commands.push(format!("write -P 3 {at} {}", 512 << random.below(9)));
        }
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        for some in commands.chunks(100) {
            qemu.scribble("a", some);
        }
        let image = open(qemu.path("a")).unwrap();
        assert_same_map(&our_map(&image), &their_map(&qemu, "a"), options);
    }
}
