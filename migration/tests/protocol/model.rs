//! Random histories against a model: two bitmaps that everything is done to as well.

use std::cell::RefCell;

use hbitmap::{DirtyBitmap, Granularity, HBitmap, State};
use migration::{
    AliasMap, Design, Item, Limits, Node, Outcome, Outgoing, Receiver, Sender, SenderOptions,
    StreamReader, Style,
};

use crate::rng::Rng;

/// Alias of each node, and bytes of its disk.
type Disk = (&'static str, u64);

struct Bitmap {
    disk: Disk,
    name: String,
    enabled: bool,
    persistent: bool,
    source: RefCell<DirtyBitmap>,
    /// What has to be at the source.
    want: RefCell<HBitmap>,
}

const LENS: [u64; 9] = [
    0,
    1,
    512,
    1000,
    (4 << 20) - 512,
    4 << 20,
    (10 << 20) + 512,
    (100 << 20) + 1536,
    3 << 40,
];
const GRANULARITIES: [u64; 7] = [512, 4096, 65536, 1 << 20, 1 << 27, 1 << 28, 1 << 31];

/// Few bits of what would be too many for a test.
fn fits(len: u64, granularity: u64) -> bool {
    len / granularity < 1 << 22
}

fn bitmaps(rng: &mut Rng) -> Vec<Bitmap> {
    let mut all = Vec::new();
    for node in ["n0", "n1", "n2"]
        .into_iter()
        .take(1 + rng.below(3) as usize)
    {
        let len = rng.pick(&LENS);
        for i in 0..rng.below(3) {
            let granularity = rng.pick(&GRANULARITIES);
            if !fits(len, granularity) {
                continue;
            }
            let bits = HBitmap::new(len, Granularity::from_bytes(granularity).unwrap()).unwrap();
            let name = format!("b{i}");
            let mut source = DirtyBitmap::new(&name, bits.clone());
            let (enabled, persistent) = (!rng.one_in(3), !rng.one_in(3));
            source.set_persistent(persistent);
            let mut want = bits;
            for _ in 0..rng.below(20) {
                let range = rng.range(len);
                want.set(range.clone());
                source.record(range);
            }
            if rng.one_in(10) {
                want.set(0..len);
                source.record(0..len);
            }
            if !enabled {
                source.disable().unwrap();
            }
            all.push(Bitmap {
                disk: (node, len),
                name,
                enabled,
                persistent,
                source: RefCell::new(source),
                want: RefCell::new(want),
            });
        }
    }
    all
}

impl Bitmap {
    /// A write by the guest, or bits cleared by whoever has the bitmap.
    fn change(&self, rng: &mut Rng) {
        let (mut source, mut want) = (self.source.borrow_mut(), self.want.borrow_mut());
        let range = rng.range(self.disk.1);
        if rng.one_in(4) {
            let align = want.linear_align();
            let len = self.disk.1;
            // Whole words, and the end of the disk now and then.
            let end = range.end.next_multiple_of(align).min(len);
            let range = (range.start / align * align).min(end)..end;
            source.load_zeros(range.clone()).unwrap();
            want.load_zeros(range).unwrap();
        } else {
            source.record(range.clone());
            if self.enabled {
                want.set(range);
            }
        }
    }

    /// It is its owner's again, as it has to be.
    fn check_source(&self) {
        let mut source = self.source.borrow_mut();
        assert!(*source.bits() == *self.want.borrow());
        assert!(!source.is_busy() && source.meta().is_none());
        assert_eq!(source.state() == State::Recording, self.enabled);
        source.clear().unwrap();
    }
}

fn sender(
    bitmaps: &[Bitmap],
    design: Design,
    style: Style,
) -> Sender<Vec<u8>, &RefCell<DirtyBitmap>> {
    let outgoing = bitmaps
        .iter()
        .map(|b| Outgoing::new(b.disk.0, &b.name, &b.source))
        .collect();
    let options = SenderOptions {
        design,
        style,
        ..SenderOptions::default()
    };
    Sender::begin(Vec::new(), outgoing, options).unwrap()
}

fn receiver(bitmaps: &[Bitmap]) -> Receiver {
    let nodes = bitmaps.iter().map(|b| Node::new(b.disk.0, b.disk.1));
    Receiver::new(nodes.collect(), AliasMap::identity(), Limits::default())
}

fn check_outcome(bitmaps: &[Bitmap], outcome: &Outcome, want: &[HBitmap]) {
    assert_eq!(outcome.lost, []);
    assert!(outcome.whole);
    assert_eq!(outcome.complete.len(), bitmaps.len());
    for ((received, b), want) in outcome.complete.iter().zip(bitmaps).zip(want) {
        let bitmap = &received.bitmap;
        assert_eq!((&*received.node, bitmap.name()), (b.disk.0, &*b.name));
        assert!(bitmap.bits() == want, "{} {:?}", b.name, b.disk);
        assert_eq!(bitmap.bits().sha256(), want.sha256());
        assert_eq!(bitmap.state() == State::Recording, b.enabled);
        assert!(!bitmap.is_busy());
        assert_eq!(received.persistent, b.persistent);
        assert_eq!(received.flags.enabled, b.enabled);
    }
}

#[test]
fn precopy_sends_what_is_there_at_the_end() {
    for seed in 0..1000 {
        let rng = &mut Rng(seed);
        let bitmaps = bitmaps(rng);
        let mut sender = sender(&bitmaps, Design::Precopy, Style::Qemu);
        for _ in 0..rng.below(12) {
            for b in &bitmaps {
                for _ in 0..rng.below(4) {
                    b.change(rng);
                }
            }
            let budget = rng.pick(&[0, 1000, 5000, 50_000, u64::MAX]);
            sender.pass(budget).unwrap();
        }
        if rng.one_in(4) {
            sender.precopy(rng.below(10_000), 5).unwrap();
        }
        let stream = sender.complete().unwrap();
        check_stream(&bitmaps, &stream);
        let compact = self::sender(&bitmaps, Design::Precopy, Style::Compact);
        check_stream(&bitmaps, &compact.complete().unwrap());
        bitmaps.iter().for_each(Bitmap::check_source);
    }
}

/// What the source has arrives.
fn check_stream(bitmaps: &[Bitmap], stream: &[u8]) {
    let mut receiver = receiver(bitmaps);
    receiver.receive(&mut StreamReader::new(stream)).unwrap();
    let want: Vec<_> = bitmaps.iter().map(|b| b.want.borrow().clone()).collect();
    let outcome = receiver.finish();
    assert!(!outcome.switched_over);
    check_outcome(bitmaps, &outcome, &want);
}

#[test]
fn postcopy_keeps_what_is_written_on_both_sides() {
    for seed in 0..1000 {
        let rng = &mut Rng(1000 + seed);
        let bitmaps = bitmaps(rng);
        let mut sender = sender(&bitmaps, Design::Postcopy, Style::Qemu);
        for _ in 0..rng.below(3) {
            bitmaps.iter().for_each(|b| b.change(rng));
            if rng.one_in(3) {
                sender.pass(rng.below(20_000)).unwrap();
            }
        }
        sender.switch_over().unwrap();
        while rng.one_in(3) {
            sender.pass(rng.below(20_000)).unwrap();
        }
        let stream = sender.complete().unwrap();

        let mut want: Vec<_> = bitmaps.iter().map(|b| b.want.borrow().clone()).collect();
        let mut receiver = receiver(&bitmaps);
        let mut reader = StreamReader::new(&stream[..]);
        let every = 1 + rng.below(40);
        loop {
            let offset = reader.offset();
            let Some(item) = reader.next().unwrap() else {
                break;
            };
            receiver.apply(&item, offset).unwrap();
            let turn = rng.one_in(every) || matches!(item, Item::Command(_));
            if receiver.switched_over() && turn {
                // A write here, maybe where bits are still to come.
                let disk = bitmaps.first().map_or(("none", 0), |b| b.disk);
                let range = rng.range(disk.1);
                let known = receiver.record(disk.0, range.clone()).is_ok();
                assert_eq!(known, !bitmaps.is_empty());
                for (want, b) in want.iter_mut().zip(&bitmaps) {
                    if b.disk.0 == disk.0 && b.enabled {
                        want.set(range.clone());
                    }
                }
            }
        }
        let outcome = receiver.finish();
        assert!(outcome.switched_over);
        check_outcome(&bitmaps, &outcome, &want);
        bitmaps.iter().for_each(Bitmap::check_source);
    }
}

#[test]
fn cancelling_leaves_the_source_as_it_was() {
    for seed in 0..400 {
        let rng = &mut Rng(2000 + seed);
        let bitmaps = bitmaps(rng);
        let design = rng.pick(&[Design::Precopy, Design::Postcopy]);
        let mut sender = sender(&bitmaps, design, Style::Qemu);
        for _ in 0..rng.below(5) {
            bitmaps.iter().for_each(|b| b.change(rng));
            sender.pass(rng.below(20_000)).unwrap();
        }
        if design == Design::Postcopy && rng.one_in(2) {
            sender.switch_over().unwrap();
        }
        bitmaps.iter().for_each(|b| b.change(rng));
        sender.cancel();
        bitmaps.iter().for_each(Bitmap::check_source);
    }
}
