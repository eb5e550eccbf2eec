//! Sizes of 1 byte to 8 EiB at granularities of 1 to 2^63 bytes: they work or are refused.
#![allow(
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "tests"
)]

use hbitmap::{Chunk, Error, Granularity, HBitmap, Limits, MAX_LEN, SharedTracker};

/// Lengths around every power of two.
fn lengths() -> impl Iterator<Item = u64> {
    (0..64)
        .flat_map(|b| [(1u64 << b) - 1, 1 << b, (1 << b) + 1])
        .filter(|n| *n <= MAX_LEN)
}

#[test]
fn every_length_and_granularity_works() {
    for len in lengths() {
        for bits in 0..64 {
            let g = Granularity::from_bits(bits).unwrap();
            let mut b = HBitmap::new(len, g).unwrap();
            let granules = u64::try_from(u128::from(len).div_ceil(1 << bits)).unwrap();
            assert_eq!(b.granules(), granules);
            assert_eq!(
                (b.count(), b.dirty_bytes(), b.next_dirty(0..len)),
                (0, 0, None)
            );
            if len == 0 {
                assert!(b.is_empty() && b.is_full());
                continue;
            }

            // The last byte and the middle.
            b.set(len - 1..len);
            b.set(len / 2..len / 2 + 1);
            assert!(b.get(len - 1) && b.get(len / 2));
            let last = (len - 1) >> bits << bits;
            let middle = (len / 2) >> bits << bits;
            assert_eq!(b.count(), 1 + u64::from(last != middle));
            assert_eq!(b.next_dirty(0..len), Some(middle));
            assert_eq!(b.next_dirty(last..len), Some(last));
            let end = (middle.saturating_add(g.bytes())).min(len);
            let bytes = len - last + if last == middle { 0 } else { end - middle };
            assert_eq!(b.dirty_bytes(), bytes);
            assert_eq!(b.ranges().map(|r| r.end - r.start).sum::<u64>(), bytes);

            // The word of the linear form that the last granule is in.
            let align = b.linear_align();
            let start = (len - 1) / align * align;
            let mut word = [0xaa; 8];
            b.write_linear(start..len, &mut word).unwrap();
            assert_eq!(u64::from_le_bytes(word) >> ((granules - 1) % 64), 1);
            assert_ne!(b.chunk_kind(start..len), Chunk::Zeros);
            let mut copy = HBitmap::new(len, g).unwrap();
            copy.load_linear(start..len, &word).unwrap();
            assert!(copy.get(len - 1));

            let form = b.to_layered();
            assert_eq!(HBitmap::from_layered(&form, &Limits::default()).unwrap(), b);

            let t = SharedTracker::new(len, g).unwrap();
            t.mark(len - 1..len);
            t.mark(len / 2..len / 2 + 1);
            assert_eq!(t.drain().unwrap(), b);

            // Everything, and nothing again.
            b.set(0..u64::MAX);
            assert!(b.is_full());
            assert_eq!(
                (b.count(), b.dirty_bytes(), b.next_clean(0..len)),
                (granules, len, None)
            );
            assert_eq!(b.ranges().collect::<Vec<_>>(), [0..len]);
            b.reset(0..len);
            assert!(b.is_empty());
        }
    }
}

#[test]
fn longer_disks_are_refused() {
    let g = Granularity::from_bits(16).unwrap();
    for len in [MAX_LEN + 1, u64::MAX] {
        assert!(matches!(HBitmap::new(len, g), Err(Error::LenTooLarge { len: l }) if l == len));
        assert!(SharedTracker::new(len, g).is_err());
        let mut b = HBitmap::new(1, g).unwrap();
        assert!(matches!(b.resize(len), Err(Error::LenTooLarge { .. })));
        assert_eq!(b.len(), 1);
    }
}

#[test]
fn resizing_between_extremes_keeps_the_bits() {
    let g = Granularity::from_bits(0).unwrap();
    let mut b = HBitmap::new(100, g).unwrap();
    b.set_all();
    b.resize(MAX_LEN).unwrap();
    assert_eq!(b.ranges().collect::<Vec<_>>(), [0..100]);
    b.set(MAX_LEN - 1..MAX_LEN);
    b.set(1 << 40..1 << 50);
    b.resize(1 << 45).unwrap();
    assert_eq!(b.ranges().collect::<Vec<_>>(), [0..100, 1 << 40..1 << 45]);
    b.resize(100).unwrap();
    assert!(b.is_full());
    b.resize(0).unwrap();
    b.resize(7).unwrap();
    assert!(b.is_empty());
}

#[test]
fn linear_forms_that_no_memory_holds_are_refused() {
    let b = HBitmap::new(MAX_LEN, Granularity::from_bits(0).unwrap()).unwrap();
    assert_eq!(b.linear_size(0..MAX_LEN).unwrap() as u64, MAX_LEN / 8);
    assert!(matches!(
        b.write_linear(0..MAX_LEN, &mut [0; 8]),
        Err(Error::BufferSize {
            needed: 0x1000_0000_0000_0000,
            given: 8
        })
    ));
}

#[test]
fn linear_ranges_are_checked() {
    let mut b = HBitmap::new(1000, Granularity::from_bytes(2).unwrap()).unwrap();
    assert_eq!(b.linear_align(), 128);
    assert_eq!(b.linear_size(896..1000).unwrap(), 8);
    assert!(matches!(
        b.load_zeros(1..128),
        Err(Error::Misaligned {
            offset: 1,
            align: 128
        })
    ));
    assert!(matches!(
        b.load_ones(0..100),
        Err(Error::Misaligned { offset: 100, .. })
    ));
    assert!(matches!(
        b.load_ones(0..1024),
        Err(Error::OutOfRange { end: 1024, .. })
    ));
    #[allow(clippy::reversed_empty_ranges, reason = "is what is tested")]
    let reversed = 128..0;
    assert!(matches!(
        b.load_zeros(reversed),
        Err(Error::OutOfRange { .. })
    ));
    assert!(matches!(
        b.load_linear(0..1000, &[0; 62]),
        Err(Error::BufferSize {
            needed: 63,
            given: 62
        })
    ));
    // 104 bytes are 52 granules; the buffer may end with the byte that holds the last.
    b.load_linear(896..1000, &[0xff; 7]).unwrap();
    assert_eq!(b.count(), 52);
    assert!(matches!(
        b.check_padding(896..1000, &[0xff; 7]),
        Err(Error::TrailingBits { byte: 6 })
    ));
    let mut data = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0];
    b.check_padding(896..1000, &data).unwrap();
    data[9] = 1;
    assert!(matches!(
        b.check_padding(896..1000, &data),
        Err(Error::TrailingBits { byte: 9 })
    ));
}
