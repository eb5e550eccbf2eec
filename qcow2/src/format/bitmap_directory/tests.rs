use proptest::prelude::*;

use super::*;

const BASE: HostOffset = HostOffset(0x90000);

fn geometry() -> Geometry {
    Geometry::new(16, 4, false).unwrap()
}

/// Two entries: "b0", and "cbt" with extra data and odd padding.
fn sample() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend([
        0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 1, 16, 0, 2, 0, 0, 0, 0,
    ]);
    bytes.extend(*b"b0\0\0\0\0\0\0");
    bytes.extend([
        0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 1, 17, 0, 3, 0, 0, 0, 4,
    ]);
    bytes.extend(*b"\x01\x02\x03\x04cbt\xee");
    bytes
}

#[test]
fn fixed_bytes_of_the_extension() {
    let bytes = [
        0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 9, 0, 0,
    ];
    let extension = BitmapsExtension::parse(&bytes).unwrap();
    let expected = BitmapsExtension {
        nb_bitmaps: 2,
        reserved: 0,
        directory_size: 64,
        directory_offset: BASE,
    };
    assert_eq!(extension, expected);
    extension.check(geometry()).unwrap();
    let mut again = Vec::new();
    extension.encode(&mut again);
    assert_eq!(again, bytes);
    for end in 0..bytes.len() {
        assert!(BitmapsExtension::parse(&bytes[..end]).is_err(), "{end}");
    }
    again.push(0);
    assert!(BitmapsExtension::parse(&again).is_err());
}

#[test]
fn impossible_numbers_of_the_extension_are_refused() {
    let good = BitmapsExtension {
        nb_bitmaps: 2,
        reserved: 0,
        directory_size: 64,
        directory_offset: BASE,
    };
    let bad = [
        BitmapsExtension {
            nb_bitmaps: 0,
            ..good
        },
        BitmapsExtension {
            nb_bitmaps: 65536,
            directory_size: 65536 * 32,
            ..good
        },
        BitmapsExtension {
            reserved: 1,
            ..good
        },
        BitmapsExtension {
            directory_size: 40,
            ..good
        },
        BitmapsExtension {
            directory_size: MAX_DIRECTORY_BYTES + 1,
            ..good
        },
        BitmapsExtension {
            directory_offset: HostOffset(0),
            ..good
        },
        BitmapsExtension {
            directory_offset: HostOffset(0x90008),
            ..good
        },
        BitmapsExtension {
            directory_offset: HostOffset(u64::MAX << 16),
            ..good
        },
    ];
    for extension in bad {
        assert!(
            matches!(extension.check(geometry()), Err(Error::Corrupt { .. })),
            "{extension:?}"
        );
    }
}

#[test]
fn fixed_bytes_of_a_directory() {
    let directory = BitmapDirectory::parse(&sample(), BASE, 2);
    assert!(directory.fault.is_none() && directory.rest.is_empty());
    let [b0, cbt] = &directory.entries[..] else {
        panic!("two entries")
    };
    assert_eq!(
        (&b0.name[..], b0.table_offset, b0.table_size),
        (&b"b0"[..], HostOffset(0x70000), 1)
    );
    assert_eq!(
        (b0.flags, b0.kind, b0.granularity_bits),
        (BitmapFlags::AUTO, 1, 16)
    );
    assert_eq!(
        (&cbt.name[..], &cbt.extra[..]),
        (&b"cbt"[..], &[1, 2, 3, 4][..])
    );
    assert_eq!(
        cbt.flags,
        BitmapFlags::IN_USE.with(BitmapFlags::EXTRA_DATA_COMPATIBLE)
    );
    assert_eq!(cbt.padding, [0xee]);
    let places: Vec<_> = directory.located(BASE).map(|(at, _)| at.get()).collect();
    assert_eq!(places, [0x90000, 0x90020]);
    let mut again = Vec::new();
    directory.encode(&mut again);
    assert_eq!(again, sample());
    for (at, entry) in directory.located(BASE) {
        entry.check(geometry(), 1 << 30, at).unwrap();
    }
}

#[test]
fn cut_directory_keeps_its_whole_entries_and_its_bytes() {
    let bytes = sample();
    for end in 0..bytes.len() {
        let directory = BitmapDirectory::parse(&bytes[..end], BASE, 2);
        assert_eq!(directory.entries.len(), end / 32);
        assert!(matches!(directory.fault, Some(Error::Corrupt { .. })));
        let mut again = Vec::new();
        directory.encode(&mut again);
        assert_eq!(again, bytes[..end]);
    }
    let directory = BitmapDirectory::parse(&bytes, BASE, 1);
    assert_eq!((directory.entries.len(), directory.rest.len()), (1, 32));
    let fault = directory.fault.unwrap().to_string();
    assert_eq!(
        fault,
        "bitmap directory at 0x90020: found 32 bytes after 1 entries, allowed is none"
    );
}

#[test]
fn bad_entry_is_told_and_the_next_one_still_read() {
    let mut bytes = sample();
    bytes[17] = 70; // granularity
    bytes[3] = 1;
    let directory = BitmapDirectory::parse(&bytes, BASE, 2);
    assert!(directory.fault.is_none());
    let results: Vec<_> = directory
        .located(BASE)
        .map(|(at, e)| e.check(geometry(), 1 << 30, at))
        .collect();
    assert_eq!(
        results[0].as_ref().unwrap_err().to_string(),
        "directory entry of bitmap 'b0', field granularity_bits at 0x90011: found 70, allowed is 9 to 31"
    );
    assert!(results[1].is_ok());
}

#[test]
fn each_impossible_field_is_refused() {
    let good = BitmapDirectory::parse(&sample(), BASE, 2)
        .entries
        .swap_remove(0);
    let ruin: [fn(&mut BitmapDirectoryEntry); 13] = [
        |e| e.name.clear(),
        |e| e.name = vec![b'x'; 1024],
        |e| e.table_size = 0,
        |e| e.table_size = 2,
        |e| e.table_size = MAX_TABLE_ENTRIES + 1,
        |e| e.table_offset = HostOffset(0),
        |e| e.table_offset = HostOffset(0x70200),
        |e| e.table_offset = HostOffset(u64::MAX << 16),
        |e| e.flags = BitmapFlags(8),
        |e| e.kind = 0,
        |e| e.granularity_bits = 8,
        |e| e.granularity_bits = 32,
        |e| e.extra = vec![0],
    ];
    for (number, ruin) in ruin.into_iter().enumerate() {
        let mut entry = good.clone();
        ruin(&mut entry);
        assert!(entry.check(geometry(), 1 << 30, BASE).is_err(), "{number}");
    }
    let resized = BitmapDirectoryEntry {
        flags: BitmapFlags::IN_USE,
        table_size: 2,
        ..good
    };
    assert!(resized.check(geometry(), 1 << 30, BASE).is_ok());
}

proptest! {
    #[test]
    fn parse_gives_what_was_encoded(
        entries in prop::collection::vec(
            (any::<(u64, u32, u32, u8, u8)>(), any::<Vec<u8>>(), any::<Vec<u8>>()), 0..5,
        ),
    ) {
        let entries: Vec<_> = entries.into_iter().map(|(fixed, name, extra)| {
            BitmapDirectoryEntry {
                table_offset: HostOffset(fixed.0),
                table_size: fixed.1,
                flags: BitmapFlags(fixed.2),
                kind: fixed.3,
                granularity_bits: fixed.4,
                name, extra,
                padding: vec![],
            }.padded()
        }).collect();
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| entry.encode(&mut bytes));
        prop_assert_eq!(bytes.len(), entries.iter().map(|e| e.encoded_len()).sum::<usize>());
        let directory = BitmapDirectory::parse(&bytes, BASE, u32::try_from(entries.len()).unwrap());
        prop_assert!(directory.fault.is_none());
        for (at, entry) in directory.located(BASE) {
            let _ = entry.check(geometry(), u64::MAX, at);
        }
        prop_assert_eq!(directory.entries, entries);
    }

    #[test]
    fn any_bytes_come_back(bytes: Vec<u8>, nb_bitmaps: u32) {
        let mut again = Vec::new();
        BitmapDirectory::parse(&bytes, BASE, nb_bitmaps).encode(&mut again);
        prop_assert_eq!(again, bytes);
    }
}
