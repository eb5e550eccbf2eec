//! The library's sender and receiver at one end of a socket, a running QEMU at the other,
//! and writes all the while.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests: a panic is the message"
)]

mod receiver;
mod sender;

use hbitmap::{Granularity, HBitmap};
use qimg_tests::qmp::LiveBitmap;

/// A bitmap of these ranges.
fn bits(len: u64, granularity: u64, ranges: &[(u64, u64)]) -> HBitmap {
    let granularity = Granularity::from_bytes(granularity).unwrap();
    let mut bits = HBitmap::new(len, granularity).unwrap();
    for (offset, length) in ranges {
        bits.set(*offset..offset + length);
    }
    bits
}

/// The digest in hex, as QEMU prints it.
fn digest(bits: &HBitmap) -> String {
    bits.sha256().iter().map(|b| format!("{b:02x}")).collect()
}

/// QEMU's bitmap must hold these bits: by its digest, and as its NBD clients see them.
#[track_caller]
fn assert_same(live: &LiveBitmap, bits: &HBitmap) {
    let ranges: Vec<_> = bits.ranges().collect();
    assert_eq!(live.truth.ranges, ranges, "{}", live.truth.name);
    assert_eq!(live.truth.sha256, digest(bits), "{}", live.truth.name);
    assert_eq!(live.truth.granularity, bits.granularity().bytes());
}
