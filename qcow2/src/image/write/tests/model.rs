//! Random writes, zeroes, discards, flushes and reopens.

use super::*;

/// Every kind of image: options, and whether it has a backing file.
pub(super) fn kinds() -> Vec<(String, CreateOptions, bool)> {
    let mut kinds = Vec::new();
    let mut add = |name: &str, options: CreateOptions, base| {
        let (cluster, bits) = (options.cluster_size, options.refcount_bits);
        kinds.push((
            format!("{name}, cluster {cluster}, {bits} bits"),
            options,
            base,
        ));
    };
    for bits in 9..=21_u32 {
        let cluster_size = 1 << bits;
        let clusters = if bits < 12 { 600 } else { 6 + (21 - bits) * 4 };
        let size = Some(cluster_size * u64::from(clusters) + 1536);
        let refcount_bits = 1 << ((bits - 9) % 7);
        let plain = CreateOptions {
            size,
            cluster_size,
            refcount_bits,
            ..CreateOptions::default()
        };
        add("plain", plain.clone(), false);
        let lazy = CreateOptions {
            lazy_refcounts: true,
            ..plain.clone()
        };
        add("lazy refcounts", lazy, false);
        add("over a base", plain.clone(), true);
        let v2 = CreateOptions {
            version: Version::V2,
            refcount_bits: 16,
            ..plain.clone()
        };
        add("version 2", v2.clone(), false);
        add("version 2 over a base", v2, true);
        let preallocated = CreateOptions {
            preallocation: create::Preallocation::Metadata,
            ..plain.clone()
        };
        add("preallocated", preallocated, false);
        for raw in [false, true] {
            let outside = CreateOptions {
                data_file: Some(b"data".to_vec()),
                data_file_raw: raw,
                ..plain.clone()
            };
            add(
                if raw { "raw data file" } else { "data file" },
                outside,
                false,
            );
        }
        if bits >= 14 {
            let extended = CreateOptions {
                extended_l2: true,
                ..plain
            };
            add("subclusters", extended.clone(), false);
            add("subclusters over a base", extended.clone(), true);
            let outside = CreateOptions {
                data_file: Some(b"data".to_vec()),
                ..extended
            };
            add("subclusters in a data file", outside, false);
        }
    }
    kinds
}

pub(super) fn rig_of(options: &CreateOptions, base: bool) -> Rig {
    // Shorter than the disk, and no whole clusters.
    let len = options.size.unwrap() / 3 * 2 + 512;
    let bytes: Vec<u8> = (0..len).map(|n| (n / 300 + 1).to_le_bytes()[0]).collect();
    Rig::new(options, base.then_some(&bytes[..]))
}

#[test]
fn what_is_written_is_read_and_recorded() {
    written_read_and_recorded(0);
}

#[test]
fn what_is_written_in_other_images_is_read_and_recorded() {
    written_read_and_recorded(1);
}

/// With every second kind of image, from the one at `half` on.
fn written_read_and_recorded(half: usize) {
    for (seed, (name, options, base)) in (1..).zip(kinds()).skip(half).step_by(2) {
        let mut random = Random::of(seed * 77_777);
        let rig = rig_of(&options, base);
        let mut model = Model::of(&rig);
        for round in 0..3 {
            let writer = rig.writer();
            let what = format!("{name}, round {round}");
            let clusters = options.cluster_size;
            scribble(&writer, &mut model, &mut random, (clusters, 20), &what);
            writer.close().unwrap();
            model.assert_is(&rig, &what);
        }
        if options.data_file_raw {
            let mut bytes = rig.data.as_ref().unwrap().to_vec(1 << 30).unwrap();
            bytes.resize(model.bytes.len(), 0);
            assert!(bytes == model.bytes, "{name}: other bytes in the data file");
        }
    }
}

#[test]
fn the_refcount_table_grows() {
    let options = CreateOptions {
        size: Some(8 << 20),
        cluster_size: 512,
        refcount_bits: 64,
        ..CreateOptions::default()
    };
    let rig = Rig::new(&options, None);
    let before = rig.open().header().refcount_table_clusters;
    let mut model = Model::of(&rig);
    let writer = rig.writer();
    for index in 0..16 {
        let op = Op::Write(index << 19..(index + 1) << 19, 7);
        op.apply(&writer).unwrap();
        model.apply(&op);
    }
    writer.close().unwrap();
    model.assert_is(&rig, "full");
    assert!(rig.open().header().refcount_table_clusters > before);
}

#[test]
fn nothing_is_written_without_a_change() {
    let rig = rig_of(&model_options(), false);
    rig.image.start_journal();
    let writer = rig.writer();
    writer.write(5, &[]).unwrap();
    writer.zero(5..5, true).unwrap();
    writer.flush().unwrap();
    assert!(writer.write(1 << 40, &[1]).is_err());
    writer.close().unwrap();
    assert_eq!(rig.image.journal().operations(), []);
}

#[test]
fn what_was_discarded_is_used_again() {
    let rig = rig_of(&model_options(), false);
    let writer = rig.writer();
    for round in 0..50 {
        writer.write(0, &vec![round; 1 << 19]).unwrap();
        writer.discard(0..1 << 19).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
    rig.assert_clean("discarded");
    assert!(rig.image.size().unwrap() < 2 << 20);
}

fn model_options() -> CreateOptions {
    CreateOptions {
        size: Some(1 << 20),
        cluster_size: 4096,
        ..CreateOptions::default()
    }
}

/// Compressed clusters share host clusters, as far as their refcounts allow.
#[test]
fn compressed_clusters_are_packed() {
    for (refcount_bits, at_most) in [(16, 8), (2, 14), (1, 32)] {
        let options = CreateOptions {
            refcount_bits,
            ..model_options()
        };
        let rig = Rig::new(&options, None);
        let mut model = Model::of(&rig);
        let size = rig.image.size().unwrap();
        let writer = rig.writer();
        for index in 0..30 {
            // About 900 bytes each.
            let cluster = index * 4096..(index + 1) * 4096;
            let mut op = Op::Pack(cluster.clone(), 1);
            for seed in 2.. {
                let mut packed = Vec::new();
                let content = content(&cluster, seed);
                writer.compress(&content, &mut packed).unwrap();
                if (800..1100).contains(&packed.len()) {
                    op = Op::Pack(cluster, seed);
                    break;
                }
            }
            op.apply(&writer).unwrap();
            model.apply(&op);
        }
        assert!(read_all(&writer) == model.bytes);
        // Written over in part, and whole.
        for op in [
            Op::Write(5000..5001, 1),
            Op::Pack(20 * 4096..21 * 4096, 77),
            Op::Pack(20 * 4096..21 * 4096, 78),
            Op::Zero(9 * 4096..10 * 4096, true),
            Op::Pack(9 * 4096..10 * 4096, 79),
        ] {
            op.apply(&writer).unwrap();
            model.apply(&op);
            assert!(read_all(&writer) == model.bytes, "{op:?}");
        }
        writer.close().unwrap();
        model.assert_is(&rig, "packed");
        let grown = (rig.image.size().unwrap() - size) / 4096;
        assert!(grown <= at_most + 8, "{refcount_bits}: {grown} clusters");
    }
}

#[test]
fn what_is_no_compressed_cluster_is_refused() {
    let rig = rig_of(&model_options(), false);
    rig.image.start_journal();
    let writer = rig.writer();
    let refused = [
        writer.write_compressed(512, &[1; 4096]),
        writer.write_compressed(4096, &[1; 4095]),
        writer.write_compressed(1 << 20, &[1; 4096]),
        writer.store_compressed(4096, &[1; 4096]),
        writer.store_compressed(4096, &[]),
        writer.store_compressed(1, &[1]),
        writer.store_compressed(1 << 20, &[1]),
    ];
    for result in refused {
        assert!(matches!(result, Err(Error::Refused(_))), "{result:?}");
    }
    writer.close().unwrap();
    assert_eq!(rig.image.journal().operations(), []);
}

#[test]
fn lazy_refcounts_wait_until_the_end() {
    let options = CreateOptions {
        lazy_refcounts: true,
        ..model_options()
    };
    let rig = Rig::new(&options, None);
    let mut model = Model::of(&rig);
    let header = || {
        let reader = OpenOptions::new().open_storage("image", Arc::new(rig.image.clone()));
        reader.unwrap().header().incompatible_features
    };
    let blocks = |rig: &Rig| {
        let mut table = [0; 8];
        let at = rig.open().header().refcount_table_offset.0;
        rig.image.read_padded(at, &mut table).unwrap();
        let mut block = vec![0; 4096];
        rig.image
            .read_padded(u64::from_be_bytes(table), &mut block)
            .unwrap();
        block
    };
    let before = blocks(&rig);
    let writer = rig.writer();
    assert!(header().is_empty());
    // Few enough that they stay in memory.
    for op in [
        Op::Write(0..100_000, 1),
        Op::Flush,
        Op::Discard(0..40_000),
        Op::Flush,
    ] {
        op.apply(&writer).unwrap();
        model.apply(&op);
        assert!(header().contains(Incompatible::DIRTY), "{op:?}");
        assert!(
            rig.image.to_vec(1 << 30).unwrap()[8192..12288] == before,
            "{op:?}"
        );
    }
    let left = Rig {
        image: rig.image.fork(),
        ..rig.clone()
    };
    writer.close().unwrap();
    assert!(header().is_empty());
    model.assert_is(&rig, "closed");
    // One that was not closed is repaired when it is opened.
    let repaired = left.open();
    assert!(repaired.repaired().is_some());
    assert!(repaired.header().incompatible_features.is_empty());
    left.assert_clean("repaired");
    assert!(left.bytes() == model.bytes);
    // Without a change nothing is marked.
    rig.image.start_journal();
    let writer = rig.writer();
    writer.flush().unwrap();
    writer.close().unwrap();
    assert_eq!(rig.image.journal().operations(), []);
}

#[test]
fn a_shared_writer_is_finished_once_and_then_read() {
    let rig = rig_of(&model_options(), true);
    let mut model = Model::of(&rig);
    let writer = Arc::new(rig.writer());
    let disk: Arc<dyn DiskMut> = writer.clone();
    disk.write(700, &[3; 5000]).unwrap();
    disk.zero(100_000..200_000, true).unwrap();
    disk.discard(300_000..400_000).unwrap();
    for op in [
        Op::Write(700..5700, 3),
        Op::Zero(100_000..200_000, true),
        Op::Discard(300_000..400_000),
    ] {
        model.apply(&op);
    }
    disk.flush().unwrap();
    disk.finish().unwrap();
    model.assert_is(&rig, "finished");
    rig.image.start_journal();
    disk.finish().unwrap();
    disk.flush().unwrap();
    let error = disk.write(0, &[1]).unwrap_err().to_string();
    assert_eq!(error, "writing to 'image' has ended");
    assert!(disk.zero(0..512, true).is_err());
    assert!(writer.write_compressed(0, &[1; 4096]).is_err());
    assert!(read_all(&*disk) == model.bytes);
    drop(disk);
    let image = Arc::into_inner(writer).unwrap().close().unwrap();
    assert!(read_all(&image) == model.bytes);
    assert_eq!(rig.image.journal().operations(), []);
}

/// Threads that write each its part, compressed or not, while others read.
#[test]
fn many_threads_write_at_once() {
    let rig = rig_of(&model_options(), true);
    let mut model = Model::of(&rig);
    let writer = rig.writer();
    let part = model.size() / 8;
    let plans: Vec<Vec<Op>> = (0..8)
        .map(|thread| {
            let mut random = Random::of(thread + 1);
            let mut op = || Op::random(&mut random, part, 4096);
            (0..12).map(|_| op().moved(thread * part)).collect()
        })
        .collect();
    std::thread::scope(|scope| {
        for plan in &plans {
            scope.spawn(|| plan.iter().for_each(|op| op.apply(&writer).unwrap()));
        }
        scope.spawn(|| (0..20).for_each(|_| drop(read_all(&writer))));
    });
    for op in plans.iter().flatten() {
        model.apply(op);
    }
    assert!(read_all(&writer) == model.bytes);
    writer.close().unwrap();
    model.assert_is(&rig, "many threads");
}
