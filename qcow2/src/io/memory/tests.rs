use std::collections::HashSet;

use super::*;

fn bytes(storage: &MemoryStorage) -> Vec<u8> {
    storage.to_vec(1 << 20).unwrap()
}

fn whole() -> PowerLoss {
    PowerLoss {
        tears: 0,
        ..PowerLoss::default()
    }
}

/// Every content that a power cut can leave behind.
fn contents(storage: &MemoryStorage, how: &PowerLoss) -> HashSet<Vec<u8>> {
    storage
        .journal()
        .power_losses(how)
        .map(|state| bytes(&state.storage))
        .collect()
}

fn set(contents: &[&[u8]]) -> HashSet<Vec<u8>> {
    contents.iter().map(|c| c.to_vec()).collect()
}

#[test]
fn it_is_a_storage() {
    let storage = MemoryStorage::from_bytes(b"0123456789");
    storage.zero(8..12).unwrap();
    storage.punch_hole(0..2).unwrap();
    storage.punch_hole(100..200).unwrap();
    storage.write_all_at(14, b"ab").unwrap();
    assert_eq!(bytes(&storage), b"\x00\x00234567\0\0\0\0\0\0ab");
    storage.set_len(3).unwrap();
    storage.set_len(5).unwrap();
    assert_eq!(bytes(&storage), b"\0\x002\0\0");
    let mut out = [1; 4];
    assert_eq!(storage.read_at(4, &mut out).unwrap(), 1);
    assert_eq!(storage.read_at(5, &mut out).unwrap(), 0);
    assert!(storage.write_all_at(u64::MAX, b"xy").is_err());
    assert!(storage.to_vec(4).is_err());
    let (handle, fork) = (storage.clone(), storage.fork());
    storage.write_all_at(0, b"!").unwrap();
    assert_eq!((bytes(&handle)[0], bytes(&fork)[0]), (b'!', 0));
}

#[test]
fn a_storage_of_fixed_size_is_like_a_device() {
    let storage = MemoryStorage::from_bytes(&[1; 10]);
    storage.fix_size();
    assert!(!storage.can_grow());
    assert!(storage.write_all_at(8, b"abc").is_err());
    assert!(storage.set_len(11).is_err());
    storage.set_len(3).unwrap();
    assert_eq!(bytes(&storage), [1; 10]);
    let device = MemoryStorage::device(300);
    assert!(bytes(&device).iter().all(|&byte| byte != 0));
    assert!(device.punch_hole(5..7).is_err());
    for storage in [&device, &device.fork()] {
        assert!(!storage.can_grow() && storage.zero(299..301).is_err());
        storage.zero(7..9).unwrap();
        assert_eq!(bytes(storage)[6..10], [7, 0, 0, 10]);
    }
}

#[test]
fn files_are_loaded_and_saved() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let file = std::fs::File::create(&a).unwrap();
    file.set_len((1 << 24) + 5).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"abc", (1 << 23) + 1).unwrap();
    let storage = MemoryStorage::load(&a).unwrap();
    assert_eq!(storage.allocated_bytes().unwrap(), 4096);
    storage.save(&b).unwrap();
    assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
}

#[test]
fn a_fault_hits_the_nth_operation_once_or_for_good() {
    let run = |fault: Fault| {
        let storage = MemoryStorage::default();
        storage.set_fault(Some(fault));
        let results: Vec<bool> = vec![
            storage.write_all_at(0, b"abcd").is_ok(),
            storage.sync().is_ok(),
            storage.set_len(6).is_ok(),
            storage.zero(0..1).is_ok(),
            storage.punch_hole(1..2).is_ok(),
        ];
        assert_eq!(storage.operations(), 5);
        (results, bytes(&storage))
    };
    assert_eq!(
        run(Fault::once(0)),
        (vec![false, true, true, true, true], vec![0; 6])
    );
    let (results, content) = run(Fault::once(2));
    assert_eq!(results, [true, true, false, true, true]);
    assert_eq!(content, b"\0\0cd");
    let (results, content) = run(Fault::for_good(1));
    assert_eq!(results, [true, false, false, false, false]);
    assert_eq!(content, b"abcd");
    let cut = Fault {
        damage: Damage::After(3),
        errno: 28,
        ..Fault::once(0)
    };
    let (results, content) = run(cut);
    assert_eq!(results, [false, true, true, true, true]);
    assert_eq!(content, b"\0\0c\0\0\0");
    let storage = MemoryStorage::default();
    storage.set_fault(Some(cut));
    let error = storage.write_all_at(0, b"abcd").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn kills_are_every_prefix_of_what_was_done() {
    let storage = MemoryStorage::from_bytes(b"....");
    storage.start_journal();
    storage.write_all_at(0, b"a").unwrap();
    storage.sync().unwrap();
    storage.write_all_at(1, b"b").unwrap();
    storage.set_len(2).unwrap();
    let states: Vec<_> = storage.journal().kills().collect();
    let left: Vec<_> = states.iter().map(|s| bytes(&s.storage)).collect();
    assert_eq!(left, [&b"...."[..], b"a...", b"a...", b"ab..", b"ab"]);
    assert_eq!(
        states.iter().map(|s| s.issued).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4]
    );
    assert_eq!(
        states.iter().map(|s| s.synced).collect::<Vec<_>>(),
        [0, 0, 2, 2, 2]
    );
}

#[test]
fn a_kill_can_cut_a_long_write_at_a_page() {
    let storage = MemoryStorage::default();
    storage.start_journal();
    storage.write_all_at(100, &[1; 9000]).unwrap();
    let lengths: Vec<_> = storage
        .journal()
        .kills()
        .map(|s| (s.storage.size().unwrap(), s.torn))
        .collect();
    assert_eq!(lengths, [(0, vec![]), (4096, vec![0]), (9100, vec![])]);
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_any_subset_of_the_rest() {
    let storage = MemoryStorage::from_bytes(b"....");
    storage.start_journal();
    storage.write_all_at(0, b"a").unwrap();
    storage.write_all_at(1, b"b").unwrap();
    storage.sync().unwrap();
    storage.write_all_at(2, b"c").unwrap();
    storage.write_all_at(3, b"d").unwrap();
    assert_eq!(
        contents(&storage, &whole()),
        set(&[
            b"....", b"a...", b".b..", b"ab..", b"abc.", b"ab.d", b"abcd"
        ])
    );
    let last = storage.journal().power_losses(&whole()).last().unwrap();
    assert_eq!((last.issued, last.synced), (5, 3));
    let state = storage.journal().power_losses(&whole()).nth(5).unwrap();
    assert_eq!(
        state.to_string(),
        "after 5 operations (3 synced), missing [4]"
    );
}

#[test]
fn later_writes_cover_earlier_ones_also_when_some_are_missing() {
    let storage = MemoryStorage::from_bytes(b"..");
    storage.start_journal();
    storage.write_all_at(0, b"11").unwrap();
    storage.write_all_at(0, b"2").unwrap();
    assert_eq!(
        contents(&storage, &whole()),
        set(&[b"..", b"11", b"2.", b"21"])
    );
}

#[test]
fn lengths_zeroes_and_holes_can_be_missing_too() {
    let storage = MemoryStorage::from_bytes(b"abc");
    storage.start_journal();
    storage.set_len(1).unwrap();
    storage.sync().unwrap();
    storage.zero(0..2).unwrap();
    storage.sync().unwrap();
    storage.write_all_at(0, b"x").unwrap();
    storage.sync().unwrap();
    storage.punch_hole(0..1).unwrap();
    let expected = set(&[b"abc", b"a", b"\0\0", b"x\0"]);
    assert_eq!(contents(&storage, &whole()), expected);
}

#[test]
fn a_failed_sync_leaves_its_writes_in_doubt_for_good() {
    let storage = MemoryStorage::from_bytes(b"...");
    storage.start_journal();
    storage.set_fault(Some(Fault::once(1)));
    storage.write_all_at(0, b"aa").unwrap();
    assert!(storage.sync().is_err());
    storage.write_all_at(1, b"bb").unwrap();
    storage.sync().unwrap();
    // The last stretch: the second write is sure, the first one isn't.
    let states: Vec<_> = storage.journal().power_losses(&whole()).collect();
    let last: HashSet<_> = states
        .iter()
        .filter(|s| s.synced == 4)
        .map(|s| bytes(&s.storage))
        .collect();
    assert_eq!(last, set(&[b".bb", b"abb"]));
    assert!(contents(&storage, &whole()).contains(&b"aa."[..]));
}

#[test]
fn an_untouched_or_synced_storage_has_one_state() {
    let storage = MemoryStorage::from_bytes(b"x");
    assert_eq!(contents(&storage, &whole()), set(&[b"x"]));
    storage.start_journal();
    storage.sync().unwrap();
    storage.sync().unwrap();
    assert_eq!(contents(&storage, &PowerLoss::default()), set(&[b"x"]));
}

#[test]
fn writes_are_torn_at_sectors_and_nowhere_else() {
    let storage = MemoryStorage::from_bytes(&[b'.'; 2048]);
    storage.start_journal();
    storage.write_all_at(100, &[b'#'; 1500]).unwrap();
    let how = PowerLoss {
        tears: 100,
        ..PowerLoss::default()
    };
    let sectors = |content: &[u8]| -> Vec<bool> {
        [100..512, 512..1024, 1024..1536, 1536..1600]
            .into_iter()
            .map(|range| {
                let first = content[range.start];
                assert!(
                    content[range].iter().all(|b| *b == first),
                    "torn within a sector"
                );
                first == b'#'
            })
            .collect()
    };
    let all = contents(&storage, &how);
    let found: HashSet<Vec<bool>> = all
        .iter()
        .map(|content| {
            assert!(
                content[..100]
                    .iter()
                    .chain(&content[1600..])
                    .all(|b| *b == b'.')
            );
            sectors(content)
        })
        .collect();
    for k in 0..4 {
        for test in [|i, k| i < k, |i, k| i >= k, |i, k| i == k, |i, k| i != k] {
            let wanted: Vec<bool> = (0..4).map(|i| test(i, k)).collect();
            assert!(found.contains(&wanted), "{wanted:?}");
        }
    }
    assert_eq!(contents(&storage, &whole()).len(), 2);
}

#[test]
fn a_torn_write_comes_with_and_without_the_others() {
    let storage = MemoryStorage::from_bytes(&[b'.'; 2048]);
    storage.start_journal();
    storage.write_all_at(0, b"a").unwrap();
    storage.write_all_at(512, &[b'#'; 1024]).unwrap();
    storage.write_all_at(2000, b"z").unwrap();
    let how = PowerLoss {
        tears: 1,
        ..PowerLoss::default()
    };
    let torn: HashSet<_> = contents(&storage, &how)
        .into_iter()
        .filter(|c| c[512] != c[1024])
        .map(|c| (c[0], c[512], c[1024], c[2000]))
        .collect();
    for (a, z) in [(b'a', b'z'), (b'.', b'.'), (b'a', b'.')] {
        assert!(torn.contains(&(a, b'#', b'.', z)) && torn.contains(&(a, b'.', b'#', z)));
    }
    let state = storage
        .journal()
        .power_losses(&how)
        .find(|s| !s.torn.is_empty())
        .unwrap();
    assert_eq!(state.torn, [1]);
}

#[test]
fn long_stretches_are_sampled_and_long_zeroes_torn_in_bounded_time() {
    let storage = MemoryStorage::default();
    storage.start_journal();
    for i in 0..40 {
        storage.write_all_at(i * 8, &[1; 8]).unwrap();
    }
    storage.sync().unwrap();
    storage.zero(0..1 << 40).unwrap();
    let journal = storage.journal();
    let states = journal.power_losses(&PowerLoss::default());
    let counts = states.fold([0_usize; 2], |mut counts, state| {
        counts[usize::from(state.synced > 0)] += 1;
        counts
    });
    // Prefixes, suffixes, one missing, one alone, random; then none, all, torn.
    assert_eq!(counts[0], 41 + 39 + 38 + 38 + 64);
    assert_eq!(counts[1], 2 + 3 * (2 * 4 + 2 * 4 + 1));
}

/// The reason for all of this: a protocol without its sync is caught, with it isn't.
#[test]
fn a_missing_sync_is_found() {
    let run = |with_sync: bool| {
        let storage = MemoryStorage::from_bytes(&[0; 4096]);
        storage.start_journal();
        storage.write_all_at(1024, &[7; 1024]).unwrap();
        if with_sync {
            storage.sync().unwrap();
        }
        storage.write_all_at(0, &[1]).unwrap();
        storage.sync().unwrap();
        // The promise: who sees the mark sees the data.
        storage
            .journal()
            .power_losses(&PowerLoss::default())
            .any(|state| {
                let content = bytes(&state.storage);
                content[0] == 1 && content[1024..2048].iter().any(|b| *b != 7)
            })
    };
    assert!(run(false));
    assert!(!run(true));
}
