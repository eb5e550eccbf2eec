//! The images in `testdata/` with random damage: whatever is asked is answered, with what
//! was read or with an error for a part of the disk.

use std::path::Path;

use super::*;
use crate::{
    check::{Finding, Referrer, Visitor, walk},
    disk::RawDisk,
};

/// Bytes of an image's disk that are read.
const READ: u64 = 4 << 20;

/// Metadata of an image, and compressed data.
#[derive(Default)]
struct Places(Vec<(u64, u64)>);

impl Visitor for Places {
    fn reference(&mut self, by: Referrer, offset: HostOffset, bytes: u64, _: u64) {
        if matches!(
            by,
            Referrer::ActiveL1
                | Referrer::SnapshotL1
                | Referrer::L2Table { .. }
                | Referrer::Compressed { .. }
                | Referrer::SnapshotTable
        ) {
            self.0.push((offset.get(), bytes.min(256)));
        }
    }

    fn problem(&mut self, _: Finding) {}
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit.max(1)
    }

    /// Changes some numbers, mostly to others that could stand there.
    fn damage(&mut self, storage: &MemoryStorage, places: &[(u64, u64)]) {
        for _ in 0..=self.below(4) {
            let at = self.below(places.len() as u64);
            let (offset, bytes) = places[usize::try_from(at).unwrap()];
            let at = offset + self.below(bytes) / 8 * 8;
            let mut old = [0; 8];
            storage.read_padded(at, &mut old).unwrap();
            let old = u64::from_be_bytes(old);
            let new = match self.below(6) {
                0 => old ^ 1 << self.below(64),
                1 => self.below(storage.size().unwrap()) << 9 >> self.below(9),
                2 => old.wrapping_add(512 << self.below(9)),
                3 => 1 << 62 | self.below(1 << 62),
                4 => self.below(u64::MAX),
                _ => u64::MAX,
            };
            put(storage, at, new);
        }
    }
}

fn images() -> impl Iterator<Item = (String, MemoryStorage)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/qcow2");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "qcow2"))
        .collect();
    paths.sort();
    assert!(paths.len() > 20);
    paths.into_iter().map(|path| {
        let storage = MemoryStorage::load(&path).unwrap();
        (path.display().to_string(), storage)
    })
}

fn opened(storage: &MemoryStorage) -> Option<Arc<Image>> {
    let image = OpenOptions::new()
        .open_storage("image", Arc::new(storage.clone()))
        .ok()?;
    let behind = RawDisk::new(
        "behind",
        Arc::new(MemoryStorage::from_bytes(&[0xbb; 70_000])),
    );
    let image = match image.backing_name() {
        Some(_) => image.with_backing(Arc::new(behind.unwrap())),
        None => image,
    };
    let data = MemoryStorage::from_bytes(&[0xdd; 200_000]);
    Some(Arc::new(image.with_data_file(Arc::new(data))))
}

/// Asks for everything; returns how many parts were told and read.
fn ask(disk: &(impl Disk + ?Sized), what: &str) -> (usize, u64) {
    let (mut at, mut count, mut read) = (0, 0, 0);
    for extent in disk.extents(0..u64::MAX) {
        let (start, length, kind) = match extent {
            Ok(extent) => (extent.start.get(), extent.length, Some(extent.kind)),
            Err(Error::Guest { start, length, .. }) => (start.get(), length, None),
            Err(other) => panic!("{what}: {other}"),
        };
        assert_eq!(start, at, "{what}");
        assert!(length > 0, "{what}");
        at = start + length;
        count += 1;
        let part = usize::try_from(length.min(100_000)).unwrap();
        let mut bytes = vec![0xee; part];
        match (disk.read(start, &mut bytes), kind) {
            (Ok(()), Some(ExtentKind::Data)) => read += length,
            (Ok(()), Some(_)) => assert!(bytes.iter().all(|byte| *byte == 0), "{what}"),
            (Err(Error::Guest { start: bad, .. }), _) if bad.get() >= start => {}
            (other, kind) => panic!("{what}: {kind:?} {other:?}"),
        }
        if count > 2000 || read > READ {
            return (count, read);
        }
    }
    assert_eq!(at, disk.size(), "{what}");
    (count, read)
}

#[test]
fn damage_is_an_error_for_a_part_of_the_disk() {
    let mut random = Random(1);
    let mut told = 0;
    for (name, storage) in images() {
        let Some(image) = opened(&storage) else {
            continue;
        };
        let mut places = Places::default();
        walk(&image.metadata(), &mut places).unwrap();
        if places.0.is_empty() {
            continue;
        }
        for round in 0..150 {
            let damaged = storage.fork();
            random.damage(&damaged, &places.0);
            let Some(image) = opened(&damaged) else {
                continue;
            };
            let what = format!("{name}, round {round}");
            told += ask(&*image, &what).0;
            for snapshot in image.snapshots().unwrap_or_default() {
                if let Ok(disk) = SnapshotDisk::new(&image, snapshot) {
                    told += ask(&disk, &what).0;
                }
            }
        }
    }
    assert!(told > 10_000, "{told}");
}

#[test]
fn a_failing_file_is_an_error_for_the_part_it_holds() {
    /// Fails to read beyond some place.
    #[derive(Debug)]
    struct Failing(MemoryStorage, u64);
    impl positioned_io::ReadAt for Failing {
        fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<usize> {
            if offset + out.len() as u64 > self.1 {
                return Err(std::io::Error::from_raw_os_error(5));
            }
            positioned_io::ReadAt::read_at(&self.0, offset, out)
        }
    }
    impl Storage for Failing {
        fn size(&self) -> std::io::Result<u64> {
            self.0.size()
        }
        fn write_all_at(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
            unreachable!()
        }
        fn sync(&self) -> std::io::Result<()> {
            unreachable!()
        }
        fn set_len(&self, _: u64) -> std::io::Result<()> {
            unreachable!()
        }
        fn zero(&self, _: std::ops::Range<u64>) -> std::io::Result<()> {
            unreachable!()
        }
        fn punch_hole(&self, _: std::ops::Range<u64>) -> std::io::Result<()> {
            unreachable!()
        }
        fn can_grow(&self) -> bool {
            false
        }
        fn allocated_bytes(&self) -> std::io::Result<u64> {
            self.0.allocated_bytes()
        }
    }
    let (storage, table, data) = patterned(&preallocated(5));
    let open = |limit| {
        let storage = Failing(storage.clone(), limit);
        OpenOptions::new()
            .open_storage("image", Arc::new(storage))
            .unwrap()
    };
    let image = open(data + 3 * CLUSTER);
    let expected = [Some(1), Some(2), Some(3), None, None];
    assert_eq!(first_bytes(&image), expected);
    assert_eq!(told(&image).len(), 1);
    // The L2 table itself.
    let image = open(table);
    assert_eq!(first_bytes(&image), [None; 5]);
    let told = told(&image);
    assert_eq!((told[0].0, told[0].1), (0, 5 * CLUSTER));
    let message = told[0].2.clone().unwrap_err();
    assert_eq!(message, format!("reading L2 entries at {table:#x} failed"));
}
