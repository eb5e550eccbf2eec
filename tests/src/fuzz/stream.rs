//! Migration streams: read for what is in them, and applied to an image in memory.

use std::{fs, sync::Arc};

use hbitmap::HBitmap;
use migration::{
    AliasMap, BitmapFlags, Chunk, ChunkWriter, Item, Limits, Node, Outcome, Received, Receiver,
    SectionKind, StreamReader, StreamWriter, write_bits,
};
use qcow2::{
    Image, OpenOptions,
    image::create::{CreateOptions, create_in},
    io::{LockMode, memory::MemoryStorage},
};

use super::{Input, image::checked};
use crate::testdata;

/// What the receiver of a target may take.
const MEMORY: usize = 64 << 20;
/// Bitmaps with more chunks of 8192 granules than this are not written again.
const FEW: u64 = 1 << 14;
/// Sizes of the disk that a stream is applied to; the first byte of the input chooses.
const SIZES: [u64; 6] = [1 << 20, 10 << 20, (10 << 20) + 512, 3 << 20, 3 << 40, 0];

/// Reads `data` as a stream: every item, and the bitmaps in it. What was accepted is
/// written again and must read the same.
pub fn stream(data: &[u8]) {
    let (outcome, _) = receive(data, Receiver::survey(limits()));
    for received in &outcome.complete {
        again(received);
    }
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.memory = MEMORY;
    limits
}

/// Whether the reader came to the end without a fault, beside what arrived.
fn receive(data: &[u8], mut receiver: Receiver) -> (Outcome, bool) {
    let mut reader = StreamReader::with_limits(data, limits());
    let mut whole = false;
    let mut last = 0;
    for _ in 0..=data.len() {
        let offset = reader.offset();
        assert!(last <= offset && offset <= data.len() as u64);
        let at = match reader.next() {
            Ok(Some(item)) => {
                looked_at(&item);
                receiver.apply(&item, offset)
            }
            Ok(None) => {
                whole = true;
                break;
            }
            Err(e) => {
                assert!(e.offset().is_none_or(|at| at <= data.len() as u64), "{e}");
                let _ = e.to_string();
                break;
            }
        };
        if at.is_err() {
            break;
        }
        assert_eq!(reader.item_offset(), offset);
        last = offset;
    }
    if !whole {
        assert!(
            !matches!(reader.next(), Ok(Some(_))),
            "an item behind a fault"
        );
    }
    // Sparse bits take no more than they were sent in, but for a fixed part of each.
    assert!(receiver.memory() <= MEMORY + data.len());
    (receiver.finish(), whole)
}

/// What every chunk that is handed out keeps to.
fn looked_at(item: &Item<'_>) {
    let _ = format!("{item:?}").len();
    if let Item::Chunk { chunk, .. } = item {
        match chunk {
            Chunk::Start { granularity, .. } => {
                assert!((512..=1 << 31).contains(&granularity.bytes()));
            }
            Chunk::Bits(sectors, data) => {
                assert!((1..=10_240).contains(&data.len()));
                assert!(sectors.first + u64::from(sectors.count) <= 1 << 55);
            }
            Chunk::Zeroes(sectors) => {
                assert!(sectors.first + u64::from(sectors.count) <= 1 << 55);
            }
            _ => {}
        }
    }
}

/// Writes a bitmap that arrived, as QEMU would, and reads it.
fn again(received: &Received) {
    let bits = received.bitmap.bits();
    if bits.granules() / 8192 > FEW {
        return;
    }
    let bytes = written(bits, received.flags);
    let (outcome, whole) = receive(&bytes, Receiver::survey(limits()));
    assert!(
        whole && outcome.whole && outcome.lost.is_empty(),
        "{:?}",
        outcome.lost
    );
    let [copy] = outcome.complete.as_slice() else {
        panic!("one bitmap was written, {} arrived", outcome.complete.len());
    };
    assert_eq!(copy.flags, received.flags);
    assert_eq!(copy.bitmap.bits().sha256(), bits.sha256());
    assert!(copy.bitmap.bits().ranges().eq(bits.ranges()));
}

fn written(bits: &HBitmap, flags: BitmapFlags) -> Vec<u8> {
    let mut w = StreamWriter::new(Vec::new(), "").unwrap();
    let mut chunks = ChunkWriter::new();
    w.begin(SectionKind::Full, 1, "dirty-bitmap", 0, 1).unwrap();
    let out = w.content();
    chunks
        .start(out, "n", "b", bits.granularity(), flags)
        .unwrap();
    write_bits(out, &mut chunks, "n", "b", bits, 0..bits.len()).unwrap();
    chunks.complete(out, "n", "b").unwrap();
    chunks.end_of_list(out).unwrap();
    w.end().unwrap();
    w.finish(false).unwrap()
}

/// Applies `data`, but for its first byte, to a fresh image whose disk has one of
/// `SIZES`, as `migrate-bitmaps --apply` does: everything or nothing.
pub fn apply(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let size = SIZES[usize::from(choice) % SIZES.len()];
    let storage = empty_image(size);
    let before = storage.to_vec(1 << 22).unwrap();
    let mut image = open(&storage);
    let node = Node::new("n0", image.virtual_size());
    let receiver = Receiver::single(node, AliasMap::identity(), limits());
    let (outcome, whole) = receive(data, receiver);
    let stored = if whole && outcome.whole && outcome.lost.is_empty() {
        store(&mut image, &outcome)
    } else {
        false
    };
    drop(image);
    if !stored {
        let after = storage.to_vec(1 << 22).unwrap();
        assert!(after == before, "a refused stream wrote");
        return;
    }
    let image = open(&storage);
    for received in &outcome.complete {
        let name = received.bitmap.name();
        let bits = image.load_bitmap(name).unwrap();
        assert_eq!(bits.granularity(), received.bitmap.bits().granularity());
        assert_eq!(bits.sha256(), received.bitmap.bits().sha256(), "{name}");
    }
    assert_eq!(checked(&storage), Some((0, 0)));
}

/// Stores what arrived with one switch; `false` if the image can't hold it.
fn store(image: &mut Image, outcome: &Outcome) -> bool {
    if outcome.complete.is_empty() {
        return false;
    }
    let mut edit = image.edit_bitmaps().unwrap();
    for received in &outcome.complete {
        let name = received.bitmap.name().as_bytes();
        let bits = Arc::new(received.bitmap.bits().clone());
        if edit
            .add_with_bits(name, bits, received.flags.enabled)
            .is_err()
        {
            return false;
        }
    }
    edit.commit().is_ok()
}

fn empty_image(size: u64) -> MemoryStorage {
    let storage = MemoryStorage::from_bytes(&[]);
    let options = CreateOptions {
        size: Some(size),
        ..CreateOptions::default()
    };
    create_in(&storage, None, &options).unwrap();
    storage
}

fn open(storage: &MemoryStorage) -> Image {
    OpenOptions::new()
        .writable(true)
        .lock(LockMode::ReadWrite)
        .open_storage("fuzz", Arc::new(storage.clone()))
        .unwrap()
}

/// Streams that are small enough.
fn streams(limit: usize) -> Vec<Input> {
    testdata::streams()
        .into_iter()
        .map(|recorded| (recorded.name, fs::read(recorded.file).unwrap()))
        .filter(|(_, bytes)| bytes.len() <= limit)
        .collect()
}

pub(super) fn seeds() -> Vec<Input> {
    streams(64 << 10)
}

pub(super) fn apply_seeds() -> Vec<Input> {
    let mut seeds = Vec::new();
    for (name, bytes) in streams(8 << 10) {
        for choice in 0..SIZES.len() {
            let mut seed = vec![choice as u8];
            seed.extend(&bytes);
            seeds.push((format!("{name}, size {choice}"), seed));
        }
    }
    seeds
}
