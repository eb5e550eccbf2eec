//! The check beside that of qemu-img, on sound images and on damaged ones: the same
//! lines in the same order, the same numbers, the same verdict.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic in a test's helper is its message"
)]

mod support;

use qcow2::check::{CheckFailed, CheckOptions, Severity, Verdict, check};
use support::{
    Qemu,
    check::{BASES, Changes, agree, damaged, make, opened, ours, u64_at},
};

#[test]
fn sound_images_are_clean() {
    let Some(qemu) = Qemu::find() else { return };
    for base in BASES {
        make(&qemu, base);
        let outcome = agree(&qemu, base, base).unwrap();
        assert_eq!((outcome.code, &outcome.lines[..]), (0, &[][..]), "{base}");
    }
}

/// In "plain": refcount table at 0x10000, block at 0x20000, L1 at 0x30000, the L2 table
/// at 0x40000, data from 0x50000 to 0xaffff.
#[test]
fn each_kind_of_damage_to_a_plain_image() {
    const REFCOUNTS: u64 = 0x20000;
    const L1: u64 = 0x30000;
    const L2: u64 = 0x40000;
    const COPIED: u64 = 1 << 63;
    let Some(qemu) = Qemu::find() else { return };
    make(&qemu, "plain");
    let table: [(&str, Changes<'_>, i32); 48] = [
        ("refcount 0", &[(REFCOUNTS + 10, 2, 0)], 2),
        ("refcount 2", &[(REFCOUNTS + 10, 2, 2)], 2),
        ("refcount of an L2 table", &[(REFCOUNTS + 8, 2, 2)], 2),
        (
            "refcount of header and L2 table",
            &[(REFCOUNTS, 2, 0), (REFCOUNTS + 8, 2, 0)],
            2,
        ),
        ("leak beyond the file", &[(REFCOUNTS + 200, 2, 1)], 0),
        ("L1 copied flag", &[(L1, 8, 0x40000)], 2),
        ("L1 reserved", &[(L1, 8, COPIED | 0x40001)], 2),
        (
            "L1 reserved above",
            &[(L1, 8, COPIED | 1 << 60 | 0x40000)],
            2,
        ),
        ("L1 unaligned", &[(L1, 8, COPIED | 0x40200)], 2),
        ("L1 past the end", &[(L1, 8, COPIED | 0x140000)], 2),
        (
            "L1 unaligned, past the end",
            &[(L1, 8, COPIED | 0x140200)],
            2,
        ),
        ("L1 far", &[(L1, 8, COPIED | 0xff_ffff_fffe_0000)], 2),
        ("L1 all ones", &[(L1, 8, u64::MAX)], 2),
        ("L1 to the header", &[(L1, 8, COPIED)], 2),
        (
            "L1 to the refcount block",
            &[(L1, 8, COPIED | REFCOUNTS)],
            2,
        ),
        ("L1 to itself", &[(L1, 8, COPIED | L1)], 2),
        ("L1 empty", &[(L1, 8, 0)], 3),
        ("L2 copied flag", &[(L2, 8, 0x50000)], 2),
        (
            "L2 copied flag, refcount 2",
            &[(L2, 8, 0x50000), (REFCOUNTS + 10, 2, 2)],
            3,
        ),
        ("L2 reserved", &[(L2, 8, COPIED | 0x50002)], 2),
        (
            "L2 reserved above",
            &[(L2, 8, COPIED | 1 << 61 | 0x50000)],
            2,
        ),
        ("L2 unaligned", &[(L2, 8, COPIED | 0x50200)], 2),
        ("L2 unaligned zero", &[(L2, 8, COPIED | 0x50201)], 2),
        ("L2 unaligned at the end", &[(L2, 8, COPIED | 0xa0200)], 2),
        ("L2 past the end", &[(L2, 8, COPIED | 0xb0000)], 2),
        ("L2 far", &[(L2, 8, COPIED | 0xff_ffff_fff5_0000)], 2),
        ("L2 twice", &[(L2, 8, COPIED | 0x60000)], 2),
        ("L2 preallocated", &[(L2, 8, COPIED | 0x50001)], 0),
        ("L2 preallocated, not copied", &[(L2, 8, 0x50001)], 2),
        ("L2 zero", &[(L2, 8, 1)], 3),
        ("L2 zero, reserved", &[(L2, 8, 3)], 2),
        ("L2 copied without a cluster", &[(L2, 8, COPIED)], 3),
        ("L2 to the refcount block", &[(L2 + 8, 8, REFCOUNTS)], 2),
        ("compressed", &[(L2, 8, 1 << 62 | 20 << 54 | 0xafe00)], 2),
        ("compressed, copied", &[(L2, 8, 3 << 62 | 0x50000)], 2),
        ("refcount table reserved", &[(0x10000, 8, 0x20001)], 2),
        ("refcount table unaligned", &[(0x10000, 8, 0x20200)], 1),
        ("refcount table past the end", &[(0x10000, 8, 0x140000)], 2),
        (
            "refcount table far",
            &[(0x10000, 8, 0xffff_ffff_ffff_0000)],
            1,
        ),
        ("refcount table empty", &[(0x10000, 8, 0)], 2),
        ("refcount table twice", &[(0x10008, 8, REFCOUNTS)], 2),
        ("refcount block in data", &[(0x10008, 8, 0x50000)], 2),
        ("refcount block in itself", &[(0x10000, 8, 0x10000)], 2),
        ("no refcount table", &[(56, 4, 0)], 2),
        ("larger refcount table", &[(56, 4, 3)], 2),
        (
            "refcount table elsewhere",
            &[(48, 8, 0x4000_0000_0000_0000)],
            2,
        ),
        ("L1 table elsewhere", &[(40, 8, 0x140000)], 2),
        ("snapshot table misplaced", &[(64, 8, 0x100)], 1),
    ];
    for (what, changes, code) in table {
        damaged(&qemu, "plain", changes);
        assert_eq!(agree(&qemu, "t", what).unwrap().code, code, "{what}");
    }
}

#[test]
fn a_dirty_or_corrupt_bit_alone_is_no_finding() {
    let Some(qemu) = Qemu::find() else { return };
    make(&qemu, "plain");
    for bits in [1, 2, 3] {
        damaged(&qemu, "plain", &[(72, 8, bits)]);
        assert_eq!(agree(&qemu, "t", "bits").unwrap().code, 0);
        damaged(&qemu, "plain", &[(72, 8, bits), (0x2000a, 2, 0)]);
        assert_eq!(agree(&qemu, "t", "bits").unwrap().code, 2);
    }
}

#[test]
fn truncated_files() {
    let Some(qemu) = Qemu::find() else { return };
    for base in BASES {
        make(&qemu, base);
        let bytes = qemu.bytes(base);
        let cluster = 1_usize << bytes[23];
        for part in 1..8 {
            for extra in [0, 1, 512, cluster - 1] {
                let len = (bytes.len() * part / 8 / cluster * cluster + extra).max(1024);
                std::fs::write(qemu.path("t"), &bytes[..len.min(bytes.len())]).unwrap();
                agree(&qemu, "t", &format!("{base} cut at {len:#x}"));
            }
        }
    }
}

#[test]
fn damaged_snapshot_table() {
    let Some(qemu) = Qemu::find() else { return };
    make(&qemu, "snapshots");
    let bytes = qemu.bytes("snapshots");
    let at = u64_at(&bytes, 64);
    let l1 = u64_at(&bytes, usize::try_from(at).unwrap());
    let table: [(&str, Changes<'_>, i32); 23] = [
        ("L1 unaligned", &[(at, 8, l1 + 0x200)], 2),
        ("L1 past the end", &[(at, 8, 0x700_0000)], 2),
        ("L1 far", &[(at, 8, 0x7000_0000_0000_0000)], 2),
        ("L1 beyond 2^63", &[(at, 8, 1 << 63)], 1),
        (
            "L1 where QEMU reads no more",
            &[(at, 8, 0x7fff_ffff_d000_0000)],
            1,
        ),
        ("L1 in the header", &[(at, 8, 0)], 2),
        ("L1 empty", &[(at + 8, 4, 0)], 3),
        ("L1 empty and far", &[(at + 8, 4, 0), (at, 8, 1 << 63)], 3),
        ("L1 too large", &[(at + 8, 4, 0x40_0001)], 2),
        (
            "L1 unaligned and too large",
            &[(at + 8, 4, 0x40_0001), (at, 8, 1)],
            2,
        ),
        ("L1 past the end in part", &[(at + 8, 4, 0x20_0000)], 2),
        ("one snapshot less", &[(60, 4, 1)], 3),
        ("one snapshot more", &[(60, 4, 3)], 2),
        ("no snapshots", &[(60, 4, 0)], 3),
        ("as many snapshots as can be", &[(60, 4, 65536)], 1),
        ("too many snapshots", &[(60, 4, 65537)], 1),
        ("far too many snapshots", &[(60, 4, 0xffff_ffff)], 1),
        (
            "too many snapshots, misplaced",
            &[(60, 4, 70000), (64, 8, at + 8)],
            1,
        ),
        ("table past the end", &[(64, 8, 0x700_0000)], 2),
        (
            "table where QEMU reads no more",
            &[(64, 8, 0x7fff_ffff_fffe_0000)],
            1,
        ),
        ("too much extra data", &[(at + 36, 4, 1025)], 1),
        ("extra data over the next", &[(at + 36, 4, 1024)], 2),
        ("extra data gone", &[(at + 36, 4, 0)], 1),
    ];
    for (what, changes, code) in table {
        damaged(&qemu, "snapshots", changes);
        assert_eq!(agree(&qemu, "t", what).unwrap().code, code, "{what}");
    }
}

/// What is wrong in the active L2 tables is told before a snapshot's L1 table ends the check.
#[test]
fn findings_before_the_check_fails_are_told() {
    let Some(qemu) = Qemu::find() else { return };
    make(&qemu, "snapshots");
    let bytes = qemu.bytes("snapshots");
    let (l1, at) = (u64_at(&bytes, 40), u64_at(&bytes, 64));
    let l2 = u64_at(&bytes, usize::try_from(l1).unwrap()) & !(1 << 63);
    damaged(&qemu, "snapshots", &[(at, 8, 1 << 63), (l2 + 80, 8, 0x20)]);
    let outcome = agree(&qemu, "t", "both").unwrap();
    assert_eq!((outcome.code, outcome.lines.len()), (1, 4), "{outcome:?}");
}

#[test]
fn a_snapshot_table_beyond_64_mib_is_refused() {
    let Some(qemu) = Qemu::find() else { return };
    make(&qemu, "plain");
    let mut bytes = qemu.bytes("plain");
    bytes[60..64].copy_from_slice(&600_u32.to_be_bytes());
    bytes[64..72].copy_from_slice(&0x100_0000_u64.to_be_bytes());
    std::fs::write(qemu.path("t"), bytes).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(qemu.path("t"))
        .unwrap();
    let entry = [&[0; 12][..], &[0xff; 4], &[0; 20], &24_u32.to_be_bytes()].concat();
    for index in 0..600 {
        let at = 0x100_0000 + index * (64_u64 + 65535 * 2).next_multiple_of(8);
        std::os::unix::fs::FileExt::write_all_at(&file, &entry, at).unwrap();
    }
    let outcome = agree(&qemu, "t", "long table").unwrap();
    assert!(
        outcome.lines[0].ends_with("Snapshot table is too big"),
        "{outcome:?}"
    );
}

#[test]
fn damaged_bitmaps_do_not_hide_the_rest() {
    let Some(qemu) = Qemu::find() else { return };
    make(&qemu, "bitmaps");
    let bytes = qemu.bytes("bitmaps");
    let extension = bytes
        .windows(8)
        .position(|w| w == *b"\x23\x85\x28\x75\0\0\0\x18")
        .unwrap();
    let at = u64_at(&bytes, extension + 24);
    let table = u64_at(&bytes, usize::try_from(at).unwrap());
    let in_use = (at + 12, 4, 1);
    let cases: [(&str, Changes<'_>, i32); 6] = [
        ("in use", &[in_use], 0),
        ("table past the end", &[in_use, (at, 8, 0x700_0000)], 2),
        ("all ones", &[in_use, (table, 8, 1)], 3),
        ("data past the end", &[in_use, (table, 8, 0x700_0000)], 2),
        ("data in guest data", &[in_use, (table, 8, 0x60000)], 2),
        ("longer table", &[in_use, (at + 8, 4, 8191)], 0),
    ];
    for (what, changes, code) in cases {
        damaged(&qemu, "bitmaps", changes);
        assert_eq!(agree(&qemu, "t", what).unwrap().code, code, "{what}");
    }
    // QEMU gives up on these, or doesn't open the image.
    let cases: [(Changes<'_>, &str); 9] = [
        (
            &[(at + 17, 1, 8)],
            "directory entry of bitmap 'b0', field granularity_bits",
        ),
        (&[(at + 18, 2, 0)], "bitmap directory"),
        (
            &[(at, 8, 0x200)],
            "directory entry of bitmap 'b0', field bitmap_table_offset",
        ),
        (
            &[(at + 12, 4, 8)],
            "directory entry of bitmap 'b0', field flags",
        ),
        (&[(at + 24, 2, 0x6231)], "directory entry of bitmap 'b1'"),
        (
            &[(table, 8, 2)],
            "bitmap 'b0' table entry 0: 2: reserved bits are set",
        ),
        (
            &[(table, 8, 0x40200)],
            "bitmap 'b0' table entry 0: 40200: not cluster aligned",
        ),
        (&[(extension as u64 + 8, 4, 4)], "bitmap directory entry 3"),
        (
            &[(extension as u64 + 12, 4, 1)],
            "bitmaps extension, field reserved",
        ),
    ];
    for (changes, expected) in cases {
        damaged(&qemu, "bitmaps", changes);
        let outcome = ours(&qemu, "t").unwrap();
        assert_eq!(outcome.code, 2, "{expected}");
        assert!(
            outcome.lines.iter().any(|line| line.contains(expected)),
            "{outcome:?}"
        );
    }
}

#[test]
fn bitmaps_in_use_or_void_are_notes_on_request() {
    let Some(qemu) = Qemu::find() else { return };
    make(&qemu, "bitmaps");
    let bytes = qemu.bytes("bitmaps");
    let extension = bytes
        .windows(8)
        .position(|w| w == *b"\x23\x85\x28\x75\0\0\0\x18")
        .unwrap();
    let at = u64_at(&bytes, extension + 24);
    let notes = |bitmaps| {
        let mut lines = Vec::new();
        let report: Result<_, CheckFailed> = opened(&qemu, "t", |metadata| {
            check(metadata, CheckOptions { bitmaps }, &mut |finding| {
                if finding.severity() == Severity::Note {
                    lines.push(finding.to_string());
                }
            })
        })
        .unwrap();
        (lines, report.unwrap())
    };
    damaged(&qemu, "bitmaps", &[(at + 12, 4, 1)]);
    let (lines, report) = notes(true);
    assert_eq!(lines, ["Bitmap 'b0' is in use or was not saved correctly"]);
    assert_eq!(
        (report.unusable_bitmaps, report.verdict()),
        (1, Verdict::Clean)
    );
    assert_eq!(notes(false).0, [""; 0]);
    // Without the autoclear bit nothing refers to their clusters.
    damaged(&qemu, "bitmaps", &[(88, 8, 0)]);
    let (lines, report) = notes(true);
    assert_eq!(
        (lines.len(), report.unusable_bitmaps, report.leaks),
        (1, 1, 7)
    );
    assert!(
        lines[0].starts_with("All 3 bitmaps are inconsistent"),
        "{lines:?}"
    );
}

#[test]
fn luks_header_is_counted() {
    let Some(qemu) = Qemu::find() else { return };
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let secret = "--object secret,id=s,data=abc";
    qemu.img(&format!("create -q {secret} -f qcow2 -o {options} l 1M"));
    let theirs = |image: &str| {
        let spec = format!("driver=qcow2,encrypt.key-secret=s,file.filename={image}");
        let output = qemu.run(&format!("check {secret} --output=json --image-opts {spec}"));
        let stderr = String::from_utf8(output.stderr).unwrap();
        (
            stderr.lines().map(str::to_owned).collect::<Vec<_>>(),
            output.status.code().unwrap(),
        )
    };
    let outcome = ours(&qemu, "l").unwrap();
    assert_eq!((outcome.lines, outcome.code), theirs("l"));
    let pointer = qemu
        .bytes("l")
        .windows(4)
        .position(|w| w == *b"\x05\x37\xbe\x77")
        .unwrap() as u64;
    for length in [0x1f_9000 + 0x20000, 0x1000_0000, u64::MAX] {
        damaged(&qemu, "l", &[(pointer + 16, 8, length)]);
        let outcome = ours(&qemu, "t").unwrap();
        assert!(outcome.lines.len() > 30, "{outcome:?}");
        assert_eq!((outcome.lines, outcome.code), theirs("t"), "{length:#x}");
    }
}
