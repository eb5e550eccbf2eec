//! Fixed bytes, and every way in which they can be wrong.

use super::*;
use crate::{Error, Granularity, HBitmap, LayeredProblem, Limits};

fn sample() -> HBitmap {
    let mut b = HBitmap::new(16 << 40, Granularity::from_bytes(65536).unwrap()).unwrap();
    b.set(1 << 40..(1 << 40) + 1);
    b.set(4 << 40..6 << 40);
    b.set((9 << 40) + 65536..(9 << 40) + 65536 * 70);
    b
}

fn problem(bytes: &[u8]) -> (u64, LayeredProblem) {
    match HBitmap::from_layered(bytes, &Limits::default()) {
        Err(Error::Layered { offset, problem }) => (offset, problem),
        other => panic!("{other:?}"),
    }
}

/// A changed header with a checksum that fits.
fn header(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = sample().to_layered();
    change(&mut bytes[..32]);
    let mut crc = Crc32c::new();
    crc.update(&bytes[..32]);
    bytes[32..36].copy_from_slice(&crc.finish().to_le_bytes());
    bytes
}

#[test]
fn handful_of_ranges_on_16_tib_is_a_few_hundred_bytes() {
    let bytes = sample().to_layered();
    assert!(bytes.len() < 300, "{}", bytes.len());
    let mut one = HBitmap::new(16 << 40, Granularity::from_bytes(65536).unwrap()).unwrap();
    one.set(77..78);
    assert_eq!(one.to_layered().len(), 36 + 3 * 20 + 30);
}

#[test]
fn reads_back_what_was_written() {
    let b = sample();
    let bytes = b.to_layered();
    assert_eq!(
        HBitmap::from_layered(&bytes, &Limits::default()).unwrap(),
        b
    );
    let mut out = Vec::new();
    b.write_layered(&mut out).unwrap();
    assert_eq!(out, bytes);
    assert_eq!(
        HBitmap::read_layered(&mut &*out, &Limits::default()).unwrap(),
        b
    );
}

#[test]
fn uniform_bitmaps_are_a_header() {
    for len in [0, 1, 12345, 1 << 63] {
        let mut b = HBitmap::new(len, Granularity::from_bits(0).unwrap()).unwrap();
        for _ in 0..2 {
            let bytes = b.to_layered();
            assert_eq!(bytes.len(), HEADER);
            assert_eq!(
                HBitmap::from_layered(&bytes, &Limits::default()).unwrap(),
                b
            );
            b.set_all();
        }
    }
}

#[test]
fn cut_anywhere_is_refused() {
    let bytes = sample().to_layered();
    for n in 0..bytes.len() {
        let (offset, found) = problem(&bytes[..n]);
        assert_eq!(found, LayeredProblem::Truncated, "{n}");
        assert!(offset <= n as u64);
        let read = HBitmap::read_layered(&mut &bytes[..n], &Limits::default());
        assert!(matches!(
            read,
            Err(Error::Layered {
                problem: LayeredProblem::Truncated,
                ..
            })
        ));
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = sample().to_layered();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        problem(&bad);
    }
}

#[test]
fn more_after_the_end_is_refused() {
    let mut bytes = sample().to_layered();
    let end = bytes.len() as u64;
    bytes.push(0);
    assert_eq!(problem(&bytes), (end, LayeredProblem::TrailingData));
}

#[test]
fn header_fields_are_checked() {
    assert_eq!(problem(b"QFI\xfb3456"), (0, LayeredProblem::Magic));
    assert_eq!(
        problem(&header(|h| h[8] = 2)),
        (8, LayeredProblem::Version(2))
    );
    assert_eq!(
        problem(&header(|h| h[10] = 64)),
        (10, LayeredProblem::Granularity(64))
    );
    assert_eq!(
        problem(&header(|h| h[15] = 1)),
        (11, LayeredProblem::Reserved)
    );
    assert_eq!(
        problem(&header(|h| h[16..24].fill(0xff))),
        (16, LayeredProblem::Len(u64::MAX))
    );
    assert!(matches!(
        problem(&header(|h| h[24..32].fill(0x7f))),
        (24, LayeredProblem::Count { .. })
    ));
    let found = sample().count();
    assert_eq!(
        problem(&header(
            |h| h[24..32].copy_from_slice(&(found + 1).to_le_bytes())
        )),
        (
            24,
            LayeredProblem::Count {
                stored: found + 1,
                found
            }
        )
    );
}

#[test]
fn limits_hold() {
    let bytes = sample().to_layered();
    for limits in [
        Limits {
            len: 1 << 40,
            ..Limits::default()
        },
        Limits {
            memory: 500,
            ..Limits::default()
        },
    ] {
        assert!(matches!(
            HBitmap::from_layered(&bytes, &limits),
            Err(Error::Layered {
                problem: LayeredProblem::Limit { .. },
                ..
            })
        ));
    }
}

#[test]
fn second_forms_of_a_bitmap_are_refused() {
    // 100 granules: a page of two valid words, of which the second has 36 bits.
    let whole = |page: &[u8], count: u8| {
        let b = HBitmap::new(100, Granularity::from_bits(0).unwrap()).unwrap();
        let mut bytes = b.to_layered();
        bytes[24] = count;
        let mut crc = Crc32c::new();
        crc.update(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.finish().to_le_bytes());
        bytes.extend(page);
        bytes.extend(checksum(0, 0, page).to_le_bytes());
        HBitmap::from_layered(&bytes, &Limits::default())
    };
    let page = |any: u64, full: u64, words: &[u64]| {
        let mut out = vec![1, 0];
        for w in [any, full].iter().chain(words) {
            out.extend(w.to_le_bytes());
        }
        out
    };
    assert_eq!(whole(&page(1, 1, &[]), 64).unwrap().count(), 64);
    assert_eq!(whole(&page(3, 1, &[1 << 35]), 65).unwrap().count(), 65);
    for (page, count) in [
        (vec![0, 0], 1),                    // an empty page
        (vec![1, 1], 99),                   // a full page
        (vec![2, 2], 64),                   // a block past the end
        (vec![1, 3], 64),                   // full and not dirty
        (page(0, 0, &[]), 1),               // an empty block
        (page(3, 3, &[]), 99),              // a full block
        (page(4, 0, &[1]), 1),              // a word past the end
        (page(1, 0, &[0]), 1),              // an empty word
        (page(1, 0, &[u64::MAX]), 64),      // a full word
        (page(2, 0, &[(1 << 36) - 1]), 36), // a full last word
        (page(2, 0, &[1 | 1 << 36]), 2),    // a bit past the end
    ] {
        assert!(
            matches!(
                whole(&page, count),
                Err(Error::Layered {
                    offset: 36,
                    problem: LayeredProblem::NotCanonical
                })
            ),
            "{page:?}"
        );
    }
}
