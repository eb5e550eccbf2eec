//! Streams that end too early.

use std::cell::RefCell;

use hbitmap::{DirtyBitmap, Granularity, HBitmap};
use migration::{
    AliasMap, Chunk, Design, Item, Limits, Loss, Node, Outgoing, Receiver, Sender, SenderOptions,
    StreamReader,
};

const MIB: u64 = 1 << 20;

fn stream(design: Design) -> Vec<u8> {
    let sources: Vec<_> = [512, 4096, 65536]
        .into_iter()
        .map(|granularity| {
            let granularity = Granularity::from_bytes(granularity).unwrap();
            let mut b = DirtyBitmap::new("b", HBitmap::new(9 * MIB, granularity).unwrap());
            b.record(MIB..2 * MIB);
            RefCell::new(b)
        })
        .collect();
    let outgoing = ["a", "b", "c"]
        .into_iter()
        .zip(&sources)
        .map(|(name, source)| Outgoing::new("n", name, source))
        .collect();
    let options = SenderOptions {
        design,
        ..SenderOptions::default()
    };
    let mut sender = Sender::begin(Vec::new(), outgoing, options).unwrap();
    if design == Design::Postcopy {
        sender.switch_over().unwrap();
    } else {
        sender.pass(1).unwrap();
        sources[0].borrow_mut().record(0..1);
    }
    sender.complete().unwrap()
}

/// Where each START and each COMPLETE ends.
fn milestones(stream: &[u8]) -> (Vec<u64>, Vec<u64>) {
    let (mut starts, mut completes) = (Vec::new(), Vec::new());
    let mut reader = StreamReader::new(stream);
    while let Some(item) = reader.next().unwrap() {
        let Item::Chunk { chunk, .. } = item else {
            continue;
        };
        let list = match chunk {
            Chunk::Start { .. } => &mut starts,
            Chunk::Complete => &mut completes,
            _ => continue,
        };
        list.push(reader.offset());
    }
    (starts, completes)
}

#[test]
fn cut_anywhere_only_what_is_incomplete_is_lost() {
    for design in [Design::Precopy, Design::Postcopy] {
        let stream = stream(design);
        let (starts, completes) = milestones(&stream);
        assert_eq!((starts.len(), completes.len()), (3, 3));
        for cut in 0..=stream.len() {
            let node = Node::new("n", 9 * MIB);
            let mut receiver = Receiver::new(vec![node], AliasMap::identity(), Limits::default());
            let result = receiver.receive(&mut StreamReader::new(&stream[..cut]));
            assert_eq!(result.is_ok(), cut == stream.len(), "{cut}");
            let outcome = receiver.finish();
            assert_eq!(outcome.whole, cut == stream.len(), "{cut}");
            let by = |ends: &[u64]| ends.iter().filter(|end| **end <= cut as u64).count();
            let (started, complete) = (by(&starts), by(&completes));
            let names: Vec<_> = outcome.complete.iter().map(|b| b.bitmap.name()).collect();
            assert_eq!(names, ["a", "b", "c"][..complete], "{cut}");
            for (i, received) in outcome.complete.iter().enumerate() {
                let first = design == Design::Precopy && i == 0;
                let bits = received.bitmap.bits();
                let dirty = MIB + if first { 512 } else { 0 };
                assert_eq!(bits.dirty_bytes(), dirty);
            }
            let lost: Vec<_> = outcome.lost.iter().map(|l| &*l.bitmap_alias).collect();
            assert_eq!(lost, ["a", "b", "c"][complete..started], "{cut}");
            for lost in &outcome.lost {
                assert_eq!(lost.reason, Loss::NotComplete);
                assert!(lost.offset <= cut as u64);
            }
        }
    }
}
