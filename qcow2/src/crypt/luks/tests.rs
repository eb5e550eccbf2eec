//! Images made here and opened again, and headers that are no good.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    Image, OpenOptions,
    crypt::{Encryption, LuksOptions},
    disk::Disk,
    image::create::{CreateOptions, create_in},
    io::memory::MemoryStorage,
};

fn image(change: impl Fn(&mut LuksOptions)) -> MemoryStorage {
    let mut luks = LuksOptions::new(Secret::new("letmein"));
    luks.iter_time = Duration::ZERO;
    change(&mut luks);
    let options = CreateOptions {
        size: Some(1 << 20),
        cluster_size: 4096,
        encryption: Some(Encryption::Luks(luks)),
        ..CreateOptions::default()
    };
    let storage = MemoryStorage::default();
    create_in(&storage, None, &options).unwrap();
    storage
}

fn open(storage: &MemoryStorage, secret: &str) -> Result<Image> {
    OpenOptions::new()
        .writable(true)
        .secret(Secret::new(secret))
        .open_storage("image", Arc::new(storage.clone()))
}

/// Where the LUKS header is in the file.
fn header_at(storage: &MemoryStorage) -> u64 {
    let image = OpenOptions::new().open_storage("image", Arc::new(storage.clone()));
    let extensions = image.unwrap();
    let place = extensions.header_area().extensions().encryption();
    place.unwrap().unwrap().offset.0
}

#[test]
fn a_new_image_keeps_what_is_written_from_who_has_no_secret() {
    let storage = image(|_| {});
    let writer = open(&storage, "letmein").unwrap().into_writer().unwrap();
    let text = b"nobody is to see this".repeat(1000);
    writer.write(1000, &text).unwrap();
    drop(writer.close().unwrap());
    let mut read = vec![0; text.len()];
    let opened = open(&storage, "letmein").unwrap();
    opened.read(1000, &mut read).unwrap();
    assert_eq!(read, text);
    let bytes = storage.to_vec(1 << 30).unwrap();
    assert!(!bytes.windows(6).any(|part| part == b"nobody"));
    assert!(!bytes.windows(7).any(|part| part == b"letmein"));
    let wrong = open(&storage, "letmeout").unwrap_err();
    assert!(matches!(wrong, Error::InvalidPassword), "{wrong}");
    let other = image(|_| {}).to_vec(1 << 30).unwrap();
    let at = usize::try_from(header_at(&storage)).unwrap();
    assert_ne!(bytes[at + 112..at + 592], other[at + 112..at + 592]);
}

#[test]
fn every_option_of_a_new_image() {
    for (cipher, mode, iv, hash) in [
        ("aes-128", "cbc", "essiv", "sha1"),
        ("serpent-192", "xts", "plain", "sha512"),
        ("twofish-256", "ctr", "plain64", "ripemd160"),
        ("aes-256", "ecb", "plain64", "sha384"),
    ] {
        let storage = image(|options| {
            options.cipher_alg = cipher.into();
            options.cipher_mode = mode.into();
            options.ivgen_alg = iv.into();
            options.hash_alg = hash.into();
        });
        open(&storage, "letmein").unwrap();
    }
    for (cipher, mode, message) in [
        (
            "cast5-128",
            "cbc",
            "Algorithm 'cast5' with key size 16 bytes not supported",
        ),
        (
            "aes-192",
            "cbc",
            "Algorithm 'aes-192' only goes with cipher mode 'xts'",
        ),
        ("aes", "cbc", "Algorithm 'aes' not supported"),
    ] {
        let mut luks = LuksOptions::new(Secret::new(""));
        (luks.cipher_alg, luks.cipher_mode) = (cipher.into(), mode.into());
        let options = CreateOptions {
            size: Some(1 << 20),
            encryption: Some(Encryption::Luks(luks)),
            ..CreateOptions::default()
        };
        assert_eq!(options.validate().unwrap_err().to_string(), message);
    }
}

/// The sentences are those of qemu-img 10.0.2 for the same bytes.
#[test]
fn headers_that_are_no_good_are_told_as_by_qemu() {
    let storage = image(|_| {});
    let base = header_at(&storage);
    let number = |n: u32| n.to_be_bytes().to_vec();
    for (at, bytes, message) in [
        (0, b"LUKX".to_vec(), "Volume is not in LUKS format"),
        (6, vec![0, 2], "LUKS version 2 is not supported"),
        (
            8,
            vec![b'a'; 32],
            "LUKS header cipher name is not NUL terminated",
        ),
        (
            8,
            b"foo\0".to_vec(),
            "Algorithm 'foo' with key size 32 bytes not supported",
        ),
        (
            40,
            b"xts\0".to_vec(),
            "Unexpected cipher mode string format 'xts'",
        ),
        (
            40,
            b"xts-foo\0".to_vec(),
            "IV generator 'foo' not supported",
        ),
        (72, b"foo\0".to_vec(), "Hash algorithm 'foo' not supported"),
        (
            104,
            number(1),
            "LUKS payload is overlapping with the header",
        ),
        (
            104,
            number(600),
            "Keyslot 1 is overlapping with the encrypted payload",
        ),
        (
            108,
            number(0),
            "Algorithm 'aes' with key size 0 bytes not supported",
        ),
        (
            108,
            number(65),
            "Keyslots 0 and 1 are overlapping in the header",
        ),
        (
            108,
            number(u32::MAX),
            "Keyslot 0 is overlapping with the encrypted payload",
        ),
        (
            112,
            vec![0; 20],
            "Invalid password, cannot unlock any keyslot",
        ),
        (164, number(0), "LUKS key iteration count is zero"),
        (
            208,
            number(1),
            "Keyslot 0 state (active/disable) is corrupted",
        ),
        (
            208,
            number(0xdead),
            "Invalid password, cannot unlock any keyslot",
        ),
        (212, number(0), "Keyslot 0 iteration count is zero"),
        (
            248,
            number(7),
            "Keyslot 0 is overlapping with the LUKS header",
        ),
        (
            248,
            number(0xff_ffff),
            "Keyslot 0 is overlapping with the encrypted payload",
        ),
        (
            252,
            number(u32::MAX),
            "Keyslot 0 is corrupted (stripes -1 != 4000)",
        ),
        (
            296,
            number(8),
            "Keyslots 0 and 1 are overlapping in the header",
        ),
    ] {
        let damaged = storage.fork();
        damaged.write_all_at(base + at, &bytes).unwrap();
        assert_eq!(open(&damaged, "letmein").unwrap_err().to_string(), message);
    }
    // Ours: it would take hours.
    let damaged = storage.fork();
    damaged.write_all_at(base + 212, &number(u32::MAX)).unwrap();
    let error = open(&damaged, "letmein").unwrap_err().to_string();
    assert!(error.contains("more than 268435456"), "{error}");
}
