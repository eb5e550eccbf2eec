use super::*;

fn scratch() -> (tempfile::TempDir, FileStorage) {
    let dir = tempfile::tempdir().unwrap();
    let (storage, is_new) = FileStorage::create(dir.path().join("image"), false).unwrap();
    assert!(is_new);
    (dir, storage)
}

fn content(storage: &FileStorage) -> Vec<u8> {
    let mut bytes = vec![0xEE; usize::try_from(storage.size().unwrap()).unwrap()];
    assert_eq!(storage.read_at(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

#[test]
fn writes_are_read_back_and_grow_the_file() {
    let (_dir, storage) = scratch();
    assert!(storage.can_grow() && !storage.is_block_device());
    storage.write_all_at(5, b"abc").unwrap();
    storage.sync().unwrap();
    assert_eq!(content(&storage), b"\0\0\0\0\0abc");
    let mut padded = [0xEE; 6];
    storage.read_padded(6, &mut padded).unwrap();
    assert_eq!(&padded, b"bc\0\0\0\0");
    storage.set_len(2).unwrap();
    storage.set_len(7).unwrap();
    assert_eq!(content(&storage), [0; 7]);
}

#[test]
fn zeroed_ranges_read_as_zeros_and_grow_the_file() {
    let (_dir, storage) = scratch();
    storage.write_all_at(0, &[7; 20_000]).unwrap();
    storage.zero(100..10_000).unwrap();
    storage.zero(19_000..30_001).unwrap();
    let bytes = content(&storage);
    assert_eq!(bytes.len(), 30_001);
    let expected = |i: usize| {
        if (100..10_000).contains(&i) || i >= 19_000 {
            0
        } else {
            7
        }
    };
    assert!(bytes.iter().enumerate().all(|(i, b)| *b == expected(i)));
    storage.zero(5..5).unwrap();
    assert!(storage.zero(0..u64::MAX).is_err());
    assert_eq!(storage.size().unwrap(), 30_001);
}

#[test]
fn written_zeros_do_what_the_system_s_call_does() {
    let (_dir, storage) = scratch();
    storage.write_all_at(0, &[7; 3 << 20]).unwrap();
    storage.write_zeros(1..(5 << 19) + 3).unwrap();
    let bytes = content(&storage);
    assert_eq!(bytes[0], 7);
    assert!(bytes[1..(5 << 19) + 3].iter().all(|b| *b == 0));
    assert!(bytes[(5 << 19) + 3..].iter().all(|b| *b == 7));
    storage.grow_to(10).unwrap();
    assert_eq!(storage.size().unwrap(), 3 << 20);
    storage.grow_to(4 << 20).unwrap();
    assert_eq!(storage.size().unwrap(), 4 << 20);
}

#[test]
fn holes_read_as_zeros_and_never_grow_the_file() {
    let (_dir, storage) = scratch();
    storage.write_all_at(0, &[7; 1 << 20]).unwrap();
    let before = storage.allocated_bytes().unwrap();
    storage.punch_hole(0..1 << 30).unwrap();
    assert_eq!(content(&storage), vec![0; 1 << 20]);
    assert!(storage.allocated_bytes().unwrap() < before);
    storage.punch_hole((1 << 30)..(1 << 31)).unwrap();
    assert_eq!(storage.size().unwrap(), 1 << 20);
}

#[test]
fn a_read_only_storage_refuses_writes() {
    let (dir, storage) = scratch();
    storage.write_all_at(0, b"abc").unwrap();
    drop(storage);
    let path = dir.path().join("image");
    let storage = FileStorage::open(&path, Access::ReadOnly, LockMode::Read).unwrap();
    assert!(storage.write_all_at(0, b"x").is_err());
    assert!(storage.set_len(0).is_err());
    assert!(storage.zero(0..1).is_err());
    assert_eq!(content(&storage), b"abc");
    assert_eq!(storage.path(), path);
}

#[test]
fn two_names_of_a_file_have_one_identity() {
    let (dir, storage) = scratch();
    std::fs::hard_link(dir.path().join("image"), dir.path().join("other")).unwrap();
    let other = dir.path().join("other");
    let other = FileStorage::open(other, Access::ReadOnly, LockMode::None).unwrap();
    assert_eq!(storage.identity().unwrap(), other.identity().unwrap());
}

#[test]
fn a_failed_sync_is_not_forgotten() {
    let (_dir, storage) = scratch();
    storage.lost_writes.store(true, Ordering::Release);
    assert!(storage.sync().is_err());
    assert!(storage.sync().is_err());
}

#[test]
fn holes_are_no_data() {
    let (_dir, storage) = scratch();
    assert!(!storage.holds_data().unwrap());
    storage.set_len(1 << 20).unwrap();
    assert!(!storage.holds_data().unwrap());
    storage.write_all_at(1 << 19, b"x").unwrap();
    assert!(storage.holds_data().unwrap());
}

#[test]
fn only_the_file_itself_is_removed() {
    let (dir, storage) = scratch();
    let path = dir.path().join("image");
    storage.sync_directory().unwrap();
    std::fs::rename(&path, dir.path().join("moved")).unwrap();
    std::fs::write(&path, b"another").unwrap();
    storage.remove().unwrap();
    assert!(path.exists());
    std::fs::rename(dir.path().join("moved"), &path).unwrap();
    storage.remove().unwrap();
    assert!(!path.exists());
}
