//! The repair beside that of qemu-img.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic in a test's helper is its message"
)]

mod support;

use support::{
    Qemu,
    check::{Changes, damaged, make},
    random::rounds,
    repair::agree,
};

/// In "plain": refcount table at 0x10000, block at 0x20000, L1 at 0x30000, the L2 table
/// at 0x40000, data from 0x50000 to 0xaffff.
#[test]
fn each_kind_of_damage_to_a_plain_image() {
    let Some(qemu) = Qemu::find() else { return };
    const REFCOUNTS: u64 = 0x20000;
    const L1: u64 = 0x30000;
    const L2: u64 = 0x40000;
    const COPIED: u64 = 1 << 63;
    make(&qemu, "plain");
    let table: [(&str, Changes<'_>); 44] = [
        ("refcount 0", &[(REFCOUNTS + 10, 2, 0)]),
        ("refcount 2", &[(REFCOUNTS + 10, 2, 2)]),
        ("refcount of an L2 table", &[(REFCOUNTS + 8, 2, 2)]),
        (
            "refcount of header and L2 table",
            &[(REFCOUNTS, 2, 0), (REFCOUNTS + 8, 2, 0)],
        ),
        ("leak beyond the file", &[(REFCOUNTS + 200, 2, 1)]),
        ("L1 copied flag", &[(L1, 8, 0x40000)]),
        ("L1 reserved", &[(L1, 8, COPIED | 0x40001)]),
        ("L1 unaligned", &[(L1, 8, COPIED | 0x40200)]),
        ("L1 past the end", &[(L1, 8, COPIED | 0x140000)]),
        ("L1 unaligned, past the end", &[(L1, 8, COPIED | 0x140200)]),
        ("L1 all ones", &[(L1, 8, u64::MAX)]),
        ("L1 to the header", &[(L1, 8, COPIED)]),
        ("L1 to the refcount block", &[(L1, 8, COPIED | REFCOUNTS)]),
        ("L1 to itself", &[(L1, 8, COPIED | L1)]),
        ("L1 empty", &[(L1, 8, 0)]),
        ("L2 copied flag", &[(L2, 8, 0x50000)]),
        (
            "L2 copied flag, refcount 2",
            &[(L2, 8, 0x50000), (REFCOUNTS + 10, 2, 2)],
        ),
        ("L2 reserved", &[(L2, 8, COPIED | 0x50002)]),
        ("L2 unaligned", &[(L2, 8, COPIED | 0x50200)]),
        ("L2 unaligned zero", &[(L2, 8, COPIED | 0x50201)]),
        ("L2 unaligned at the end", &[(L2, 8, COPIED | 0xa0200)]),
        ("L2 past the end", &[(L2, 8, COPIED | 0xb0000)]),
        ("L2 far", &[(L2, 8, COPIED | 0xff_ffff_fff5_0000)]),
        ("L2 twice", &[(L2, 8, COPIED | 0x60000)]),
        ("L2 zero", &[(L2, 8, 1)]),
        ("L2 zero, reserved", &[(L2, 8, 3)]),
        ("L2 copied without a cluster", &[(L2, 8, COPIED)]),
        ("L2 to the refcount block", &[(L2 + 8, 8, REFCOUNTS)]),
        ("compressed", &[(L2, 8, 1 << 62 | 20 << 54 | 0xafe00)]),
        ("compressed, copied", &[(L2, 8, 3 << 62 | 0x50000)]),
        ("refcount table reserved", &[(0x10000, 8, 0x20001)]),
        ("refcount table unaligned", &[(0x10000, 8, 0x20200)]),
        ("refcount table past the end", &[(0x10000, 8, 0x140000)]),
        ("refcount table far", &[(0x10000, 8, 0xffff_ffff_ffff_0000)]),
        ("refcount table empty", &[(0x10000, 8, 0)]),
        ("refcount table twice", &[(0x10008, 8, REFCOUNTS)]),
        ("refcount block in data", &[(0x10008, 8, 0x50000)]),
        ("refcount block in itself", &[(0x10000, 8, 0x10000)]),
        ("no refcount table", &[(56, 4, 0)]),
        ("larger refcount table", &[(56, 4, 3)]),
        (
            "refcount table elsewhere",
            &[(48, 8, 0x4000_0000_0000_0000)],
        ),
        ("L1 table elsewhere", &[(40, 8, 0x140000)]),
        ("snapshot table misplaced", &[(64, 8, 0x100)]),
        ("one snapshot", &[(60, 4, 1)]),
    ];
    for (what, changes) in table {
        damaged(&qemu, "plain", changes);
        assert!(agree(&qemu, "t", what), "{what}");
    }
}

#[test]
fn random_damage() {
    let Some(qemu) = Qemu::find() else { return };
    rounds(&qemu, 2, |what| {
        agree(&qemu, "t", what);
    });
}
