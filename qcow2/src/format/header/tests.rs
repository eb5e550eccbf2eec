use proptest::prelude::*;

use super::*;

/// What `qemu-img create -f qcow2 -o compression_type=zstd,refcount_bits=8 x 1G` writes,
/// with a backing name added by hand at 120.
fn sample_v3() -> Vec<u8> {
    let mut bytes = Vec::from(*b"QFI\xfb\0\0\0\x03");
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 120, 0, 0, 0, 4, 0, 0, 0, 16]);
    bytes.extend([0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    bytes.extend([0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 112]);
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0; 8]);
    bytes.extend(*b"base");
    bytes
}

fn sample_v2() -> Vec<u8> {
    let mut bytes = sample_v3();
    (bytes[7], bytes[11]) = (2, 0);
    bytes.truncate(72);
    bytes[8..20].fill(0);
    bytes
}

/// The header with one field overwritten, big-endian, `len` bytes at `at`.
fn with(at: usize, len: usize, value: u64) -> Vec<u8> {
    let mut bytes = sample_v3();
    bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    bytes
}

fn message(bytes: &[u8]) -> String {
    Header::parse(bytes).unwrap_err().to_string()
}

#[test]
fn fixed_bytes_of_version_3() {
    let header = Header::parse(&sample_v3()).unwrap();
    let expected = Header {
        version: 3,
        backing_file_offset: 120,
        backing_file_size: 4,
        backing_file: Some(b"base".to_vec()),
        cluster_bits: 16,
        size: 1 << 30,
        crypt_method: CryptMethod::None,
        l1_size: 2,
        l1_table_offset: HostOffset(0x30000),
        refcount_table_offset: HostOffset(0x10000),
        refcount_table_clusters: 1,
        nb_snapshots: 0,
        snapshots_offset: HostOffset(0),
        incompatible_features: Incompatible::COMPRESSION_TYPE,
        compatible_features: Compatible::LAZY_REFCOUNTS,
        autoclear_features: Autoclear::BITMAPS,
        refcount_order: 3,
        header_length: 112,
        compression_type: CompressionType::Zstd,
        unknown_fields: vec![0; 7],
    };
    assert_eq!(header, expected);
    assert_eq!(header.geometry(), Geometry::new(16, 3, false).unwrap());
    let mut again = Vec::new();
    header.encode(&mut again);
    assert_eq!(again, sample_v3()[..112]);
    assert_eq!(Header::probe_cluster_size(&again).unwrap(), 65536);
}

#[test]
fn version_2_has_the_defaults_of_the_spec() {
    let header = Header::parse(&sample_v2()).unwrap();
    assert_eq!(
        (header.version, header.refcount_order, header.header_length),
        (2, 4, 72)
    );
    assert!(header.incompatible_features.is_empty() && header.unknown_fields.is_empty());
    assert_eq!(
        (header.compression_type, header.backing_file.as_ref()),
        (CompressionType::Zlib, None)
    );
    let mut again = Vec::new();
    header.encode(&mut again);
    assert_eq!(again, sample_v2());
}

#[test]
fn unknown_trailing_fields_are_kept() {
    for length in [104_u8, 112, 120, 176] {
        let mut bytes = sample_v3();
        bytes.truncate(104);
        bytes[8..20].fill(0);
        bytes[79] = 0;
        bytes[103] = length;
        let tail: Vec<u8> = (0..length - 104).collect();
        bytes.extend(tail);
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(
            header.unknown_fields.len(),
            usize::from(length - 104).saturating_sub(1)
        );
        let mut again = Vec::new();
        header.encode(&mut again);
        assert_eq!(again, bytes);
    }
}

#[test]
fn cut_at_every_byte_it_is_refused() {
    for bytes in [sample_v2(), sample_v3()] {
        for end in 0..bytes.len() {
            let error = Header::parse(&bytes[..end]).unwrap_err();
            match error {
                Error::NotQcow2 => assert!(end < 4),
                Error::Corrupt { .. } => assert!(end >= 4),
                Error::Header { .. } => assert!((104..112).contains(&end)),
                other => panic!("{end}: {other}"),
            }
        }
    }
    assert!(matches!(Header::parse(b"RAW disk"), Err(Error::NotQcow2)));
    assert!(matches!(
        Header::probe_cluster_size(b"QFI"),
        Err(Error::NotQcow2)
    ));
    assert!(matches!(
        Header::probe_cluster_size(b"QFI\xfb\0"),
        Err(Error::Corrupt { .. })
    ));
}

/// The words were compared with what qemu-img 10.0.2 says to the same headers.
#[test]
fn each_impossible_field_is_refused_in_qemus_words() {
    let table = [
        (4, 4, 4, "Unsupported qcow2 version 4"),
        (16, 4, 1024, "Backing file name too long"),
        (8, 8, 65533, "Backing file name too long"),
        (8, 8, u64::MAX, "Invalid backing file offset"),
        (20, 4, 22, "Unsupported cluster size: 2^22"),
        (20, 4, 8, "Unsupported cluster size: 2^8"),
        (
            20,
            4,
            u64::from(u32::MAX),
            "Unsupported cluster size: 2^4294967295",
        ),
        (24, 8, i64::MAX as u64, "Image is too big"),
        (24, 8, (1 << 30) + 1, "L1 table is too small"),
        (32, 4, 3, "Unsupported encryption method 3"),
        (36, 4, 1, "L1 table is too small"),
        (36, 4, 0x40_0001, "Active L1 table too large"),
        (40, 8, 0x30001, "Active L1 table offset invalid"),
        (40, 8, 1 << 63, "Active L1 table offset invalid"),
        (48, 8, 0x10200, "Reference count table offset invalid"),
        (
            48,
            8,
            u64::MAX << 16,
            "Reference count table offset invalid",
        ),
        (56, 4, 129, "Reference count table too large"),
        (56, 4, 0, "Image does not contain a reference count table"),
        (60, 4, 65537, "Snapshot table too large"),
        (64, 8, 0x100, "Snapshot table offset invalid"),
        (
            72,
            8,
            0,
            "qcow2: Compression type incompatible feature bit must be set",
        ),
        (
            96,
            4,
            7,
            "Reference count entry width too large; may not exceed 64 bits",
        ),
        (100, 4, 96, "qcow2 header too short"),
        (100, 4, 65544, "qcow2 header exceeds cluster size"),
        (
            104,
            1,
            0,
            "qcow2: Compression type incompatible feature bit must not be set",
        ),
        (104, 1, 2, "qcow2: unknown compression type: 2"),
    ];
    for (at, len, value, expected) in table {
        assert_eq!(message(&with(at, len, value)), expected, "{at} {value:#x}");
    }
    let source = Header::parse(&with(56, 4, 129)).unwrap_err();
    let source = std::error::Error::source(&source).unwrap().to_string();
    let expected =
        "header, field refcount_table_clusters at 0x38: found 129, allowed is at most 128";
    assert_eq!(source, expected);
}

#[test]
fn extended_l2_needs_clusters_of_16_kib() {
    let mut bytes = with(72, 8, 0x18);
    bytes[39] = 4;
    assert!(Header::parse(&bytes).unwrap().geometry().extended_l2());
    (bytes[23], bytes[47]) = (13, 0);
    (bytes[24..32]).fill(0);
    assert!(matches!(Header::parse(&bytes), Err(Error::Header { .. })));
}

#[test]
fn a_check_lets_missing_tables_through() {
    for (at, len, value) in [(56, 4, 0), (60, 4, 0xffff_ffff), (64, 8, 0x100)] {
        assert!(Header::parse(&with(at, len, value)).is_err());
        assert!(Header::parse_for_check(&with(at, len, value)).is_ok());
    }
    assert!(Header::parse_for_check(&with(56, 4, 129)).is_err());
}

#[test]
fn unknown_incompatible_features_are_named() {
    let header = Header::parse(&with(72, 8, 1 << 40 | 1 << 33 | 1 << 5 | 8)).unwrap();
    let mut names = FeatureNames::known();
    names.entries.push(FeatureName::new(
        FeatureName::INCOMPATIBLE,
        33,
        "shadow clusters",
    ));
    let list = header.unsupported_features(&names);
    assert_eq!(
        list,
        [
            "shadow clusters",
            "Unknown incompatible feature: 10000000020"
        ]
    );
    assert!(
        Header::parse(&sample_v3())
            .unwrap()
            .unsupported_features(&names)
            .is_empty()
    );
}

proptest! {
    #[test]
    fn whatever_parses_encodes_to_the_same_bytes(
        changes in prop::collection::vec((8_usize..112, any::<u8>()), 0..4),
    ) {
        let mut bytes = sample_v3();
        bytes.resize(4096, 0);
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(header) = Header::parse_for_check(&bytes) {
            let mut again = Vec::new();
            header.encode(&mut again);
            prop_assert_eq!(again.len(), header.header_length as usize);
            prop_assert_eq!(&bytes[..again.len()], &again[..]);
            let parsed = Header::parse_for_check(&bytes).unwrap();
            prop_assert_eq!(parsed, header);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        let mut image = MAGIC.to_vec();
        image.extend(bytes);
        let _ = (Header::parse(&image), Header::probe_cluster_size(&image));
    }
}
