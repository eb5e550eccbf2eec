//! Structures of images that qemu-img made, compared field by field and encoded
//! back to the same bytes.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic in a test's helper is its message"
)]

mod support;

use qcow2::{
    addr::HostOffset,
    format::{
        Autoclear, BitmapDirectory, BitmapFlags, Compatible, CompressionType, CryptMethod,
        ExtensionType, Extensions, FeatureNames, Header, Incompatible, LuksHeader, Snapshot,
    },
};
use support::Qemu;

/// Header and extensions of an image, whose encoding must be what was read.
fn open(image: &[u8]) -> (Header, Extensions) {
    let cluster = usize::try_from(Header::probe_cluster_size(image).unwrap()).unwrap();
    let first = &image[..cluster];
    let header = Header::parse(first).unwrap();
    let end = match header.backing_file_offset {
        0 => first.len(),
        offset => usize::try_from(offset).unwrap(),
    };
    let start = header.header_length as usize;
    let base = HostOffset(u64::from(header.header_length));
    let extensions = Extensions::parse(&first[start..end], base).unwrap();
    let mut again = Vec::new();
    header.encode(&mut again);
    assert_eq!(again, first[..start]);
    extensions.encode(&mut again);
    assert_eq!(again, first[..start + extensions.encoded_len()]);
    (header, extensions)
}

#[test]
fn headers_say_what_qemu_img_was_asked_for() {
    let Some(qemu) = Qemu::find() else { return };
    qemu.img("create -q -f raw base.raw 1M");
    for cluster_bits in [9_u32, 12, 16, 21] {
        for order in 0..=6_u32 {
            let options = format!(
                "cluster_size={},refcount_bits={}",
                1 << cluster_bits,
                1 << order
            );
            qemu.img(&format!("create -q -f qcow2 -o {options} a.qcow2 100M"));
            let (header, extensions) = open(&qemu.bytes("a.qcow2"));
            assert_eq!((header.version, header.size), (3, 100 << 20));
            assert_eq!(
                (header.cluster_bits, header.refcount_order),
                (cluster_bits, order)
            );
            let l1_size = header.geometry().l1_entries(header.size);
            assert_eq!(u64::from(header.l1_size), l1_size);
            assert_eq!(
                (header.nb_snapshots, header.snapshots_offset),
                (0, HostOffset(0))
            );
            assert_eq!(
                (header.header_length, header.crypt_method),
                (112, CryptMethod::None)
            );
            assert_eq!(header.refcount_table_offset.get(), 1 << cluster_bits);
            assert!(
                header.incompatible_features.is_empty() && header.autoclear_features.is_empty()
            );
            let has_names = extensions.get(ExtensionType::FEATURE_NAMES).is_some();
            assert_eq!(
                has_names,
                cluster_bits > 12,
                "QEMU leaves them out of small clusters"
            );
            if has_names {
                assert_eq!(extensions.feature_names(), FeatureNames::known());
            }
        }
    }
}

#[test]
fn feature_bits_and_extensions_say_what_qemu_img_was_asked_for() {
    let Some(qemu) = Qemu::find() else { return };
    qemu.img("create -q -f raw base.raw 1M");
    qemu.img("create -q -f qcow2 -o extended_l2=on,compression_type=zstd,lazy_refcounts=on a 1G");
    let (header, _) = open(&qemu.bytes("a"));
    let expected = Incompatible::EXTENDED_L2.with(Incompatible::COMPRESSION_TYPE);
    assert_eq!(header.incompatible_features, expected);
    assert_eq!(header.compatible_features, Compatible::LAZY_REFCOUNTS);
    assert_eq!(header.compression_type, CompressionType::Zstd);
    assert!(header.geometry().extended_l2());

    qemu.img("create -q -f qcow2 -b base.raw -F raw a");
    let (header, extensions) = open(&qemu.bytes("a"));
    assert_eq!(header.backing_file.as_deref(), Some(&b"base.raw"[..]));
    assert_eq!(header.backing_file_size, 8);
    assert_eq!(extensions.backing_format(), Some(&b"raw"[..]));

    qemu.img("create -q -f qcow2 -o compat=0.10 -b base.raw -F raw a");
    let (header, extensions) = open(&qemu.bytes("a"));
    assert_eq!(
        (header.version, header.header_length, header.refcount_order),
        (2, 72, 4)
    );
    assert_eq!(header.backing_file.as_deref(), Some(&b"base.raw"[..]));
    assert_eq!(extensions.backing_format(), Some(&b"raw"[..]));

    qemu.img("create -q -f qcow2 -o data_file=data.raw,data_file_raw=on a 1G");
    let (header, extensions) = open(&qemu.bytes("a"));
    assert!(header.has_data_file());
    assert_eq!(header.autoclear_features, Autoclear::DATA_FILE_RAW);
    assert_eq!(extensions.data_file(), Some(&b"data.raw"[..]));
}

#[test]
fn bitmap_directory_of_qemu_img() {
    let Some(qemu) = Qemu::find() else { return };
    qemu.img("create -q -f qcow2 a 10G");
    qemu.img("bitmap --add a b0");
    qemu.img("bitmap --add --disable -g 512 a second");
    let image = qemu.bytes("a");
    let (header, extensions) = open(&image);
    assert_eq!(header.autoclear_features, Autoclear::BITMAPS);
    let extension = extensions.bitmaps().unwrap().unwrap();
    extension.check(header.geometry()).unwrap();
    let start = usize::try_from(extension.directory_offset.get()).unwrap();
    let bytes = &image[start..start + usize::try_from(extension.directory_size).unwrap()];
    let directory = BitmapDirectory::parse(bytes, extension.directory_offset, extension.nb_bitmaps);
    assert!(directory.fault.is_none() && directory.rest.is_empty());
    let mut again = Vec::new();
    directory.encode(&mut again);
    assert_eq!(again, bytes);
    let mut list: Vec<_> = directory
        .located(extension.directory_offset)
        .map(|(at, entry)| {
            entry.check(header.geometry(), header.size, at).unwrap();
            (
                &entry.name[..],
                entry.flags,
                entry.granularity_bits,
                entry.table_size,
            )
        })
        .collect();
    list.sort_by_key(|entry| entry.0);
    let b0 = (&b"b0"[..], BitmapFlags::AUTO, 16, 1);
    // 10 GiB / 512 bytes / 8 / 64 KiB
    assert_eq!(list, [b0, (&b"second"[..], BitmapFlags::default(), 9, 40)]);
}

#[test]
fn snapshot_table_of_qemu_img() {
    let Some(qemu) = Qemu::find() else { return };
    qemu.img("create -q -f qcow2 a 10M");
    for name in ["first", "second one", "3"] {
        let output = std::process::Command::new("qemu-img")
            .args(["snapshot", "-c", name])
            .arg(qemu.path("a"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let image = qemu.bytes("a");
    let (header, _) = open(&image);
    let mut rest = &image[usize::try_from(header.snapshots_offset.get()).unwrap()..];
    let mut seen = Vec::new();
    for index in 0..header.nb_snapshots as usize {
        let before = rest;
        let (after, snapshot) = Snapshot::parse(rest, header.snapshots_offset, index).unwrap();
        let mut again = Vec::new();
        snapshot.encode(&mut again);
        assert_eq!(again, before[..again.len()]);
        assert_eq!(
            (snapshot.disk_size(), snapshot.vm_state_size()),
            (Some(10 << 20), 0)
        );
        assert_eq!((snapshot.icount(), snapshot.l1_size), (Some(0), 1));
        assert!(snapshot.date_seconds > 1_600_000_000);
        seen.push((snapshot.id, snapshot.name));
        rest = after;
    }
    let expected = [("1", "first"), ("2", "second one"), ("3", "3")]
        .map(|(id, name)| (id.as_bytes().to_vec(), name.as_bytes().to_vec()));
    assert_eq!(seen, expected);
}

#[test]
fn luks_header_of_qemu_img() {
    let Some(qemu) = Qemu::find() else { return };
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let cipher = "encrypt.cipher-alg=serpent-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv";
    let secret = "--object secret,id=s,data=abc";
    let hash = "encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha1";
    for (extra, expected) in [
        (
            "",
            (
                "aes-256",
                &b"xts"[..],
                &b"plain64"[..],
                None,
                &b"sha256"[..],
            ),
        ),
        (
            &*format!(",{cipher},{hash}"),
            (
                "serpent-128",
                &b"cbc"[..],
                &b"essiv"[..],
                Some(&b"sha256"[..]),
                &b"sha1"[..],
            ),
        ),
    ] {
        qemu.img(&format!(
            "create -q {secret} -f qcow2 -o {options}{extra} a 1M"
        ));
        let image = qemu.bytes("a");
        let (header, extensions) = open(&image);
        assert_eq!(header.crypt_method, CryptMethod::Luks);
        let pointer = extensions.encryption().unwrap().unwrap();
        let start = usize::try_from(pointer.offset.get()).unwrap();
        let luks = LuksHeader::parse(&image[start..], pointer.offset).unwrap();
        let found = (
            &*luks.cipher_alg(),
            luks.mode(),
            luks.ivgen(),
            luks.ivgen_hash(),
            &*luks.hash,
        );
        assert_eq!(found, expected);
        let shown = qemu.img("info a");
        for line in [
            format!("uuid: {}", luks.uuid.escape_ascii()),
            format!("payload offset: {}", luks.payload_offset),
            format!("master key iters: {}", luks.master_key_iterations),
            format!("iters: {}", luks.slots[0].iterations),
            format!("key offset: {}", luks.slots[7].key_offset),
            format!("stripes: {}", luks.slots[0].stripes),
        ] {
            assert!(shown.contains(&line), "{line} not in {shown}");
        }
        let active: Vec<_> = luks.slots.iter().map(|slot| slot.active).collect();
        assert_eq!(
            active,
            [true, false, false, false, false, false, false, false]
        );
    }
}
