//! The life of a dirty bitmap.
#![allow(
    clippy::single_range_in_vec_init,
    reason = "a list of one range is meant"
)]

use alloc::vec::Vec;

use super::*;

fn bitmap() -> DirtyBitmap {
    let bits = HBitmap::new(1 << 20, Granularity::from_bytes(4096).unwrap()).unwrap();
    DirtyBitmap::new("b", bits)
}

fn ranges(b: &DirtyBitmap) -> Vec<Range<u64>> {
    b.bits().ranges().collect()
}

#[test]
fn only_recording_bitmaps_record() {
    let mut b = bitmap();
    b.record(0..1);
    b.disable().unwrap();
    assert_eq!(b.state(), State::Disabled);
    b.record(8192..8193);
    b.enable().unwrap();
    b.record(16384..16385);
    assert_eq!(ranges(&b), [0..4096, 16384..20480]);
    b.mark_inconsistent();
    b.record(1 << 19..1 << 20);
    assert_eq!(b.bits().count(), 2);
    assert_eq!(b.state(), State::Inconsistent);
}

#[test]
fn successor_takes_the_writes_and_the_name() {
    let mut b = bitmap();
    b.record(0..1);
    b.freeze().unwrap();
    assert!(b.is_busy() && b.is_frozen());
    b.record(8192..8193);
    assert_eq!(ranges(&b), [0..4096]);
    assert_eq!(b.successor_bits().unwrap().count(), 1);
    let old = b.abdicate().unwrap();
    assert_eq!(old.ranges().collect::<Vec<_>>(), [0..4096]);
    assert_eq!(ranges(&b), [8192..12288]);
    assert_eq!(b.name(), "b");
    assert!(!b.is_busy());
    assert_eq!(b.state(), State::Recording);
}

#[test]
fn reclaim_loses_no_dirty_bit() {
    let mut b = bitmap();
    b.record(0..1);
    b.freeze().unwrap();
    b.record(8192..8193);
    b.reclaim().unwrap();
    b.record(1 << 19..(1 << 19) + 1);
    assert_eq!(
        ranges(&b),
        [0..4096, 8192..12288, 1 << 19..(1 << 19) + 4096]
    );
}

#[test]
fn resize_while_frozen_reaches_the_successor() {
    let mut b = bitmap();
    b.freeze().unwrap();
    b.resize(2 << 20).unwrap();
    b.record((2 << 20) - 1..2 << 20);
    b.reclaim().unwrap();
    assert_eq!(ranges(&b), [(2 << 20) - 4096..2 << 20]);
}

#[test]
fn successor_of_a_disabled_bitmap_is_disabled_until_told() {
    let mut b = bitmap();
    b.disable().unwrap();
    b.freeze().unwrap();
    b.record(0..1);
    b.set_successor_recording(true).unwrap();
    b.record(8192..8193);
    assert_eq!(b.abdicate().unwrap().count(), 0);
    assert_eq!(ranges(&b), [8192..12288]);
    assert_eq!(b.state(), State::Recording);
}

#[test]
fn busy_bitmaps_only_record() {
    let mut b = bitmap();
    b.set_busy(true).unwrap();
    b.record(0..1);
    assert_eq!(b.bits().count(), 1);
    let other = b.bits().clone();
    let busy = |r: Result<()>| assert!(matches!(r, Err(Error::Busy { name }) if name == "b"));
    busy(b.clear());
    busy(b.merge(&other));
    busy(b.set(0..1));
    busy(b.reset(0..1));
    busy(b.enable());
    busy(b.disable());
    busy(b.freeze());
    busy(b.rename("c"));
    busy(b.set_busy(true));
    b.set_busy(false).unwrap();
    b.freeze().unwrap();
    busy(b.set_busy(false));
    b.abdicate().unwrap();
    b.rename("c").unwrap();
    assert_eq!(b.name(), "c");
}

#[test]
fn inconsistent_bitmaps_are_refused_everything() {
    let g = Granularity::from_bytes(4096).unwrap();
    let mut b = DirtyBitmap::inconsistent("x", 1 << 20, g).unwrap();
    assert!(b.is_persistent());
    b.record(0..1);
    assert!(b.bits().is_empty());
    let refused =
        |r: Result<()>| assert!(matches!(r, Err(Error::Inconsistent { name }) if name == "x"));
    refused(b.clear());
    refused(b.enable());
    refused(b.freeze());
    refused(b.set_busy(true));
}

#[test]
fn nothing_to_abdicate_to() {
    let mut b = bitmap();
    assert!(matches!(b.abdicate(), Err(Error::NotFrozen { name }) if name == "b"));
    assert!(matches!(b.reclaim(), Err(Error::NotFrozen { .. })));
    assert!(matches!(
        b.set_successor_recording(true),
        Err(Error::NotFrozen { .. })
    ));
}

#[test]
fn lost_while_frozen_ends_inconsistent() {
    let mut b = bitmap();
    b.freeze().unwrap();
    b.mark_inconsistent();
    b.reclaim().unwrap();
    assert_eq!(b.state(), State::Inconsistent);
    assert!(!b.is_busy());
}

#[test]
fn changes_are_followed() {
    let mut b = bitmap();
    b.set(0..1 << 20).unwrap();
    b.follow(Granularity::from_bytes(1 << 16).unwrap()).unwrap();
    let take = |b: &mut DirtyBitmap| b.meta_mut().unwrap().take(0, u64::MAX);
    b.record(5..6);
    assert_eq!(take(&mut b), None, "was dirty before");
    b.reset(1 << 17..1 << 18).unwrap();
    assert_eq!(take(&mut b), Some(1 << 17..1 << 18));
    b.record(1 << 17..(1 << 17) + 1);
    assert_eq!(take(&mut b), Some(1 << 17..3 << 16));
    b.freeze().unwrap();
    b.record((1 << 17) + 65536..(1 << 17) + 65537);
    assert_eq!(take(&mut b), None);
    b.reclaim().unwrap();
    assert_eq!(take(&mut b), Some(3 << 16..4 << 16));
    b.unfollow();
    assert!(b.meta_mut().is_none());
}

#[test]
fn only_who_has_it_loads_into_it() {
    let mut b = bitmap();
    let half = 0..1 << 19;
    assert!(matches!(
        b.load_zeros(half.clone()),
        Err(Error::NotBusy { name }) if name == "b"
    ));
    b.record(0..1 << 20);
    b.set_busy(true).unwrap();
    b.follow(Granularity::from_bytes(1 << 18).unwrap()).unwrap();
    b.load_zeros(half.clone()).unwrap();
    assert_eq!(ranges(&b), [1 << 19..1 << 20]);
    assert_eq!(b.meta().unwrap().ranges().collect::<Vec<_>>(), [half]);
    // What is recorded meanwhile stays, and so does what a load leaves alone.
    b.record(0..1);
    b.load_linear(1 << 18..1 << 19, &[1, 0, 0, 0, 0, 0, 0, 0x80])
        .unwrap();
    let (middle, end) = (1 << 18, 1 << 19);
    assert_eq!(
        ranges(&b),
        [0..4096, middle..middle + 4096, end - 4096..1 << 20]
    );
    assert!(b.load_linear(0..1, &[0]).is_err());
    assert!(b.load_linear(0..1 << 18, &[0; 7]).is_err());
    b.set_busy(false).unwrap();
    assert!(b.load_linear(0..1 << 18, &[0; 8]).is_err());

    // A frozen one is loaded below its successor.
    b.freeze().unwrap();
    b.record(0..1);
    b.load_zeros(0..1 << 20).unwrap();
    assert!(b.bits().is_empty());
    b.reclaim().unwrap();
    assert_eq!(b.bits().count(), 1);
    b.set_busy(true).unwrap();
    b.mark_inconsistent();
    assert!(matches!(
        b.load_zeros(0..1 << 20),
        Err(Error::Inconsistent { .. })
    ));
}
