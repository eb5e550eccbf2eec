//! The short way to data tells what the long way tells, or nothing.

use super::*;
use crate::image::extents::{Keep, Mapped, Stretch};

/// Compares both ways for all requests of some lengths; returns how often the short one
/// knew.
fn compare(image: &Image) -> usize {
    let view = image.active().unwrap();
    let mut known = 0;
    for start in (0..image.size()).step_by(512) {
        for length in [512, 1024, 4096, CLUSTER] {
            let range = start..(start + length).min(image.size());
            // It also brings the entries into memory.
            let mut stretches = Vec::new();
            let found = view.stretches(range.clone(), Keep::Yes, &mut stretches);
            let data = match (found, stretches.as_slice()) {
                (
                    Ok(()),
                    [
                        Stretch {
                            mapped: Mapped::Data { host },
                            ..
                        },
                    ],
                ) => Some(*host),
                _ => None,
            };
            let one = range.start / CLUSTER == (range.end - 1) / CLUSTER;
            let told = view.stored_at(&range).map(|stored| stored.host);
            assert_eq!(told, data.filter(|_| one), "{range:?}");
            known += usize::from(told.is_some());
        }
    }
    assert!(view.stored_at(&(5..5)).is_none(), "nothing is asked for");
    known
}

#[test]
fn standard_entries() {
    let (storage, table, data) = patterned(&preallocated(10));
    let sound = compare(&open(&storage));
    assert!(sound > 500, "{sound}");
    let entries = [
        (1, 0),
        (2, 1),
        (3, (data + 3 * CLUSTER) | 1),
        (4, 1 << 62 | data),
        (5, data + 512),
        (6, 1 << 50),
        (7, (data + 7 * CLUSTER) | 1 << 58),
        (8, CLUSTER),
    ];
    for (index, entry) in entries {
        put(&storage, table + index * 8, entry);
    }
    let damaged = compare(&open(&storage));
    assert!(damaged > 0 && damaged < sound, "{damaged}");
}

#[test]
fn subclusters() {
    let options = CreateOptions {
        extended_l2: true,
        ..preallocated(6)
    };
    let (storage, table, _) = patterned(&options);
    let bitmaps = [
        0xffff_ffff,
        0x00ff_00ff,
        0xffff_0000_0000_ffff,
        0x0000_0001_0000_0001,
        0,
        0xffff_ffff_0000_0000,
    ];
    for (index, bitmap) in (0..).zip(bitmaps) {
        put(&storage, table + index * 16 + 8, bitmap);
    }
    let known = compare(&open(&storage));
    assert!(known > 100, "{known}");
}
