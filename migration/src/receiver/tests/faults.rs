//! What loses a bitmap, and it alone.

use super::*;

/// What is lost when "n0" of 10 MiB + 512 gets these chunks for "b".
fn loss(chunks: &[Chunk<'_>]) -> (u64, Loss) {
    let mut r = receiver(10 * MIB + 512);
    feed(&mut r, "n1", "c", &[start(64 * KIB)]);
    feed(&mut r, "n0", "b", chunks);
    feed(&mut r, "n1", "c", &[zeroes(0..5 * MIB), Chunk::Complete]);
    let mut outcome = r.finish();
    // The other bitmap is never touched by it.
    assert_eq!(outcome.complete.len(), 1);
    assert_eq!(outcome.complete[0].bitmap.name(), "c");
    assert_eq!(outcome.lost.len(), 1);
    let lost = outcome.lost.remove(0);
    assert_eq!(lost.node.as_deref(), Some("n0"));
    assert_eq!(lost.bitmap.as_deref(), Some("b"));
    (lost.offset, lost.reason)
}

#[test]
fn a_chunk_has_to_fit_the_disk() {
    let len = 10 * MIB + 512;
    let word = [0; 8];
    assert_eq!(
        loss(&[start(512), Chunk::Bits(sectors(512..32 * KIB), &word)]),
        (
            2,
            Loss::Misaligned {
                start: 512,
                align: 32 * KIB
            }
        )
    );
    assert_eq!(
        loss(&[start(512), zeroes(0..10 * MIB), zeroes(0..MIB + 512)]),
        (
            3,
            Loss::ShortChunk {
                end: MIB + 512,
                align: 32 * KIB,
                len
            }
        )
    );
    let past = |end| (2, Loss::PastEnd { end, len });
    assert_eq!(loss(&[start(512), zeroes(0..len + 1)]), past(len + 512));
    assert_eq!(
        loss(&[start(512), zeroes(11 * MIB..12 * MIB)]),
        past(12 * MIB)
    );
    let far = Sectors {
        first: (1 << 55) - 64,
        count: u32::MAX,
    };
    assert_eq!(loss(&[start(512), Chunk::Zeroes(far)]), past(u64::MAX));
    let far = Sectors {
        first: u64::MAX,
        count: u32::MAX,
    };
    assert_eq!(loss(&[start(512), Chunk::Bits(far, &word)]), past(u64::MAX));
}

#[test]
fn a_buffer_has_to_fit_its_range() {
    // Two words and one for the odd sector.
    let range = 10 * MIB - 64 * KIB..10 * MIB + 512;
    for found in [0, 8, 16, 23, 33, 40] {
        let data = vec![0; found];
        assert_eq!(
            loss(&[start(512), Chunk::Bits(sectors(range.clone()), &data)]),
            (
                2,
                Loss::BufferSize {
                    found: found as u64,
                    needed: 24,
                    most: 32
                }
            )
        );
    }
    let mut data = [0; 32];
    data[16] = 1;
    data[31] = 1;
    for size in [24, 25, 32] {
        let bits = Chunk::Bits(sectors(range.clone()), &data[..size]);
        assert_eq!(loss(&[start(512), bits]), (2, Loss::NotComplete));
    }
    for past in [16, 17, 23] {
        let mut data = [0; 32];
        data[past] = 2;
        let bits = Chunk::Bits(sectors(range.clone()), &data);
        assert_eq!(
            loss(&[start(512), bits]),
            (2, Loss::BitsPastEnd { len: range.end })
        );
    }
}

#[test]
fn everything_has_to_be_covered() {
    let len = 10 * MIB + 512;
    let (first, rest) = (zeroes(0..MIB), zeroes(2 * MIB..len));
    let uncovered = |missing| Loss::Uncovered { missing, len };
    assert_eq!(
        loss(&[start(512), first, rest, Chunk::Complete]),
        (4, uncovered(MIB..2 * MIB))
    );
    assert_eq!(
        loss(&[start(64 * KIB), Chunk::Complete]),
        (2, uncovered(0..len))
    );
    // A smaller disk, whose end looks like that of any chunk.
    assert_eq!(
        loss(&[start(512), zeroes(0..10 * MIB), Chunk::Complete]),
        (3, uncovered(10 * MIB..len))
    );
    // A disk of no bytes needs no chunk at all.
    let mut r = receiver(0);
    feed(&mut r, "n0", "a", &[start(512), Chunk::Complete]);
    feed(
        &mut r,
        "n0",
        "b",
        &[start(512), zeroes(0..0), Chunk::Complete],
    );
    assert_eq!(r.finish().complete.len(), 2);
    // Nor is a disk's last sector whole.
    let mut r = receiver(1000);
    feed(
        &mut r,
        "n0",
        "b",
        &[start(512), zeroes(0..1024), Chunk::Complete],
    );
    assert_eq!(r.finish().complete[0].bitmap.bits().len(), 1000);
}

#[test]
fn chunks_out_of_turn() {
    let all = zeroes(0..10 * MIB + 512);
    assert_eq!(loss(&[all, start(512)]), (1, Loss::NeverStarted));
    assert_eq!(
        loss(&[Chunk::Complete, start(512)]),
        (1, Loss::NeverStarted)
    );
    assert_eq!(
        loss(&[start(512), all, start(512), all, Chunk::Complete]),
        (3, Loss::StartedTwice)
    );
    assert_eq!(
        loss(&[start(512), all, Chunk::Complete, start(512)]),
        (4, Loss::StartedTwice)
    );
    assert_eq!(
        loss(&[start(512), all, Chunk::Complete, all]),
        (4, Loss::AfterComplete)
    );
    let (offset, reason) = loss(&[start(512), all]);
    assert_eq!((offset, reason), (2, Loss::NotComplete));
    // The first fault is the one that is told.
    assert_eq!(loss(&[start(512), Chunk::Complete, all, start(512)]).0, 2);
}
