//! Images and disks copied onto block devices: old bytes all over them, and an end.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic in a test is its message"
)]

use std::sync::Arc;

use qcow2::{
    Error, Image, OpenOptions,
    check::{CheckOptions, Repair, Severity, check, repair},
    convert::{ConvertError, ConvertOptions, Target, convert},
    disk::{Disk, RawDisk},
    format::HeaderArea,
    image::{
        build::Builder,
        create::{CreateOptions, Preallocation, create_in},
    },
    io::{Storage, memory::MemoryStorage},
};

/// A disk of 100 KiB and a half: data of all lengths, zeros on record and others.
fn source() -> (Vec<u8>, RawDisk) {
    let mut bytes: Vec<u8> = (0..102_912_u32)
        .map(|n| (n / 77).to_le_bytes()[0])
        .collect();
    bytes[3000..20_000].fill(0);
    bytes[40_960..65_536].fill(0);
    bytes[102_400..].fill(0);
    let storage = MemoryStorage::default();
    storage.set_len(bytes.len() as u64).unwrap();
    for (index, part) in bytes.chunks(512).enumerate() {
        if part.iter().any(|&byte| byte != 0) {
            storage.write_all_at(index as u64 * 512, part).unwrap();
        }
    }
    (bytes, RawDisk::new("source", Arc::new(storage)).unwrap())
}

fn options(cluster_size: u64, preallocation: Preallocation) -> CreateOptions {
    CreateOptions {
        size: Some(102_912),
        cluster_size,
        preallocation,
        ..CreateOptions::default()
    }
}

fn open(storage: &MemoryStorage) -> Image {
    let open = OpenOptions::new().writable(true);
    open.open_storage("image", Arc::new(storage.clone()))
        .unwrap()
}

fn read(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![1; usize::try_from(disk.size()).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

fn assert_clean(image: &Image, what: &str) {
    let report = check(&image.metadata(), CheckOptions::default(), &mut |finding| {
        panic!("{what}: {finding}")
    });
    report.unwrap();
}

fn bytes_of(storage: &MemoryStorage) -> Vec<u8> {
    storage.to_vec(1 << 26).unwrap()
}

fn how(sparse: u64) -> ConvertOptions {
    ConvertOptions {
        sparse,
        ..ConvertOptions::default()
    }
}

/// Whatever the size of a device, the image is there and reads as zeros, or nothing was
/// touched.
#[test]
fn a_new_image_has_room_or_leaves_the_device_as_it_was() {
    for mode in [Preallocation::Off, Preallocation::Metadata] {
        for cluster_size in [512, 4096, 65536] {
            let options = options(cluster_size, mode);
            let (mut made, mut refused) = (0, 0);
            for kib in (0..520).step_by(12) {
                let device = MemoryStorage::device(kib << 10);
                let before = bytes_of(&device);
                match create_in(&device, None, &options) {
                    Ok(_) => {
                        made += 1;
                        let image = open(&device);
                        assert!(read(&image).iter().all(|&byte| byte == 0));
                        assert_clean(&image, &format!("{mode:?} in {kib} KiB"));
                    }
                    Err(Error::Refused(text)) => {
                        refused += 1;
                        assert!(text.contains("device"), "{text}");
                        assert!(bytes_of(&device) == before);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            assert!(made > 0 && refused > 0, "{mode:?} {cluster_size}");
        }
    }
    for mode in [Preallocation::Falloc, Preallocation::Full] {
        let device = MemoryStorage::device(1 << 20);
        let error = create_in(&device, None, &options(65536, mode)).unwrap_err();
        let end = format!("'{}' unsupported for this non-regular file", mode.name());
        assert!(error.to_string().ends_with(&end), "{error}");
    }
}

/// A copy is complete, or the device holds no image.
#[test]
fn a_disk_is_copied_into_a_new_image_on_a_device() {
    let (bytes, source) = source();
    for (compress, mode) in [
        (false, Preallocation::Off),
        (true, Preallocation::Off),
        (false, Preallocation::Metadata),
    ] {
        for cluster_size in [512, 4096, 65536] {
            let (mut made, mut refused) = (0, 0);
            for kib in (0..560).step_by(14) {
                let device = MemoryStorage::device(kib << 10);
                let what = format!("{cluster_size} {compress} {mode:?} in {kib} KiB");
                let built = Builder::new(
                    Arc::new(device.clone()),
                    None,
                    options(cluster_size, mode),
                    compress,
                );
                let copied = built.map_err(|error| (error, false)).and_then(|builder| {
                    let target = Target::New {
                        builder: &builder,
                        base: None,
                    };
                    match convert(&source, target, how(4096), &mut |_| {}) {
                        Ok(()) => builder.finish(true).map_err(|error| (error, true)),
                        Err(ConvertError::Write { source, .. }) => Err((source, true)),
                        Err(other) => panic!("{what}: {other}"),
                    }
                });
                match copied {
                    Ok(()) => {
                        made += 1;
                        let image = open(&device);
                        assert!(read(&image) == bytes, "{what}");
                        assert_clean(&image, &what);
                    }
                    Err((Error::Refused(_) | Error::NoSpace { .. }, begun)) => {
                        refused += 1;
                        assert!(HeaderArea::read(&device).is_err(), "{what}: an image");
                        let old = bytes_of(&MemoryStorage::device(kib << 10));
                        assert!(begun || bytes_of(&device) == old, "{what}: changed");
                    }
                    Err((other, _)) => panic!("{what}: {other}"),
                }
            }
            assert!(
                made > 0 && refused > 0,
                "{cluster_size} {compress} {mode:?}"
            );
        }
    }
}

/// With an external data file on a device: old bytes in neither of them are seen, nor, if
/// it is the disk as it is, in the data file itself.
#[test]
fn a_data_file_on_a_device() {
    let (bytes, source) = source();
    for (data_file_raw, extended_l2) in [(false, false), (true, false), (false, true)] {
        for size in [102_912, 150_000] {
            let options = CreateOptions {
                data_file: Some(b"data".to_vec()),
                data_file_raw,
                extended_l2,
                ..options(16384, Preallocation::Off)
            };
            let (image, data) = (MemoryStorage::device(1 << 20), MemoryStorage::device(size));
            let builder = Builder::new(
                Arc::new(image.clone()),
                Some(Arc::new(data.clone())),
                options,
                false,
            )
            .unwrap();
            let target = Target::New {
                builder: &builder,
                base: None,
            };
            convert(&source, target, how(4096), &mut |_| {}).unwrap();
            builder.finish(true).unwrap();
            let image = open(&image).with_data_file(Arc::new(data.clone()));
            assert!(read(&image) == bytes);
            assert_clean(&image, "with a data file");
            let rest = MemoryStorage::device(size);
            let (data, rest) = (bytes_of(&data), bytes_of(&rest));
            assert!(data[102_912..] == rest[102_912..], "behind the disk");
            assert!(!data_file_raw || data[..102_912] == bytes);
        }
    }
}

/// A disk as it is, and one in an image that is there: zeros come where old bytes were.
#[test]
fn a_disk_is_copied_over_old_bytes() {
    let (bytes, source) = source();
    for sparse in [0, 512, 4096, 65536] {
        for size in [102_912, 110_000] {
            let device = MemoryStorage::device(size);
            let disk = RawDisk::new_writable("device", Arc::new(device.clone())).unwrap();
            let target = Target::Disk {
                disk: &disk,
                is_zero: false,
                base: None,
            };
            convert(&source, target, how(sparse), &mut |_| {}).unwrap();
            let (is, was) = (bytes_of(&device), bytes_of(&MemoryStorage::device(size)));
            assert!(is[..102_912] == bytes, "{sparse}");
            assert!(is[102_912..] == was[102_912..], "{sparse}: behind the disk");
        }
        for mode in [Preallocation::Off, Preallocation::Metadata] {
            let device = MemoryStorage::device(1 << 20);
            create_in(&device, None, &options(4096, mode)).unwrap();
            let writer = open(&device).into_writer().unwrap();
            writer.write(0, &[0x99; 102_912]).unwrap();
            let target = Target::Disk {
                disk: &writer,
                is_zero: false,
                base: None,
            };
            convert(&source, target, how(sparse), &mut |_| {}).unwrap();
            writer.close().unwrap();
            let image = open(&device);
            assert!(read(&image) == bytes, "{sparse} {mode:?}");
            assert_clean(&image, "written over");
        }
    }
}

/// An image in a device of exactly its size, in which nothing more has room.
fn full() -> MemoryStorage {
    let file = MemoryStorage::default();
    create_in(&file, None, &options(4096, Preallocation::Off)).unwrap();
    let writer = open(&file).into_writer().unwrap();
    writer.write(0, &[0x55; 102_912]).unwrap();
    writer.close().unwrap();
    file.fix_size();
    file
}

#[test]
fn bitmaps_without_room_leave_the_image_as_it_was() {
    let device = full();
    let before = bytes_of(&device);
    let mut image = open(&device);
    let mut edit = image.edit_bitmaps().unwrap();
    let added = edit.add(b"b", 4096, true).and_then(|()| edit.commit());
    assert!(matches!(added, Err(Error::NoSpace { .. })), "{added:?}");
    assert!(bytes_of(&device) == before);
}

/// Repairs for which there is no room do no harm, and with room they work.
#[test]
fn a_repair_on_a_device() {
    let file = full();
    let content = read(&open(&file));
    // The refcount table's entry is lost: all must be counted anew, into a new block.
    let mut table = [0; 8];
    file.read_padded(48, &mut table).unwrap();
    let table = u64::from_be_bytes(table);
    let mut outcomes = Vec::new();
    for more in [0, 4096, 16384, 65536] {
        let mut bytes = bytes_of(&file);
        bytes[usize::try_from(table).unwrap()..][..8].fill(0);
        bytes.resize(bytes.len() + more, 0xe5);
        let device = MemoryStorage::from_bytes(&bytes);
        device.fix_size();
        let mut area = HeaderArea::read_for_check(&device).unwrap();
        let mend = repair(
            &device,
            &mut area,
            Repair::All,
            CheckOptions::default(),
            &mut |_| {},
        );
        outcomes.push(mend.is_ok());
        let image = open(&device);
        assert!(read(&image) == content, "{more}");
        if mend.is_ok() {
            let mut worse = 0;
            let count = &mut |finding: &qcow2::check::Finding| {
                worse += u32::from(finding.severity() != Severity::Leak);
            };
            check(&image.metadata(), CheckOptions::default(), count).unwrap();
            assert_eq!(worse, 0, "{more}");
        }
    }
    assert!(outcomes.last() == Some(&true), "{outcomes:?}");
}
