//! Damaged images: a write is refused, or works and hits nothing else.

use super::*;

/// A sound image, in which some things are there.
fn sample(options: &CreateOptions, base: bool, random: &mut Random) -> (Rig, Model) {
    let rig = model::rig_of(options, base);
    let mut model = Model::of(&rig);
    let writer = rig.writer();
    for _ in 0..20 {
        let op = Op::random(random, model.size(), options.cluster_size);
        op.apply(&writer).unwrap();
        model.apply(&op);
    }
    writer.close().unwrap();
    (rig, model)
}

fn options(extended: bool) -> CreateOptions {
    CreateOptions {
        size: Some(30 * 16384),
        cluster_size: 16384,
        extended_l2: extended,
        refcount_bits: 8,
        ..CreateOptions::default()
    }
}

/// Words of the image's tables are replaced at random: by others, by offsets of other
/// things, with flags changed.
#[test]
fn random_damage_is_refused_or_does_no_harm() {
    let (mut refused, mut written) = (0, 0);
    for seed in 1..=1500 {
        let mut random = Random::of(seed * 0x9e37_79b9);
        let base = seed % 3 == 0;
        let (sound, model) = match seed % 50 {
            1 => sample(&options(seed / 50 % 2 == 0), base, &mut random),
            _ => continue,
        };
        for _ in 0..50 {
            let rig = sound.fork();
            let clusters = rig.image.size().unwrap() / 16384;
            let header = rig.open();
            let header = header.header();
            let tables = [
                header.l1_table_offset.0,
                header.refcount_table_offset.0,
                random.below(clusters) * 16384,
                random.below(clusters) * 16384,
            ];
            for _ in 0..=random.below(2) {
                let words = random.pick(&[4, 32, 2048]);
                let at = random.pick(&tables) + random.below(words) * 8;
                let mut word = [0; 8];
                rig.image.read_padded(at, &mut word).unwrap();
                let old = u64::from_be_bytes(word);
                let new = match random.below(5) {
                    0 => (random.below(clusters + 2) * 16384) | (1 << 63),
                    1 => random.below(clusters + 2) * 16384,
                    2 => old ^ (1 << random.below(64)),
                    3 => old ^ (1 << 63),
                    _ => 0,
                };
                rig.image.write_all_at(at, &new.to_be_bytes()).unwrap();
            }
            let Ok(image) = rig.try_open() else {
                refused += 1;
                continue;
            };
            // The damage may have made it another disk, smaller or larger.
            let mut before = vec![0; usize::try_from(image.size().min(64 << 20)).unwrap()];
            let readable = image.read(0, &mut before).is_ok();
            let size = before.len() as u64;
            let whole = size == image.size() && image.header().version == 3;
            let untouched = rig.fork();
            let writer = match image.into_writer() {
                Ok(writer) => writer,
                Err(_) => {
                    refused += 1;
                    assert!(
                        rig.image.to_vec(1 << 30).unwrap()
                            == untouched.image.to_vec(1 << 30).unwrap()
                    );
                    continue;
                }
            };
            written += 1;
            let ops: Vec<Op> = (0..20)
                .map(|_| Op::random(&mut random, size, 16384))
                .collect();
            let done = ops.iter().all(|op| op.apply(&writer).is_ok());
            let closed = writer.close();
            assert!(rig.check().1.is_empty(), "seed {seed}: {:?}", rig.check().1);
            if done && closed.is_ok() && readable && whole {
                let mut after = Model {
                    bytes: before,
                    ..model.clone()
                };
                ops.iter().for_each(|op| after.apply(op));
                assert!(rig.bytes() == after.bytes, "seed {seed}");
            }
        }
    }
    assert!(refused > 100 && written > 100, "{refused} {written}");
}

#[test]
fn what_would_be_hit_is_said() {
    let (rig, _) = sample(&options(false), false, &mut Random(5));
    let header = rig.open().header().clone();
    // The first L2 table is said to be free.
    let mut entry = [0; 8];
    let l1 = header.l1_table_offset.0;
    rig.image.read_padded(l1, &mut entry).unwrap();
    let table = u64::from_be_bytes(entry) << 8 >> 8;
    let mut block = [0; 8];
    let refcounts = header.refcount_table_offset.0;
    rig.image.read_padded(refcounts, &mut block).unwrap();
    let at = u64::from_be_bytes(block) + table / 16384;
    rig.image.write_all_at(at, &[0]).unwrap();
    let error = rig.open().into_writer().unwrap_err().to_string();
    assert!(
        error.contains("can't be written before it is repaired"),
        "{error}"
    );
}

#[test]
fn images_that_are_not_written() {
    let rig = Rig::new(&options(false), None);
    let read_only = OpenOptions::new().open_storage("image", Arc::new(rig.image.clone()));
    let error = read_only.unwrap().into_writer().unwrap_err();
    assert_eq!(error.to_string(), "'image' was opened read-only");
    // An enabled bitmap whose table can't be read; the disabled one doesn't matter.
    let image = rig.open();
    let bitmaps = image.bitmaps().unwrap();
    let table = bitmaps.entries()[1].table_offset;
    rig.image.write_all_at(table.0, &[0xff; 8]).unwrap();
    assert!(rig.open().into_writer().is_err());
    // Without its data file.
    let outside = Rig::new(
        &CreateOptions {
            data_file: Some(b"data".to_vec()),
            ..options(false)
        },
        None,
    );
    let alone = OpenOptions::new()
        .writable(true)
        .open_storage("image", Arc::new(outside.image.clone()));
    let error = alone.unwrap().into_writer().unwrap_err();
    assert_eq!(error.to_string(), "the data file of 'image' was not opened");
}

#[test]
fn a_device_that_is_full() {
    let options = CreateOptions {
        size: Some(1 << 20),
        cluster_size: 4096,
        ..CreateOptions::default()
    };
    let rig = Rig::new(&options, None);
    rig.image.set_len(300 << 10).unwrap();
    rig.image.fix_size();
    let writer = rig.writer();
    let mut model = Model::of(&rig);
    let mut full = 0;
    for index in 0..256 {
        let op = Op::Write(index * 4096..(index + 1) * 4096, 9);
        match op.apply(&writer) {
            Ok(()) => model.apply(&op),
            Err(Error::NoSpace { .. }) => full += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(full > 100);
    // Room is made, and there is room, with a flush between or without.
    for (discarded, written) in [(0, 900), (20, 910)] {
        for op in [
            Op::Discard(discarded << 10..(discarded + 20) << 10),
            Op::Write(written << 10..(written + 10) << 10, 8),
        ] {
            op.apply(&writer).unwrap();
            model.apply(&op);
        }
    }
    let op = Op::Discard(40 << 10..100 << 10);
    op.apply(&writer).unwrap();
    model.apply(&op);
    writer.flush().unwrap();
    let op = Op::Write(900 << 10..910 << 10, 8);
    op.apply(&writer).unwrap();
    model.apply(&op);
    writer.flush().unwrap();
    assert!(read_all(&writer) == model.bytes);
    let _ = writer.close();
    assert!(rig.check().1.is_empty());
    assert!(rig.bytes() == model.bytes);
}

#[test]
fn a_base_that_cannot_be_read_fails_that_write_alone() {
    let mut options = options(false);
    options.backing = Some(create::Backing {
        file: b"base".to_vec(),
        format: Some(b"raw".to_vec()),
        size: None,
    });
    let rig = Rig::new(&options, None);
    let writer = rig.writer();
    assert!(writer.write(5, &[1]).is_err());
    writer.write(0, &[2; 16384]).unwrap();
    writer.write(7, &[3]).unwrap();
    let mut byte = [0; 9];
    writer.read(0, &mut byte).unwrap();
    assert_eq!(byte, [2, 2, 2, 2, 2, 2, 2, 3, 2]);
    writer.close().unwrap();
    rig.assert_clean("without its base");
}

#[test]
fn bitmaps_that_nobody_keeps_stay_as_they_are() {
    let rig = Rig::new(&options(false), None);
    // One is in use since a writer ended without closing.
    let writer = rig.writer();
    writer.write(0, &[1]).unwrap();
    drop(writer);
    let states = |rig: &Rig| -> Vec<_> { rig.bitmaps().into_iter().map(|b| b.1).collect() };
    use BitmapState::{Disabled, Inconsistent};
    let lost = [Inconsistent, Inconsistent, Disabled];
    assert_eq!(states(&rig), lost);
    let writer = rig.writer();
    writer.write(0, &[2; 600]).unwrap();
    writer.close().unwrap();
    assert_eq!(states(&rig), lost);
    // Void, because a program that keeps none wrote the image; it also has a feature
    // that nobody knows.
    let rig = Rig::new(&options(false), None);
    rig.image
        .write_all_at(88, &2_u64.pow(40).to_be_bytes())
        .unwrap();
    let writer = rig.writer();
    writer.write(0, &[2; 600]).unwrap();
    let image = writer.close().unwrap();
    assert!(image.bitmaps().unwrap().is_voided());
    assert_eq!(image.header().autoclear_features.0, 0);
    assert_eq!(rig.open().header().autoclear_features.0, 0);
    assert_eq!(states(&rig), [const { Inconsistent }; 3]);
}

#[test]
fn space_is_given_back_to_the_system() {
    let rig = Rig::new(&options(false), None);
    let writer = rig.writer();
    writer.write(0, &[1; 20 * 16384]).unwrap();
    writer.flush().unwrap();
    let before = rig.image.allocated_bytes().unwrap();
    writer.discard(0..15 * 16384).unwrap();
    writer.close().unwrap();
    assert!(rig.image.allocated_bytes().unwrap() + 9 * 16384 < before);
    rig.assert_clean("discarded");
}

#[test]
fn space_of_an_external_data_file_is_given_back_but_for_what_is_written_again() {
    let rig = Rig::new(
        &CreateOptions {
            data_file: Some(b"data".to_vec()),
            size: Some(20 * 4096),
            cluster_size: 1024,
            ..options(false)
        },
        None,
    );
    let mut model = Model::of(&rig);
    let data = rig.data.as_ref().unwrap();
    let writer = rig.writer();
    let mut apply = |op: Op| {
        op.apply(&writer).unwrap();
        model.apply(&op);
    };
    apply(Op::Write(0..20 * 4096, 1));
    apply(Op::Flush);
    let before = data.allocated_bytes().unwrap();
    apply(Op::Discard(4096..19 * 4096));
    apply(Op::Write(5 * 4096 + 7..5 * 4096 + 9, 2));
    assert_eq!(data.allocated_bytes().unwrap(), before);
    apply(Op::Flush);
    let given_back = before - data.allocated_bytes().unwrap();
    assert_eq!(given_back, 17 * 4096);
    writer.close().unwrap();
    model.assert_is(&rig, "discarded");
}
