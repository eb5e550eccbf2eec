//! Interruptions at every place: killed before the n-th operation, losing power with
//! any of the writes since the last sync missing or torn, and each operation failing.

use super::*;
use crate::image::SnapshotDisk;
use crate::io::memory::{CrashState, Damage, Fault, Operation, PowerLoss};

/// The image kinds that are interrupted, over a base or not.
fn kinds() -> Vec<(&'static str, CreateOptions, bool)> {
    let plain = CreateOptions {
        size: Some(40 * 4096),
        cluster_size: 4096,
        ..CreateOptions::default()
    };
    let tiny = CreateOptions {
        size: Some(300 * 512),
        cluster_size: 512,
        refcount_bits: 64,
        ..plain.clone()
    };
    let extended = CreateOptions {
        size: Some(20 * 16384),
        cluster_size: 16384,
        extended_l2: true,
        ..plain.clone()
    };
    let v2 = CreateOptions {
        version: Version::V2,
        ..plain.clone()
    };
    let lazy = CreateOptions {
        lazy_refcounts: true,
        refcount_bits: 8,
        ..plain.clone()
    };
    vec![
        ("lazy refcounts", lazy, true),
        ("plain", plain.clone(), false),
        ("over a base", plain, true),
        ("tiny clusters", tiny, false),
        ("subclusters over a base", extended, true),
        ("version 2", v2, false),
    ]
}

/// What a guest did to a new image, with the journal of it.
struct Story {
    rig: Rig,
    /// The disk as it is after each flush: how many operations of the journal were done
    /// when the flush returned, the bytes, and the ops since the flush before.
    flushed: Vec<(usize, Model)>,
    ops: Vec<Op>,
    /// The disk when it was closed.
    last: Model,
}

fn tell(options: &CreateOptions, base: bool, seed: u64, steps: u64) -> Story {
    tell_of(
        model::rig_of(options, base),
        options.cluster_size,
        seed,
        steps,
    )
}

fn tell_of(rig: Rig, cluster: u64, seed: u64, steps: u64) -> Story {
    let mut random = Random::of(seed);
    // Something is there already.
    let mut model = Model::of(&rig);
    let writer = rig.writer();
    for _ in 0..6 {
        let op = Op::random(&mut random, model.size(), cluster);
        op.apply(&writer).unwrap();
        model.apply(&op);
    }
    writer.close().unwrap();
    model.assert_is(&rig, "before");
    rig.image.start_journal();
    let mut flushed = vec![(0, model.clone())];
    let mut ops = Vec::new();
    let writer = rig.writer();
    let done = || rig.image.journal().operations().len();
    for step in 1..=steps {
        let op = match step % 5 {
            0 => Op::Flush,
            _ => Op::random(&mut random, model.size(), cluster),
        };
        op.apply(&writer).unwrap();
        model.apply(&op);
        if matches!(op, Op::Flush) {
            flushed.push((done(), model.clone()));
        }
        ops.push(op);
    }
    writer.close().unwrap();
    model.assert_is(&rig, "after");
    Story {
        rig,
        flushed,
        ops,
        last: model,
    }
}

impl Story {
    /// An interruption left `state`: what must be true of it.
    fn assert_safe(&self, what: &str, state: &CrashState) {
        let left = Rig {
            image: state.storage.clone(),
            ..self.rig.clone()
        };
        let what = format!("{what} {state}");
        let image = left.try_open();
        drop(image.unwrap_or_else(|e| panic!("{what}: {e}")));
        let (_, worse) = left.check();
        assert!(worse.is_empty(), "{what}: {worse:#?}");
        self.assert_data(&what, &left, state.issued);
        self.assert_bitmaps(&what, &left);
        // It can be written again, and then everything is right.
        let writer = left.writer();
        writer.write(700, &[0xaa; 9000]).unwrap();
        writer.close().unwrap();
        let (_, worse) = left.check();
        assert!(worse.is_empty(), "{what}, written: {worse:#?}");
    }

    /// What was flushed is there; what was written since is there or not, byte by byte.
    fn assert_data(&self, what: &str, left: &Rig, issued: usize) {
        let bytes = left.bytes();
        let mut flushes = self.flushed.iter().filter(|(done, _)| *done <= issued);
        let before = flushes.clone().count();
        let (_, model) = flushes.next_back().unwrap();
        // Ops since that flush; those after the next one had not begun.
        let mut since = self.ops.split(|op| matches!(op, Op::Flush));
        let since = since.nth(before - 1).unwrap_or_default();
        let mut possible = vec![model.clone()];
        for op in since {
            let mut next = possible.last().unwrap().clone();
            next.apply(op);
            possible.push(next);
        }
        for (at, byte) in bytes.iter().enumerate() {
            assert!(
                possible.iter().any(|model| model.bytes[at] == *byte),
                "{what}: byte {at:#x} is {byte}"
            );
        }
    }

    /// The bitmaps are in use, or as they were before anything was changed, or as they are
    /// to be when it is all there.
    fn assert_bitmaps(&self, what: &str, left: &Rig) {
        let bitmaps = left.bitmaps();
        let (_, first) = self.flushed.first().unwrap();
        let pairs = first.written.iter().zip(&self.last.written);
        for ((before, after), (name, state, bits)) in pairs.zip(&bitmaps) {
            match bits {
                None => assert_eq!(*state, BitmapState::Inconsistent, "{what}: {name}"),
                Some(bits) if left.bytes() == first.bytes && bits == before => {}
                Some(bits) => {
                    assert!(bits == after, "{what}: {name} misses something");
                    assert!(left.bytes() == self.last.bytes, "{what}: {name}");
                }
            }
        }
    }
}

#[test]
fn interrupted_anywhere_what_was_flushed_is_there() {
    let mut states = 0;
    for (seed, (name, options, base)) in (3..).zip(kinds()) {
        let story = tell(&options, base, seed * 12345, 20);
        let journal = story.rig.image.journal();
        let how = PowerLoss {
            exhaustive: 5,
            random: 12,
            tears: 2,
            seed,
        };
        for state in journal.kills().chain(journal.power_losses(&how)) {
            states += 1;
            story.assert_safe(name, &state);
        }
    }
    assert!(states > 1000, "only {states} states");
}

/// A larger refcount table, under the same conditions.
#[test]
fn interrupted_while_the_refcount_table_grows() {
    let options = CreateOptions {
        size: Some(4 << 20),
        cluster_size: 512,
        refcount_bits: 64,
        ..CreateOptions::default()
    };
    let rig = Rig::new(&options, None);
    let writer = rig.writer();
    writer.write(0, &vec![1; 1_600_000]).unwrap();
    writer.close().unwrap();
    let before = rig.open().header().refcount_table_clusters;
    rig.image.start_journal();
    let writer = rig.writer();
    writer.write(1_600_000, &vec![2; 600_000]).unwrap();
    writer.close().unwrap();
    assert!(rig.open().header().refcount_table_clusters > before);
    let how = PowerLoss {
        exhaustive: 2,
        random: 2,
        tears: 0,
        seed: 1,
    };
    let journal = rig.image.journal();
    let all: Vec<CrashState> = journal.kills().chain(journal.power_losses(&how)).collect();
    let stride = all.len().div_ceil(400);
    for state in all.iter().step_by(stride) {
        let left = Rig {
            image: state.storage.clone(),
            ..rig.clone()
        };
        let (_, worse) = left.check();
        assert!(worse.is_empty(), "{state}: {worse:#?}");
        assert!(left.bytes()[..1_600_000] == vec![1; 1_600_000], "{state}");
    }
}

/// Image and external data file lose power together, each with all or nothing of what was
/// written to it since its last sync.
#[test]
fn a_data_file_is_never_behind_its_image() {
    let plain = CreateOptions {
        size: Some(60 * 1024),
        cluster_size: 1024,
        data_file: Some(b"data".to_vec()),
        ..CreateOptions::default()
    };
    let extended = CreateOptions {
        size: Some(20 * 16384),
        cluster_size: 16384,
        extended_l2: true,
        ..plain.clone()
    };
    let raw = CreateOptions {
        data_file_raw: true,
        ..plain.clone()
    };
    for (seed, options) in (1..).zip([plain, extended, raw]) {
        let rig = Rig::new(&options, None);
        let mut random = Random::of(seed * 777);
        let mut model = Model::of(&rig);
        let data = rig.data.clone().unwrap();
        rig.image.start_journal();
        data.start_journal();
        let done = || [&rig.image, &data].map(|storage| storage.journal().operations().len());
        let (mut flushed, mut ops, mut moments) = (vec![(0, model.clone())], Vec::new(), vec![]);
        let writer = rig.writer();
        for step in 1..=60 {
            let op = match step % 6 {
                0 => Op::Flush,
                _ => Op::random(&mut random, model.size(), options.cluster_size),
            };
            op.apply(&writer).unwrap();
            model.apply(&op);
            if matches!(op, Op::Flush) {
                flushed.push((done()[0], model.clone()));
            }
            ops.push(op);
            moments.push(done());
        }
        writer.close().unwrap();
        let (journals, last) = ([rig.image.journal(), data.journal()], model);
        let story = Story {
            rig: rig.clone(),
            flushed,
            ops,
            last,
        };
        let at = |which: usize, count: usize| {
            let mut kills = journals[which].kills();
            let state = kills.find(|state| state.issued == count && state.torn.is_empty());
            state.unwrap().storage
        };
        let synced = |which: usize, count: usize| {
            let before = &journals[which].operations()[..count];
            let sync = before.iter().rposition(|op| *op == Operation::Sync);
            at(which, sync.map_or(0, |sync| sync + 1))
        };
        for (number, [image, data]) in moments.into_iter().enumerate() {
            for (name, image_left, data_left) in [
                ("the data", at(0, image), synced(1, data)),
                ("the image", synced(0, image), at(1, data)),
                ("both", synced(0, image), synced(1, data)),
            ] {
                let what = format!("{seed}, after op {number} {name} lost what wasn't synced");
                let left = Rig {
                    image: image_left,
                    data: Some(data_left),
                    base: None,
                };
                let (_, worse) = left.check();
                assert!(worse.is_empty(), "{what}: {worse:#?}");
                story.assert_data(&what, &left, image);
                story.assert_bitmaps(&what, &left);
            }
        }
    }
}

/// What the snapshots hold.
fn snapshots(rig: &Rig) -> Vec<Vec<u8>> {
    let image = Arc::new(rig.open());
    let disk = |snapshot| SnapshotDisk::new(&image, snapshot).unwrap();
    let snapshots = image.snapshots().unwrap().into_iter();
    snapshots
        .map(|snapshot| read_all(&disk(snapshot)))
        .collect()
}

#[test]
fn what_snapshots_share_stays_theirs() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../testdata/qcow2/snapshots.qcow2"
    );
    let bytes = std::fs::read(path).unwrap();
    for seed in [5, 77] {
        let rig = Rig {
            image: MemoryStorage::from_bytes(&bytes),
            data: None,
            base: None,
        };
        let kept = snapshots(&rig);
        assert_eq!(kept.len(), 2);
        // Most of the image is shared when the story begins.
        let story = tell_of(rig, 4096, seed, 10);
        assert!(snapshots(&story.rig) == kept);
        let how = PowerLoss {
            exhaustive: 3,
            random: 4,
            tears: 1,
            seed,
        };
        let journal = story.rig.image.journal();
        let all: Vec<CrashState> = journal.kills().chain(journal.power_losses(&how)).collect();
        let stride = all.len().div_ceil(150);
        for state in all.iter().step_by(stride) {
            story.assert_safe("snapshots", state);
            let left = Rig {
                image: state.storage.clone(),
                ..story.rig.clone()
            };
            assert!(snapshots(&left) == kept, "{state}");
        }
    }
}

/// Whether a fault at this operation may go unnoticed: space that isn't given back to
/// the system is no failure.
fn is_optional(operation: &Operation) -> bool {
    matches!(operation, Operation::Punch(_))
}

#[test]
fn whatever_fails_what_was_flushed_is_there_and_nothing_more_is_written() {
    for (seed, (name, options, base)) in (3..).zip(kinds()) {
        let story = tell(&options, base, seed * 12345, 15);
        let journal = story.rig.image.journal();
        for at in 0..journal.operations().len() {
            let faults = [
                Fault::once(at as u64),
                Fault::for_good(at as u64),
                Fault {
                    damage: Damage::After(512),
                    ..Fault::once(at as u64)
                },
            ];
            for fault in faults {
                let rig = Rig {
                    image: journal.start(),
                    ..story.rig.clone()
                };
                let what = format!("{name}, operation {at} fails, {fault:?}");
                rig.image.set_fault(Some(fault));
                rig.image.start_journal();
                let writer = rig.writer();
                let mut failed = None;
                for op in &story.ops {
                    match op.apply(&writer) {
                        Err(_) if failed.is_none() => {
                            failed = Some(rig.image.journal().operations().len());
                        }
                        Ok(()) if failed.is_some() => panic!("{what}: {op:?} works again"),
                        _ => {}
                    }
                }
                let closed = writer.close();
                if is_optional(&journal.operations()[at]) && !fault.for_good {
                    closed.unwrap_or_else(|e| panic!("{what}: {e}"));
                    rig.image.set_fault(None);
                    story.last.assert_is(&rig, &what);
                    continue;
                }
                assert!(closed.is_err(), "{what}: the failure went unnoticed");
                let operations = rig.image.journal().operations().len();
                if let Some(failed) = failed {
                    assert_eq!(operations, failed, "{what}: written after the failure");
                }
                rig.image.set_fault(None);
                let (_, worse) = rig.check();
                assert!(worse.is_empty(), "{what}: {worse:#?}");
                story.assert_data(&what, &rig, at);
                story.assert_bitmaps(&what, &rig);
            }
        }
    }
}
