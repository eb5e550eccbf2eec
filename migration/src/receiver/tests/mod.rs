//! The receiver, fed with items made by hand.

use hbitmap::{Granularity, State as Life};

use super::*;
use crate::{Command, Configuration, SECTOR, Sectors};

mod faults;
mod history;
mod limits;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn granularity(bytes: u64) -> Granularity {
    Granularity::from_bytes(bytes).unwrap()
}

fn flags(enabled: bool, persistent: bool) -> BitmapFlags {
    BitmapFlags {
        enabled,
        persistent,
    }
}

fn start(granularity: u64) -> Chunk<'static> {
    Chunk::Start {
        granularity: self::granularity(granularity),
        flags: flags(true, true),
    }
}

/// Sectors of a range of bytes.
fn sectors(range: Range<u64>) -> Sectors {
    let first = range.start / SECTOR;
    let count = range.end.div_ceil(SECTOR) - first;
    Sectors {
        first,
        count: count.try_into().unwrap(),
    }
}

fn zeroes(range: Range<u64>) -> Chunk<'static> {
    Chunk::Zeroes(sectors(range))
}

fn receiver(len: u64) -> Receiver {
    let nodes = vec![Node::new("n0", len).taken("old"), Node::new("n1", 5 * MIB)];
    Receiver::new(nodes, AliasMap::identity(), Limits::default())
}

/// Feeds chunks of a bitmap; the n-th begins at offset n.
fn feed(r: &mut Receiver, node: &str, bitmap: &str, chunks: &[Chunk<'_>]) {
    for (offset, chunk) in (1..).zip(chunks) {
        let item = Item::Chunk {
            node: Some(node),
            bitmap: Some(bitmap),
            chunk: *chunk,
            last: false,
        };
        r.apply(&item, offset).unwrap();
    }
}

#[test]
fn a_bitmap_comes_as_it_was() {
    for (enabled, life) in [(true, Life::Recording), (false, Life::Disabled)] {
        let mut r = receiver(MIB);
        let start = Chunk::Start {
            granularity: granularity(64 * KIB),
            flags: flags(enabled, enabled),
        };
        let machine = Configuration {
            machine: "pc".into(),
            ..Configuration::default()
        };
        r.apply(&Item::Configuration(&machine), 8).unwrap();
        feed(&mut r, "n0", "b", &[start]);
        assert_eq!(r.unfinished(), 1);
        let data = [0x81, 0x80, 0, 0, 0, 0, 0, 0];
        let bits = Chunk::Bits(sectors(0..MIB), &data);
        feed(&mut r, "n0", "b", &[bits, Chunk::Complete]);
        assert_eq!(r.unfinished(), 0);
        r.apply(&Item::Eof, 99).unwrap();
        let outcome = r.finish();
        assert!(outcome.whole && !outcome.switched_over && outcome.lost.is_empty());
        assert_eq!(outcome.machine.as_deref(), Some("pc"));
        let b = &outcome.complete[0];
        assert_eq!((b.node.as_str(), b.bitmap.name(), b.chunks), ("n0", "b", 1));
        assert_eq!((b.persistent, b.bitmap.is_persistent()), (enabled, enabled));
        assert_eq!(b.bitmap.state(), life);
        assert!(!b.bitmap.is_busy());
        let ranges: Vec<_> = b.bitmap.bits().ranges().collect();
        let (k64, last) = (64 * KIB, 15 * 64 * KIB);
        assert_eq!(ranges, [0..k64, 7 * k64..8 * k64, last..MIB]);
    }
}

#[test]
fn order_and_repetition_are_free_and_the_last_wins() {
    // 10 MiB + 512 at 512: 20481 granules, words of 32 KiB.
    let len = 10 * MIB + 512;
    let mut r = receiver(len);
    let ones = [0xff; 8];
    let end = [1, 0, 0, 0, 0, 0, 0, 0, 0xff];
    feed(
        &mut r,
        "n0",
        "b",
        &[
            start(512),
            // The tail first, its padding is anything.
            Chunk::Bits(sectors(10 * MIB..len), &end),
            Chunk::Bits(sectors(0..32 * KIB), &ones),
            zeroes(0..10 * MIB),
            Chunk::Empty,
            Chunk::Bits(sectors(MIB..MIB + 32 * KIB), &ones),
            Chunk::Bits(sectors(MIB..MIB + 32 * KIB), &[2, 0, 0, 0, 0, 0, 0, 0]),
            // An empty range covers nothing.
            zeroes(MIB..MIB),
            Chunk::Complete,
            Chunk::Complete,
        ],
    );
    let outcome = r.finish();
    assert_eq!(outcome.lost, []);
    let b = &outcome.complete[0];
    let ranges: Vec<_> = b.bitmap.bits().ranges().collect();
    assert_eq!(ranges, [MIB + 512..MIB + 1024, 10 * MIB..len]);
    assert_eq!(b.chunks, 6);
}

#[test]
fn writes_here_go_to_what_is_enabled() {
    let mut r = receiver(MIB);
    let disabled = Chunk::Start {
        granularity: granularity(64 * KIB),
        flags: flags(false, true),
    };
    feed(&mut r, "n0", "on", &[start(64 * KIB)]);
    feed(&mut r, "n0", "off", &[disabled]);
    feed(&mut r, "n1", "elsewhere", &[start(64 * KIB)]);
    let package = Command {
        number: 7,
        argument: &[0, 0, 0, 9],
    };
    assert!(!r.switched_over());
    r.apply(&Item::Command(package), 50).unwrap();
    assert!(r.switched_over());

    r.record("n0", 70_000..70_001).unwrap();
    // Whatever comes for what was written doesn't undo the write.
    for name in ["on", "off"] {
        feed(&mut r, "n0", name, &[zeroes(0..MIB), Chunk::Complete]);
    }
    r.record("n0", MIB - 1..u64::MAX).unwrap();
    feed(&mut r, "n1", "elsewhere", &[zeroes(0..5 * MIB)]);
    feed(&mut r, "n1", "elsewhere", &[Chunk::Complete]);
    let unknown = r.record("n2", 0..1).unwrap_err().to_string();
    assert_eq!(unknown, "there is no node 'n2'");
    // A bitmap that starts now would lack what was written.
    feed(&mut r, "n0", "late", &[start(64 * KIB)]);
    feed(
        &mut r,
        "n0",
        "late off",
        &[disabled, zeroes(0..MIB), Chunk::Complete],
    );

    let outcome = r.finish();
    assert!(outcome.switched_over);
    let counts: Vec<_> = outcome
        .complete
        .iter()
        .map(|b| (b.bitmap.name(), b.bitmap.bits().count()))
        .collect();
    assert_eq!(
        counts,
        [("on", 2), ("off", 0), ("elsewhere", 0), ("late off", 0)]
    );
    assert_eq!(outcome.lost.len(), 1);
    assert_eq!(outcome.lost[0].reason, Loss::StartedLate);
}

#[test]
fn names_that_mean_nothing_here_or_something_else() {
    let json = r#"[{"node-name": "n0", "alias": "disk", "bitmaps": [
        {"name": "old", "alias": "x"}, {"name": "new", "alias": "old"},
        {"name": "kept", "alias": "y", "transform": {"persistent": false}}]},
        {"node-name": "gone", "alias": "gone", "bitmaps": [{"name": "a", "alias": "a"}]}]"#;
    let map = AliasMap::from_json(json).unwrap();
    let nodes = vec![Node::new("n0", MIB).taken("old"), Node::new("n1", MIB)];
    let mut r = Receiver::new(nodes, map, Limits::default());
    let all = [start(64 * KIB), zeroes(0..MIB), Chunk::Complete];
    for (node, bitmap) in [
        ("n0", "x"),
        ("disk", "z"),
        ("disk", "x"),
        ("gone", "a"),
        ("disk", "old"),
        ("disk", "y"),
    ] {
        feed(&mut r, node, bitmap, &all);
    }
    let outcome = r.finish();
    let lost: Vec<_> = outcome
        .lost
        .iter()
        .map(|l| (l.node_alias.as_str(), l.bitmap_alias.as_str(), &l.reason))
        .collect();
    let taken = Loss::NameTaken { name: "old".into() };
    assert_eq!(
        lost,
        [
            ("n0", "x", &Loss::UnknownNode),
            ("disk", "z", &Loss::UnknownBitmap),
            ("disk", "x", &taken),
            ("gone", "a", &Loss::UnknownNode),
        ]
    );
    assert_eq!(outcome.lost[1].node, None);
    assert_eq!(outcome.lost[2].bitmap.as_deref(), Some("old"));
    assert_eq!(outcome.lost[2].offset, 1);
    let complete: Vec<_> = outcome
        .complete
        .iter()
        .map(|b| (b.bitmap.name(), b.bitmap_alias.as_str(), b.persistent))
        .collect();
    assert_eq!(complete, [("new", "old", true), ("kept", "y", false)]);
}

#[test]
fn one_node_takes_whatever_the_alias_is() {
    let map = AliasMap::identity().persistent(false);
    let mut r = Receiver::single(Node::new("n", MIB), map, Limits::default());
    let all = [start(64 * KIB), zeroes(0..MIB), Chunk::Complete];
    feed(&mut r, "drive-7", "a", &all);
    feed(&mut r, "drive-8", "a", &all);
    feed(&mut r, "drive-7", "b", &all);
    r.record("n", 0..1).unwrap();
    let outcome = r.finish();
    assert_eq!(outcome.complete.len(), 2);
    for b in &outcome.complete {
        assert_eq!((b.node.as_str(), b.node_alias.as_str()), ("n", "drive-7"));
        assert_eq!((b.persistent, b.flags.persistent), (false, true));
        assert_eq!(b.bitmap.bits().count(), 1);
    }
    assert_eq!(outcome.lost[0].reason, Loss::UnknownNode);
}

#[test]
fn a_survey_learns_the_length() {
    let len = 10 * MIB + 512;
    let mut r = Receiver::survey(Limits::default());
    let ones = [0xff; 8];
    feed(
        &mut r,
        "n0",
        "descending",
        &[
            start(512),
            Chunk::Bits(sectors(10 * MIB..len), &[1, 0, 0, 0, 0, 0, 0, 0]),
            zeroes(64 * KIB..10 * MIB),
            Chunk::Bits(sectors(32 * KIB..64 * KIB), &ones),
            zeroes(0..32 * KIB),
            Chunk::Complete,
        ],
    );
    feed(
        &mut r,
        "n0",
        "ascending",
        &[
            start(64 * KIB),
            zeroes(0..4 * MIB),
            Chunk::Bits(sectors(4 * MIB..8 * MIB), &ones),
            zeroes(8 * MIB..len),
            Chunk::Complete,
        ],
    );
    let late = [start(512), zeroes(0..10 * MIB), Chunk::Complete];
    feed(&mut r, "n0", "shorter", &late);
    let past = [start(512), zeroes(0..len), zeroes(10 * MIB..11 * MIB)];
    feed(&mut r, "n0", "longer", &past);
    let short = [start(512), zeroes(0..10 * MIB), zeroes(MIB..MIB + 512)];
    feed(&mut r, "n0", "inside", &short);
    let gap = [start(512), zeroes(MIB..len), Chunk::Complete];
    feed(&mut r, "n0", "gap", &gap);
    feed(
        &mut r,
        "n1",
        "none",
        &[start(512), zeroes(0..0), Chunk::Complete],
    );
    let far = Sectors {
        first: 1 << 54,
        count: 64,
    };
    feed(&mut r, "n1", "far", &[start(512), Chunk::Zeroes(far)]);

    let outcome = r.finish();
    let complete: Vec<_> = outcome
        .complete
        .iter()
        .map(|b| {
            let bits = b.bitmap.bits();
            (b.bitmap.name(), bits.len(), bits.count())
        })
        .collect();
    assert_eq!(
        complete,
        [
            ("descending", len, 65),
            ("ascending", len, 64),
            ("none", 0, 0)
        ]
    );
    let lost: Vec<_> = outcome.lost.iter().map(|l| l.reason.clone()).collect();
    let align = 32 * KIB;
    assert_eq!(
        lost,
        [
            Loss::Uncovered {
                missing: 10 * MIB..len,
                len
            },
            Loss::PastEnd { end: 11 * MIB, len },
            Loss::ShortChunk {
                end: MIB + 512,
                align,
                len: 10 * MIB
            },
            Loss::Uncovered {
                missing: 0..MIB,
                len
            },
            Loss::PastEnd {
                end: (1 << 63) + align,
                len: 0
            },
        ]
    );
}
