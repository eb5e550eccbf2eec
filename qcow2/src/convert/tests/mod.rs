//! Disks copied in memory: into new images and onto disks that are there.

// Tests say what they expect; a panic there is the message.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod packed;

use std::sync::Arc;

use super::*;
use crate::{
    Image, OpenOptions, Result,
    check::{CheckOptions, check},
    disk::{DiskExt, ExtentKind, RawDisk},
    format::CompressionType,
    image::create::{Backing, CreateOptions, Version},
    io::{Storage, memory::MemoryStorage},
};

const SIZE: usize = (5 << 20) + 3 * 512;

/// A disk with data of all lengths, at places of all alignments.
fn content(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below).unwrap()
    };
    let mut bytes = vec![0; SIZE];
    for _ in 0..40 {
        let at = random(SIZE as u64);
        let bits = 6 + random(12);
        let len = random(1 << bits).min(SIZE - at);
        let value = random(256).to_le_bytes()[0];
        let spread = [1, 4, 256][random(3)];
        for byte in &mut bytes[at..at + len] {
            *byte = value | random(spread).to_le_bytes()[0];
        }
    }
    bytes
}

fn raw(bytes: &[u8]) -> Arc<dyn Disk> {
    let storage = Arc::new(MemoryStorage::from_bytes(bytes));
    Arc::new(RawDisk::new("raw", storage).unwrap())
}

fn read(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![1; usize::try_from(disk.size()).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

fn options(cluster_size: u64) -> CreateOptions {
    CreateOptions {
        size: Some(SIZE as u64),
        cluster_size,
        ..CreateOptions::default()
    }
}

fn over(options: CreateOptions) -> CreateOptions {
    CreateOptions {
        backing: Some(Backing {
            file: b"base".to_vec(),
            format: None,
            size: None,
        }),
        ..options
    }
}

/// A new image with what `source` holds, which is sound.
fn copy(
    source: &dyn Disk,
    options: CreateOptions,
    compress: bool,
    how: ConvertOptions,
    base: Option<&Arc<dyn Disk>>,
) -> Image {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    let builder = Builder::new(Arc::clone(&storage), None, options, compress).unwrap();
    let target = Target::New {
        builder: &builder,
        base: base.map(|base| &**base),
    };
    let mut last = 0;
    convert(source, target, how, &mut |event| match event {
        Event::Progress(at) => last = at,
        Event::Salvaged { .. } => panic!("nothing to be salvaged"),
    })
    .unwrap();
    assert_eq!(last, source.size());
    builder.finish(true).unwrap();
    let image = OpenOptions::new().open_storage("image", storage).unwrap();
    check(&image.metadata(), CheckOptions::default(), &mut |finding| {
        panic!("{finding}")
    })
    .unwrap();
    match base {
        Some(base) => image.with_backing(Arc::clone(base)),
        None => image,
    }
}

#[test]
fn every_form_holds_the_same_disk() {
    let bytes = content(1);
    let mut source = raw(&bytes);
    let how = ConvertOptions::default();
    for (extended_l2, version, compression) in [
        (false, Version::V3, None),
        (false, Version::V2, Some(CompressionType::Zlib)),
        (true, Version::V3, None),
        (true, Version::V3, Some(CompressionType::Zstd)),
        (false, Version::V3, Some(CompressionType::Zstd)),
    ] {
        for cluster_size in [512, 4096, 16384, 65536, 2 << 20] {
            if extended_l2 && cluster_size < 16384 {
                continue;
            }
            let options = CreateOptions {
                extended_l2,
                version,
                compression_type: compression.unwrap_or(CompressionType::Zlib),
                ..options(cluster_size)
            };
            let image = copy(&*source, options, compression.is_some(), how, None);
            assert!(read(&image) == bytes, "{cluster_size} {extended_l2}");
            // The next one is made of this one.
            source = Arc::new(image);
        }
    }
}

#[test]
fn without_sparseness_everything_is_stored() {
    let bytes = content(2);
    let how = ConvertOptions {
        sparse: 0,
        ..ConvertOptions::default()
    };
    for compress in [false, true] {
        let image = copy(&*raw(&bytes), options(65536), compress, how, None);
        assert!(read(&image) == bytes);
        for extent in image.extents(0..image.size()) {
            assert_eq!(extent.unwrap().kind, ExtentKind::Data);
        }
    }
}

#[test]
fn an_overlay_holds_what_its_source_held_over_the_same_base() {
    let base = content(3);
    // The base is shorter than the disk over it.
    let base = raw(&base[..3 << 20]);
    let how = ConvertOptions::default();
    for (source_size, extended_l2) in [(4096, false), (16384, true), (65536, false)] {
        // An overlay that differs from its base here and there.
        let made = CreateOptions {
            extended_l2,
            ..over(options(source_size))
        };
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
        let builder = Builder::new(Arc::clone(&storage), None, made, false).unwrap();
        let size = usize::try_from(source_size).unwrap();
        builder.write(2 * source_size, &vec![5; 3 * size]).unwrap();
        builder.write(9 * source_size, &vec![0; 50 * size]).unwrap();
        builder.write(4 << 20, &vec![6; size]).unwrap();
        builder.finish(true).unwrap();
        let top = OpenOptions::new().open_storage("top", storage).unwrap();
        let top = top.with_backing(Arc::clone(&base));
        let bytes = read(&top);
        for (cluster_size, extended_l2, version) in [
            (512, false, Version::V2),
            (65536, false, Version::V2),
            (4096, false, Version::V3),
            (2 << 20, false, Version::V3),
            (16384, true, Version::V3),
            (65536, true, Version::V3),
        ] {
            for compress in [false, true] {
                let options = CreateOptions {
                    extended_l2,
                    version,
                    ..over(options(cluster_size))
                };
                let image = copy(&top, options, compress, how, Some(&base));
                assert!(read(&image) == bytes, "{cluster_size} {extended_l2}");
                let first = image.extents(0..512).next().unwrap().unwrap();
                // Only a cluster that lies in both is copied from the base, too.
                assert!(first.depth > 0 || cluster_size > source_size);
            }
        }
    }
}

#[test]
fn a_disk_that_is_there_is_overwritten() {
    let bytes = content(4);
    for is_zero in [false, true] {
        let old = if is_zero { 0 } else { 0xee };
        let storage = MemoryStorage::from_bytes(&vec![old; SIZE + 1024]);
        let disk = RawDisk::new_writable("target", Arc::new(storage.clone())).unwrap();
        let target = Target::Disk {
            disk: &disk,
            is_zero,
            base: None,
        };
        let source = raw(&bytes);
        convert(&*source, target, ConvertOptions::default(), &mut |_| {}).unwrap();
        let written = storage.to_vec(usize::MAX).unwrap();
        assert!(written[..SIZE] == bytes && written[SIZE..] == [old; 1024]);
    }
}

#[test]
fn several_disks_are_one() {
    let parts = [content(5), vec![3; 512], Vec::new(), content(6)];
    let disks: Vec<_> = parts.iter().map(|part| raw(part)).collect();
    let whole = Concat::new(disks).unwrap();
    let bytes = parts.concat();
    assert!(read(&whole) == bytes);
    let options = CreateOptions {
        size: Some(bytes.len() as u64),
        ..options(65536)
    };
    let image = copy(&whole, options, false, ConvertOptions::default(), None);
    assert!(read(&image) == bytes);
}

/// A disk of which some sectors can't be read.
#[derive(Debug)]
struct Faulty(Arc<dyn Disk>);

impl Disk for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn size(&self) -> u64 {
        self.0.size()
    }

    fn query(&self, range: std::ops::Range<u64>, out: &mut Vec<crate::disk::Extent>) -> Result<()> {
        self.0.query(range, out)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset + out.len() as u64;
        for bad in [(1 << 20), (3 << 20) + 1024] {
            if offset < bad + 512 && end > bad {
                return Err(crate::disk::bad(bad, 512, Error::NotQcow2));
            }
        }
        self.0.read(offset, out)
    }

    fn file(&self) -> Option<&Arc<dyn Storage>> {
        None
    }
}

#[test]
fn what_cannot_be_read_ends_it_or_becomes_zeros() {
    let bytes = vec![7; SIZE];
    let source = Faulty(raw(&bytes));
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
    let builder = Builder::new(Arc::clone(&storage), None, options(65536), false).unwrap();
    let target = Target::New {
        builder: &builder,
        base: None,
    };
    let failed = convert(&source, target, ConvertOptions::default(), &mut |_| {});
    assert!(matches!(failed, Err(ConvertError::Read { at, .. }) if at == 1 << 20));

    let builder = Builder::new(Arc::clone(&storage), None, options(65536), false).unwrap();
    let target = Target::New {
        builder: &builder,
        base: None,
    };
    let how = ConvertOptions {
        salvage: true,
        ..ConvertOptions::default()
    };
    let mut salvaged = Vec::new();
    convert(&source, target, how, &mut |event| {
        if let Event::Salvaged { at, .. } = event {
            salvaged.push(at);
        }
    })
    .unwrap();
    builder.finish(true).unwrap();
    salvaged.sort_unstable();
    assert_eq!(salvaged, [1 << 20, (3 << 20) + 1024]);
    let mut expected = bytes;
    for at in salvaged {
        expected[usize::try_from(at).unwrap()..][..512].fill(0);
    }
    let image = OpenOptions::new().open_storage("image", storage).unwrap();
    assert!(read(&image) == expected);
}

#[test]
fn a_failing_target_ends_it() {
    let storage = MemoryStorage::default();
    let shared: Arc<dyn Storage> = Arc::new(storage.clone());
    let builder = Builder::new(shared, None, options(4096), true).unwrap();
    let fault = crate::io::memory::Fault::for_good(storage.operations() + 4);
    storage.set_fault(Some(fault));
    let target = Target::New {
        builder: &builder,
        base: None,
    };
    let source = raw(&vec![7; SIZE]);
    let failed = convert(&*source, target, ConvertOptions::default(), &mut |_| {});
    assert!(matches!(failed, Err(ConvertError::Write { .. })));
}

#[test]
fn a_pipe_gets_an_image_that_is_sound() {
    let bytes = content(7);
    let made = copy(
        &*raw(&bytes),
        options(4096),
        false,
        ConvertOptions::default(),
        None,
    );
    for (cluster_size, refcount_bits, extended_l2) in [
        (512, 64, false),
        (4096, 1, false),
        (65536, 16, true),
        (2 << 20, 16, false),
    ] {
        let options = CreateOptions {
            refcount_bits,
            extended_l2,
            ..options(cluster_size)
        };
        let mut out = Vec::new();
        let mut last = 0;
        stream(&made, &options, &mut out, &mut |event| {
            if let Event::Progress(at) = event {
                last = at;
            }
        })
        .unwrap();
        assert_eq!(last, SIZE as u64);
        let storage = Arc::new(MemoryStorage::from_bytes(&out));
        let image = OpenOptions::new().open_storage("image", storage).unwrap();
        check(&image.metadata(), CheckOptions::default(), &mut |finding| {
            panic!("{finding}")
        })
        .unwrap();
        assert!(read(&image) == bytes, "{cluster_size}");
    }
    let mut out = Vec::new();
    stream_raw(&made, &mut out, &mut |_| {}).unwrap();
    assert!(out == bytes);
    assert!(stream(&made, &over(options(512)), &mut Vec::new(), &mut |_| {}).is_err());
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let failed = stream_raw(&made, &mut Full, &mut |_| {});
    assert!(matches!(failed, Err(ConvertError::Write { .. })));
}
