//! The sender's rules; that what it sends arrives is tested in `tests/protocol.rs`.

use std::{
    cell::RefCell,
    io,
    sync::{Arc, Mutex},
};

use hbitmap::{DirtyBitmap, Granularity, HBitmap};

use super::*;

const MIB: u64 = 1 << 20;

fn bitmap(len: u64, granularity: u64) -> DirtyBitmap {
    let granularity = Granularity::from_bytes(granularity).unwrap();
    DirtyBitmap::new("own name", HBitmap::new(len, granularity).unwrap())
}

type Cell = RefCell<DirtyBitmap>;

fn begin(sources: &[Cell], design: Design) -> Sender<Vec<u8>, &Cell> {
    let outgoing = (0..)
        .zip(sources)
        .map(|(i, source)| Outgoing::new("n", format!("b{i}"), source))
        .collect();
    let options = SenderOptions {
        design,
        ..SenderOptions::default()
    };
    Sender::begin(Vec::new(), outgoing, options).unwrap()
}

/// Whether the owner has it back.
fn is_free(source: &Cell) -> bool {
    let b = source.borrow();
    !b.is_busy() && b.meta().is_none()
}

fn refusal<T>(result: Result<T>) -> String {
    result.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn what_can_t_be_sent_is_refused_and_left_alone() {
    let refused = |names: &[(&str, &str)], sources: &[Cell]| {
        let outgoing = names
            .iter()
            .zip(sources)
            .map(|((node, name), source)| Outgoing::new(*node, *name, source))
            .collect();
        let mut out = Vec::new();
        let why = refusal(Sender::begin(&mut out, outgoing, SenderOptions::default()));
        assert!(out.is_empty());
        why
    };
    let fresh = || Cell::new(bitmap(MIB, 512));
    let two = [fresh(), fresh()];
    assert!(refused(&[("n", "b"), ("0", "b")], &two).contains("'0'"));
    assert!(refused(&[("n", "b"), ("n", "")], &two).contains("is empty"));
    let long = "x".repeat(256);
    assert!(refused(&[("n", "b"), ("n", &long)], &two).contains("256 bytes"));
    assert_eq!(
        refused(&[("n", "b"), ("n", "b")], &two),
        "two bitmaps of node 'n' have the alias 'b'"
    );
    let names = [("n", "a"), ("n", "b")];
    two[1].borrow_mut().set_busy(true).unwrap();
    assert!(refused(&names, &two).contains("in use by another operation"));
    assert!(two[1].borrow().is_busy());
    two[1].borrow_mut().set_busy(false).unwrap();
    two[1].borrow_mut().freeze().unwrap();
    assert!(refused(&names, &two).contains("in use by another operation"));
    two[1].borrow_mut().reclaim().unwrap();
    let chunk = Granularity::from_bytes(MIB).unwrap();
    two[1].borrow_mut().follow(chunk).unwrap();
    assert!(refused(&names, &two).contains("follows"));
    assert!(two[1].borrow().meta().is_some());
    two[1].borrow_mut().unfollow();
    two[1].borrow_mut().mark_inconsistent();
    assert!(refused(&names, &two).contains("inconsistent"));
    for granularity in [256, 1 << 32] {
        let sources = [fresh(), Cell::new(bitmap(MIB, granularity))];
        let why = refused(&names, &sources);
        assert!(why.starts_with("bitmap 'own name': "), "{why}");
        assert!(is_free(&sources[0]) && is_free(&sources[1]));
    }
    assert!(is_free(&two[0]));
    // The same one twice, under two names.
    let outgoing = vec![
        Outgoing::new("n", "a", &two[0]),
        Outgoing::new("n", "b", &two[0]),
    ];
    let sender = Sender::begin(Vec::new(), outgoing, SenderOptions::default());
    assert!(refusal(sender).contains("in use"));
    assert!(is_free(&two[0]));
}

#[test]
fn busy_until_completed_cancelled_or_dropped() {
    let sources = [Cell::new(bitmap(MIB, 512)), Cell::new(bitmap(0, 512))];
    let sender = begin(&sources, Design::Precopy);
    assert!(sources.iter().all(|s| s.borrow().is_busy()));
    sources[0].borrow_mut().record(0..1);
    sender.cancel();
    assert!(sources.iter().all(is_free));
    assert_eq!(sources[0].borrow().bits().count(), 1);
    drop(begin(&sources, Design::Precopy));
    assert!(sources.iter().all(is_free));
    begin(&sources, Design::Precopy).complete().unwrap();
    assert!(sources.iter().all(is_free));
}

#[test]
fn what_is_pending_bounds_what_is_sent() {
    let len = 100 * MIB + 512;
    let sources = [Cell::new(bitmap(len, 512)), Cell::new(bitmap(0, 512))];
    sources[0].borrow_mut().record(5 * MIB..6 * MIB);
    sources[0].borrow_mut().record(len - 1..len);
    let mut sender = begin(&sources, Design::Precopy);
    let check = |sender: &mut Sender<_, _>, chunks, budget| {
        let pending = sender.pending();
        assert_eq!(pending.chunks, chunks);
        let before = sender.offset();
        let left = sender.pass(budget).unwrap();
        // Head, end of list and footer of the PART.
        let sent = (sender.offset() - before).saturating_sub(11);
        assert!(
            sent <= pending.bytes - left.bytes,
            "{sent}, {pending:?}, {left:?}"
        );
        left
    };
    // 26 chunks of 4 MiB, two of them dirty, and that of the empty disk.
    let left = check(&mut sender, 27, u64::MAX);
    assert_eq!(left, Pending::default());
    check(&mut sender, 0, u64::MAX);
    let before = sender.offset();
    sender.pass(u64::MAX).unwrap();
    assert_eq!(sender.offset(), before, "nothing to send, no section");

    sources[0].borrow_mut().record(0..1);
    sources[0].borrow_mut().record(5 * MIB..6 * MIB); // It is dirty already.
    sources[0]
        .borrow_mut()
        .load_zeros(8 * MIB..12 * MIB)
        .unwrap();
    check(&mut sender, 2, u64::MAX);

    // One chunk goes whatever the budget; the next pass goes on behind it.
    for i in 0..5 {
        sources[0]
            .borrow_mut()
            .record(4 * i * MIB..4 * i * MIB + 1024);
        sources[0]
            .borrow_mut()
            .load_zeros(4 * i * MIB..4 * (i + 1) * MIB)
            .unwrap();
    }
    for left in (1..=5).rev() {
        assert_eq!(check(&mut sender, left, 0).chunks, left - 1);
        // What is touched behind waits for its turn.
        if left == 4 {
            sources[0].borrow_mut().load_zeros(0..4 * MIB).unwrap();
            sources[0]
                .borrow_mut()
                .load_zeros(8 * MIB..12 * MIB)
                .unwrap();
            assert_eq!(sender.pending().chunks, 4);
            assert_eq!(check(&mut sender, 4, 1570).chunks, 2);
            break;
        }
    }
    assert_eq!(check(&mut sender, 2, 20_000).chunks, 0);
    assert_eq!(sender.precopy(0, 3).unwrap(), Pending::default());
}

#[test]
fn precopy_ends_when_little_enough_is_left() {
    let sources = [Cell::new(bitmap(100 * MIB, 512))];
    let mut sender = begin(&sources, Design::Precopy);
    let all = sender.pending();
    let before = sender.offset();
    assert_eq!(sender.precopy(all.bytes, 5).unwrap(), all);
    assert_eq!(sender.precopy(0, 0).unwrap(), all);
    assert_eq!(sender.offset(), before);
    assert_eq!(
        sender.precopy(all.bytes - 1, 5).unwrap(),
        Pending::default()
    );
}

/// A bitmap, and what was marked outside of it.
struct Tracked {
    bitmap: Mutex<DirtyBitmap>,
    marks: Mutex<Vec<std::ops::Range<u64>>>,
}

impl Source for Tracked {
    fn with<T>(&self, f: impl FnOnce(&mut DirtyBitmap) -> T) -> T {
        self.bitmap.with(f)
    }

    fn refresh(&self) {
        for range in self.marks.lock().unwrap().drain(..) {
            self.bitmap.lock().unwrap().record(range);
        }
    }
}

/// A transport that dirties the bitmap from its second write on.
struct Late<'a> {
    source: &'a Tracked,
    writes: u64,
    /// It does so by marks.
    marks: bool,
}

impl io::Write for Late<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        // The sender has no lock now.
        let mut bitmap = self.source.bitmap.try_lock().unwrap();
        let range = 0..512 * self.writes;
        if self.writes > 1 && self.marks {
            self.source.marks.lock().unwrap().push(range);
        } else if self.writes > 1 {
            bitmap.record(range);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn changes_during_the_last_pass_are_refused() {
    let source = Tracked {
        bitmap: Mutex::new(bitmap(1 << 30, 512)),
        marks: Mutex::default(),
    };
    for (style, marks) in [
        (Style::Qemu, false),
        (Style::Qemu, true),
        (Style::Compact, false),
        (Style::Compact, true),
    ] {
        source.with(|b| b.reset(0..1 << 30)).unwrap();
        for i in 0..1 << 14 {
            source.with(|b| b.record(i << 16..(i << 16) + 1));
        }
        let outgoing = vec![Outgoing::new("n", "b", &source)];
        let options = SenderOptions {
            style,
            ..SenderOptions::default()
        };
        let late = Late {
            source: &source,
            writes: u64::from(style == Style::Compact),
            marks,
        };
        let sender = Sender::begin(late, outgoing, options).unwrap();
        assert_eq!(
            refusal(sender.complete()),
            "bitmap 'b' of node 'n' changed during the last pass: writers have to be held"
        );
        assert!(!source.with(|b| b.is_busy()));
    }
}

#[test]
fn nothing_is_called_complete_that_changed_meanwhile() {
    struct Count(usize);
    impl Source for (&Cell, &Mutex<Count>) {
        fn with<T>(&self, f: impl FnOnce(&mut DirtyBitmap) -> T) -> T {
            self.0.with(f)
        }

        fn refresh(&self) {
            let mut count = self.1.lock().unwrap();
            count.0 += 1;
            // At the start of the last pass, behind its bits, behind its end.
            if count.0 > 1 {
                self.0.borrow_mut().record(0..512 * count.0 as u64);
            }
        }
    }
    let source = Cell::new(bitmap(MIB, 512));
    let count = Mutex::new(Count(0));
    let outgoing = vec![Outgoing::new("n", "b", (&source, &count))];
    let mut out = Vec::new();
    let sender = Sender::begin(&mut out, outgoing, SenderOptions::default()).unwrap();
    assert!(refusal(sender.complete()).contains("held"));
    assert_eq!(count.lock().unwrap().0, 2);
    assert!(is_free(&source));
}

#[test]
fn a_resized_or_lost_bitmap_ends_the_stream() {
    type Spoil = fn(&mut DirtyBitmap);
    let spoil: [(Spoil, &str); 3] = [
        (|b| b.resize(2 * MIB).unwrap(), "has 2097152 now"),
        (DirtyBitmap::mark_inconsistent, "inconsistent"),
        (|b| b.unfollow(), "replaced"),
    ];
    for (spoil, want) in spoil {
        let sources = [Cell::new(bitmap(MIB, 512))];
        let mut sender = begin(&sources, Design::Precopy);
        spoil(&mut sources[0].borrow_mut());
        assert_eq!(sender.pending().chunks, 1);
        let why = refusal(sender.pass(u64::MAX));
        assert!(why.contains(want), "{why}");
        assert!(refusal(sender.pass(u64::MAX)).contains("earlier error"));
        assert!(refusal(sender.complete()).contains("earlier error"));
        assert!(is_free(&sources[0]));
    }
}

#[test]
fn each_step_in_its_turn() {
    let sources = [Cell::new(bitmap(MIB, 512))];
    let mut sender = begin(&sources, Design::Precopy);
    assert!(refusal(sender.switch_over()).contains("postcopy"));
    sender.complete().unwrap();
    let sender = begin(&sources, Design::Postcopy);
    assert!(refusal(sender.complete()).contains("switched over"));
    let mut sender = begin(&sources, Design::Postcopy);
    sender.switch_over().unwrap();
    assert!(refusal(sender.switch_over()).contains("once"));
    sender.complete().unwrap();
    assert!(is_free(&sources[0]));
}

#[test]
fn a_failing_transport_frees_the_bitmaps() {
    struct Full(usize);
    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let source = Arc::new(Mutex::new(bitmap(100 * MIB, 512)));
    source.lock().unwrap().record(0..100 * MIB);
    source.lock().unwrap().load_zeros(0..0).unwrap_err();
    let mut failures = 0;
    for room in (0..200_000).step_by(5_000) {
        let outgoing = vec![Outgoing::new("n", "b", Arc::clone(&source))];
        let options = SenderOptions::default();
        let done = Sender::begin(Full(room), outgoing, options).and_then(|mut sender| {
            sender.pass(10_000)?;
            sender.pass(u64::MAX)?;
            sender.complete()
        });
        failures += usize::from(matches!(done, Err(Error::Write { .. })));
        let b = source.lock().unwrap();
        assert!(!b.is_busy() && b.meta().is_none());
        assert!(b.bits().is_full());
    }
    assert!((2..39).contains(&failures), "{failures}");
}

#[test]
fn the_compact_form_is_one_section() {
    let sources = [Cell::new(bitmap(1 << 40, 65536)), Cell::new(bitmap(0, 512))];
    sources[0].borrow_mut().record(1 << 39..(1 << 39) + 1);
    sources[0].borrow_mut().set_persistent(true);
    sources[1].borrow_mut().disable().unwrap();
    let compact = |sources: &[Cell], describe| {
        let names = ["x", "y"].iter().zip(sources);
        let outgoing = names.map(|(name, source)| Outgoing::new("n", *name, source));
        let options = SenderOptions {
            style: Style::Compact,
            describe,
            ..SenderOptions::default()
        };
        let sender = Sender::begin(Vec::new(), outgoing.collect(), options).unwrap();
        sender.complete().unwrap()
    };
    let head = b"QEVM\0\0\0\x03\x07\0\0\0\0\x04\0\0\0\x01\x0cdirty-bitmap\0\0\0\0\0\0\0\x01";
    let want: &[&[u8]] = &[
        head,
        b"\x1c\x01n\x01x\0\x01\0\0\x03",
        b"\x42\0\0\0\0\0\0\0\0\x80\0\0\0",
        b"\x40\0\0\0\0\x40\0\0\0\0\0\x20\0\0\0\0\0\0\0\0\x08\x01\0\0\0\0\0\0\0",
        b"\x20",
        b"\x14\x01y\0\0\x02\0\0\x42\0\0\0\0\0\0\0\0\0\0\0\0\x21",
        b"\x7e\0\0\0\x01\0",
    ];
    assert_eq!(compact(&sources, false), want.concat());
    assert!(sources.iter().all(is_free));
    let none = [head as &[u8], b"\x01\x7e\0\0\0\x01\0", b"\x06\0\0\0\x02{}"];
    assert_eq!(compact(&[], true), none.concat());

    let mut options = SenderOptions {
        style: Style::Compact,
        ..SenderOptions::default()
    };
    let outgoing = || vec![Outgoing::new("n", "b", &sources[0])];
    let mut sender = Sender::begin(Vec::new(), outgoing(), options.clone()).unwrap();
    assert!(refusal(sender.pass(1)).contains("at rest"));
    assert!(refusal(sender.switch_over()).contains("postcopy"));
    sender.complete().unwrap();
    options.design = Design::Postcopy;
    assert!(refusal(Sender::begin(Vec::new(), outgoing(), options)).contains("at rest"));
    assert!(is_free(&sources[0]));
}
