//! `info` of damaged images: fields of the header, extensions, bitmaps, snapshots.

use std::fs;

use crate::{images::patch, pair::Pair};

/// A field of the header: where it stands and how many bytes it has.
const FIELDS: [(&str, usize, usize); 16] = [
    ("version", 4, 4),
    ("backing_file_offset", 8, 8),
    ("backing_file_size", 16, 4),
    ("cluster_bits", 20, 4),
    ("size", 24, 8),
    ("crypt_method", 32, 4),
    ("l1_size", 36, 4),
    ("l1_table_offset", 40, 8),
    ("refcount_table_offset", 48, 8),
    ("refcount_table_clusters", 56, 4),
    ("nb_snapshots", 60, 4),
    ("snapshots_offset", 64, 8),
    ("incompatible", 72, 8),
    ("refcount_order", 96, 4),
    ("header_length", 100, 4),
    ("compression_type", 104, 1),
];

#[test]
fn damaged_headers() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "v3.qcow2", "64M"]);
    let values = [
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        9,
        16,
        22,
        31,
        64,
        104,
        112,
        128,
        129,
        512,
        1023,
        1024,
        0x10000,
        0x10001,
        0x30000,
        0x40_0000,
        0x40_0001,
        0x8000_0000,
        u64::from(u32::MAX),
        1 << 40,
        1 << 56,
        1 << 62,
        1 << 63,
        u64::MAX,
        !0xffff,
    ];
    for (field, at, bytes) in FIELDS {
        for value in values {
            let fits = bytes == 8 || value < 1 << (8 * bytes);
            // Version 1 is another format to qemu-img; it prints the method as a signed
            // number, and sizes near 2^64 as an overflow; it takes a name that stands
            // inside the header, and a header whose length is odd.
            let other = match field {
                "version" => value == 1,
                "crypt_method" => value >= 0x8000_0000,
                "size" => value > 1 << 63,
                "backing_file_offset" => (1..112).contains(&value),
                "header_length" => value % 8 != 0,
                _ => false,
            };
            if !fits || other {
                continue;
            }
            let value = value.to_be_bytes();
            let name = format!("{field}.qcow2");
            patch(
                &pair.work(),
                "v3.qcow2",
                &name,
                &[(at, &value[8 - bytes..])],
            );
            pair.same(&["info", &name]);
        }
    }
    pair.finish();
}

#[test]
fn truncated_files() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "v3.qcow2", "64M"]);
    pair.make_line("create -q -f qcow2 -o compat=0.10 v2.qcow2 64M");
    for from in ["v3.qcow2", "v2.qcow2"] {
        let whole = fs::read(pair.work().join(from)).unwrap();
        for length in [0, 3, 112, 512, 4096, 65536, 196_608] {
            fs::write(pair.work().join("cut.qcow2"), &whole[..length]).unwrap();
            pair.same(&["info", "cut.qcow2"]);
            pair.same(&["info", "-f", "qcow2", "cut.qcow2"]);
        }
    }
    pair.finish();
}

/// A header extension.
fn extension(kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    let mut bytes = [kind.to_be_bytes(), length.to_be_bytes()].concat();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

#[test]
fn header_extensions() {
    const FORMAT: u32 = 0xe279_2aca;
    const NAMES: u32 = 0x6803_f857;
    const CRYPTO: u32 = 0x0537_be77;
    const BITMAPS: u32 = 0x2385_2875;
    const DATA_FILE: u32 = 0x4441_5441;
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "v3.qcow2", "64M"]);
    pair.make_line("create -q -f qcow2 -o compat=0.10 v2.qcow2 64M");
    let mut named = [0, 9].to_vec();
    named.extend(b"my feature");
    named.resize(48, 0);
    let bitmaps = |count: u32, reserved: u32, size: u64, offset: u64| {
        let numbers = [count.to_be_bytes(), reserved.to_be_bytes()].concat();
        [
            numbers,
            size.to_be_bytes().to_vec(),
            offset.to_be_bytes().to_vec(),
        ]
        .concat()
    };
    let both = |a: u64, b: u64| [a.to_be_bytes(), b.to_be_bytes()].concat();
    let unknown = |bits: u64| (72, bits.to_be_bytes().to_vec());
    let crypt = |method: u8| (35, vec![method]);
    let none = (95, vec![0]);
    let mut too_long = extension(0x1234_5678, b"hello");
    too_long[5] = 0x10;
    type Patch = (usize, Vec<u8>);
    let cases: Vec<(Vec<u8>, Patch)> = vec![
        (extension(0x1234_5678, b"hello"), none.clone()),
        (too_long, none.clone()),
        (extension(FORMAT, &[b'x'; 20]), none.clone()),
        (extension(FORMAT, &[b'x'; 16]), none.clone()),
        (extension(FORMAT, &[b'x'; 15]), none.clone()),
        (extension(NAMES, &[b'x'; 50]), none.clone()),
        (extension(NAMES, &named), unknown(1 << 9)),
        (
            extension(NAMES, &named),
            unknown((1 << 9) | (1 << 17) | (1 << 60)),
        ),
        (extension(CRYPTO, b"12345678"), crypt(2)),
        (extension(CRYPTO, &both(1, 2)), crypt(2)),
        (extension(CRYPTO, &both(0x10000, 2)), none.clone()),
        (
            extension(BITMAPS, &bitmaps(1, 0, 32, 0x10000)),
            none.clone(),
        ),
        (extension(DATA_FILE, b"foo.raw"), unknown(4)),
        (extension(DATA_FILE, b"foo.raw"), none.clone()),
        (extension(0, b""), unknown(4)),
        (extension(DATA_FILE, b"foo\0bar"), unknown(4)),
    ];
    for (at, from) in [(112, "v3.qcow2"), (72, "v2.qcow2")] {
        for (extension, (offset, bytes)) in &cases {
            if from == "v2.qcow2" && *offset >= 72 && *bytes != [0] {
                continue; // version 2 has no features
            }
            let mut patches = vec![(at, [extension.clone(), vec![0; 8]].concat())];
            if from != "v2.qcow2" || *offset < 72 {
                patches.push((*offset, bytes.clone()));
            }
            let patches: Vec<_> = patches.iter().map(|(at, b)| (*at, b.as_slice())).collect();
            patch(&pair.work(), from, "extension.qcow2", &patches);
            pair.same(&["info", "extension.qcow2"]);
            pair.same(&["info", "--output=json", "extension.qcow2"]);
        }
    }
    pair.finish();
}

#[test]
fn a_damaged_bitmaps_extension_leaves_the_rest_readable() {
    const BITMAPS: u32 = 0x2385_2875;
    let Some(pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "v3.qcow2", "64M"]);
    let whole = pair
        .ours(&["info", "v3.qcow2"])
        .stdout
        .replace("v3.qcow2", "b.qcow2");
    let numbers = |count: u32, reserved: u32, size: u64, offset: u64| {
        let numbers = [count.to_be_bytes(), reserved.to_be_bytes()].concat();
        [
            numbers,
            size.to_be_bytes().to_vec(),
            offset.to_be_bytes().to_vec(),
        ]
        .concat()
    };
    for data in [
        b"12345678".to_vec(),
        numbers(1, 1, 32, 0x10000),
        numbers(0, 0, 32, 0x10000),
        numbers(65536, 0, 32, 0x10000),
        numbers(1, 0, 32, 0x10001),
        numbers(1, 0, 1 << 40, 0x10000),
        numbers(1, 0, 0, 0x10000),
        numbers(1, 0, 32, 1 << 40),
    ] {
        let bytes = [extension(BITMAPS, &data), vec![0; 8]].concat();
        patch(
            &pair.work(),
            "v3.qcow2",
            "b.qcow2",
            &[(95, &[1]), (112, &bytes)],
        );
        // qemu-img can't do anything with such an image.
        assert_eq!(pair.qemu(&["info", "b.qcow2"]).code, Some(1));
        let ours = pair.ours(&["info", "b.qcow2"]);
        assert_eq!(ours.code, Some(0), "{}", ours.stderr);
        assert!(
            ours.stderr.starts_with("qemu-img: warning: "),
            "{}",
            ours.stderr
        );
        assert_eq!(ours.stdout, whole);
    }
}

/// A snapshot table entry for an L1 table of one entry at 0x30000.
fn snapshot(id: &[u8], name: &[u8], numbers: (u32, u32, u64, u32), extra: &[u8]) -> Vec<u8> {
    let (seconds, nanoseconds, clock, state) = numbers;
    let mut bytes = 0x30000_u64.to_be_bytes().to_vec();
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend(u16::try_from(id.len()).unwrap().to_be_bytes());
    bytes.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
    bytes.extend(seconds.to_be_bytes());
    bytes.extend(nanoseconds.to_be_bytes());
    bytes.extend(clock.to_be_bytes());
    bytes.extend(state.to_be_bytes());
    bytes.extend(u32::try_from(extra.len()).unwrap().to_be_bytes());
    bytes.extend(extra);
    bytes.extend(id);
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

#[test]
fn snapshot_tables() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "v3.qcow2", "64M"]);
    let numbers = (
        1_700_000_000,
        999_999_999,
        359_999_999_999_999_999,
        12_345_678,
    );
    let words = |words: &[u64]| {
        words
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect::<Vec<_>>()
    };
    let table = [
        snapshot(b"1", b"a", (0, 0, 0, 0), b""),
        snapshot(b"22", b"exactly sixteen!", numbers, b""),
        snapshot(
            b"333333333",
            b"",
            (u32::MAX, u32::MAX, u64::MAX, u32::MAX),
            b"",
        ),
        snapshot(b"4", b"extra 8", (1, 1, 1, 5), &words(&[1_000_000_000_000])),
        snapshot(
            b"5",
            b"extra 16",
            (1_750_000_000, 1, 1, 5),
            &words(&[1 << 40, 64 << 20]),
        ),
        snapshot(
            b"6",
            b"huge",
            (1, 1, 1_000_000, 5),
            &words(&[1 << 63, 64 << 20, 123_456_789_012]),
        ),
        snapshot(
            b"7",
            b"no icount",
            (1, 1, 1, 0),
            &words(&[0, 64 << 20, u64::MAX]),
        ),
        snapshot(
            b"8",
            b"icount 2^63",
            (1, 1, 1, 0),
            &words(&[0, 64 << 20, 1 << 63]),
        ),
        snapshot(
            b"9",
            b"extra 32",
            (1, 1, 1, 0),
            &words(&[1, 64 << 20, 5, 6]),
        ),
        snapshot(
            b"i\0d",
            "é name".as_bytes(),
            (1, 1, 1, 0),
            &words(&[1, 64 << 20, 5]),
        ),
        snapshot(b"", &[b'x'; 300], (1, 1, 1, 0), &words(&[1, 64 << 20, 5])),
        snapshot(&[b'i'; 200], b"long id", (1, 1, 1, 0), b"1234"),
    ];
    let image = |entries: &[Vec<u8>], count: usize| {
        let mut bytes = fs::read(pair.work().join("v3.qcow2")).unwrap();
        bytes.resize(bytes.len().next_multiple_of(65536), 0);
        let at = bytes.len() as u64;
        bytes.extend(entries.concat());
        bytes[60..64].copy_from_slice(&u32::try_from(count).unwrap().to_be_bytes());
        bytes[64..72].copy_from_slice(&at.to_be_bytes());
        bytes
    };
    let mut tables = vec![(table.to_vec(), table.len())];
    for extra in [1024, 1025] {
        tables.push((
            vec![snapshot(b"1", b"a", (0, 0, 0, 0), &vec![b'x'; extra])],
            1,
        ));
    }
    tables.push((table.to_vec(), 65536));
    tables.push((table.to_vec(), 65537));
    let images: Vec<_> = tables
        .iter()
        .map(|(entries, count)| image(entries, *count))
        .collect();
    for bytes in images {
        fs::write(pair.work().join("snapshots.qcow2"), bytes).unwrap();
        pair.same(&["info", "snapshots.qcow2"]);
        pair.same(&["info", "--output=json", "snapshots.qcow2"]);
    }
    pair.finish();
}
