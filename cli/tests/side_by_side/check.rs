//! `check`: every kind of image, and damage of every kind.

use std::fs;

use crate::{images::each_kind, pair::Pair};

#[test]
fn every_kind_of_image_in_both_forms() {
    let Some(mut pair) = Pair::new() else { return };
    for name in each_kind(&pair) {
        // qemu-img opens what an image is based on, needs keys, and won't open an image
        // whose data file it can't find: the check itself needs none of these.
        let needs_more = [
            "lost.qcow2",
            "nbd.qcow2",
            "luks.qcow2",
            "aes.qcow2",
            "v2-aes.qcow2",
            "df-aes.qcow2",
        ];
        if needs_more.contains(&name) {
            assert_eq!(pair.ours(&["check", name]).code, Some(0), "{name}");
            continue;
        }
        pair.same(&["check", name]);
        pair.same(&["check", "--output=json", name]);
        pair.same(&["check", "-q", name]);
        pair.same(&["check", "-U", "-T", "none", "-f", "qcow2", name]);
    }
    let list = "driver=qcow2,file.filename=v3.qcow2";
    pair.same(&["check", "--output=json", "--image-opts", list]);
    pair.same(&["check", "--output=json", "file:v3.qcow2"]);
    pair.finish();
}

/// Where the metadata of a new image with some data is.
pub(crate) struct Places {
    pub(crate) bytes: Vec<u8>,
    pub(crate) l1: usize,
    pub(crate) l2: usize,
    pub(crate) refcounts: usize,
    pub(crate) refcount_table: usize,
}

pub(crate) fn image_with_data(pair: &Pair) -> Places {
    pair.make(&["create", "-q", "-f", "raw", "data.raw", "4M"]);
    fs::write(pair.work().join("data.raw"), vec![7; 3 << 20]).unwrap();
    pair.make_line("convert -f raw -O qcow2 data.raw data.qcow2");
    let bytes = fs::read(pair.work().join("data.qcow2")).unwrap();
    let word = |at: usize| {
        let word = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        usize::try_from(word & 0x00ff_ffff_ffff_fe00).unwrap()
    };
    let (l1, refcount_table) = (word(40), word(48));
    let (l2, refcounts) = (word(l1), word(refcount_table));
    Places {
        l1,
        l2,
        refcounts,
        refcount_table,
        bytes,
    }
}

#[test]
fn damage_of_every_kind() {
    let Some(mut pair) = Pair::new() else { return };
    let places = image_with_data(&pair);
    let Places {
        l1,
        l2,
        refcounts,
        refcount_table,
        ref bytes,
    } = places;
    let word = |word: u64| word.to_be_bytes().to_vec();
    let half = |half: u16| half.to_be_bytes().to_vec();
    let first = u64::from_be_bytes(bytes[l2..l2 + 8].try_into().unwrap());
    for patches in [
        vec![],
        // Refcounts of cluster 10 and 11.
        vec![(refcounts + 20, half(0))],
        vec![(refcounts + 20, half(2))],
        vec![(refcounts + 20, half(0)), (refcounts + 22, half(5))],
        // L2 entries: unaligned, beyond the end, not marked copied, reserved bits, unused.
        vec![(l2, word(first + 0x200))],
        vec![(l2, word(first + (1 << 28)))],
        vec![(l2, word(first & !(1 << 63)))],
        vec![(l2, word(first | 1 << 58))],
        vec![(l2, word(0))],
        vec![(l2, word(first)), (l2 + 8, word(first))],
        // Compressed entries.
        vec![(l2, word((1 << 62) | 0x60000 | (3 << 54)))],
        vec![(l2, word((1 << 62) | (1 << 63) | 0x60000 | (3 << 54)))],
        // L1 entries.
        vec![(l1, word(0))],
        vec![(l1, word(0x8000_0000_1004_0000))],
        vec![(l1, word(l2 as u64))],
        // Refcount table.
        vec![(refcount_table, word(0))],
        vec![(refcount_table, word(0x2000_0000))],
        vec![(refcount_table, word(refcounts as u64 + 0x200))],
        // The corrupt bit alone is no finding.
        vec![(79, vec![2])],
    ] {
        let mut damaged = bytes.clone();
        for (at, patch) in &patches {
            damaged[*at..*at + patch.len()].copy_from_slice(patch);
        }
        fs::write(pair.work().join("damaged.qcow2"), damaged).unwrap();
        pair.same(&["check", "damaged.qcow2"]);
        pair.same(&["check", "--output=json", "damaged.qcow2"]);
        pair.same(&["check", "-q", "damaged.qcow2"]);
    }
    pair.finish();
}

#[test]
fn what_is_not_checked() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "v3.qcow2", "1M"]);
    pair.make(&["create", "-q", "-f", "raw", "raw.img", "1M"]);
    for line in [
        "check raw.img",
        "check -q --output=json raw.img",
        "check -f raw v3.qcow2",
        "check -f file v3.qcow2",
        "check -f qcow2 raw.img",
        "check missing",
        "check -f foo v3.qcow2",
        "check x:y",
    ] {
        pair.same_line(line);
    }
    pair.finish();
}

#[test]
fn bitmaps_are_told_of_on_request() {
    let Some(pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "b.qcow2", "64M"]);
    pair.make(&["bitmap", "--add", "b.qcow2", "b0"]);
    let sound = pair.ours(&["check", "--bitmaps", "--output=json", "b.qcow2"]);
    assert_eq!((sound.code, sound.stderr.as_str()), (Some(0), ""));
    assert!(
        sound.stdout.contains("\"unusable-bitmaps\": 0"),
        "{}",
        sound.stdout
    );
    // What a killed writer leaves behind: the flag in the directory entry.
    let mut bytes = fs::read(pair.work().join("b.qcow2")).unwrap();
    let name = bytes.windows(2).rposition(|bytes| bytes == b"b0").unwrap();
    let flags = name - 24 + 12;
    assert_eq!(bytes[flags..flags + 4], [0, 0, 0, 2]);
    bytes[flags + 3] = 3;
    fs::write(pair.work().join("b.qcow2"), bytes).unwrap();
    let silent = pair.ours(&["check", "b.qcow2"]);
    assert_eq!((silent.code, silent.stderr.as_str()), (Some(0), ""));
    let told = pair.ours(&["check", "--bitmaps", "--output=json", "b.qcow2"]);
    assert!(
        told.stderr.contains("Bitmap 'b0' is in use"),
        "{}",
        told.stderr
    );
    assert!(
        told.stdout.contains("\"unusable-bitmaps\": 1"),
        "{}",
        told.stdout
    );
}
