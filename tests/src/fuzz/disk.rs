//! The guest's disk of a whole image in memory: mapped, and read in several ways.

use std::{ops::Range, sync::Arc};

use qcow2::{
    Error, OpenOptions,
    crypt::Secret,
    disk::{Disk, DiskExt, ExtentKind, RawDisk},
    image::SnapshotDisk,
    io::memory::MemoryStorage,
};

/// Extents that are looked at, of each disk.
const EXTENTS: usize = 1000;
/// The same of an encrypted one: what is read has to be decrypted, too.
const ENCRYPTED_EXTENTS: usize = 50;
/// Bytes that are read of an extent.
const READ: u64 = 100_000;
/// Snapshots that are looked at.
const SNAPSHOTS: usize = 4;

/// Reads `data` as an image, with something for a data file and a backing file, and asks
/// for everything on its disk and on those of its snapshots.
pub fn disk(data: &[u8]) {
    read_all_ways(data, None);
}

/// The same with the secret of an encrypted image.
pub(super) fn read_all_ways(data: &[u8], secret: Option<&Secret>) {
    let storage = MemoryStorage::from_bytes(data);
    let mut options = OpenOptions::new();
    let mut most = EXTENTS;
    if let Some(secret) = secret {
        options = options.secret(secret.clone());
        most = ENCRYPTED_EXTENTS;
    }
    let Ok(image) = options.open_storage("image", Arc::new(storage.clone())) else {
        return;
    };
    let below = MemoryStorage::from_bytes(&[0xbb; 70_001]);
    let below = RawDisk::new("below", Arc::new(below)).unwrap();
    let image = match image.backing_name() {
        Some(_) => image.with_backing(Arc::new(below)),
        None => image,
    };
    let image = image.with_data_file(Arc::new(MemoryStorage::from_bytes(&[0xdd; 70_001])));
    let image = Arc::new(image);
    ask(&*image, most);
    for snapshot in image
        .snapshots()
        .unwrap_or_default()
        .into_iter()
        .take(SNAPSHOTS)
    {
        if let Ok(disk) = SnapshotDisk::new(&image, snapshot) {
            ask(&disk, most);
        }
    }
    assert!(
        storage.to_vec(data.len()).is_ok_and(|bytes| bytes == data),
        "reading changes nothing"
    );
}

fn ask(disk: &dyn Disk, most: usize) {
    let mut at = 0;
    for (index, extent) in disk.extents(0..u64::MAX).enumerate() {
        let (range, kind) = match extent {
            Ok(extent) => (extent.range(), Some(extent.kind)),
            Err(Error::Guest { start, length, .. }) => (start.get()..start.get() + length, None),
            Err(other) => panic!("{other}"),
        };
        assert!(
            range.start == at && !range.is_empty(),
            "{range:?} after {at}"
        );
        at = range.end;
        read(disk, &range, kind);
        if index == most {
            return;
        }
    }
    assert_eq!(at, disk.size());
}

/// Reads the beginning of an extent as a whole and in pieces: both give the same.
fn read(disk: &dyn Disk, range: &Range<u64>, kind: Option<ExtentKind>) {
    let end = range.end.min(range.start + READ);
    let part = |start: u64, end: u64| {
        let mut bytes = vec![0xee; (end - start) as usize];
        match disk.read(start, &mut bytes) {
            Ok(()) => Some(bytes),
            Err(Error::Guest {
                start: bad, length, ..
            }) => {
                assert!(bad.get() < end && bad.get() + length > start, "elsewhere");
                None
            }
            Err(other) => panic!("{other}"),
        }
    };
    let whole = part(range.start, end);
    let middle = range.start + (end - range.start) / 3;
    let pieces = part(range.start, middle).zip(part(middle, end));
    assert_eq!(whole, pieces.map(|(a, b)| [a, b].concat()));
    match kind {
        Some(ExtentKind::Data) => {}
        // What is known to be zeros can be read.
        Some(_) => assert!(whole.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))),
        None => assert_eq!(whole, None, "what can't be told can't be read"),
    }
}
