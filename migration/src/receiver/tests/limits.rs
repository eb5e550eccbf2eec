//! What a stream may make the receiver hold.

use super::*;

#[test]
fn memory_is_limited_over_all_bitmaps() {
    let limits = Limits {
        memory: 200 << 10,
        ..Limits::default()
    };
    let len = 1 << 40;
    let mut r = Receiver::new(vec![Node::new("n0", len)], AliasMap::identity(), limits);
    let data = vec![0x55; 8192];
    let chunk = |i: u64| {
        let first = i * 65_536 * 64 * KIB;
        Chunk::Bits(sectors(first..first + 65_536 * 64 * KIB), &data)
    };
    for name in ["a", "b", "c"] {
        feed(&mut r, "n0", name, &[start(64 * KIB)]);
    }
    for i in 0..10 {
        feed(&mut r, "n0", "a", &[chunk(i)]);
    }
    // What is gathered counts when something else comes.
    let elsewhere = [zeroes(0..1 << 32), zeroes(1 << 39..1 << 40)];
    feed(&mut r, "n0", "a", &elsewhere);
    let before = r.memory();
    assert!((60 << 10..160 << 10).contains(&before), "{before}");
    // What was freed within a bitmap may still be held by it.
    feed(&mut r, "n0", "a", &[zeroes(0..1 << 38)]);
    feed(&mut r, "n0", "a", &elsewhere);
    assert_eq!(r.memory(), before);
    for i in 0..20 {
        feed(&mut r, "n0", "b", &[chunk(i)]);
    }
    // "b" is gone and its memory free, so that "c" may have some.
    assert_eq!(r.unfinished(), 2);
    assert!(r.memory() < before + (8 << 10), "{}", r.memory());
    feed(&mut r, "n0", "c", &[chunk(0)]);
    assert!(r.memory() <= limits.memory);
    let outcome = r.finish();
    assert_eq!(outcome.lost[1].bitmap_alias, "b");
    let limit = 200 << 10;
    assert_eq!(outcome.lost[1].reason, Loss::Memory { limit });
}

#[test]
fn writes_here_are_not_limited() {
    let limits = Limits {
        memory: 8 << 10,
        ..Limits::default()
    };
    let node = Node::new("n0", 1 << 40);
    let mut r = Receiver::new(vec![node], AliasMap::identity(), limits);
    feed(&mut r, "n0", "a", &[start(64 * KIB)]);
    for i in 0..1000 {
        r.record("n0", i << 28..(i << 28) + 1).unwrap();
    }
    let chunks = [zeroes(0..1 << 40), Chunk::Complete];
    feed(&mut r, "n0", "a", &chunks);
    let outcome = r.finish();
    assert_eq!(outcome.complete[0].bitmap.bits().count(), 1000);
}

#[test]
fn the_number_of_bitmaps_is_limited() {
    let limits = Limits {
        bitmaps: 2,
        ..Limits::default()
    };
    let mut r = Receiver::new(vec![Node::new("n0", MIB)], AliasMap::identity(), limits);
    let all = [start(64 * KIB), zeroes(0..MIB), Chunk::Complete];
    feed(&mut r, "n0", "a", &all);
    feed(&mut r, "unknown", "a", &all);
    let item = |bitmap| Item::Chunk {
        node: Some("n0"),
        bitmap,
        chunk: start(512),
        last: false,
    };
    let error = r.apply(&item(Some("b")), 77).unwrap_err();
    assert_eq!(error.offset(), Some(77));
    assert!(error.to_string().contains("2 bitmaps"));
    assert!(matches!(
        r.apply(&item(None), 78),
        Err(Error::Invalid { offset: 78, .. })
    ));
    let outcome = r.finish();
    assert_eq!((outcome.complete.len(), outcome.lost.len()), (1, 1));
    assert!(!outcome.whole);
}

#[test]
fn the_length_of_a_disk_may_be_beyond_all() {
    let node = Node::new("n0", u64::MAX);
    let mut r = Receiver::new(vec![node], AliasMap::identity(), Limits::default());
    feed(&mut r, "n0", "a", &[start(512)]);
    let max = hbitmap::MAX_LEN;
    assert_eq!(
        r.finish().lost[0].reason,
        Loss::PastEnd {
            end: u64::MAX,
            len: max
        }
    );
    // The largest there is, in the largest chunks that there are.
    let node = Node::new("n0", max);
    let mut r = Receiver::new(vec![node], AliasMap::identity(), Limits::default());
    feed(&mut r, "n0", "a", &[start(1 << 31)]);
    // 64 granules are 2^28 sectors.
    let most = (1_u64 << 32) - (1 << 28);
    let end = max / SECTOR;
    let mut first = 0;
    while first < end {
        let count = most.min(end - first);
        let count = count.try_into().unwrap();
        feed(
            &mut r,
            "n0",
            "a",
            &[Chunk::Zeroes(Sectors { first, count })],
        );
        first += most;
    }
    feed(&mut r, "n0", "a", &[Chunk::Complete]);
    assert_eq!(r.finish().complete[0].bitmap.bits().len(), max);
}
