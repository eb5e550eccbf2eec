//! `bitmap --dump --with-zeroes`: which dirty parts a guest reads as zeros, beside what
//! QEMU says of the disk.

use std::{ops::Range, path::Path};

use qimg_tests::{Qimg, Scratch, qemu_img::qemu_img, qemu_io::qemu_io, qimg, require::have_qemu};

type Part = (Range<u64>, bool);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The parts that the dump tells.
fn dumped(qimg: &Qimg, image: &Path, name: &str) -> Vec<Part> {
    let words = ["bitmap", "--dump", "--with-zeroes", "--output=json"].map(AsRef::as_ref);
    let run = qimg.run(words.into_iter().chain([image.as_os_str(), name.as_ref()]));
    let json = run.ok().json();
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let part = |extent: &serde_json::Value| {
        let start = number(&extent["offset"]);
        let range = start..start + number(&extent["length"]);
        (range, extent["zero"].as_bool().unwrap())
    };
    let extents = json["extents"].as_array().unwrap();
    extents.iter().map(part).collect()
}

/// What `qemu-img map` says is zeros, within the dirty ranges of the bitmap.
fn expected(qimg: &Qimg, image: &Path, name: &str) -> Vec<Part> {
    let map = qemu_img(["map", "--output=json", image.to_str().unwrap()]).ok();
    let map = map.json();
    let mut parts: Vec<Part> = Vec::new();
    for dirty in qimg.dirty(image, name) {
        let first = parts.len();
        for extent in map.as_array().unwrap() {
            let start = extent["start"].as_u64().unwrap().max(dirty.start);
            let end = extent["start"].as_u64().unwrap() + extent["length"].as_u64().unwrap();
            let end = end.min(dirty.end);
            let zero = extent["zero"].as_bool().unwrap();
            match parts[first..].last_mut() {
                _ if start >= end => {}
                Some(last) if last.1 == zero => last.0.end = end,
                _ => parts.push((start..end, zero)),
            }
        }
    }
    parts
}

#[test]
fn trimmed_parts_are_told_apart() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    for options in [
        "cluster_size=64k",
        "cluster_size=4k",
        "extended_l2=on",
        "compat=1.1,preallocation=metadata",
    ] {
        let image = scratch.path("disk.qcow2");
        let path = image.to_str().unwrap();
        qemu_img(["create", "-q", "-f", "qcow2", "-o", options, path, "8M"]).ok();
        qimg.bitmap(&["--add"], &image, "b");
        qemu_io(
            &image,
            &[
                "write -P 1 1M 3M",
                "discard 2M 1M",
                "write -z 6M 128k",
                "discard 7M 512k",
            ],
        );
        let parts = dumped(&qimg, &image, "b");
        assert_eq!(parts, expected(&qimg, &image, "b"), "{options}");
        let by_hand = [
            (MIB..2 * MIB, false),
            (2 * MIB..3 * MIB, true),
            (3 * MIB..4 * MIB, false),
            (6 * MIB..6 * MIB + 128 * KIB, true),
            (7 * MIB..7 * MIB + 512 * KIB, true),
        ];
        assert_eq!(parts, by_hand, "{options}");
    }
}

/// What is trimmed in an overlay are zeros, whatever is behind; what isn't in it is as in
/// the image behind, a raw one with holes or one that is shorter.
#[test]
fn what_is_behind_counts() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let raw = scratch.path("base.raw");
    std::fs::write(&raw, vec![1; 2 << 20]).unwrap();
    let file = std::fs::File::options().write(true).open(&raw).unwrap();
    file.set_len(4 << 20).unwrap();
    let (middle, top) = (scratch.path("middle.qcow2"), scratch.path("top.qcow2"));
    for (image, base, format, size) in [
        (&middle, "base.raw", "raw", "4M"),
        (&top, "middle.qcow2", "qcow2", "8M"),
    ] {
        let path = image.to_str().unwrap();
        let words = ["create", "-q", "-f", "qcow2", "-b", base, "-F", format];
        qemu_img(words.into_iter().chain([path, size])).ok();
    }
    qemu_io(&middle, &["write -z 1M 512k", "write -P 5 3M 64k"]);
    qimg.bitmap(&["--add", "-g", "2M"], &top, "b");
    // A granule is dirty as a whole, of which the guest has written this.
    qemu_io(
        &top,
        &[
            "write -P 3 512k 64k",
            "write -P 3 2M 4k",
            "write -z 0 64k",
            "write 5M 1",
        ],
    );
    let parts = dumped(&qimg, &top, "b");
    assert_eq!(parts, expected(&qimg, &top, "b"));
    assert_eq!(parts.first(), Some(&(0..64 * KIB, true)));
    assert_eq!(parts.last(), Some(&(5 * MIB + 64 * KIB..6 * MIB, true)));
    assert!(parts.len() > 7, "{parts:?}");

    // The other forms tell the same.
    let ranges = ["bitmap", "--dump", "--with-zeroes", "--output=ranges"];
    let words = |words: [&str; 4]| -> Vec<String> {
        let operands = [top.to_str().unwrap(), "b"];
        words
            .into_iter()
            .chain(operands)
            .map(str::to_owned)
            .collect()
    };
    let lines: String = parts
        .iter()
        .map(|(range, zero)| {
            let content = if *zero { "zeros" } else { "data" };
            format!("{} {} {content}\n", range.start, range.end - range.start)
        })
        .collect();
    assert_eq!(qimg.run(words(ranges)).ok().stdout, lines);
    let human = ["bitmap", "--dump", "--with-zeroes", "--output=human"];
    let human = qimg.run(words(human)).ok().stdout;
    assert_eq!(
        human.matches(" zeros\n").count(),
        lines.matches(" zeros\n").count()
    );
    for form in ["--output=raw", "--output=layered"] {
        let run = qimg.run(words(["bitmap", "--dump", "--with-zeroes", form]));
        assert!(
            run.code == 1 && run.stderr.contains("no room for it"),
            "{run:?}"
        );
    }

    // Without what is behind it can't be told; the bits alone still can.
    std::fs::remove_file(&middle).unwrap();
    let run = qimg.run(words(ranges)).code(1);
    assert!(
        run.stderr.contains("Could not open backing file"),
        "{run:?}"
    );
    assert_eq!(qimg.dirty(&top, "b").len(), 1);
}

/// Where a table can't be read the part counts as data, so that nobody skips it.
#[test]
fn what_can_not_be_told_is_no_zero() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let image = scratch.path("disk.qcow2");
    let path = image.to_str().unwrap();
    qemu_img(["create", "-q", "-f", "qcow2", path, "4M"]).ok();
    qimg.bitmap(&["--add"], &image, "b");
    qemu_io(&image, &["write -z 0 256k"]);
    let mut bytes = std::fs::read(&image).unwrap();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = usize::try_from(word(40)).unwrap();
    let l2 = usize::try_from(word(l1) & 0x00ff_ffff_ffff_fe00).unwrap();
    bytes[l2 + 8..l2 + 16].copy_from_slice(&(1_u64 << 57).to_be_bytes());
    std::fs::write(&image, bytes).unwrap();
    let words = [
        "bitmap",
        "--dump",
        "--with-zeroes",
        "--output=ranges",
        path,
        "b",
    ];
    let run = qimg.run(words).ok();
    assert_eq!(
        run.stdout,
        "0 65536 zeros\n65536 65536 data\n131072 131072 zeros\n"
    );
    assert!(run.stderr.contains("counted as data"), "{run:?}");
}
