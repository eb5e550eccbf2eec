//! Images with the dirty bit, opened for writing: repaired, or refused as they are.

use std::sync::Mutex;

use super::*;
use crate::{
    check::{CheckOptions, check},
    io::LockMode,
};

/// Where the last bytes of the incompatible features are, and the bits there.
const FEATURES: u64 = 79;
const DIRTY: u8 = 1;
const CORRUPT: u8 = 2;
const UNKNOWN: u8 = 0x40;

/// An image as a program with lazy refcounts leaves it: the references of its data
/// clusters were never counted. Also where its L2 table is.
fn left_dirty() -> (MemoryStorage, u64) {
    let (storage, l2, data) = patterned(&preallocated(4));
    let image = open(&storage);
    let table = image.header().refcount_table_offset.get();
    let mut block = [0; 8];
    storage.read_padded(table, &mut block).unwrap();
    let first = u64::from_be_bytes(block) + data / CLUSTER * 2;
    storage.write_all_at(first, &[0; 8]).unwrap();
    storage.write_all_at(FEATURES, &[DIRTY]).unwrap();
    (storage, l2)
}

fn bytes(storage: &MemoryStorage) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(storage.size().unwrap()).unwrap()];
    storage.read_padded(0, &mut bytes).unwrap();
    bytes
}

fn try_open(options: &OpenOptions, storage: &MemoryStorage) -> Result<Image> {
    options.open_storage("image", Arc::new(storage.clone()))
}

/// The image is refused with `words`, and no byte of it changes.
fn refused(options: &OpenOptions, storage: &MemoryStorage, words: &str) {
    let before = bytes(storage);
    let text = try_open(options, storage).unwrap_err().to_string();
    assert!(text.contains(words), "{text}");
    assert!(bytes(storage) == before, "{words}");
}

#[test]
fn it_is_repaired_before_anything_is_written() {
    let (storage, _) = left_dirty();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&lines);
    let options = OpenOptions::new()
        .writable(true)
        .on_repair(move |event| told.lock().unwrap().push(event.to_string()));
    let image = try_open(&options, &storage).unwrap();
    let fixed = image.repaired().unwrap();
    assert_eq!((fixed.leaks, fixed.corruptions), (0, 4));
    let lines = lines.lock().unwrap();
    let repaired = lines.iter().filter(|line| line.starts_with("Repairing"));
    assert_eq!(repaired.count(), 4, "{lines:?}");

    let features = image.header().incompatible_features;
    assert_eq!(features, crate::format::Incompatible::default());
    let report = check(&image.metadata(), CheckOptions::default(), &mut |finding| {
        panic!("{finding}")
    });
    assert_eq!(report.unwrap().corruptions, 0);
    let mut data = vec![0; 4];
    image.read(3 * CLUSTER, &mut data).unwrap();
    assert_eq!(data, [4; 4]);
    // The next time there is nothing to do.
    let again = try_open(&OpenOptions::new().writable(true), &storage).unwrap();
    assert_eq!(again.repaired(), None);
}

#[test]
fn who_only_reads_leaves_it() {
    let (storage, _) = left_dirty();
    let before = bytes(&storage);
    for options in [OpenOptions::new(), OpenOptions::new().metadata_only(true)] {
        assert_eq!(try_open(&options, &storage).unwrap().repaired(), None);
    }
    assert!(bytes(&storage) == before);
}

#[test]
fn without_the_right_to_write_nothing_is_repaired() {
    let writable = OpenOptions::new().writable(true);
    let (storage, _) = left_dirty();
    for mode in [LockMode::None, LockMode::Info, LockMode::Read] {
        let options = writable.clone().lock(mode);
        refused(&options, &storage, "without a writer's locks");
    }
    // What an unknown feature means for the refcounts nobody can tell.
    storage.write_all_at(FEATURES, &[DIRTY | UNKNOWN]).unwrap();
    for options in [&writable, &writable.clone().metadata_only(true)] {
        refused(options, &storage, "feature");
    }
    storage.write_all_at(FEATURES, &[DIRTY | CORRUPT]).unwrap();
    refused(&writable, &storage, "Image is corrupt");
}

/// Broken references keep nothing from being counted, and are left; where refcounts
/// can't be put right nothing is written.
#[test]
fn what_can_not_be_repaired_stays_dirty() {
    let writable = OpenOptions::new().writable(true);
    let (storage, l2) = left_dirty();
    let mut entry = [0; 8];
    storage.read_padded(l2, &mut entry).unwrap();
    put(&storage, l2, u64::from_be_bytes(entry) | 1 << 58);
    let image = try_open(&writable, &storage).unwrap();
    assert_eq!(image.repaired().unwrap().corruptions, 4);

    // More references to a cluster than its refcount can hold.
    let options = CreateOptions {
        refcount_bits: 1,
        ..preallocated(4)
    };
    let (storage, l2, _) = patterned(&options);
    storage.read_padded(l2, &mut entry).unwrap();
    put(&storage, l2 + 8, u64::from_be_bytes(entry));
    storage.write_all_at(FEATURES, &[DIRTY]).unwrap();
    let text = try_open(&writable, &storage).unwrap_err().to_string();
    assert!(text.starts_with("Could not repair dirty image"), "{text}");
    let mut features = [0];
    storage.read_padded(FEATURES, &mut features).unwrap();
    assert_eq!(features, [DIRTY]);
}
