//! Reading images of a few clusters, in memory, sound ones and damaged ones.

mod dirty;
mod entries;
mod hostile;
mod stored_at;

use super::{
    create::{CreateOptions, Preallocation, create_in},
    *,
};
use crate::{
    disk::{Disk, DiskExt, Extent, ExtentKind},
    io::{Storage, memory::MemoryStorage},
};

/// Bytes in a cluster of the images here.
const CLUSTER: u64 = 16 << 10;

/// The options of an image of `clusters` clusters, all of them preallocated.
fn preallocated(clusters: u64) -> CreateOptions {
    CreateOptions {
        size: Some(clusters * CLUSTER),
        cluster_size: CLUSTER,
        preallocation: Preallocation::Metadata,
        ..CreateOptions::default()
    }
}

/// An image with pattern `1 + n` in cluster n, and where its L2 table and its first
/// data cluster are.
fn patterned(options: &CreateOptions) -> (MemoryStorage, u64, u64) {
    let storage = MemoryStorage::default();
    create_in(&storage, None, options).unwrap();
    let image = open(&storage);
    let map: Vec<Extent> = image.extents(0..u64::MAX).map(Result::unwrap).collect();
    assert_eq!(map.len(), 1, "the clusters follow each other: {map:?}");
    let data = map[0].host.unwrap().get();
    for index in 0..image.size() / CLUSTER {
        let pattern = vec![u8::try_from(index + 1).unwrap(); usize::try_from(CLUSTER).unwrap()];
        let at = data + index * CLUSTER;
        storage.write_all_at(at, &pattern).unwrap();
    }
    let table = image.active().unwrap();
    let table = table.l1.l2_table(0, image.geometry(), &image.bounds());
    (storage, table.unwrap().unwrap().get(), data)
}

fn open(storage: &MemoryStorage) -> Image {
    OpenOptions::new()
        .open_storage("image", Arc::new(storage.clone()))
        .unwrap()
}

fn put(storage: &MemoryStorage, at: u64, word: u64) {
    storage.write_all_at(at, &word.to_be_bytes()).unwrap();
}

/// What the extents say: start, length, kind; of a part that can't be told the message.
fn told(disk: &(impl Disk + ?Sized)) -> Vec<(u64, u64, Result<ExtentKind, String>)> {
    let told = |extent: Result<Extent>| match extent {
        Ok(e) => (e.start.get(), e.length, Ok(e.kind)),
        Err(Error::Guest {
            start,
            length,
            source,
        }) => (start.get(), length, Err(source.to_string())),
        Err(other) => panic!("{other}"),
    };
    disk.extents(0..u64::MAX).map(told).collect()
}

/// The first byte of every cluster; `None` where it can't be read.
fn first_bytes(disk: &(impl Disk + ?Sized)) -> Vec<Option<u8>> {
    let first = |index| {
        let mut byte = [0xee];
        disk.read(index * CLUSTER, &mut byte).ok().map(|()| byte[0])
    };
    (0..disk.size() / CLUSTER).map(first).collect()
}

#[test]
fn a_disk_without_its_data_file_or_backing_file_is_not_zeros() {
    let options = CreateOptions {
        preallocation: Preallocation::Off,
        backing: Some(create::Backing {
            file: b"base".to_vec(),
            format: Some(b"raw".to_vec()),
            size: None,
        }),
        ..preallocated(2)
    };
    let storage = MemoryStorage::default();
    create_in(&storage, None, &options).unwrap();
    let image = open(&storage);
    let message = "the backing file of 'image' was not opened";
    assert_eq!(told(&image), [(0, 2 * CLUSTER, Err(message.into()))]);
    let error = image.read(5, &mut [0; 9]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "9 bytes of the disk at 0x5 can't be read"
    );
    let alone = OpenOptions::new()
        .backing(BackingPolicy::Ignore)
        .open_storage("image", Arc::new(storage.clone()))
        .unwrap();
    assert_eq!(first_bytes(&alone), [Some(0), Some(0)]);
    let base = MemoryStorage::from_bytes(&[7; 1000]);
    let base = crate::disk::RawDisk::new("base", Arc::new(base)).unwrap();
    let image = image.with_backing(Arc::new(base));
    assert_eq!(first_bytes(&image), [Some(7), Some(0)]);

    let options = CreateOptions {
        data_file: Some(b"data".to_vec()),
        ..preallocated(2)
    };
    let (storage, data) = (MemoryStorage::default(), MemoryStorage::default());
    create_in(&storage, Some(&data), &options).unwrap();
    data.write_all_at(CLUSTER, &[5; 10]).unwrap();
    let image = open(&storage);
    assert_eq!(first_bytes(&image), [None, None]);
    let image = image.with_data_file(Arc::new(data));
    assert_eq!(first_bytes(&image), [Some(0), Some(5)]);
}

#[test]
fn reads_of_any_part_from_many_threads() {
    let (storage, ..) = patterned(&preallocated(40));
    let image = open(&storage);
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let image = &image;
            scope.spawn(move || {
                for round in 0..200 {
                    let start = (thread * 77_777 + round * 31_013) % image.size();
                    let len = (image.size() - start).min(1 + round * 300);
                    let mut bytes = vec![0; usize::try_from(len).unwrap()];
                    image.read(start, &mut bytes).unwrap();
                    for (at, byte) in (start..).zip(bytes) {
                        assert_eq!(u64::from(byte), 1 + at / CLUSTER);
                    }
                }
            });
        }
    });
}
