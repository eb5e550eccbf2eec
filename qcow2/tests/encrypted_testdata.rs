//! Encrypted images in `testdata/`, made and written by QEMU. Needs no QEMU.
#![cfg(feature = "encryption")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic in a test is its message"
)]

use std::path::Path;

use qcow2::{
    Error, OpenOptions,
    crypt::Secret,
    disk::{Disk, DiskExt},
    io::LockMode,
};

/// What `make.py` had qemu-io write.
fn content() -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    bytes[..6 << 10].fill(0x11);
    bytes[500 << 10..][..1000].fill(0x22);
    bytes[1023 << 10..].fill(0x33);
    bytes
}

#[test]
fn what_qemu_wrote_is_read_with_the_passphrase_and_only_with_it() {
    for name in ["luks", "aes"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../testdata/qcow2")
            .join(name)
            .with_extension("qcow2");
        let open = |passphrase: Option<&str>| {
            let mut options = OpenOptions::new().lock(LockMode::None);
            if let Some(passphrase) = passphrase {
                options = options.secret(Secret::new(passphrase));
            }
            options.open(&path)
        };
        let image = open(Some("sesame")).unwrap();
        let mut bytes = vec![0xee; 1 << 20];
        image.read(0, &mut bytes).unwrap();
        assert!(bytes == content(), "{name}");
        let data: u64 = image
            .extents(0..image.size())
            .map(|extent| extent.unwrap())
            .filter(|extent| !extent.reads_as_zeros())
            .map(|extent| extent.length)
            .sum();
        assert_eq!(data, 16 << 10, "{name}");
        // LUKS knows a wrong passphrase, AES decrypts to something else.
        match open(Some("open")) {
            Err(error) => assert!(name == "luks" && matches!(error, Error::InvalidPassword)),
            Ok(image) => {
                assert_eq!(name, "aes");
                image.read(0, &mut bytes).unwrap();
                assert!(bytes[..512] != content()[..512]);
            }
        }
        // Without one the metadata can be told, and no data read.
        let image = open(None).unwrap();
        assert_eq!(image.extents(0..image.size()).count(), 6, "{name}");
        assert!(image.read(0, &mut bytes[..512]).is_err());
    }
}
