//! Disks and granularities at the edges: a last bit that stands for less, a last chunk
//! that is short, chunks whose sectors hardly fit their 32 bits. Many disks go into one
//! QEMU, for speed.

use qimg_tests::{Scratch, require::have_qemu_system};

use crate::{
    disks::{Disk, Plan, apply, emit, stored},
    into_qemu::load_and_compare,
};

const TIB: u64 = 1 << 40;

/// Emits in both styles, loads into QEMU and into `qimg`.
#[track_caller]
fn through_both(scratch: &Scratch, disks: &[Disk]) {
    let stream = scratch.path("stream");
    for options in [&[][..], &["--compact"]] {
        emit(&stream, options, disks);
        let compact = !options.is_empty();
        load_and_compare(&Scratch::new(), "none", &stream, disks, compact);
        let scratch = Scratch::new();
        let to: Vec<_> = disks.iter().map(|disk| disk.blank(&scratch)).collect();
        let named: Vec<_> = disks
            .iter()
            .zip(&to)
            .map(|(disk, image)| (disk.node.as_str(), image.as_path()))
            .collect();
        apply(&stream, &[], &named).ok();
        for (disk, image) in disks.iter().zip(&to) {
            assert_eq!(stored(image), disk.truth, "{}", disk.node);
        }
    }
}

#[test]
fn odd_sizes() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    // A chunk is 4 MiB of disk at 512, 32 MiB at 4 KiB.
    let sizes: [u64; 10] = [
        512,
        1024,
        32_768 - 512,
        32_768 + 512,
        (1 << 20) + 512,
        (4 << 20) - 512,
        4 << 20,
        (4 << 20) + 512,
        (32 << 20) + 512,
        (96 << 20) - 512,
    ];
    let disks: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(n, &size)| {
            let last = [(size - 512, 512)];
            let middle = [(size / 1024 * 512, 512)];
            let plans: [Plan<'_>; 4] = [
                ("empty", 512, false, &[]),
                ("fine", 512, true, &last),
                ("medium", 4096, true, &middle),
                ("coarse", 1 << 20, true, &[(0, 512)]),
            ];
            Disk::new(&scratch, &format!("d{n}"), size, &plans)
        })
        .collect();
    through_both(&scratch, &disks);
}

/// At 2 GiB a chunk of 8192 granules has more sectors than 32 bits count, and QEMU's own
/// sender never ends; it loads what doesn't overflow.
#[test]
fn huge_granularities() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    // Not much more than the sectors of one chunk: an NBD client takes a request for every
    // 4 GiB.
    let size = 2 * TIB + (65 << 30) + 512;
    let writes = [(0, 512), (2 * TIB - 512, 1024), (size - 512, 512)];
    let plans: [Plan<'_>; 3] = [
        ("128M", 128 << 20, true, &writes),
        ("256M", 256 << 20, true, &[]),
        ("2G", 1 << 31, true, &[(TIB, 512)]),
    ];
    let disks = [Disk::new(&scratch, "big", size, &plans)];
    through_both(&scratch, &disks);
}

/// Millions of bits, some in every other chunk.
#[test]
fn many_bits() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let scattered: Vec<(u64, u64)> = (0_u64..200)
        .map(|n| {
            (
                n * n * 26_843_545 % 1_073_700_000 / 512 * 512,
                512 + n % 7 * 512,
            )
        })
        .collect();
    let plans: [Plan<'_>; 2] = [
        ("fine", 512, true, &scattered),
        ("full", 4096, true, &[(0, 1 << 30)]),
    ];
    let disks = [Disk::new(&scratch, "many", 1 << 30, &plans)];
    through_both(&scratch, &disks);
}

/// Many bitmaps on many disks, with names as long as they may be.
#[test]
fn many_bitmaps() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let mut names: Vec<String> = (0..40).map(|n| format!("bitmap {n}")).collect();
    names.extend([
        "x".to_owned(),
        "y".repeat(255),
        "täglich".into(),
        "日次".into(),
    ]);
    let disks: Vec<_> = (0_u64..3)
        .map(|d| {
            let writes: Vec<_> = (0..names.len() as u64)
                .map(|n| [(n * 65536 % (4 << 20) + d * 512, 512)])
                .collect();
            let plans: Vec<Plan<'_>> = names
                .iter()
                .zip(&writes)
                .enumerate()
                .map(|(n, (name, writes))| {
                    let granularity = 512 << (n % 8);
                    (name.as_str(), granularity, n % 3 > 0, &writes[..])
                })
                .collect();
            Disk::new(&scratch, &format!("disk-{d}"), 4 << 20, &plans)
        })
        .collect();
    through_both(&scratch, &disks);
}
