//! Edits of stored bitmaps that rest on more than one cluster of bits, and on images
//! whose metadata contradicts itself.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic in a test is its message"
)]

use std::sync::Arc;

use hbitmap::{Granularity, HBitmap};
use qcow2::{
    Image, OpenOptions,
    bitmap::{all_bitmaps, copy_bitmaps},
    image::create::{CreateOptions, create_in},
    io::{Storage, memory::MemoryStorage},
};

fn create(size: u64, cluster_size: u64) -> MemoryStorage {
    let storage = MemoryStorage::default();
    let options = CreateOptions {
        size: Some(size),
        cluster_size,
        ..CreateOptions::default()
    };
    create_in(&storage, None, &options).unwrap();
    storage
}

fn open(storage: &MemoryStorage) -> Image {
    let options = OpenOptions::new().writable(true);
    options
        .open_storage("image", Arc::new(storage.clone()))
        .unwrap()
}

fn word(storage: &MemoryStorage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_padded(at, &mut bytes).unwrap();
    u64::from_be_bytes(bytes)
}

/// A bitmap with all of `size` clean but what `dirty` names.
fn bits(size: u64, granularity: u64, dirty: std::ops::Range<u64>) -> Arc<HBitmap> {
    let mut bits = HBitmap::new(size, Granularity::from_bytes(granularity).unwrap()).unwrap();
    bits.set(dirty);
    Arc::new(bits)
}

#[test]
fn a_coarse_bitmap_that_was_merged_into_is_merged_with_all_its_granules() {
    // A cluster of 512-byte granules covers 2 MiB, half of a granule of 4 MiB.
    let (size, coarse) = (64 << 20, 4 << 20);
    let storage = create(size, 512);
    let mut image = open(&storage);
    let mut edit = image.edit_bitmaps().unwrap();
    edit.add_with_bits(b"fine", bits(size, 512, 3 << 20..(3 << 20) + 1), true)
        .unwrap();
    edit.add(b"target", 512, true).unwrap();
    edit.add(b"coarse", coarse, true).unwrap();
    edit.commit().unwrap();
    let mut edit = image.edit_bitmaps().unwrap();
    edit.merge(b"coarse", b"fine").unwrap();
    edit.merge(b"target", b"coarse").unwrap();
    edit.commit().unwrap();
    for name in ["coarse", "target"] {
        let bits = image.load_bitmap(name).unwrap();
        let mut ranges = bits.ranges();
        assert_eq!(ranges.next(), Some(0..coarse), "{name}");
        assert_eq!(ranges.next(), None, "{name}");
    }
}

#[test]
fn a_damaged_directory_is_not_copied_in_part() {
    let source = create(1 << 20, 65536);
    let mut image = open(&source);
    let mut edit = image.edit_bitmaps().unwrap();
    edit.add(b"one", 65536, true).unwrap();
    edit.add(b"two", 65536, true).unwrap();
    edit.commit().unwrap();
    let directory = image
        .bitmaps()
        .unwrap()
        .extension()
        .unwrap()
        .directory_offset;
    // The second entry says that it has 4 GiB of extra data.
    source
        .write_all_at(directory.get() + 32 + 20, &[0xff; 4])
        .unwrap();
    let image = open(&source);
    assert_eq!(image.bitmaps().unwrap().entries().len(), 1);
    assert!(all_bitmaps(&image).is_err());
    // Who asks for one that is whole gets it.
    let request = qcow2::bitmap::CopyRequest {
        name: b"one".to_vec(),
        new_name: b"one".to_vec(),
    };
    let mut target = open(&create(1 << 20, 65536));
    copy_bitmaps(&image, &mut target, &[request], false).unwrap();
}

#[test]
fn a_name_that_two_have_is_known_until_both_are_gone() {
    let storage = create(1 << 20, 65536);
    let mut image = open(&storage);
    let mut edit = image.edit_bitmaps().unwrap();
    edit.add(b"one", 65536, true).unwrap();
    edit.add(b"two", 65536, true).unwrap();
    edit.commit().unwrap();
    let bitmaps = image.bitmaps().unwrap();
    let directory = bitmaps.extension().unwrap().directory_offset.get();
    storage.write_all_at(directory + 32 + 24, b"one").unwrap();
    let mut image = open(&storage);
    for renames in [false, true] {
        let mut edit = image.edit_bitmaps().unwrap();
        match renames {
            true => edit.rename(b"one", b"three").unwrap(),
            false => edit.remove(b"one").unwrap(),
        }
        assert!(edit.contains(b"one"));
        assert!(edit.add(b"one", 65536, true).is_err());
        edit.rename(b"one", b"one").unwrap();
        edit.remove(b"one").unwrap();
        assert!(!edit.contains(b"one"));
        edit.add(b"one", 65536, true).unwrap();
    }
}

/// That nothing can be added to an image, and that it isn't touched.
fn assert_refused(storage: &MemoryStorage) {
    storage.start_journal();
    let mut image = open(storage);
    let mut edit = image.edit_bitmaps().unwrap();
    edit.add(b"a", 65536, true).unwrap();
    let text = edit.commit().unwrap_err().to_string();
    assert!(text.contains("repair the image"), "{text}");
    assert!(storage.journal().operations().is_empty());
}

#[test]
fn a_refcount_block_that_counts_twice_is_not_written() {
    let storage = create(1 << 20, 65536);
    let table = word(&storage, 48);
    let block = word(&storage, table);
    storage
        .write_all_at(table + 8, &block.to_be_bytes())
        .unwrap();
    assert_refused(&storage);
}

#[test]
fn a_refcount_block_that_is_guest_data_too_is_not_written() {
    let storage = create(1 << 20, 65536);
    let block = word(&storage, word(&storage, 48));
    // The L1 table names the block as an L2 table.
    let l1 = word(&storage, 40);
    storage
        .write_all_at(l1, &(block | 1 << 63).to_be_bytes())
        .unwrap();
    assert_refused(&storage);
}

/// A write of the header would change what the guest reads.
#[test]
fn no_edit_where_the_header_is_something_else_too() {
    let storage = create(64 << 20, 65536);
    let l1 = word(&storage, 40);
    // An L2 table at 0, which `check` follows as qemu-img does.
    storage
        .write_all_at(l1, &(1_u64 << 63).to_be_bytes())
        .unwrap();
    let length = usize::try_from(storage.size().unwrap()).unwrap();
    let before = storage.to_vec(length).unwrap();
    let mut image = open(&storage);
    let mut edit = image.edit_bitmaps().unwrap();
    edit.add(b"b", 65536, true).unwrap();
    let text = edit.commit().unwrap_err().to_string();
    assert!(text.contains("refers to its cluster"), "{text}");
    assert!(storage.to_vec(length).unwrap() == before);

    // A bitmap whose bits are said to be there can be removed.
    let storage = create(64 << 20, 65536);
    let mut image = open(&storage);
    let mut edit = image.edit_bitmaps().unwrap();
    edit.add_with_bits(b"b", bits(64 << 20, 65536, 0..1 << 20), true)
        .unwrap();
    edit.commit().unwrap();
    let table = image.bitmaps().unwrap().entries()[0].table_offset.get();
    storage
        .write_all_at(table, &0x200_u64.to_be_bytes())
        .unwrap();
    let mut image = open(&storage);
    let mut edit = image.edit_bitmaps().unwrap();
    edit.remove(b"b").unwrap();
    edit.commit().unwrap();
}
