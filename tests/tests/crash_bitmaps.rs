//! Every bitmap action, interrupted everywhere: killed before its n-th operation for
//! every n, and losing power with any of the writes since the last sync missing or
//! torn. The image opens, has leaked clusters at most, and its bitmaps are all as they
//! were or all as they are to be.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use qcow2::{
    Image, OpenOptions, Result,
    bitmap::{BitmapEdit, BitmapState},
    io::memory::{CrashState, Fault, MemoryStorage, PowerLoss},
};
use qimg_tests::testdata;

/// Name → state, granularity and dirty ranges.
type Bitmaps = BTreeMap<String, (BitmapState, u64, Vec<Range<u64>>)>;

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

/// Findings of a check that are worse than a leak.
fn corruptions(storage: &MemoryStorage) -> Vec<String> {
    qimg_tests::sound::corruptions(storage)
}

/// An action that is to be interrupted.
struct Action {
    name: &'static str,
    image: &'static str,
    act: fn(&mut BitmapEdit<'_>) -> Result<()>,
}

/// A name of the image's first bitmap, and one of its second.
const ACTIONS: [Action; 12] = [
    Action {
        name: "the first bitmap ever",
        image: "empty.qcow2",
        act: |e| e.add(b"a", 512, true),
    },
    Action {
        name: "the first bitmap beside a backing file's name",
        image: "chain-top.qcow2",
        act: |e| e.add(b"a", 65536, true),
    },
    Action {
        name: "add",
        image: "three-bitmaps.qcow2",
        act: |e| e.add(b"a", 4096, false),
    },
    Action {
        name: "remove",
        image: "three-bitmaps.qcow2",
        act: |e| e.remove(b"daily"),
    },
    Action {
        name: "remove all",
        image: "three-bitmaps.qcow2",
        act: |e| {
            e.remove(b"daily")?;
            e.remove(b"weekly")?;
            e.remove(b"frozen")
        },
    },
    Action {
        name: "clear",
        image: "three-bitmaps.qcow2",
        act: |e| e.clear(b"daily"),
    },
    Action {
        name: "disable",
        image: "three-bitmaps.qcow2",
        act: |e| e.set_enabled(b"weekly", false),
    },
    Action {
        name: "enable",
        image: "three-bitmaps.qcow2",
        act: |e| e.set_enabled(b"frozen", true),
    },
    Action {
        name: "merge",
        image: "three-bitmaps.qcow2",
        act: |e| e.merge(b"weekly", b"daily"),
    },
    Action {
        name: "rename and merge across granularities",
        image: "three-bitmaps.qcow2",
        act: |e| {
            e.rename(b"weekly", b"yearly")?;
            e.merge(b"yearly", b"daily")?;
            e.merge(b"frozen", b"yearly")
        },
    },
    Action {
        name: "many clusters of 512 bytes",
        image: "cluster-512.qcow2",
        act: |e| {
            for name in [&b"n1"[..], b"n2", b"n3", b"n4"] {
                e.add(name, 512, true)?;
            }
            e.set_enabled(b"n3", false)
        },
    },
    Action {
        name: "refcounts of one bit",
        image: "refcount-1.qcow2",
        act: |e| e.add(b"n", 512, true),
    },
];

/// Does the action and returns the storage with its journal.
fn journalled(action: &Action) -> MemoryStorage {
    let storage = MemoryStorage::load(testdata::qcow2(action.image)).unwrap();
    storage.start_journal();
    let mut image = open(&storage, true).unwrap();
    let mut edit = image.edit_bitmaps().unwrap();
    (action.act)(&mut edit).unwrap();
    edit.commit().unwrap();
    storage
}

fn assert_before_or_after(what: &str, left: &MemoryStorage, before: &Bitmaps, after: &Bitmaps) {
    let found = bitmaps(left).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(found == *before || found == *after, "{what}: {found:#?}");
    let worse = corruptions(left);
    assert!(worse.is_empty(), "{what}: {worse:#?}");
}

#[test]
fn interrupted_anywhere_the_bitmaps_are_as_before_or_as_after() {
    let mut states = 0;
    for action in &ACTIONS {
        let storage = journalled(action);
        let journal = storage.journal();
        let before = bitmaps(&journal.start()).unwrap();
        let after = bitmaps(&storage).unwrap();
        assert_ne!(before, after, "{} does nothing", action.name);
        let mut check = |state: CrashState| {
            states += 1;
            let what = format!("{} {state}", action.name);
            assert_before_or_after(&what, &state.storage, &before, &after);
        };
        journal.kills().for_each(&mut check);
        journal
            .power_losses(&PowerLoss::default())
            .for_each(&mut check);
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

#[test]
fn whatever_fails_the_bitmaps_are_as_before_or_as_after() {
    for action in &ACTIONS {
        let journal = journalled(action).journal();
        let before = bitmaps(&journal.start()).unwrap();
        let after = bitmaps(&journalled(action)).unwrap();
        let operations = journal.operations().len() as u64;
        for at in 0..operations {
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
                assert_before_or_after(&what, &storage, &before, &after);
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
