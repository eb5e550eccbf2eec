//! Writing images in memory, beside a plain array of bytes.

mod crash;
mod device;
mod hostile;
mod model;

use std::{ops::Range, sync::Arc};

use hbitmap::{Granularity, HBitmap};

use super::*;
use crate::{
    OpenOptions,
    bitmap::BitmapState,
    check::{CheckOptions, CheckReport, Severity, check},
    disk::RawDisk,
    format::Incompatible,
    image::create::{self, CreateOptions, Version, create_in},
    io::memory::MemoryStorage,
};

/// Random numbers, the same ones each time.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    /// Numbers for one test; others with each value of the variable `SEED`.
    fn of(test: u64) -> Self {
        let seed = std::env::var("SEED").map_or(0, |seed| seed.parse().unwrap());
        Self(test + seed * 1_000_003)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.below(list.len() as u64)).unwrap()].clone()
    }
}

/// An image in memory with all that belongs to it.
#[derive(Clone, Debug)]
struct Rig {
    image: MemoryStorage,
    data: Option<MemoryStorage>,
    base: Option<MemoryStorage>,
}

/// Granularities of the bitmaps that every image of version 3 gets.
const GRANULARITIES: [u64; 2] = [512, 65536];

impl Rig {
    /// A new image with these options and two bitmaps that record, and over a raw file
    /// if they name a backing file.
    fn new(options: &CreateOptions, base: Option<&[u8]>) -> Self {
        let data = options.data_file.is_some().then(MemoryStorage::default);
        Self::within(MemoryStorage::default(), data, options, base)
    }

    /// The same in storages that are there.
    fn within(
        image: MemoryStorage,
        data: Option<MemoryStorage>,
        options: &CreateOptions,
        base: Option<&[u8]>,
    ) -> Self {
        let mut options = options.clone();
        let base = base.map(MemoryStorage::from_bytes);
        if base.is_some() {
            options.backing = Some(create::Backing {
                file: b"base".to_vec(),
                format: Some(b"raw".to_vec()),
                size: None,
            });
        }
        let data_file = data.as_ref().map(|data| data as &dyn Storage);
        create_in(&image, data_file, &options).unwrap();
        let rig = Self { image, data, base };
        if options.version == Version::V3 {
            let mut image = rig.open();
            let mut edit = image.edit_bitmaps().unwrap();
            for granularity in GRANULARITIES {
                let name = format!("of {granularity}");
                edit.add(name.as_bytes(), granularity, true).unwrap();
            }
            edit.add(b"disabled", 4096, false).unwrap();
            edit.commit().unwrap();
        }
        rig
    }

    fn open(&self) -> Image {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Image> {
        let image = OpenOptions::new()
            .writable(true)
            .open_storage("image", Arc::new(self.image.clone()))?;
        let image = match &self.data {
            Some(data) => image.with_data_file(Arc::new(data.clone())),
            None => image,
        };
        Ok(match &self.base {
            Some(base) => {
                let base = RawDisk::new("base", Arc::new(base.clone())).unwrap();
                image.with_backing(Arc::new(base))
            }
            None => image,
        })
    }

    fn writer(&self) -> GuestWriter {
        self.open().into_writer().unwrap()
    }

    /// With storage of its own.
    fn fork(&self) -> Self {
        Self {
            image: self.image.fork(),
            data: self.data.as_ref().map(MemoryStorage::fork),
            base: self.base.clone(),
        }
    }

    /// What the guest reads.
    fn bytes(&self) -> Vec<u8> {
        read_all(&self.open())
    }

    /// The report of a check, and what is worse than a leak.
    fn check(&self) -> (CheckReport, Vec<String>) {
        let image = self.open();
        let mut worse = Vec::new();
        let report = check(&image.metadata(), CheckOptions::default(), &mut |finding| {
            if finding.severity() != Severity::Leak {
                worse.push(finding.to_string());
            }
        });
        (report.unwrap(), worse)
    }

    fn assert_clean(&self, what: &str) {
        let (report, worse) = self.check();
        assert!(worse.is_empty(), "{what}: {worse:#?}");
        assert_eq!(report.leaks, 0, "{what}");
    }

    /// Names, states and bits of the bitmaps.
    fn bitmaps(&self) -> Vec<(String, BitmapState, Option<HBitmap>)> {
        let image = self.open();
        let bitmaps = image.bitmaps().unwrap();
        let all = bitmaps.iter(&image).map(|bitmap| {
            let bits = bitmap.state().is_valid().then(|| bitmap.load().unwrap());
            (bitmap.name_lossy(), bitmap.state(), bits)
        });
        all.collect()
    }
}

fn read_all(disk: &(impl Disk + ?Sized)) -> Vec<u8> {
    let mut bytes = vec![0xee; usize::try_from(disk.size()).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// What the disk should hold, and the bitmaps.
#[derive(Clone, Debug)]
struct Model {
    bytes: Vec<u8>,
    /// Bytes of what is discarded whole.
    unit: u64,
    /// Discards do nothing.
    no_discard: bool,
    written: Vec<HBitmap>,
}

impl Model {
    fn of(rig: &Rig) -> Self {
        let image = rig.open();
        let (geometry, size) = (image.geometry(), image.virtual_size());
        let v2 = image.header().version < 3;
        let bits = |granularity| {
            let granularity = Granularity::from_bytes(granularity).unwrap();
            HBitmap::new(size, granularity).unwrap()
        };
        Self {
            bytes: rig.bytes(),
            unit: match geometry.extended_l2() {
                true => geometry.cluster_size() / 32,
                false => geometry.cluster_size(),
            },
            no_discard: v2 && rig.base.is_some(),
            written: match rig.bitmaps().first() {
                Some((name, ..)) if name == "of 512" => GRANULARITIES.map(bits).to_vec(),
                _ => Vec::new(),
            },
        }
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn fill(&mut self, range: Range<u64>, with: u8) {
        let index = |at| usize::try_from(at).unwrap();
        self.bytes[index(range.start)..index(range.end)].fill(with);
    }

    /// Does `op` here.
    fn apply(&mut self, op: &Op) {
        let range = op.range();
        for bits in &mut self.written {
            bits.set(range.clone());
        }
        match op {
            Op::Write(range, byte) => self.fill(range.clone(), *byte),
            Op::Pack(range, seed) => {
                let at = usize::try_from(range.start).unwrap();
                let content = content(range, *seed);
                self.bytes[at..at + content.len()].copy_from_slice(&content);
            }
            Op::Zero(range, _) => self.fill(range.clone(), 0),
            Op::Discard(range) if !self.no_discard => {
                let start = range.start.next_multiple_of(self.unit);
                let end = match range.end == self.size() {
                    true => range.end,
                    false => range.end / self.unit * self.unit,
                };
                self.fill(start.min(end)..end, 0);
            }
            Op::Discard(_) | Op::Flush => {}
        }
    }

    /// The image must be this, with bitmaps that are right and nothing leaked.
    fn assert_is(&self, rig: &Rig, what: &str) {
        rig.assert_clean(what);
        assert!(rig.bytes() == self.bytes, "{what}: other bytes");
        let bitmaps = rig.bitmaps();
        for (bits, (name, state, stored)) in self.written.iter().zip(&bitmaps) {
            assert_eq!(*state, BitmapState::Recording, "{what}: {name}");
            assert!(stored.as_ref() == Some(bits), "{what}: {name}");
        }
        if let Some((name, state, stored)) = bitmaps.get(2) {
            assert_eq!(*state, BitmapState::Disabled, "{what}: {name}");
            assert_eq!(stored.as_ref().unwrap().count(), 0, "{what}: {name}");
        }
    }
}

/// Bytes that can be compressed, some more, some less, some not at all.
fn content(range: &Range<u64>, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let noise = random.pick(&[1, 20, 45, 70, 100]) * 512 / 100;
    let mut bytes = vec![7; usize::try_from(range.end - range.start).unwrap()];
    for sector in bytes.chunks_mut(512) {
        let noise = noise.min(sector.len());
        for word in sector[..noise].chunks_mut(8) {
            let value = random.below(u64::MAX).to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        }
    }
    bytes
}

/// Something that a guest does.
#[derive(Clone, Debug)]
enum Op {
    Write(Range<u64>, u8),
    /// Whole clusters, compressed.
    Pack(Range<u64>, u64),
    Zero(Range<u64>, bool),
    Discard(Range<u64>),
    Flush,
}

impl Op {
    fn range(&self) -> Range<u64> {
        match self {
            Self::Write(range, _)
            | Self::Pack(range, _)
            | Self::Zero(range, _)
            | Self::Discard(range) => range.clone(),
            Self::Flush => 0..0,
        }
    }

    fn random(random: &mut Random, size: u64, cluster: u64) -> Self {
        let align = random.pick(&[1, 512, 512, cluster]);
        let start = random.below(size) / align * align;
        let most = random.pick(&[512, cluster, cluster * 3, size / 2]);
        let len = (1 + random.below(most)).next_multiple_of(align);
        let range = start..size.min(start + len);
        let start_of = range.start / cluster * cluster;
        let most = if cluster < 1 << 17 { 3 * cluster } else { 1 };
        let end_of = range.end.min(start_of + most);
        let whole = start_of..end_of.next_multiple_of(cluster).min(size);
        match random.below(15) {
            12..=14 => Self::Pack(whole, 1 + random.below(1 << 40)),
            0..=5 => Self::Write(range, u8::try_from(1 + random.below(255)).unwrap()),
            6 => Self::Zero(range, false),
            7 => Self::Zero(range, true),
            8 | 9 => Self::Discard(range),
            _ => Self::Flush,
        }
    }

    /// The same `by` bytes further on.
    fn moved(self, by: u64) -> Self {
        let on = |range: Range<u64>| range.start + by..range.end + by;
        match self {
            Self::Write(range, byte) => Self::Write(on(range), byte),
            Self::Pack(range, seed) => Self::Pack(on(range), seed),
            Self::Zero(range, unmap) => Self::Zero(on(range), unmap),
            Self::Discard(range) => Self::Discard(on(range)),
            Self::Flush => Self::Flush,
        }
    }

    /// Does it to an image.
    fn apply(&self, writer: &GuestWriter) -> Result<()> {
        match self {
            Self::Write(range, byte) => {
                let len = usize::try_from(range.end - range.start).unwrap();
                writer.write(range.start, &vec![*byte; len])
            }
            Self::Pack(range, seed) => {
                let content = content(range, *seed);
                match writer.write_compressed(range.start, &content) {
                    Err(Error::Unsupported(text)) if text.contains("external data file") => {
                        writer.write(range.start, &content)
                    }
                    other => other,
                }
            }
            Self::Zero(range, unmap) => writer.zero(range.clone(), *unmap),
            Self::Discard(range) => writer.discard(range.clone()),
            Self::Flush => writer.flush(),
        }
    }
}

/// Changes an image of such clusters in so many steps, and looks now and then whether it
/// is as it should be.
fn scribble(
    writer: &GuestWriter,
    model: &mut Model,
    random: &mut Random,
    (cluster, steps): (u64, u32),
    what: &str,
) {
    for step in 0..steps {
        let op = Op::random(random, model.size(), cluster);
        let what = format!("{what}, step {step}: {op:x?}");
        op.apply(writer).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        model.apply(&op);
        if step % 5 == 4 {
            assert!(read_all(writer) == model.bytes, "{what}");
        }
    }
}
