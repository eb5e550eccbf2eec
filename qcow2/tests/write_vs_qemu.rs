//! Images that we write: sound for qemu-img, and the same bytes for it as for us; images
//! that qemu-io wrote before, with snapshots, compressed clusters and data files.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic in a test's helper is its message"
)]

mod support;

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use qcow2::{
    BackingPolicy, DataFilePolicy, Image, OpenOptions, bitmap::BitmapState, disk::Disk,
    image::GuestWriter,
};
use support::{
    Qemu,
    disk::{Random, agree, assert_same_bytes, read_all, scribble},
};

/// A program started meanwhile holds our locks until it is itself: one test at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn open(qemu: &Qemu, name: &str) -> Image {
    OpenOptions::new()
        .writable(true)
        .backing(BackingPolicy::Follow)
        .data_file(DataFilePolicy::Follow)
        .open(qemu.path(name))
        .unwrap()
}

/// What the disk should hold.
struct Model {
    bytes: Vec<u8>,
    /// Bytes of what is discarded whole; 0 if discards do nothing.
    unit: u64,
}

impl Model {
    fn of(image: &Image, random: &mut Random) -> Self {
        let geometry = image.geometry();
        let no_discard = image.header().version < 3 && image.backing_name().is_some();
        Self {
            bytes: read_all(image, random),
            unit: match (no_discard, geometry.extended_l2()) {
                (true, _) => 0,
                (_, true) => geometry.cluster_size() / 32,
                (_, false) => geometry.cluster_size(),
            },
        }
    }

    fn fill(&mut self, range: Range<u64>, with: u8) {
        let index = |at| usize::try_from(at).unwrap();
        self.bytes[index(range.start)..index(range.end)].fill(with);
    }
}

/// Numbers for one test; others with each value of the variable `SEED`.
fn random(test: u64) -> Random {
    let seed = std::env::var("SEED").map_or(0, |seed| seed.parse().unwrap());
    Random(test + seed * 1_000_003)
}

/// Bytes that can be compressed, more or less.
fn content(len: u64, random: &mut Random) -> Vec<u8> {
    let noise = *random.pick(&[5, 100, 230, 350, 512]);
    let mut bytes = vec![7; usize::try_from(len).unwrap()];
    for sector in bytes.chunks_mut(512) {
        let noise = noise.min(sector.len());
        for word in sector[..noise].chunks_mut(8) {
            let value = random.below(u64::MAX).to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        }
    }
    bytes
}

/// Random changes; returns what was touched.
fn change(
    writer: &GuestWriter,
    model: &mut Model,
    cluster: u64,
    random: &mut Random,
) -> Vec<Range<u64>> {
    let size = writer.size();
    let mut touched = Vec::new();
    for step in 0..40 {
        let align = *random.pick(&[1, 512, 512, cluster]);
        let start = random.below(size) / align * align;
        let most = *random.pick(&[512, cluster, cluster * 3, size / 2]);
        let len = (1 + random.below(most)).next_multiple_of(align);
        let range = start..size.min(start + len);
        match random.below(13) {
            10..=12 => {
                let start = range.start / cluster * cluster;
                let end = range.end.min(start + 9 * cluster);
                let end = end.next_multiple_of(cluster).min(size);
                let content = content(end - start, random);
                match writer.write_compressed(start, &content) {
                    Err(error) if error.to_string().contains("external data file") => {
                        writer.write(start, &content).unwrap();
                    }
                    other => other.unwrap(),
                }
                let index = |at| usize::try_from(at).unwrap();
                model.bytes[index(start)..index(end)].copy_from_slice(&content);
                touched.push(start..end);
                continue;
            }
            0..=4 => {
                let byte = u8::try_from(1 + random.below(255)).unwrap();
                let len = usize::try_from(range.end - range.start).unwrap();
                writer.write(start, &vec![byte; len]).unwrap();
                model.fill(range.clone(), byte);
            }
            5 | 6 => {
                writer.zero(range.clone(), random.below(2) == 0).unwrap();
                model.fill(range.clone(), 0);
            }
            7 | 8 => {
                writer.discard(range.clone()).unwrap();
                if model.unit > 0 {
                    let start = range.start.next_multiple_of(model.unit);
                    let end = match range.end == size {
                        true => size,
                        false => range.end / model.unit * model.unit,
                    };
                    model.fill(start.min(end)..end, 0);
                }
            }
            _ => {
                writer.flush().unwrap();
                continue;
            }
        }
        touched.push(range);
        if step % 8 == 7 {
            assert_same_bytes(&read_all(writer, random), &model.bytes, "while it is open");
        }
    }
    touched
}

/// Writes to image `name` and has QEMU look at it.
fn round(qemu: &Qemu, name: &str, what: &str, random: &mut Random) {
    let image = open(qemu, name);
    let cluster = image.geometry().cluster_size();
    let mut model = Model::of(&image, random);
    let writer = image.into_writer().unwrap();
    change(&writer, &mut model, cluster, random);
    drop(writer.close().unwrap());
    let output = qemu.run(&format!("check -f qcow2 {name}"));
    assert!(output.status.success(), "{what}: {output:?}");
    qemu.img(&format!("convert -f qcow2 -O raw {name} theirs.raw"));
    assert_same_bytes(&qemu.bytes("theirs.raw"), &model.bytes, what);
    // QEMU's map shows holes of the file in preallocated clusters, and no cluster at the
    // first byte of a data file.
    if !what.contains("preallocation") && !what.contains("data_file") {
        agree(qemu, name, what, random);
    }
}

fn written(qemu: &Qemu, name: &str, options: &str, size: u64, random: &mut Random) {
    qemu.img(&format!("create -q -f qcow2 -o {options} {name} {size}"));
    scribble(qemu, name, size, options, random);
}

#[test]
fn every_cluster_size_and_refcount_width() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(qemu) = Qemu::find() else { return };
    let mut random = random(1);
    for bits in 9..=21 {
        let width = 1 << (bits % 7);
        let kinds = [
            &format!(",refcount_bits={width}")[..],
            ",compression_type=zstd",
            ",compat=0.10",
            ",preallocation=metadata",
            ",lazy_refcounts=on",
        ];
        for (index, kind) in (0..).zip(kinds) {
            // Each with every other cluster size, and every size with some of them.
            if index > 0 && (index + bits) % 2 == 0 {
                continue;
            }
            let options = format!("cluster_size={}{kind}", 1 << bits);
            let size = (2 << 20) + random.below(1000) * 512;
            written(&qemu, "a", &options, size, &mut random);
            round(&qemu, "a", &options, &mut random);
            scribble(&qemu, "a", size, &options, &mut random);
            round(&qemu, "a", &options, &mut random);
        }
    }
}

#[test]
fn subclusters() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(qemu) = Qemu::find() else { return };
    let mut random = random(2);
    for bits in 14..=21 {
        for kind in ["", ",compression_type=zstd"] {
            let options = format!("extended_l2=on,cluster_size={}{kind}", 1 << bits);
            let size = (3 << 20) + random.below(1000) * 512;
            written(&qemu, "a", &options, size, &mut random);
            round(&qemu, "a", &options, &mut random);
            scribble(&qemu, "a", size, &options, &mut random);
            round(&qemu, "a", &options, &mut random);
        }
    }
}

#[test]
fn data_files() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(qemu) = Qemu::find() else { return };
    let mut random = random(3);
    for kind in ["cluster_size=4096", "cluster_size=65536", "extended_l2=on"] {
        for raw in ["off", "on"] {
            let file = qemu.path("data").display().to_string();
            let options = format!("{kind},data_file={file},data_file_raw={raw}");
            written(&qemu, "a", &options, 3 << 20, &mut random);
            round(&qemu, "a", &options, &mut random);
            if raw == "on" {
                let bytes = read_all(&open(&qemu, "a"), &mut random);
                assert_same_bytes(&qemu.bytes("data"), &bytes, &options);
            }
            scribble(&qemu, "a", 3 << 20, &options, &mut random);
            round(&qemu, "a", &options, &mut random);
        }
    }
}

#[test]
fn over_a_backing_file() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(qemu) = Qemu::find() else { return };
    let mut random = random(4);
    for options in [
        "cluster_size=512",
        "cluster_size=4096",
        "cluster_size=65536",
        "extended_l2=on",
        "compat=0.10",
    ] {
        for shorter in [0, 1 << 20] {
            let size = 2 << 20;
            written(
                &qemu,
                "base",
                "cluster_size=8192",
                size - shorter,
                &mut random,
            );
            let base = qemu.bytes("base");
            qemu.img(&format!(
                "create -q -f qcow2 -o {options} -b base -F qcow2 a {size}"
            ));
            scribble(&qemu, "a", size, options, &mut random);
            for _ in 0..2 {
                let what = format!("{options}, base shorter by {shorter}");
                round(&qemu, "a", &what, &mut random);
            }
            assert!(base == qemu.bytes("base"), "{options}");
        }
    }
}

#[test]
fn snapshots_keep_what_they_have() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(qemu) = Qemu::find() else { return };
    let mut random = random(5);
    for options in [
        "cluster_size=512",
        "cluster_size=4096,refcount_bits=64",
        "cluster_size=65536,refcount_bits=8,compression_type=zstd",
        "extended_l2=on,cluster_size=16384",
        "compat=0.10,cluster_size=2048",
    ] {
        let size = 2 << 20;
        written(&qemu, "a", options, size, &mut random);
        let mut kept = Vec::new();
        for name in ["first", "second"] {
            qemu.img(&format!("snapshot -c {name} a"));
            kept.push((name, read_all(&open(&qemu, "a"), &mut random)));
            round(&qemu, "a", options, &mut random);
            scribble(&qemu, "a", size, options, &mut random);
            round(&qemu, "a", options, &mut random);
            for (name, bytes) in &kept {
                qemu.img(&format!("convert -l {name} -O raw a theirs"));
                assert_same_bytes(&qemu.bytes("theirs"), bytes, &format!("{name}, {options}"));
            }
        }
        for name in ["first", "second"] {
            qemu.img(&format!("snapshot -d {name} a"));
            round(&qemu, "a", options, &mut random);
        }
    }
}

#[test]
fn bitmaps_record_what_is_written() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(qemu) = Qemu::find() else { return };
    let mut random = random(6);
    for options in ["cluster_size=4096", "cluster_size=65536", "extended_l2=on"] {
        let size = 3 << 20;
        written(&qemu, "a", options, size, &mut random);
        for (name, granularity) in [("fine", 512), ("coarse", 262_144), ("off", 65536)] {
            qemu.img(&format!("bitmap --add -g {granularity} a {name}"));
        }
        qemu.img("bitmap --disable a off");
        let image = open(&qemu, "a");
        let mut model = Model::of(&image, &mut random);
        let mut expected: Vec<_> = ["fine", "coarse"]
            .map(|name| image.load_bitmap(name).unwrap())
            .into();
        let cluster = image.geometry().cluster_size();
        let writer = image.into_writer().unwrap();
        let touched = change(&writer, &mut model, cluster, &mut random);
        // A second image sees that they are in use.
        let looking = OpenOptions::new()
            .lock(qcow2::io::LockMode::None)
            .open(qemu.path("a"))
            .unwrap();
        let bitmaps = looking.bitmaps().unwrap();
        let states: Vec<_> = bitmaps.iter(&looking).map(|b| b.state()).collect();
        assert_eq!(states[0], BitmapState::Live);
        assert_eq!(states[2], BitmapState::Disabled);
        drop(looking);
        let image = writer.close().unwrap();
        for (name, bits) in ["fine", "coarse"].iter().zip(&mut expected) {
            for range in &touched {
                bits.set(range.clone());
            }
            assert!(
                image.load_bitmap(name).unwrap() == *bits,
                "{options}: {name}"
            );
        }
        assert_eq!(image.load_bitmap("off").unwrap().count(), 0);
        drop(image);
        let output = qemu.run("check -f qcow2 a");
        assert!(output.status.success(), "{options}: {output:?}");
        let info = qemu.img("info a");
        assert!(!info.contains("in-use"), "{info}");
        // QEMU opens it for writing and takes them on.
        qemu.io("a", &["write -P 7 0 64k"]);
        let image = open(&qemu, "a");
        expected[0].set(0..65536);
        assert!(
            image.load_bitmap("fine").unwrap() == expected[0],
            "{options}"
        );
    }
}

#[test]
fn lazy_refcounts_that_were_left_behind_are_repaired_by_qemu() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(qemu) = Qemu::find() else { return };
    let mut random = random(7);
    for options in ["cluster_size=4096", "cluster_size=65536,refcount_bits=1"] {
        let options = format!("{options},lazy_refcounts=on");
        written(&qemu, "a", &options, 2 << 20, &mut random);
        let image = open(&qemu, "a");
        let cluster = image.geometry().cluster_size();
        let mut model = Model::of(&image, &mut random);
        let writer = image.into_writer().unwrap();
        change(&writer, &mut model, cluster, &mut random);
        writer.flush().unwrap();
        // As if it were killed.
        drop(writer);
        let info = qemu.img("info --output=json a");
        assert!(info.contains("\"dirty-flag\": true"), "{info}");
        qemu.io("a", &["read -q 0 512"]);
        let output = qemu.run("check -f qcow2 a");
        assert!(output.status.success(), "{options}: {output:?}");
        qemu.img("convert -f qcow2 -O raw a theirs");
        assert_same_bytes(&qemu.bytes("theirs"), &model.bytes, &options);
    }
}

#[test]
fn compressed_images_are_no_larger_than_qemus() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(qemu) = Qemu::find() else { return };
    let mut random = random(8);
    let mut bytes = Vec::new();
    while bytes.len() < 8 << 20 {
        match random.below(3) {
            0 => bytes.extend(content(65536, &mut random)),
            1 => (0..4000).for_each(|n| {
                bytes.extend(format!("line {n} of {}\n", random.below(1000)).bytes());
            }),
            _ => bytes.extend(vec![0; 40_000]),
        }
    }
    bytes.truncate(8 << 20);
    std::fs::write(qemu.path("raw"), &bytes).unwrap();
    for kind in ["zlib", "zstd"] {
        for cluster in [4096_u64, 65536, 1 << 20] {
            let options = format!("compression_type={kind},cluster_size={cluster}");
            qemu.img(&format!(
                "convert -c -W -f raw -O qcow2 -o {options} raw theirs"
            ));
            qemu.img(&format!("create -q -f qcow2 -o {options} ours 8M"));
            let writer = open(&qemu, "ours").into_writer().unwrap();
            let step = usize::try_from(cluster).unwrap();
            for (index, part) in bytes.chunks(step).enumerate() {
                if part.iter().any(|byte| *byte != 0) {
                    let at = index as u64 * cluster;
                    writer.write_compressed(at, part).unwrap();
                }
            }
            drop(writer.close().unwrap());
            let output = qemu.run("compare -f raw -F qcow2 raw ours");
            assert!(output.status.success(), "{options}: {output:?}");
            let [ours, theirs] =
                ["ours", "theirs"].map(|name| std::fs::metadata(qemu.path(name)).unwrap().len());
            assert!(
                ours <= theirs + theirs / 50 + 4 * cluster,
                "{options}: {ours} bytes, theirs {theirs}"
            );
        }
    }
}
