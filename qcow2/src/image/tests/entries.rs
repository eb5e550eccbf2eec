//! Single entries of the L1 and L2 tables, valid ones and others.

use super::*;
use crate::format::{ExtendedL2Entry, L2Entry, SubclusterBitmap};

use ExtentKind::{Data, Unallocated, Zero};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// Five clusters of which entry 2 is `word`: what is told of cluster 2, and its first
/// byte. All others must be as they were.
fn third(version_2: bool, word: impl Fn(u64) -> u64) -> (Result<ExtentKind, String>, Option<u8>) {
    let (storage, table, data) = patterned(&preallocated(5));
    if version_2 {
        storage.write_all_at(4, &2_u32.to_be_bytes()).unwrap();
    }
    put(&storage, table + 16, word(data));
    let image = open(&storage);
    let bytes = first_bytes(&image);
    assert_eq!((bytes[0], bytes[1]), (Some(1), Some(2)));
    assert_eq!((bytes[3], bytes[4]), (Some(4), Some(5)));
    let map = told(&image);
    let (start, end) = (2 * CLUSTER, 3 * CLUSTER);
    let it = map
        .iter()
        .find(|(at, len, _)| *at <= start && end <= at + len);
    let it = it.unwrap_or_else(|| panic!("{map:?}"));
    for (at, len, what) in &map {
        let others = *at + *len <= start || *at >= end;
        assert!(!others || *what == Ok(Data), "{map:?}");
    }
    // All in one go or bit by bit.
    let whole = image.read(0, &mut vec![0; usize::try_from(image.size()).unwrap()]);
    assert_eq!(whole.is_ok(), bytes[2].is_some());
    if let Err(error) = whole {
        let place = "16384 bytes of the disk at 0x8000 can't be read";
        assert_eq!(error.to_string(), place);
    }
    (it.2.clone(), bytes[2])
}

/// As [`third`]; the entry must be refused with a message that has `part` in it.
#[track_caller]
fn refused(part: &str, word: impl Fn(u64) -> u64) {
    let (told, byte) = third(false, word);
    let message = told.expect_err("it is refused");
    assert!(message.starts_with("L2 table entry 2 at 0x"), "{message}");
    assert!(message.contains(part), "{message}");
    assert_eq!(byte, None);
}

#[test]
fn valid_entries() {
    assert_eq!(third(false, |_| 0), (Ok(Unallocated), Some(0)));
    assert_eq!(third(false, |_| COPIED), (Ok(Unallocated), Some(0)));
    assert_eq!(third(false, |_| 1), (Ok(Zero), Some(0)));
    assert_eq!(third(false, |data| data | 1), (Ok(Zero), Some(0)));
    assert_eq!(third(false, |data| data), (Ok(Data), Some(1)));
    assert_eq!(third(false, |data| COPIED | data), (Ok(Data), Some(1)));
}

#[test]
fn entries_that_cannot_be_are_errors_for_their_cluster() {
    for bit in [1, 2, 8, 56, 57, 61] {
        refused(&format!("bits {:#x} clear", 1_u64 << bit), |data| {
            data | 1 << bit
        });
        refused("clear", |_| 1 << bit);
    }
    refused("which is unaligned", |data| data + 512);
    refused("which is unaligned", |data| data + 512 + 1);
    refused("which is in the header's cluster", |_| COMPRESSED | 5);
    refused("which is in the L1 table", |_| COPIED | (3 * CLUSTER));
    refused("which is in the refcount table", |_| CLUSTER);
    refused("where the file ends", |data| data + 5 * CLUSTER);
    refused("where the file ends", |_| 0x00ff_ffff_ffff_c000);
    refused("where the file ends", |data| {
        COMPRESSED | (data + 5 * CLUSTER)
    });
}

#[test]
fn version_2_has_no_zero_flag() {
    let (told, byte) = third(true, |data| data | 1);
    assert!(told.unwrap_err().contains("bits 0x1 clear"));
    assert_eq!(byte, None);
    assert_eq!(third(true, |_| 0), (Ok(Unallocated), Some(0)));
}

#[test]
fn compressed_junk_is_told_as_data_and_not_read() {
    let (told, byte) = third(false, |data| COMPRESSED | data);
    assert_eq!((told, byte), (Ok(Data), None));
}

#[test]
fn no_compressed_clusters_beside_a_data_file() {
    let options = CreateOptions {
        data_file: Some(b"data".to_vec()),
        ..preallocated(2)
    };
    let (storage, data) = (MemoryStorage::default(), MemoryStorage::default());
    create_in(&storage, Some(&data), &options).unwrap();
    let image = open(&storage).with_data_file(Arc::new(data));
    let view = image.active().unwrap();
    let table = view.l1.l2_table(0, image.geometry(), &image.bounds());
    let table = table.unwrap().unwrap().get();
    put(&storage, table, COMPRESSED | 5);
    let told = told(&image);
    assert_eq!((told[0].0, told[0].1), (0, CLUSTER));
    let message = told[0].2.clone().unwrap_err();
    assert!(message.contains("found a compressed cluster"), "{message}");
    assert_eq!(told[1], (CLUSTER, CLUSTER, Ok(Data)));
}

#[test]
fn a_last_cluster_that_the_file_has_a_part_of_ends_in_zeros() {
    let (storage, _, data) = patterned(&preallocated(3));
    storage.set_len(data + 2 * CLUSTER + 10).unwrap();
    let image = open(&storage);
    let mut bytes = [9; 20];
    image.read(2 * CLUSTER, &mut bytes).unwrap();
    assert_eq!(bytes[..10], [3; 10]);
    assert_eq!(bytes[10..], [0; 10]);
    storage.set_len(data + 2 * CLUSTER).unwrap();
    let image = open(&storage);
    assert_eq!(first_bytes(&image), [Some(1), Some(2), None]);
    // A writer makes it longer.
    storage.write_all_at(data + 2 * CLUSTER, &[6]).unwrap();
    assert_eq!(first_bytes(&image), [Some(1), Some(2), Some(6)]);
}

#[test]
fn entries_of_the_l1_table() {
    let clusters = CLUSTER / 8 * 2 + 5;
    let options = CreateOptions {
        size: Some(clusters * CLUSTER),
        ..preallocated(1)
    };
    let sound = MemoryStorage::default();
    create_in(&sound, None, &options).unwrap();
    let l1 = open(&sound).header().l1_table_offset.get();
    let coverage = CLUSTER / 8 * CLUSTER;
    for (word, part) in [
        (COPIED | (5 * CLUSTER + 1), "bits 0 to 8 and 56 to 62 clear"),
        (COPIED | 1 << 62 | (5 * CLUSTER), "bits 0 to 8"),
        (5 * CLUSTER + 512, "which is unaligned"),
        (CLUSTER, "which is in the refcount table"),
        (l1, "which is in the L1 table"),
        (0x00ff_ffff_ffff_c000, "where the file ends"),
    ] {
        let storage = sound.fork();
        put(&storage, l1 + 8, word);
        let image = open(&storage);
        let told = told(&image);
        assert_eq!(told[0], (0, coverage, Ok(Data)));
        assert_eq!((told[1].0, told[1].1), (coverage, coverage));
        let message = told[1].2.clone().unwrap_err();
        assert!(message.starts_with("L1 table entry 1 at "), "{message}");
        assert!(message.contains(part), "{message}");
        assert_eq!(told[2], (2 * coverage, 5 * CLUSTER, Ok(Data)));
        image.read(2 * coverage, &mut [0; 9]).unwrap();
        image.read(coverage - 5, &mut [0; 9]).unwrap_err();
    }
    // Without an L2 table nothing is allocated.
    for word in [0, COPIED] {
        let storage = sound.fork();
        put(&storage, l1 + 8, word);
        let told = told(&open(&storage));
        assert_eq!(told[1], (coverage, coverage, Ok(Unallocated)));
    }
}

#[test]
fn tables_that_the_file_ends_before() {
    let (storage, table, _) = patterned(&preallocated(5));
    storage.set_len(table + 16).unwrap();
    let image = open(&storage);
    let told_now = told(&image);
    assert_eq!(told_now.len(), 1);
    let message = told_now[0].2.clone().unwrap_err();
    assert!(message.contains("where the file ends"), "{message}");
    let l1 = image.header().l1_table_offset.get();
    storage.set_len(l1 + 4).unwrap();
    let told = told(&open(&storage));
    let message = told[0].2.clone().unwrap_err();
    assert!(message.starts_with("L1 table entry 0 at "), "{message}");
    assert!(message.contains("found the end of the file"), "{message}");
}

#[test]
fn subclusters_are_told_apart() {
    let options = CreateOptions {
        extended_l2: true,
        ..preallocated(4)
    };
    let (storage, table, data) = patterned(&options);
    // Preallocated clusters have subclusters that aren't.
    for index in 0..4 {
        put(
            &storage,
            table + index * 16 + 8,
            SubclusterBitmap::ALL_DATA.0,
        );
    }
    let entry = |host: u64, bitmap: u64| {
        let mut bytes = Vec::new();
        let entry = L2Entry(host);
        let bitmap = SubclusterBitmap(bitmap);
        ExtendedL2Entry { entry, bitmap }.encode(&mut bytes);
        storage.write_all_at(table + 16, &bytes).unwrap();
        told(&open(&storage))
    };
    let sub = CLUSTER / 32;
    let second = |parts: &[(u64, u64, Result<ExtentKind, String>)]| {
        let inside = parts
            .iter()
            .filter(|(at, ..)| (CLUSTER..2 * CLUSTER).contains(at));
        let parts = inside.map(|(at, len, what)| {
            let what = match what {
                Ok(Data) => 'd',
                Ok(Zero) => 'z',
                Ok(Unallocated) => '-',
                Err(_) => '!',
            };
            ((at - CLUSTER) / sub, len / sub, what)
        });
        parts.collect::<Vec<_>>()
    };
    let host = data + CLUSTER;
    let bitmap = 0b1100 << 32 | 0b0011;
    // The data is part of the extent that begins in the cluster before.
    let expected = [(2, 2, 'z'), (4, 28, '-')];
    assert_eq!(second(&entry(host, bitmap)), expected);
    // Both bits: that subcluster only.
    let expected = [(2, 1, '!'), (3, 29, '-')];
    let both = second(&entry(host, 0b0100 << 32 | 0b0111));
    assert_eq!(both, expected);
    let all_zeros = second(&entry(0, u64::from(u32::MAX) << 32));
    assert_eq!(all_zeros, [(0, 32, 'z')]);
    assert_eq!(second(&entry(0, 0)), [(0, 32, '-')]);
    // Allocated, and nowhere.
    assert_eq!(second(&entry(0, 1)), [(0, 32, '!')]);
    assert_eq!(second(&entry(host | 1, 1)), [(0, 32, '!')], "no zero flag");
    assert_eq!(second(&entry(host + 512, 1)), [(0, 32, '!')]);
    let beyond = data + 4 * CLUSTER;
    assert_eq!(second(&entry(beyond, 1)), [(0, 1, '!'), (1, 31, '-')]);
    // Data goes on from the cluster before, then what is allocated ends.
    entry(host, 0xff);
    let map: Vec<Extent> = open(&storage)
        .extents(0..2 * CLUSTER)
        .map(Result::unwrap)
        .collect();
    assert_eq!(map[0].range(), 0..CLUSTER + 8 * sub);
    assert_eq!(map[1].host.unwrap().get(), host + 8 * sub);
    let mut bytes = vec![0; usize::try_from(CLUSTER).unwrap()];
    open(&storage).read(CLUSTER + 7 * sub, &mut bytes).unwrap();
    let sub = usize::try_from(sub).unwrap();
    assert!(bytes[..sub].iter().all(|byte| *byte == 2));
    assert!(bytes[sub..25 * sub].iter().all(|byte| *byte == 0));
    assert!(bytes[25 * sub..].iter().all(|byte| *byte == 3));
}
