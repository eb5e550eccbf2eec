//! Fixed bytes: digests that QEMU printed, and the layered form.
#![allow(clippy::unwrap_used, reason = "tests")]

use hbitmap::{Granularity, HBitmap, Limits};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn bitmap(len: u64, granularity: u64, dirty: &[(u64, u64)]) -> HBitmap {
    let mut b = HBitmap::new(len, Granularity::from_bytes(granularity).unwrap()).unwrap();
    for (offset, length) in dirty {
        b.set(*offset..offset + length);
    }
    b
}

/// Length, granularity, dirty ranges (offset and length) and QEMU 10.0.2's SHA-256 of them.
type Case = (u64, u64, &'static [(u64, u64)], &'static str);

#[rustfmt::skip]
const CASES: &[Case] = &[
    (1048576, 65536, &[(131072, 65536), (524288, 65536)],
     "d080319e19d938493a9c79f7e4407ccd23f555b9771ad0d5692a13ad06097ed3"),
    (10485760, 1048576, &[],
     "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"),
    (10485760, 65536, &[(5242880, 65536)],
     "5c33bf92d0f5662a967aae69feb621cac4b868dcf9097a2e5268be39558de081"),
    (10485760, 4096, &[(9437184, 65536)],
     "866a64585a35b12bdc73631bd53d0cfa36e1cf95c777861cef36d199792df1f0"),
    (10485760, 512, &[(0, 512), (1048576, 3145728), (5242880, 4096), (9437184, 65536)],
     "3ebcab3a649ead7b1831cf067b21e4becc3781b0f0b92a0498693a51eb2e43f2"),
    (3145728, 65536, &[(2097152, 131072)],
     "9ae4c9d0864c30005acac91f21015f39e35691a056d606a097c8cf8380275a17"),
    (1048576, 4096, &[(716800, 4096)],
     "80073614fb76a09c3dd701e83be717117a3694d05331b032f8104ca241f11482"),
    (1048576, 65536, &[(0, 65536), (655360, 65536)],
     "21beb8b410bad024aad3e0973271755f59ddfe901e8ff2ec16174501dbeb0cff"),
    (1048576, 4096, &[(262144, 4096)],
     "49293309d25cafc914c11063c2d1cd286a4500d519b11b4fc98500efb85f6d9c"),
    (1048576, 65536, &[(262144, 65536)],
     "5eb6da0e0e522104c6d50b0748e6893762f7f2c00a7163a46ccbb535bfd61a0d"),
    (1048576, 65536, &[(262144, 65536), (524288, 65536)],
     "41f4481a6f9455638d779a1e804fd839d890666d7fe851503fff5335321ef381"),
    (1048576, 65536, &[(0, 65536), (262144, 65536), (524288, 65536)],
     "a61b5113da497265c917127c030dac9d3c44701f44e32ed5194bbdd2a08f41d9"),
    (1048576, 65536, &[(0, 131072)],
     "35be322d094f9d154a8aba4733b8497f180353bd7ae7b0a15f90b586b549f28b"),
    (1048576, 65536, &[(65536, 131072)],
     "23d7f42b1cdc1f0d492ebd756ed0fe8003995dda554d99418d47a81813650207"),
    (10486272, 65536, &[(262144, 65536), (4194304, 1048576), (10485760, 512)],
     "47936926ac4657c7737c75b30cde5ef4aeabd95aedad7fe319fd12b9095f00c0"),
    (10486272, 4096, &[(262144, 4096), (4194304, 1048576), (10485760, 512)],
     "f95c9b22e6474c0e42a44514624d79be653ef080584c9afd0659eea07947fbe0"),
    (10486272, 512, &[(262656, 512), (4194304, 1048576), (10485760, 512)],
     "6937bb0befff3d85dceb4bf25e7e5defa4b3096a120b51c8cba0246635fdf3d7"),
    (1048576, 65536, &[(0, 65536), (131072, 65536), (524288, 65536), (983040, 65536)],
     "4be4a03402725322b9dfc03edbc07a00bc012a05eeff00a26e429b4514e48d88"),
    (10485760, 65536, &[(9437184, 65536)],
     "7d4236d858fffd056cc55449413ff443dfbedf89b7a9e60d223ad4b373f431ef"),
    (10485760, 512, &[(1048576, 3145728)],
     "b2acd2ce71fbff3cc7bc1d7e931aa87ce33e2f2660a7190da28e93afe7280cbd"),
];

#[test]
fn sha256_is_what_qemu_prints() {
    for (len, granularity, dirty, sha256) in CASES {
        let b = bitmap(*len, *granularity, dirty);
        assert_eq!(hex(&b.sha256()), *sha256, "{len} {granularity} {dirty:?}");
        let ranges: Vec<_> = b.ranges().map(|r| (r.start, r.end - r.start)).collect();
        assert_eq!(ranges, *dirty);
    }
}

#[test]
fn digests_of_a_disk_of_no_bytes_are_those_of_one_zero_word() {
    let empty = bitmap(0, 512, &[]);
    let one = bitmap(1, 512, &[]);
    assert_eq!(empty.sha256(), one.sha256());
    assert_eq!(
        hex(&empty.sha256()),
        "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"
    );
    assert_eq!(empty.crc32c(), one.crc32c());
    assert_eq!(empty.crc32c(), 0x8c28_b28a);
}

/// One of each: a header, a node with a full and an open child, a page with an open block
/// that has a full and a partial word, a page cut by the end of the disk.
#[rustfmt::skip]
#[test]
fn layered_form_is_what_it_was() {
    let g = 512;
    let b = bitmap(
        (32768 * 3 + 70) * g - 100,
        g,
        &[
            (32768 * g, 32768 * g),
            (64 * g, 65 * g),
            (4096 * g, 4096 * g),
            (32768 * 3 * g, g),
        ],
    );
    let bytes = b.to_layered();
    assert_eq!(hex(&bytes), concat!(
        "8948424d0d0a1a0a", // magic
        "0100090000000000", // version, granularity 2^9, reserved
        "9c8b000300000000", // length
        "4290000000000000", // dirty granules
        "da0129da", // checksum
        "0b00000000000000", // pages 0, 1 and 3 are dirty
        "0200000000000000", // page 1 is full
        "87c1e03b", // checksum
        "0302", // page 0: blocks 0 and 1 are dirty, 1 is full
        "0600000000000000", // words 1 and 2 of block 0 are dirty
        "0200000000000000", // word 1 is full
        "0100000000000000", // word 2
        "fc60bd25", // checksum
        "0100", // page 3: block 0 is dirty
        "0100000000000000", // word 0 is dirty
        "0000000000000000", // no word is full
        "0100000000000000", // word 0
        "bac7254b", // checksum
    ));
    assert_eq!(
        HBitmap::from_layered(&bytes, &Limits::default()).unwrap(),
        b
    );
}
