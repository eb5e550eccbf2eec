//! `bitmap --from-compare`: against what QEMU reads of both disks, byte by byte.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use qimg_tests::{
    Qimg, Scratch,
    qemu_img::{create, qemu_img},
    qemu_io::qemu_io,
    qimg,
    require::have_qemu,
};

use crate::layouts::Numbers;

/// What a guest reads of the disk.
fn content(scratch: &Scratch, image: &Path) -> Vec<u8> {
    let raw = scratch.path("content.raw");
    let paths = [image.to_str().unwrap(), raw.to_str().unwrap()];
    qemu_img(["convert", "-O", "raw"].into_iter().chain(paths)).ok();
    fs::read(raw).unwrap()
}

/// Where `new` differs from `old`, in granules.
fn truth(old: &[u8], new: &[u8], granularity: usize) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (index, bytes) in new.chunks(granularity).enumerate() {
        let start = index * granularity;
        if old.get(start..start + bytes.len()) == Some(bytes) {
            continue;
        }
        let (start, end) = (start as u64, (start + bytes.len()) as u64);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

fn compare(qimg: &Qimg, words: &[&str], old: &Path, image: &Path, name: &str) {
    let old = ["--from-compare", old.to_str().unwrap()];
    qimg.bitmap(&[&old, words].concat(), image, name);
}

/// A disk with some data, and a copy of it as a raw file.
fn base(scratch: &Scratch, name: &str, options: &str) -> (PathBuf, PathBuf) {
    let (image, copy) = (scratch.path(name), scratch.path("copy.raw"));
    create(&image, "16M", options);
    qemu_io(
        &image,
        &["write -P 1 0 5M", "write -z 6M 1M", "write -P 2 9M 3M"],
    );
    fs::write(&copy, content(scratch, &image)).unwrap();
    (image, copy)
}

/// Writes of which some leave the data as it was.
fn changes(numbers: &mut Numbers, image: &Path) {
    let commands: Vec<String> = (0..12)
        .map(|_| {
            let start = numbers.below(16 << 11) * 512;
            let length = (1 + numbers.below(400)) * 512;
            let length = length.min((16 << 20) - start);
            match numbers.below(4) {
                0 => format!("write -z {start} {length}"),
                1 => format!("discard {start} {length}"),
                2 => format!("write -P 1 {start} {length}"),
                _ => format!("write -P 7 {start} {length}"),
            }
        })
        .collect();
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    qemu_io(image, &commands);
}

#[test]
fn random_writes_are_found() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let mut numbers = Numbers::new(4);
    for options in [
        "",
        "cluster_size=4k",
        "extended_l2=on",
        "compat=1.1,cluster_size=2M",
    ] {
        let (image, copy) = base(&scratch, "disk.qcow2", options);
        qimg.bitmap(&["--add", "-g", "64k"], &image, "recorded");
        changes(&mut numbers, &image);
        let (old, new) = (fs::read(&copy).unwrap(), content(&scratch, &image));
        for (size, granularity) in [("512", 512), ("4k", 4096), ("64k", 65536), ("2M", 2 << 20)] {
            compare(&qimg, &["-F", "raw", "-g", size], &copy, &image, size);
            assert_eq!(
                qimg.dirty(&image, size),
                truth(&old, &new, granularity),
                "{options}, {size}"
            );
        }
        // It is a bitmap like any other, and what was recorded covers it.
        qemu_img(["check", image.to_str().unwrap()]).ok();
        let (found, recorded) = (qimg.dirty(&image, "64k"), qimg.dirty(&image, "recorded"));
        for range in found {
            let covered = |all: &Range<u64>| all.start <= range.start && range.end <= all.end;
            assert!(recorded.iter().any(covered), "{range:?} of {recorded:?}");
        }
        assert_eq!(qimg.dump(&image, "64k")["state"], "recording");
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn chains_and_sizes() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let (image, copy) = base(&scratch, "base.qcow2", "");
    let top = scratch.path("top.qcow2");
    let words = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.qcow2",
        "-F",
        "qcow2",
    ];
    qemu_img(words.into_iter().chain([top.to_str().unwrap(), "20M"])).ok();
    changes(&mut Numbers::new(9), &top);
    let (old, new) = (fs::read(&copy).unwrap(), content(&scratch, &top));
    // With what it is based on, and with a copy of that.
    let expected = truth(&old, &new, 65536);
    for old in [&image, &copy] {
        compare(&qimg, &["--disable"], old, &top, "b");
        assert_eq!(qimg.dirty(&top, "b"), expected, "{}", old.display());
        assert_eq!(qimg.dump(&top, "b")["state"], "disabled");
        qimg.bitmap(&["--remove"], &top, "b");
    }
    // What a disk has grown by is no copy's, zeros or not.
    let last = expected.last().unwrap();
    assert!(last.start <= 16 << 20 && last.end == 20 << 20, "{last:?}");
    // The other way round there is nothing beyond the end.
    let grown = scratch.path("grown.raw");
    fs::write(&grown, &new).unwrap();
    compare(&qimg, &[], &grown, &image, "b");
    assert_eq!(qimg.dirty(&image, "b"), truth(&new, &old, 65536));
    // Nothing differs from itself.
    let same = scratch.path("same.qcow2");
    fs::copy(&top, &same).unwrap();
    compare(&qimg, &[], &same, &top, "none");
    assert_eq!(qimg.dirty(&top, "none"), []);
    qemu_img(["check", top.to_str().unwrap()]).ok();
}

/// Two overlays of one file, of which a part can't be read: nobody needs it.
#[test]
fn what_both_have_from_one_file_is_not_read() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let (raw, base) = (scratch.path("raw"), scratch.path("base.qcow2"));
    fs::write(&raw, vec![0x55; 4 << 20]).unwrap();
    let paths = [raw.to_str().unwrap(), base.to_str().unwrap()];
    let words = ["convert", "-c", "-f", "raw", "-O", "qcow2"];
    qemu_img(words.into_iter().chain(paths)).ok();
    let (old, new) = (scratch.path("old.qcow2"), scratch.path("new.qcow2"));
    let words = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", paths[1]];
    for (image, command) in [(&old, "write -P 9 2M 64k"), (&new, "write -P 7 1M 64k")] {
        qemu_img(words.into_iter().chain([image.to_str().unwrap()])).ok();
        qemu_io(image, &[command]);
    }
    let mut bytes = fs::read(&base).unwrap();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let place = |entry: u64| usize::try_from(entry & 0x00ff_ffff_ffff_fe00).unwrap();
    let data = word(place(word(place(word(40)))) + 24) & ((1 << 54) - 1);
    let data = usize::try_from(data).unwrap();
    bytes[data..data + 60].fill(0xff);
    fs::write(&base, &bytes).unwrap();
    compare(&qimg, &[], &old, &new, "b");
    let at = |mib: u64| (mib << 20)..(mib << 20) + 65536;
    assert_eq!(qimg.dirty(&new, "b"), [at(1), at(2)]);
    // With a copy of the file the data has to be looked at.
    let copy = scratch.path("copy.qcow2");
    fs::copy(&base, &copy).unwrap();
    let (old, new) = (copy.to_str().unwrap(), new.to_str().unwrap());
    let run = qimg
        .run(["bitmap", "--from-compare", old, new, "c"])
        .code(1);
    assert!(run.stderr.contains("at 196608"), "{run:?}");
}

#[test]
fn one_transaction_or_nothing() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let (image, copy) = base(&scratch, "disk.qcow2", "");
    qimg.bitmap(&["--add"], &image, "there");
    let before = fs::read(&image).unwrap();
    let (image_name, copy_name) = (image.to_str().unwrap(), copy.to_str().unwrap());
    for (words, text) in [
        (
            vec!["--from-compare", copy_name, image_name, "there"],
            "Operation from-compare on bitmap there failed: Bitmap already exists: there",
        ),
        (
            vec![
                "--from-compare",
                copy_name,
                "--merge",
                "no",
                image_name,
                "new",
            ],
            "Operation merge on bitmap new failed",
        ),
        (
            vec!["--from-compare", "missing", image_name, "new"],
            "Could not open 'missing'",
        ),
        (
            vec!["--from-compare", copy_name, "-g", "100", image_name, "new"],
            "Operation from-compare on bitmap new failed: Granularity",
        ),
        (
            vec![
                "--from-compare",
                copy_name,
                "-F",
                "qcow2",
                image_name,
                "new",
            ],
            "not in qcow2 format",
        ),
        (
            vec!["--from-compare", image_name, image_name, "new"],
            "lock",
        ),
        (
            vec![
                "--from-compare",
                copy_name,
                "-b",
                copy_name,
                "-F",
                "raw",
                "--merge",
                "x",
                image_name,
                "new",
            ],
            "not for both",
        ),
    ] {
        let run = qimg.run([&["bitmap"], &words[..]].concat());
        assert_eq!(run.code, 1, "{words:?}");
        assert!(run.stderr.contains(text), "{words:?}: {}", run.stderr);
        assert!(fs::read(&image).unwrap() == before, "{words:?}");
    }
    // A raw image keeps none.
    let run = qimg.run([
        "bitmap",
        "--from-compare",
        copy_name,
        "-f",
        "raw",
        copy_name,
        "b",
    ]);
    assert_eq!(run.code, 1, "{run:?}");
    // A part of the disk that can't be read.
    let mut bytes = before.clone();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = usize::try_from(word(40)).unwrap();
    let l2 = usize::try_from(word(l1) & 0x00ff_ffff_ffff_fe00).unwrap();
    bytes[l2 + 16 + 6] |= 2;
    fs::write(&image, &bytes).unwrap();
    let words = ["bitmap", "--from-compare", copy_name, image_name, "new"];
    let run = qimg.run(words).code(1);
    assert!(run.stderr.contains("at 131072"), "{run:?}");
    assert!(fs::read(&image).unwrap() == bytes);
}
