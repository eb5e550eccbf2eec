//! Images on block devices: old bytes all over them, and an end.

use super::{model::kinds, *};

/// Bytes of a device with room for everything.
fn ample(options: &CreateOptions) -> usize {
    let disk = options.size.unwrap();
    let tables = disk / 2 + 48 * options.cluster_size;
    usize::try_from(disk + tables).unwrap()
}

#[test]
fn old_bytes_of_a_device_are_never_seen() {
    let small = |kind: &(String, CreateOptions, bool)| kind.1.cluster_size <= 1 << 16;
    for (seed, (name, options, base)) in (1..).zip(kinds()).filter(|(_, kind)| small(kind)) {
        // A raw data file is what the disk is, from the start.
        if options.data_file_raw {
            continue;
        }
        let mut random = Random::of(seed * 33_331);
        let data = options.data_file.as_ref().map(|_| {
            let clusters = options.size.unwrap().next_multiple_of(options.cluster_size);
            MemoryStorage::device(usize::try_from(clusters).unwrap())
        });
        let bytes = vec![0x77; usize::try_from(options.size.unwrap() / 3).unwrap()];
        let image = MemoryStorage::device(ample(&options));
        let rig = Rig::within(image, data, &options, base.then_some(&bytes[..]));
        let mut model = Model::of(&rig);
        if !base {
            assert!(model.bytes.iter().all(|&byte| byte == 0), "{name}");
        }
        for round in 0..2 {
            let writer = rig.writer();
            let what = format!("{name}, round {round}");
            let clusters = options.cluster_size;
            scribble(&writer, &mut model, &mut random, (clusters, 15), &what);
            writer.close().unwrap();
            model.assert_is(&rig, &what);
        }
    }
}

/// Whatever the size of a device: what doesn't fit is refused, and all else is there.
#[test]
fn a_device_that_becomes_full_holds_what_was_written() {
    let mut refused = [0; 2];
    for (cluster_size, sizes) in [(512_u64, 30..90), (4096, 12..40), (65536, 10..22)] {
        for clusters in sizes {
            for (index, lazy_refcounts) in [false, true].into_iter().enumerate() {
                let options = CreateOptions {
                    size: Some(cluster_size * 40),
                    cluster_size,
                    lazy_refcounts,
                    refcount_bits: 64,
                    ..CreateOptions::default()
                };
                let bytes = usize::try_from(cluster_size * clusters).unwrap() + 300;
                let rig = Rig::within(MemoryStorage::device(bytes), None, &options, None);
                refused[index] += fill(&rig, clusters, cluster_size);
            }
        }
    }
    assert!(refused[0] > 300 && refused[1] > 300, "{refused:?}");
}

/// Random changes until long after nothing more fits; how many didn't.
fn fill(rig: &Rig, seed: u64, cluster_size: u64) -> u64 {
    let mut random = Random::of(seed * 7_001);
    let mut model = Model::of(rig);
    let mut refused = 0;
    let writer = rig.writer();
    for step in 0..40 {
        let op = Op::random(&mut random, model.size(), cluster_size);
        let what = format!("{seed} clusters of {cluster_size}, step {step}: {op:x?}");
        match op.apply(&writer) {
            Ok(()) => model.apply(&op),
            Err(Error::NoSpace { .. }) => {
                refused += 1;
                // Any part of the range may have been changed, and nothing else.
                let range = op.range();
                let is = read_all(&writer);
                let range =
                    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                model.bytes[range.clone()].copy_from_slice(&is[range]);
            }
            Err(other) => panic!("{what}: {other:?}"),
        }
        assert!(read_all(&writer) == model.bytes, "{what}");
    }
    writer.flush().unwrap();
    let closed = writer.close();
    assert!(
        matches!(closed, Ok(_) | Err(Error::NoSpace { .. })),
        "{closed:?}"
    );
    assert!(rig.bytes() == model.bytes);
    let (_, worse) = rig.check();
    assert!(worse.is_empty(), "{worse:#?}");
    // Bitmaps for which there was no room are in use, and nobody takes them for valid.
    for (name, state, _) in rig.bitmaps() {
        let lost = state == BitmapState::Inconsistent;
        assert!(!lost || closed.is_err(), "{name}");
    }
    refused
}
