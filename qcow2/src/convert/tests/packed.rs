//! Images that are there, with what is compressed into them.

use super::*;
use crate::{
    image::{GuestWriter, create::create_in},
    io::memory::Fault,
};

/// What the target's clusters are before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Plain,
    Zeros,
    Compressed,
}

/// An image with two bitmaps, of which `b` records.
fn image(options: &CreateOptions) -> MemoryStorage {
    let storage = MemoryStorage::default();
    create_in(&storage, None, options).unwrap();
    if options.version == Version::V3 {
        let mut image = open(&storage, None);
        let mut edit = image.edit_bitmaps().unwrap();
        edit.add(b"b", 4096, true).unwrap();
        edit.add(b"off", 4096, false).unwrap();
        edit.commit().unwrap();
    }
    storage
}

fn open(storage: &MemoryStorage, base: Option<&Arc<dyn Disk>>) -> Image {
    let options = OpenOptions::new().writable(true);
    let image = options.open_storage("image", Arc::new(storage.clone()));
    match base {
        Some(base) => image.unwrap().with_backing(Arc::clone(base)),
        None => image.unwrap(),
    }
}

/// Bytes that bitmap `name` has set.
fn dirty(image: &Image, name: &[u8]) -> u64 {
    let bitmaps = image.bitmaps().unwrap();
    let bitmap = bitmaps.find(image, name).unwrap();
    bitmap.require_usable().unwrap();
    bitmap.load().unwrap().dirty_bytes()
}

fn assert_sound(image: &Image, leaks_allowed: bool) {
    check(&image.metadata(), CheckOptions::default(), &mut |finding| {
        let leak = finding.severity() == crate::check::Severity::Leak;
        assert!(leak && leaks_allowed, "{finding}");
    })
    .unwrap();
}

fn pack(source: &dyn Disk, writer: &GuestWriter, is_zero: bool) -> Result<(), ConvertError> {
    let target = Target::Compressed {
        writer,
        is_zero,
        base: None,
    };
    convert(source, target, ConvertOptions::default(), &mut |_| {})
}

/// Bytes of the disk whose clusters are compressed.
fn compressed(image: &Image) -> u64 {
    let extents = image.extents(0..image.size()).map(|extent| extent.unwrap());
    let compressed = extents.filter(|extent| extent.compressed);
    compressed.map(|extent| extent.length).sum()
}

#[test]
fn whatever_was_there_is_replaced() {
    let source = content(11);
    // The source ends within a cluster; the disk goes on behind it.
    let size = SIZE + (3 << 20) + 512;
    for (cluster_size, kind, extended_l2) in [
        (4096, CompressionType::Zlib, false),
        (4096, CompressionType::Zstd, false),
        (65536, CompressionType::Zlib, false),
        (65536, CompressionType::Zstd, true),
        (2 << 20, CompressionType::Zlib, false),
        (2 << 20, CompressionType::Zstd, false),
    ] {
        for before in [
            Before::Nothing,
            Before::Plain,
            Before::Zeros,
            Before::Compressed,
        ] {
            let storage = image(&CreateOptions {
                size: Some(size as u64),
                cluster_size,
                compression_type: kind,
                extended_l2,
                ..CreateOptions::default()
            });
            let writer = open(&storage, None).into_writer().unwrap();
            let old = match before {
                Before::Nothing | Before::Zeros => vec![0; size],
                Before::Plain | Before::Compressed => vec![0xee; size],
            };
            match before {
                Before::Nothing => {}
                Before::Plain => writer.write(0, &old).unwrap(),
                Before::Zeros => writer.zero(0..size as u64, false).unwrap(),
                Before::Compressed => writer.write_compressed(0, &old).unwrap(),
            }
            let mut image = writer.close().unwrap();
            let mut edit = image.edit_bitmaps().unwrap();
            edit.clear(b"b").unwrap();
            edit.commit().unwrap();

            let writer = image.into_writer().unwrap();
            pack(&*raw(&source), &writer, before == Before::Nothing).unwrap();
            let mut expected = old;
            expected[..SIZE].copy_from_slice(&source);
            let what = format!("{cluster_size} {kind:?} {before:?}");
            assert!(read(&writer) == expected, "{what}, before it is closed");
            let image = writer.close().unwrap();
            assert!(read(&image) == expected, "{what}");
            assert_sound(&image, false);
            assert!(compressed(&image) > 0, "{what}");
            assert_eq!(dirty(&image, b"off"), 0);
            let (recorded, all) = (dirty(&image, b"b"), SIZE.next_multiple_of(4096) as u64);
            match before {
                // Zeros that were there weren't written.
                Before::Nothing if cluster_size < 2 << 20 => {
                    assert!((1..all).contains(&recorded), "{what}");
                }
                _ => assert_eq!(recorded, all, "{what}"),
            }
        }
    }
}

#[test]
fn what_does_not_get_smaller_is_stored_as_it_is() {
    let mut state = 5_u64;
    let noise: Vec<u8> = (0..1 << 20)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect();
    let storage = image(&CreateOptions {
        size: Some(1 << 20),
        ..CreateOptions::default()
    });
    let writer = open(&storage, None).into_writer().unwrap();
    pack(&*raw(&noise), &writer, false).unwrap();
    let image = writer.close().unwrap();
    assert!(read(&image) == noise);
    assert_sound(&image, false);
    assert_eq!(compressed(&image), 0);
    assert_eq!(dirty(&image, b"b"), 1 << 20);
}

#[test]
fn over_a_base_only_the_first_layer_is_copied() {
    let base = raw(&content(12)[..3 << 20]);
    for (cluster_size, version) in [
        (4096, Version::V3),
        (65536, Version::V2),
        (2 << 20, Version::V3),
    ] {
        let options = CreateOptions {
            version,
            ..over(options(cluster_size))
        };
        let top = image(&over(CreateOptions {
            version,
            ..self::options(4096)
        }));
        let top = open(&top, Some(&base)).into_writer().unwrap();
        top.write(70_000, &[7; 100_000]).unwrap();
        top.zero(1 << 20..2 << 20, true).unwrap();
        top.write(SIZE as u64 - 512, &[9; 512]).unwrap();

        let target = image(&options);
        let writer = open(&target, Some(&base)).into_writer().unwrap();
        let into = Target::Compressed {
            writer: &writer,
            is_zero: false,
            base: Some(&*base),
        };
        convert(&top, into, ConvertOptions::default(), &mut |_| {}).unwrap();
        let image = writer.close().unwrap();
        assert!(read(&image) == read(&top), "{cluster_size}");
        assert_sound(&image, false);
        if version == Version::V3 {
            let first = image.extents(0..512).next().unwrap().unwrap();
            assert!(first.depth > 0 || cluster_size > 65536);
            assert!(dirty(&image, b"b") < SIZE as u64);
        }
        // Without a word of the base, all of it is copied.
        let writer = image.into_writer().unwrap();
        pack(&*base, &writer, false).unwrap();
        let mut bytes = vec![0; 3 << 20];
        writer.read(0, &mut bytes).unwrap();
        assert!(bytes == read(&*base));
        assert_sound(&writer.close().unwrap(), false);
    }
}

#[test]
fn a_failure_leaves_an_image_with_leaks_at_most() {
    let source = raw(&content(13));
    let options = CreateOptions {
        size: Some(SIZE as u64),
        cluster_size: 4096,
        ..CreateOptions::default()
    };
    let mut after = 0;
    loop {
        let storage = image(&options);
        let writer = open(&storage, None).into_writer().unwrap();
        writer.write(0, &[1; 1 << 20]).unwrap();
        writer.flush().unwrap();
        storage.set_fault(Some(Fault::for_good(storage.operations() + after)));
        let done = pack(&*source, &writer, false).is_ok() && writer.close().is_ok();
        storage.set_fault(None);
        let image = open(&storage, None);
        assert_sound(&image, true);
        let bitmaps = image.bitmaps().unwrap();
        let usable = bitmaps.find(&image, b"b").unwrap().require_usable().is_ok();
        assert_eq!(usable, done, "a bitmap that missed writes is in use");
        if done {
            break;
        }
        after += 1 + after / 8;
    }
    assert!(after > 20);
}
