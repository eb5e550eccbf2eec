use super::*;
use crate::{
    format::{Autoclear, Extensions, Header},
    io::{
        Access, LockMode,
        memory::{Damage, Fault, MemoryStorage, PowerLoss},
    },
};

fn sized(size: u64) -> CreateOptions {
    CreateOptions {
        size: Some(size),
        cluster_size: 512,
        ..CreateOptions::default()
    }
}

fn preallocated(size: u64) -> CreateOptions {
    CreateOptions {
        preallocation: Preallocation::Metadata,
        ..sized(size)
    }
}

fn made(options: &CreateOptions) -> Vec<u8> {
    let storage = MemoryStorage::default();
    create_in(&storage, None, options).unwrap();
    bytes(&storage)
}

fn bytes(storage: &MemoryStorage) -> Vec<u8> {
    storage.to_vec(64 << 20).unwrap()
}

fn is_image(content: &[u8]) -> bool {
    content.starts_with(b"QFI\xfb")
}

#[test]
fn a_new_image_has_the_header_of_its_options() {
    let options = CreateOptions {
        size: Some(1000),
        extended_l2: true,
        lazy_refcounts: true,
        compression_type: crate::format::CompressionType::Zstd,
        refcount_bits: 1,
        backing: Some(Backing {
            file: b"base".to_vec(),
            format: Some(b"raw".to_vec()),
            size: Some(77),
        }),
        ..CreateOptions::default()
    };
    let content = made(&options);
    let header = Header::parse(&content[..65536]).unwrap();
    assert_eq!(
        (header.size, header.version, header.refcount_order),
        (1024, 3, 0)
    );
    assert_eq!(header.backing_file.as_deref(), Some(&b"base"[..]));
    assert_eq!(header.incompatible_features.0, 0b11000);
    assert_eq!(header.compatible_features.0, 1);
    assert_eq!(header.autoclear_features, Autoclear(0));
    let area = &content[112..usize::try_from(header.backing_file_offset).unwrap()];
    let extensions = Extensions::parse(area, crate::addr::HostOffset(112)).unwrap();
    assert_eq!(extensions.backing_format(), Some(&b"raw"[..]));
    assert_eq!(extensions.feature_names().entries.len(), 8);
    // Without a size of its own it is as large as its backing file.
    let content = made(&CreateOptions {
        size: None,
        ..options
    });
    assert_eq!(Header::parse(&content[..65536]).unwrap().size, 512);
}

#[test]
fn whatever_interrupts_it_no_half_image_is_left() {
    let old = made(&sized(8192));
    for options in [sized(1 << 20), preallocated(100 << 10)] {
        let complete = made(&options);
        for start in [&b""[..], &old] {
            let storage = MemoryStorage::from_bytes(start);
            storage.start_journal();
            create_in(&storage, None, &options).unwrap();
            let journal = storage.journal();
            let (mut none, mut new) = (0, 0);
            let how = PowerLoss {
                tears: 8,
                random: 200,
                ..PowerLoss::default()
            };
            for state in journal.kills().chain(journal.power_losses(&how)) {
                let content = bytes(&state.storage);
                if content == complete {
                    new += 1;
                } else if content != start {
                    assert!(!is_image(&content), "{state}");
                    none += 1;
                }
            }
            assert!(none > 10 && new > 1, "{none} {new}");
        }
    }
}

#[test]
fn whatever_fails_is_reported_and_leaves_no_image() {
    let options = preallocated(100 << 10);
    let complete = made(&options);
    let old = made(&sized(8192));
    for fixed in [false, true] {
        let start = || {
            let storage = MemoryStorage::from_bytes(&old);
            storage.set_len(200 << 10).unwrap();
            if fixed {
                storage.fix_size();
            }
            storage
        };
        let storage = start();
        storage.set_fault(None);
        create_in(&storage, None, &options).unwrap();
        let operations = storage.operations();
        assert!(operations > 7);
        for at in 0..operations {
            for fault in [
                Fault::once(at),
                Fault::for_good(at),
                Fault {
                    damage: Damage::After(100),
                    ..Fault::once(at)
                },
            ] {
                let storage = start();
                storage.set_fault(Some(fault));
                let result = create_in(&storage, None, &options);
                assert!(matches!(result, Err(Error::Io { .. })), "{at} {result:?}");
                let content = bytes(&storage);
                // The old one is whole, or there is none. What the last sync left in
                // doubt may be there, whole: the caller knows of the failure.
                let is_old = content.starts_with(&old);
                assert!(
                    is_old || !is_image(&content) || content.starts_with(&complete),
                    "{at}"
                );
            }
        }
    }
}

#[test]
fn a_device_keeps_nothing_of_what_was_on_it() {
    let options = preallocated(100 << 10);
    let complete = made(&options);
    let device = MemoryStorage::from_bytes(&vec![0xAA; complete.len() + 5000]);
    device.fix_size();
    create_in(&device, None, &options).unwrap();
    let content = bytes(&device);
    assert_eq!(&content[..complete.len()], complete);
    assert_eq!(content[complete.len()], 0xAA);
    let small = MemoryStorage::from_bytes(&vec![0xAA; complete.len() - 1]);
    small.fix_size();
    let refused = create_in(&small, None, &options).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Could not resize image: Cannot grow device files"
    );
    assert!(
        bytes(&small).iter().all(|b| *b == 0xAA),
        "refused before anything is written"
    );
}

#[test]
fn every_cluster_is_counted_once() {
    for (size, refcount_bits) in [
        (1 << 20, 1),
        (1 << 20, 2),
        (100_000, 4),
        (99_999, 8),
        (1 << 20, 64),
    ] {
        let options = CreateOptions {
            refcount_bits,
            ..preallocated(size)
        };
        let content = made(&options);
        let header = Header::parse(&content[..512]).unwrap();
        let (order, cluster) = (header.refcount_order, 512);
        let table = usize::try_from(header.refcount_table_offset.get()).unwrap();
        let table = &content[table..table + header.refcount_table_clusters as usize * cluster];
        let counts: Vec<u64> = crate::format::refcount::entries(table)
            .filter_map(|entry| entry.block())
            .flat_map(|block| {
                let at = usize::try_from(block.get()).unwrap();
                let block = &content[at..at + cluster];
                (0..).map_while(move |i| crate::format::refcount::get(block, order, i))
            })
            .collect();
        let clusters = content.len() / cluster;
        assert!(counts.len() >= clusters);
        assert!(
            counts[..clusters].iter().all(|c| *c == 1),
            "{refcount_bits}"
        );
        assert!(
            counts[clusters..].iter().all(|c| *c == 0),
            "{refcount_bits}"
        );
    }
}

#[test]
fn sizes_beyond_what_fits_are_refused_at_once() {
    let huge = |size, cluster_size| CreateOptions {
        cluster_size,
        ..preallocated(size)
    };
    for options in [
        huge(1 << 60, 2 << 20),
        huge(128 << 30, 512),
        huge(u64::MAX, 65536),
    ] {
        assert!(matches!(
            options.check().and_then(|c| Layout::new(&c)),
            Err(Error::Refused(_))
        ));
    }
    // Without preallocation only the length of the L1 table limits the disk.
    for (size, fits) in [(65 << 50, true), (1 << 61, true), ((1 << 61) + 1, false)] {
        let options = CreateOptions {
            cluster_size: 2 << 20,
            ..sized(size)
        };
        let layout = options.check().and_then(|c| Layout::new(&c));
        assert_eq!(layout.is_ok(), fits, "{size}");
    }
}

#[test]
fn space_is_reserved_or_written() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    for preallocation in [Preallocation::Falloc, Preallocation::Full] {
        let size = 3 << 20;
        let options = CreateOptions {
            preallocation,
            ..sized(size)
        };
        create(&path, &options, false).unwrap();
        assert!(path.metadata().unwrap().blocks() * 512 >= size);
        let options = RawOptions {
            preallocation,
            size: Some(size),
            ..RawOptions::default()
        };
        create_raw(&path, &options, false).unwrap();
        let metadata = path.metadata().unwrap();
        assert!(metadata.blocks() * 512 >= size && metadata.len() == size);
    }
}

#[test]
fn failures_leave_no_new_file_and_exclusive_no_changed_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let nowhere = CreateOptions {
        data_file: Some(dir.path().join("no/where").as_os_str().as_bytes().to_vec()),
        cluster_size: 65536,
        ..sized(512)
    };
    assert!(matches!(
        create(&path, &nowhere, false),
        Err(Error::Open { .. })
    ));
    assert!(!path.exists());
    create(&path, &sized(512), true).unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = create(&path, &sized(1024), true).unwrap_err().to_string();
    assert!(error.ends_with("': File exists"), "{error}");
    let reader = FileStorage::open(&path, Access::ReadOnly, LockMode::Read).unwrap();
    assert!(matches!(
        create(&path, &sized(1024), false),
        Err(Error::Locked { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), before);
    drop(reader);
    let created = create(&path, &sized(1000), false).unwrap();
    assert_eq!(
        (created.virtual_size, created.locking),
        (1024, Locking::Held)
    );
}

#[test]
fn a_data_file_that_holds_data_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let (image, data) = (dir.path().join("image"), dir.path().join("data"));
    let options = CreateOptions {
        data_file: Some(data.as_os_str().as_bytes().to_vec()),
        cluster_size: 65536,
        ..sized(100_000)
    };
    let raw = CreateOptions {
        data_file_raw: true,
        ..options.clone()
    };
    let mapped = CreateOptions {
        preallocation: Preallocation::Metadata,
        ..options.clone()
    };
    let length = || std::fs::metadata(&data).unwrap().len();

    // None, and one of holes only: its length becomes the disk's.
    let outcome = |o: &CreateOptions| create(&image, o, false).map(|c| c.data_file);
    assert_eq!(outcome(&raw).unwrap(), Some(DataFile::Made));
    assert_eq!(length(), 131_072);
    assert_eq!(outcome(&options).unwrap(), Some(DataFile::Made));
    assert_eq!(length(), 100_352);

    // A shorter one with data grows, a longer one stays.
    std::fs::write(&data, vec![7; 5000]).unwrap();
    assert_eq!(outcome(&raw).unwrap(), Some(DataFile::Kept));
    assert_eq!(length(), 131_072);
    std::fs::write(&data, vec![7; 200_000]).unwrap();
    assert_eq!(outcome(&options).unwrap(), Some(DataFile::Kept));
    for refused in [&raw, &mapped] {
        std::fs::remove_file(&image).unwrap();
        assert!(matches!(outcome(refused), Err(Error::Refused(_))));
        assert!(!image.exists());
        create(&image, &options, false).unwrap();
    }
    assert_eq!(std::fs::read(&data).unwrap(), vec![7; 200_000]);

    // The image itself.
    let own = CreateOptions {
        data_file: Some(image.as_os_str().as_bytes().to_vec()),
        ..options
    };
    assert!(matches!(
        create(&image, &own, false),
        Err(Error::Refused(_))
    ));
}
