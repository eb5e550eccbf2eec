//! The on-disk structures by themselves, and whole images in memory: open, dump, edit,
//! check.

use std::sync::Arc;

use qcow2::{
    Geometry, Image, OpenOptions,
    addr::HostOffset,
    check::{CheckOptions, Finding, Metadata, check},
    format::{
        BitmapDirectory, BitmapFlags, BitmapsExtension, Header, HeaderArea, Incompatible,
        LuksHeader, Snapshot, bitmap_table, l1, l2, refcount,
    },
    io::{LockMode, Storage, memory::MemoryStorage},
};

use super::Input;
use crate::{
    ImageBytes,
    testdata::{damaged, recorded},
};

/// Bitmaps with more granules than this are not looked at bit by bit.
const FEW: u64 = 1 << 22;

/// Reads `data` as a first cluster: header, extensions, backing file name; and as a
/// LUKS header.
pub fn header(data: &[u8]) {
    if let Ok(luks) = LuksHeader::parse(data, HostOffset(0)) {
        let _ = (
            luks.cipher_alg(),
            luks.mode(),
            luks.ivgen(),
            luks.ivgen_hash(),
        );
    }
    if let Ok(header) = Header::parse(data) {
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        assert!(data.starts_with(&bytes), "the header is not as it was read");
    }
    let Ok(size) = Header::probe_cluster_size(data) else {
        return;
    };
    let mut cluster = data.to_vec();
    cluster.resize(size as usize, 0);
    let Ok(area) = HeaderArea::from_cluster(cluster.clone()) else {
        return;
    };
    assert!(area.encode() == cluster, "the area is not as it was read");
    let _ = area.check_features();
    let _ = area.check_encryption();
    let _ = area.check_backing_format();
    let _ = area.extensions().feature_names();
    let _ = area.extensions().encryption();

    // Another bitmaps extension, or none: all else must survive.
    for bitmaps in [None, Some(extension())] {
        let mut changed = area.clone();
        if changed.set_bitmaps_extension(bitmaps).is_err() {
            continue;
        }
        let again = HeaderArea::from_cluster(changed.encode()).expect("what we wrote is read");
        assert_eq!(again.extensions().bitmaps().unwrap(), bitmaps);
        // A name of no bytes is as good as none.
        let name = |area: &HeaderArea| area.header().backing_file.clone().unwrap_or_default();
        assert_eq!(name(&again), name(&area));
        assert_eq!(
            again.extensions().backing_format(),
            area.extensions().backing_format()
        );
        assert_eq!(
            again.extensions().data_file(),
            area.extensions().data_file()
        );
    }
}

fn extension() -> BitmapsExtension {
    BitmapsExtension {
        nb_bitmaps: 1,
        reserved: 0,
        directory_size: 32,
        directory_offset: HostOffset(0x10000),
    }
}

/// Reads `data` as tables: its first byte tells the geometry, its second the count of
/// bitmaps, the rest is a bitmap directory, and every other table as well.
pub fn directory_and_tables(data: &[u8]) {
    let [shape, count, table @ ..] = data else {
        return;
    };
    let (shape, count) = (u32::from(*shape), u32::from(*count));
    let bits = 9 + shape % 13;
    let extended = shape >= 128 && bits >= 14;
    let geometry = Geometry::new(bits, shape / 13 % 7, extended).expect("a valid shape");

    if let Ok(extension) = BitmapsExtension::parse(table) {
        let mut bytes = Vec::new();
        extension.encode(&mut bytes);
        assert!(bytes == table);
        let _ = extension.check(geometry);
    }
    let directory = BitmapDirectory::parse(table, HostOffset(0x10000), count);
    let mut bytes = Vec::new();
    directory.encode(&mut bytes);
    assert!(bytes == table, "the directory is not as it was read");
    assert!(directory.fault.is_some() || directory.entries.len() == count as usize);
    for (at, entry) in directory.located(HostOffset(0x10000)) {
        for size in [0, 512, 1 << 30, u64::MAX] {
            let needed = entry.needed_table_size(geometry, size);
            // A bitmap in use may have the table of another size of the disk.
            if entry.check(geometry, size, at).is_ok() && !entry.flags.contains(BitmapFlags::IN_USE)
            {
                assert_eq!(needed, Some(u64::from(entry.table_size)));
            }
        }
    }

    let mut rest = table;
    for index in 0..64 {
        let Ok((after, snapshot)) = Snapshot::parse(rest, HostOffset(0), index) else {
            break;
        };
        let mut bytes = Vec::new();
        snapshot.encode(&mut bytes);
        assert!(
            rest.starts_with(&bytes),
            "the snapshot is not as it was read"
        );
        let _ = (
            snapshot.vm_state_size(),
            snapshot.disk_size(),
            snapshot.icount(),
        );
        rest = after;
    }

    let mut bytes = Vec::new();
    for entry in bitmap_table::entries(table) {
        let again = bitmap_table::BitmapTableEntry::new(entry.cluster());
        assert_eq!(entry.reserved() == 0, again == entry);
        entry.encode(&mut bytes);
    }
    assert!(table.starts_with(&bytes));
    for entry in l1::entries(table) {
        let _ = (entry.l2_table(), entry.copied(), entry.reserved());
    }
    for entry in l2::entries(table) {
        for flag in [false, true] {
            let _ = (
                entry.mapping(geometry, flag),
                entry.reserved(geometry, flag),
            );
        }
        let _ = entry.compressed_range(geometry);
    }
    for entry in l2::extended_entries(table) {
        let _ = (entry.mapping(geometry, false), entry.bitmap.invalid());
    }
    for order in 0..=6 {
        let mut copy = table.to_vec();
        for index in 0..table.len().min(70) {
            if let Some(value) = refcount::get(table, order, index) {
                assert!(refcount::set(&mut copy, order, index, value));
            }
        }
        assert!(copy == table);
    }
}

/// Opens `data` as an image in memory, loads every bitmap and edits them.
pub fn image(data: &[u8]) {
    let storage = MemoryStorage::from_bytes(data);
    let options = OpenOptions::new().lock(LockMode::ReadWrite);
    if let Ok(image) = options.open_storage("fuzz", Arc::new(storage.clone())) {
        let _ = contents(&image);
    }
    assert!(
        storage.to_vec(data.len()).is_ok_and(|bytes| bytes == data),
        "reading changed the image"
    );

    for edit in [add, merge, clear, remove, disable] {
        let (original, storage) = (storage.fork(), storage.fork());
        let options = options.clone().writable(true);
        let Ok(mut image) = options.open_storage("fuzz", Arc::new(storage.clone())) else {
            return;
        };
        // One with the dirty bit was repaired.
        let opened = storage.fork();
        // Void bitmaps go away with the first edit, as they do in QEMU.
        let void = image.bitmaps().is_ok_and(|bitmaps| bitmaps.is_voided());
        let before = contents(&image);
        match edit(&mut image) {
            Ok(name) => {
                drop(image);
                let again = options
                    .open_storage("fuzz", Arc::new(storage.clone()))
                    .unwrap();
                let after = contents(&again);
                // What the edit does not name is as it was; a bad one may be mended by
                // the loss of what it overlapped.
                let same = before.iter().all(|(other, bits)| {
                    *other == name
                        || bits.is_err()
                        || after.contains(&(other.clone(), bits.clone()))
                });
                assert!(void || same, "another bitmap changed");
                // Bits that were bad may stay bad: some edits don't look at them.
                let bad = |all: &Contents| all.iter().any(|(n, b)| *n == name && b.is_err());
                assert!(bad(&before) || !bad(&after), "the edited bitmap is bad");
                // A damaged image may show more of its damage after an edit; a sound one
                // must stay sound.
                let then = checked_at(&opened, storage.size().unwrap());
                let now = checked(&storage);
                if let Some((0, leaks)) = then {
                    let (corruptions, now) = now.expect("what was edited can be checked");
                    assert_eq!(corruptions, 0, "an edit made the image corrupt");
                    assert!(now <= leaks, "an edit leaked: {leaks} became {now}");
                }
            }
            Err(_) => {
                let bytes = |of: &MemoryStorage| {
                    let size = usize::try_from(of.size().unwrap()).unwrap();
                    of.to_vec(size).unwrap()
                };
                assert!(bytes(&storage) == bytes(&opened), "a refused edit wrote");
                assert!(
                    image_was_dirty(&original) || bytes(&opened) == data,
                    "opening wrote to an image without the dirty bit"
                );
            }
        }
    }
}

fn image_was_dirty(storage: &MemoryStorage) -> bool {
    HeaderArea::read_for_check(storage).is_ok_and(|area| {
        let features = area.header().incompatible_features;
        features.contains(Incompatible::DIRTY)
    })
}

/// Corruptions and leaks that the check finds; `None` where it gives up.
pub(super) fn checked(storage: &dyn Storage) -> Option<(u64, u64)> {
    let area = HeaderArea::read_for_check(storage).ok()?;
    let metadata = Metadata {
        storage,
        header: area.header(),
        extensions: area.extensions(),
        geometry: area.header().geometry(),
    };
    let mut print = |finding: &Finding| {
        let _ = finding.to_string();
    };
    let report = check(&metadata, CheckOptions { bitmaps: true }, &mut print).ok()?;
    Some((report.corruptions + report.check_errors, report.leaks))
}

/// As [`checked`], in a file as long as this: refcounts past the end of a file are no
/// leaks until it grows.
fn checked_at(storage: &MemoryStorage, length: u64) -> Option<(u64, u64)> {
    let longer = storage.fork();
    if longer.size().is_ok_and(|size| size < length) {
        longer.set_len(length).unwrap();
    }
    checked(&longer)
}

/// Names with the bits, or why they can't be read.
type Contents = Vec<(Vec<u8>, Result<Vec<u8>, String>)>;

fn contents(image: &Image) -> Contents {
    let Ok(bitmaps) = image.bitmaps() else {
        return Vec::new();
    };
    let mut out = Vec::new();
    for bitmap in bitmaps.iter(image).take(20) {
        let bits = bitmap.load().map(|bits| {
            if bits.granules() < FEW {
                let _ = bits.sha256();
                let covered: u64 = bits.ranges().map(|r| r.end - r.start).sum();
                assert_eq!(covered, bits.dirty_bytes());
            }
            bits.to_layered()
        });
        let word = bitmap.state().word();
        out.push((bitmap.name().to_vec(), bits.map_err(|_| word.to_owned())));
    }
    out
}

type Edited = qcow2::Result<Vec<u8>>;

fn first(image: &Image) -> Vec<u8> {
    let bitmaps = image.bitmaps();
    let bitmaps = bitmaps.as_ref().map(|b| b.entries()).unwrap_or_default();
    bitmaps.first().map(|b| b.name.clone()).unwrap_or_default()
}

fn add(image: &mut Image) -> Edited {
    let mut edit = image.edit_bitmaps()?;
    edit.add(b"new", 65536, true)?;
    edit.commit()?;
    Ok(b"new".to_vec())
}

fn merge(image: &mut Image) -> Edited {
    let name = first(image);
    let mut edit = image.edit_bitmaps()?;
    edit.add(b"sum", 1 << 20, false)?;
    edit.merge(b"sum", &name)?;
    edit.commit()?;
    Ok(b"sum".to_vec())
}

fn clear(image: &mut Image) -> Edited {
    let name = first(image);
    let mut edit = image.edit_bitmaps()?;
    edit.clear(&name)?;
    edit.commit()?;
    Ok(name)
}

fn remove(image: &mut Image) -> Edited {
    let name = first(image);
    let mut edit = image.edit_bitmaps()?;
    edit.remove(&name)?;
    edit.commit()?;
    Ok(name)
}

fn disable(image: &mut Image) -> Edited {
    let name = first(image);
    let mut edit = image.edit_bitmaps()?;
    edit.set_enabled(&name, false)?;
    edit.commit()?;
    Ok(name)
}

/// The images of `testdata/` that are small enough.
fn images(limit: usize) -> Vec<Input> {
    let good = recorded().into_iter().map(|recorded| {
        let name = recorded.image.display().to_string();
        (name, ImageBytes::load(&recorded.image).bytes)
    });
    let bad = damaged().into_iter().map(|case| (case.name, case.bytes));
    good.chain(bad).filter(|(_, b)| b.len() <= limit).collect()
}

pub(super) fn image_seeds() -> Vec<Input> {
    images(64 << 10)
}

/// First clusters, without the zeros at their end.
pub(super) fn header_seeds() -> Vec<Input> {
    let mut seeds = images(1 << 20);
    for (_, bytes) in &mut seeds {
        bytes.truncate(4096);
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
    }
    seeds
}

/// Directories and snapshot tables.
pub(super) fn directory_seeds() -> Vec<Input> {
    let mut out = Vec::new();
    for recorded in recorded() {
        let image = ImageBytes::load(&recorded.image);
        let name = recorded.image.display().to_string();
        let entries = image.directory();
        if let (Some((_, first)), Some((_, last))) = (entries.first(), entries.last()) {
            let mut seed = vec![3, entries.len() as u8];
            seed.extend(&image.bytes[first.start..last.end]);
            out.push((name.clone(), seed));
        }
        let (count, at) = (image.be32(60), image.be64(64) as usize);
        if count > 0 {
            let mut seed = vec![3, 0];
            seed.extend(image.bytes[at..].iter().take(256));
            out.push((format!("{name}: snapshots"), seed));
        }
    }
    out
}
