//! Every bitmap action, interrupted everywhere: killed before its n-th operation for
//! every n, and losing power with any of the writes since the last sync missing or
//! torn. The image opens, has leaked clusters at most, and its bitmaps are all as they
//! were or all as they are to be.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic in a test is its message"
)]

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, mpsc},
    thread,
};

use hbitmap::{Granularity, HBitmap};
use qcow2::{
    Image, OpenOptions, Result,
    bitmap::{BitmapEdit, BitmapState},
    image::create::{CreateOptions, create_in},
    io::{
        Storage,
        memory::{CrashState, Fault, MemoryStorage, PowerLoss},
    },
};
use qimg_tests::{
    sound::{corruptions, corruptions_by_qemu},
    testdata,
};

/// Name → state, granularity and dirty ranges.
type Bitmaps = BTreeMap<String, (BitmapState, u64, Vec<Range<u64>>)>;

/// The name of the backing file, which shares the header cluster with what changes.
fn backing(storage: &MemoryStorage) -> Option<Vec<u8>> {
    open(storage, false).unwrap().header().backing_file.clone()
}

fn open(storage: &MemoryStorage, writable: bool) -> Result<Image> {
    let options = OpenOptions::new().writable(writable);
    options.open_storage("image", Arc::new(storage.clone()))
}

fn bitmaps(storage: &MemoryStorage) -> Result<Bitmaps> {
    let image = open(storage, false)?;
    let stored = image.bitmaps()?;
    if stored.is_voided() {
        // A directory that nobody looks at: the first bitmap is not there yet, or the
        // last one is gone already.
        return Ok(Bitmaps::new());
    }
    assert!(stored.fault().is_none(), "{stored:?}");
    let mut all = Bitmaps::new();
    for bitmap in stored.iter(&image) {
        let ranges = bitmap.load()?.ranges().collect();
        let granularity = bitmap.granularity().unwrap_or(0);
        all.insert(bitmap.name_lossy(), (bitmap.state(), granularity, ranges));
    }
    Ok(all)
}

/// An action that is to be interrupted.
struct Action {
    name: &'static str,
    image: Source,
    act: fn(&mut BitmapEdit<'_>) -> Result<()>,
}

/// Where the image comes from.
#[derive(Clone, Copy)]
enum Source {
    /// One that QEMU made, in `testdata/`.
    Recorded(&'static str),
    /// [`nearly_full`].
    NearlyFull,
}

/// An image whose refcount table has room for 2 MiB, nearly used up by bitmaps.
fn nearly_full() -> MemoryStorage {
    let storage = MemoryStorage::default();
    let options = CreateOptions {
        size: Some(1 << 30),
        cluster_size: 512,
        refcount_bits: 64,
        ..CreateOptions::default()
    };
    create_in(&storage, None, &options).unwrap();
    let mut image = open(&storage, true).unwrap();
    let mut edit = image.edit_bitmaps().unwrap();
    for name in [&b"one"[..], b"two", b"three", b"four", b"five", b"six"] {
        edit.add_with_bits(name, every_other_granule(), true)
            .unwrap();
    }
    edit.commit().unwrap();
    assert!(storage.size().unwrap() < 2 << 20);
    storage
}

/// A bitmap over 1 GiB whose bits need every cluster.
fn every_other_granule() -> Arc<HBitmap> {
    let mut bits = HBitmap::new(1 << 30, Granularity::from_bytes(512).unwrap()).unwrap();
    let range = 0..1 << 30;
    let words = vec![0x55; bits.linear_size(range.clone()).unwrap()];
    bits.load_linear(range, &words).unwrap();
    Arc::new(bits)
}

impl Source {
    /// Every so many operations one is made to fail.
    fn stride(self) -> usize {
        match self {
            Self::Recorded(_) => 1,
            Self::NearlyFull => 7,
        }
    }

    /// Megabytes of bits are looked at for fewer states.
    fn thoroughness(self) -> PowerLoss {
        match self {
            Self::Recorded(_) => PowerLoss::default(),
            Self::NearlyFull => PowerLoss {
                exhaustive: 2,
                random: 8,
                tears: 0,
                seed: 1,
            },
        }
    }

    fn storage(self) -> MemoryStorage {
        match self {
            Self::Recorded(name) => MemoryStorage::load(testdata::qcow2(name)).unwrap(),
            Self::NearlyFull => nearly_full(),
        }
    }
}

const ACTIONS: [Action; 13] = [
    Action {
        name: "the refcount table grows",
        image: Source::NearlyFull,
        act: |e| {
            e.add_with_bits(b"seven", every_other_granule(), false)?;
            e.add_with_bits(b"eight", every_other_granule(), true)
        },
    },
    Action {
        name: "the first bitmap ever",
        image: Source::Recorded("empty.qcow2"),
        act: |e| e.add(b"a", 512, true),
    },
    Action {
        name: "the first bitmap beside a backing file's name",
        image: Source::Recorded("chain-top.qcow2"),
        act: |e| e.add(b"a", 65536, true),
    },
    Action {
        name: "add",
        image: Source::Recorded("three-bitmaps.qcow2"),
        act: |e| e.add(b"a", 4096, false),
    },
    Action {
        name: "remove",
        image: Source::Recorded("three-bitmaps.qcow2"),
        act: |e| e.remove(b"daily"),
    },
    Action {
        name: "remove all",
        image: Source::Recorded("three-bitmaps.qcow2"),
        act: |e| {
            e.remove(b"daily")?;
            e.remove(b"weekly")?;
            e.remove(b"frozen")
        },
    },
    Action {
        name: "clear",
        image: Source::Recorded("three-bitmaps.qcow2"),
        act: |e| e.clear(b"daily"),
    },
    Action {
        name: "disable",
        image: Source::Recorded("three-bitmaps.qcow2"),
        act: |e| e.set_enabled(b"weekly", false),
    },
    Action {
        name: "enable",
        image: Source::Recorded("three-bitmaps.qcow2"),
        act: |e| e.set_enabled(b"frozen", true),
    },
    Action {
        name: "merge",
        image: Source::Recorded("three-bitmaps.qcow2"),
        act: |e| e.merge(b"weekly", b"daily"),
    },
    Action {
        name: "rename and merge across granularities",
        image: Source::Recorded("three-bitmaps.qcow2"),
        act: |e| {
            e.rename(b"weekly", b"yearly")?;
            e.merge(b"yearly", b"daily")?;
            e.merge(b"frozen", b"yearly")
        },
    },
    Action {
        name: "many clusters of 512 bytes",
        image: Source::Recorded("cluster-512.qcow2"),
        act: |e| {
            for name in [&b"n1"[..], b"n2", b"n3", b"n4"] {
                e.add(name, 512, true)?;
            }
            e.set_enabled(b"n3", false)
        },
    },
    Action {
        name: "refcounts of one bit",
        image: Source::Recorded("refcount-1.qcow2"),
        act: |e| e.add(b"n", 512, true),
    },
];

/// Does the action and returns the storage with its journal.
fn journalled(action: &Action) -> MemoryStorage {
    let storage = action.image.storage();
    storage.start_journal();
    let mut image = open(&storage, true).unwrap();
    let mut edit = image.edit_bitmaps().unwrap();
    (action.act)(&mut edit).unwrap();
    edit.commit().unwrap();
    storage
}

/// How many states of each action are shown to qemu-img as well.
const SHOWN_TO_QEMU: usize = 25;

fn assert_before_or_after(
    what: &str,
    left: &MemoryStorage,
    start: &MemoryStorage,
    before: &Bitmaps,
    after: &Bitmaps,
) {
    let found = bitmaps(left).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(found == *before || found == *after, "{what}: {found:#?}");
    assert_eq!(backing(left), backing(start), "{what}");
    let worse = corruptions(left);
    assert!(worse.is_empty(), "{what}: {worse:#?}");
}

#[test]
fn interrupted_anywhere_the_bitmaps_are_as_before_or_as_after() {
    let mut states = 0;
    for action in &ACTIONS {
        let storage = journalled(action);
        let journal = storage.journal();
        let start = journal.start();
        let before = bitmaps(&start).unwrap();
        let after = bitmaps(&storage).unwrap();
        assert_ne!(before, after, "{} does nothing", action.name);
        let check = |number: usize, state: &CrashState| {
            let what = format!("{} {state}", action.name);
            assert_before_or_after(&what, &state.storage, &start, &before, &after);
            if number < SHOWN_TO_QEMU {
                let worse = corruptions_by_qemu(&state.storage);
                assert!(worse.is_empty(), "{what}: {worse:#?}");
            }
        };
        let thoroughness = action.image.thoroughness();
        let interrupted = journal.kills().chain(journal.power_losses(&thoroughness));
        states += on_two_cores(interrupted, check);
        // Done is done: nothing may be lost once the command has said so.
        let last = journal.operations().len();
        let end = journal.power_losses(&PowerLoss {
            tears: 0,
            ..PowerLoss::default()
        });
        for state in end.filter(|state| state.synced == last) {
            assert_eq!(bitmaps(&state.storage).unwrap(), after, "{}", action.name);
        }
    }
    assert!(states > 500, "only {states} states");
}

/// Calls `check` with each state and its number, by two threads; how many there were.
fn on_two_cores(
    states: impl Iterator<Item = CrashState>,
    check: impl Fn(usize, &CrashState) + Sync,
) -> usize {
    let mut count = 0;
    let (sender, receiver) = mpsc::sync_channel::<(usize, CrashState)>(1);
    // It goes with the threads, so that nothing is sent to nobody if both panic.
    let receiver = Arc::new(Mutex::new(receiver));
    thread::scope(|scope| {
        for receiver in [Arc::clone(&receiver), receiver] {
            let check = &check;
            scope.spawn(move || {
                loop {
                    let next = receiver.lock().unwrap().recv();
                    let Ok((number, state)) = next else { break };
                    check(number, &state);
                }
            });
        }
        for state in states {
            if sender.send((count, state)).is_err() {
                break;
            }
            count += 1;
        }
        drop(sender);
    });
    count
}

#[test]
fn whatever_fails_the_bitmaps_are_as_before_or_as_after() {
    for action in &ACTIONS {
        let journal = journalled(action).journal();
        let start = journal.start();
        let before = bitmaps(&start).unwrap();
        let after = bitmaps(&journalled(action)).unwrap();
        let operations = journal.operations().len() as u64;
        for at in (0..operations).step_by(action.image.stride()) {
            for fault in [Fault::once(at), Fault::for_good(at)] {
                let storage = journal.start();
                storage.set_fault(Some(fault));
                let mut image = open(&storage, true).unwrap();
                let mut edit = image.edit_bitmaps().unwrap();
                (action.act)(&mut edit).unwrap();
                let result = edit.commit();
                storage.set_fault(None);
                let what = format!("{} {fault:?}", action.name);
                assert!(result.is_err(), "{what}: the failure went unnoticed");
                assert_before_or_after(&what, &storage, &start, &before, &after);
            }
        }
    }
}

#[test]
fn an_action_that_fails_leaves_every_byte_as_it_was() {
    let storage = MemoryStorage::load(testdata::qcow2("three-bitmaps.qcow2")).unwrap();
    let before = storage.to_vec(1 << 30).unwrap();
    storage.start_journal();
    let mut image = open(&storage, true).unwrap();
    let mut edit = image.edit_bitmaps().unwrap();
    edit.add(b"x", 65536, true).unwrap();
    edit.clear(b"daily").unwrap();
    assert!(edit.merge(b"x", b"missing").is_err());
    drop(edit);
    assert!(storage.journal().operations().is_empty());
    assert!(storage.to_vec(1 << 30).unwrap() == before);
}
