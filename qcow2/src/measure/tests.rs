use std::{fs::File, os::unix::fs::FileExt};

use super::*;
use crate::disk::RawDisk;

fn qcow2(cluster_bits: u32, refcount_order: u32, extended_l2: bool) -> Measure {
    Measure::Qcow2 {
        geometry: Geometry::new(cluster_bits, refcount_order, extended_l2).unwrap(),
        luks_header: 0,
        preallocated: false,
        backing: false,
    }
}

/// What qemu-img 10.0.2 says.
#[test]
fn tables_of_a_whole_disk() {
    let (gib, tib) = (1 << 30, 1 << 40);
    for (measure, size, required, full) in [
        (qcow2(16, 4, false), 0, 196_608, 196_608),
        (qcow2(16, 4, false), 1000, 327_680, 393_216),
        (qcow2(16, 4, false), gib, 393_216, 1_074_135_040),
        (qcow2(16, 4, true), gib, 524_288, 1_074_266_112),
        (qcow2(12, 0, false), gib, 2_146_304, 1_075_888_128),
        (
            qcow2(9, 4, false),
            128 * gib,
            2_737_157_632,
            140_176_111_104,
        ),
        (qcow2(21, 0, false), 37 * gib, 10_485_760, 39_738_933_248),
        (
            qcow2(21, 6, false),
            1000 * gib,
            14_680_064,
            1_073_756_504_064,
        ),
        (
            qcow2(16, 4, false),
            1024 * tib,
            171_825_102_848,
            1_126_071_731_945_472,
        ),
        (Measure::Raw, 1000, 1024, 1024),
    ] {
        let measured = measure.size(size).unwrap();
        assert_eq!(
            (measured.required, measured.fully_allocated),
            (required, full),
            "{measure:?} {size}"
        );
    }
}

#[test]
fn a_disk_that_is_too_large_is_refused() {
    let most = 2 << 50;
    assert!(qcow2(16, 4, false).size(most).is_ok());
    assert!(qcow2(16, 4, false).size(most + 1).is_err());
    assert!(qcow2(21, 4, false).size(u64::MAX).is_err());
    assert!(Measure::Raw.size(u64::MAX).is_err());
    assert_eq!(
        Measure::Raw.size(i64::MAX as u64).unwrap().required,
        1 << 63
    );
}

#[test]
fn clusters_that_data_touches_are_counted_once() {
    let mut temp = tempfile::NamedTempFile::new().unwrap();
    let file: &mut File = temp.as_file_mut();
    file.set_len(1 << 20).unwrap();
    for at in [4096, 20480, 131_072, 1 << 19, (1 << 20) - 4096] {
        file.write_all_at(&[1; 4096], at).unwrap();
    }
    let disk = RawDisk::open(temp.path()).unwrap();
    for (bits, clusters, in_quarter) in [(12, 5, 3), (16, 4, 2), (21, 1, 1)] {
        let measure = qcow2(bits, 4, false);
        let empty = measure.size(1 << 20).unwrap();
        let measured = measure.disk(&disk).unwrap();
        assert_eq!(measured.required, empty.required + (clusters << bits));
        assert_eq!(measured.fully_allocated, empty.fully_allocated);
        // Of what is cut off nothing is counted.
        let quarter = measure.disk_cut(&disk, 1 << 18).unwrap();
        let empty = measure.size(1 << 18).unwrap();
        assert_eq!(quarter.required, empty.required + (in_quarter << bits));
    }
    let Measure::Qcow2 { geometry, .. } = qcow2(16, 4, false) else {
        panic!()
    };
    for (preallocated, backing) in [(true, false), (false, true)] {
        let measure = Measure::Qcow2 {
            geometry,
            luks_header: 2_068_480,
            preallocated,
            backing,
        };
        let measured = measure.disk(&disk).unwrap();
        assert_eq!(measured.required, measured.fully_allocated);
        let plain = qcow2(16, 4, false).size(1 << 20).unwrap();
        assert_eq!(measured.fully_allocated, plain.fully_allocated + (2 << 20));
        // Of an empty disk nothing comes from a backing file.
        let empty = measure.size(1 << 20).unwrap();
        assert_eq!(empty.required == empty.fully_allocated, preallocated);
    }
}
