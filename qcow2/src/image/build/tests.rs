//! Images built in memory and read back; interruptions and failures.

// Tests say what they expect; a panic there is the message.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use super::*;
use crate::{
    Image, OpenOptions,
    check::{CheckOptions, check},
    disk::{Disk, DiskExt, ExtentKind, RawDisk},
    format::CompressionType,
    image::create::{Backing, Version},
    io::memory::{Fault, MemoryStorage, PowerLoss},
};

/// Bytes that don't repeat, none of them 0.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3] | 1
        })
        .collect()
}

/// A disk with stretches of noise, of text that compresses, and of zeros.
fn content(size: usize, cluster: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (index, part) in bytes.chunks_mut(cluster.min(size / 9 + 1)).enumerate() {
        let len = part.len();
        match index * 7 % 5 {
            0 => part.copy_from_slice(&noise(len, index as u64)),
            1 => part.fill_with(|| b'x'),
            2 => part[len / 2] = 7,
            3 => part[..len / 3].copy_from_slice(&noise(len / 3, 1)),
            _ => {}
        }
    }
    bytes
}

/// Builds an image, piece by piece, leaving out pieces of zeros.
fn build(storage: &MemoryStorage, options: &CreateOptions, compress: bool, bytes: &[u8]) {
    let storage: Arc<dyn Storage> = Arc::new(storage.clone());
    let builder = Builder::new(storage, None, options.clone(), compress).unwrap();
    let cluster = usize::try_from(builder.cluster_size()).unwrap();
    for (index, piece) in bytes.chunks(3 * cluster).enumerate() {
        if !is_zero(piece) {
            builder.write((index * 3 * cluster) as u64, piece).unwrap();
        }
    }
    builder.finish(true).unwrap();
}

fn open(storage: &MemoryStorage) -> Image {
    OpenOptions::new()
        .open_storage("image", Arc::new(storage.clone()))
        .unwrap()
}

fn read(image: &Image) -> Vec<u8> {
    let mut bytes = vec![1; usize::try_from(image.size()).unwrap()];
    image.read(0, &mut bytes).unwrap();
    bytes
}

fn assert_clean(image: &Image, what: &str) {
    let mut found = Vec::new();
    let report = check(&image.metadata(), CheckOptions::default(), &mut |finding| {
        found.push(finding.to_string());
    });
    report.unwrap();
    assert!(found.is_empty(), "{what}: {found:#?}");
}

#[test]
fn every_shape_reads_back_and_is_sound() {
    for cluster_bits in [9, 12, 14, 16] {
        for refcount_bits in [1, 4, 16, 64] {
            for (extended_l2, compress) in [
                (false, None),
                (false, Some(CompressionType::Zlib)),
                (false, Some(CompressionType::Zstd)),
                (true, None),
                (true, Some(CompressionType::Zstd)),
            ] {
                if (extended_l2 && cluster_bits < 14) || (cluster_bits > 14 && refcount_bits > 4) {
                    continue;
                }
                let cluster = 1 << cluster_bits;
                let options = CreateOptions {
                    size: Some((30 * cluster + 512) as u64),
                    cluster_size: cluster as u64,
                    refcount_bits,
                    extended_l2,
                    compression_type: compress.unwrap_or(CompressionType::Zlib),
                    ..CreateOptions::default()
                };
                let what = format!("{options:?}");
                let bytes = content(30 * cluster + 512, cluster);
                let storage = MemoryStorage::default();
                build(&storage, &options, compress.is_some(), &bytes);
                let image = open(&storage);
                assert!(read(&image) == bytes, "{what}");
                assert_clean(&image, &what);
                let compressed = image
                    .extents(0..image.size())
                    .any(|e| e.unwrap().compressed);
                assert_eq!(compressed, compress.is_some(), "{what}");
                let used = storage.size().unwrap();
                assert!(used <= (38 * cluster + (1 << 13)) as u64, "{used} {what}");
            }
        }
    }
}

#[test]
fn many_refcount_blocks_and_a_table_of_many_clusters() {
    // A block of 64-bit refcounts in 512 bytes counts 64 clusters, a table cluster 64 blocks.
    let options = CreateOptions {
        size: Some(3 << 20),
        cluster_size: 512,
        refcount_bits: 64,
        ..CreateOptions::default()
    };
    for compress in [false, true] {
        let bytes = noise(3 << 20, 5);
        let storage = MemoryStorage::default();
        build(&storage, &options, compress, &bytes);
        let image = open(&storage);
        assert!(image.header().refcount_table_clusters > 1);
        assert!(read(&image) == bytes);
        assert_clean(&image, "many blocks");
    }
}

#[test]
fn zeros_hide_a_backing_file_and_the_rest_shows_it() {
    for (version, extended_l2) in [
        (Version::V2, false),
        (Version::V3, false),
        (Version::V3, true),
    ] {
        let options = CreateOptions {
            size: Some(4 * 65536),
            version,
            extended_l2,
            backing: Some(Backing {
                file: b"base".to_vec(),
                format: Some(b"raw".to_vec()),
                size: None,
            }),
            ..CreateOptions::default()
        };
        let storage = MemoryStorage::default();
        let shared: Arc<dyn Storage> = Arc::new(storage.clone());
        let builder = Builder::new(shared, None, options, false).unwrap();
        let per_cluster = usize::try_from(65536 / builder.unit_size()).unwrap();
        let mut units = vec![Unit::Data; per_cluster];
        units.extend(vec![Unit::Leave; per_cluster]);
        units.extend(vec![Unit::Zero; per_cluster]);
        let bytes = [vec![5; 65536], vec![0; 2 * 65536]].concat();
        if extended_l2 {
            units[1] = Unit::Leave;
            units[2] = Unit::Zero;
        }
        let mut prepared = builder.prepare(0, &bytes, &units).unwrap();
        builder.place(&mut prepared).unwrap();
        builder.store(&bytes, &prepared).unwrap();
        builder.finish(true).unwrap();
        let base = MemoryStorage::from_bytes(&[9; 4 * 65536]);
        let base = RawDisk::new("base", Arc::new(base)).unwrap();
        let image = open(&storage).with_backing(Arc::new(base));
        assert_clean(&image, "overlay");
        let mut expected = [[5; 65536], [9; 65536], [0; 65536], [9; 65536]].concat();
        if extended_l2 {
            expected[2048..4096].fill(9);
            expected[4096..6144].fill(0);
        }
        assert!(read(&image) == expected);
    }
}

#[test]
fn preallocated_clusters_have_places_and_read_as_zeros() {
    for preallocation in [
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ] {
        let options = CreateOptions {
            size: Some(1 << 20),
            cluster_size: 4096,
            preallocation,
            ..CreateOptions::default()
        };
        let mut bytes = vec![0; 1 << 20];
        bytes[400_000..500_000].copy_from_slice(&noise(100_000, 3));
        let storage = MemoryStorage::default();
        build(&storage, &options, false, &bytes);
        let image = open(&storage);
        assert!(read(&image) == bytes);
        assert_clean(&image, "preallocated");
        for extent in image.extents(0..image.size()) {
            let extent = extent.unwrap();
            assert!(extent.kind == ExtentKind::Data && extent.host.is_some());
        }
    }
}

#[test]
fn what_comes_too_early_or_in_parts_is_refused() {
    let options = CreateOptions {
        size: Some(10 * 65536 + 512),
        ..CreateOptions::default()
    };
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    let builder = Builder::new(storage, None, options, false).unwrap();
    builder.write(65536, &[1; 65536]).unwrap();
    assert!(builder.write(0, &[1; 65536]).is_err());
    assert!(builder.write(65536, &[1; 65536]).is_err());
    assert!(builder.write(3 * 65536 + 512, &[1; 65536]).is_err());
    assert!(builder.write(3 * 65536, &[1; 512]).is_err());
    assert!(builder.write(10 * 65536, &[1; 65536 * 2]).is_err());
    builder.write(10 * 65536, &[1; 512]).unwrap();
}

#[test]
fn whatever_interrupts_it_nothing_opens_that_is_not_complete() {
    let options = CreateOptions {
        size: Some(100 << 10),
        cluster_size: 512,
        ..CreateOptions::default()
    };
    for compress in [false, true] {
        let bytes = content(100 << 10, 1536);
        let storage = MemoryStorage::default();
        build(
            &storage,
            &CreateOptions {
                size: Some(512),
                ..options.clone()
            },
            false,
            &[3; 512],
        );
        storage.start_journal();
        build(&storage, &options, compress, &bytes);
        let how = PowerLoss {
            tears: 4,
            random: 20,
            ..PowerLoss::default()
        };
        let (mut old, mut none, mut new) = (0, 0, 0);
        let journal = storage.journal();
        for state in journal.kills().chain(journal.power_losses(&how)) {
            let storage = Arc::new(state.storage.clone());
            match OpenOptions::new().open_storage("image", storage) {
                Err(_) => none += 1,
                Ok(image) if image.size() == 512 => old += 1,
                Ok(image) => {
                    assert!(read(&image) == bytes, "{state}");
                    new += 1;
                }
            }
        }
        assert!(old > 0 && none > 100 && new > 1, "{old} {none} {new}");
        for at in 0..storage.operations() {
            let storage = MemoryStorage::default();
            storage.set_fault(Some(Fault::once(at)));
            let shared: Arc<dyn Storage> = Arc::new(storage.clone());
            let built = Builder::new(shared, None, options.clone(), compress).and_then(|builder| {
                for (index, piece) in bytes.chunks(2048).enumerate() {
                    builder.write(index as u64 * 2048, piece)?;
                }
                builder.finish(true)
            });
            storage.set_fault(None);
            let opened = OpenOptions::new().open_storage("image", Arc::new(storage));
            assert_eq!(built.is_ok(), opened.is_ok(), "operation {at}: {built:?}");
        }
    }
}
