use proptest::prelude::*;

use super::*;

fn geometry(cluster_bits: u32) -> Geometry {
    Geometry::new(cluster_bits, 4, false).unwrap()
}

#[test]
fn fixed_bytes_of_standard_entries() {
    let g = geometry(16);
    let bytes = [
        [0x80, 0, 0, 0, 0, 5, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
        [0x80, 0, 0, 0, 0, 6, 0, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
        // 2 further sectors from bit 54 on, at 0x50123
        [0x40, 0x80, 0, 0, 0, 5, 1, 0x23],
    ]
    .concat();
    let meaning: Vec<_> = entries(&bytes)
        .map(|entry| entry.mapping(g, false))
        .collect();
    assert_eq!(
        meaning,
        [
            Mapping::Data {
                host: HostOffset(0x50000)
            },
            Mapping::Zero { host: None },
            Mapping::Zero {
                host: Some(HostOffset(0x60000))
            },
            Mapping::Unallocated,
            Mapping::Compressed {
                host: HostOffset(0x50123),
                len: 3 * 512 - 0x123
            },
        ]
    );
    let mut again = Vec::new();
    entries(&bytes).for_each(|entry| entry.encode(&mut again));
    assert_eq!(again, bytes);
    assert_eq!(
        L2Entry::data(HostOffset(0x50000), true),
        entries(&bytes).next().unwrap()
    );
    let zero = L2Entry::zero(Some((HostOffset(0x60000), true)));
    assert_eq!(zero, entries(&bytes).nth(2).unwrap());
    assert_eq!(
        L2Entry::compressed(g, HostOffset(0x50123), 800),
        entries(&bytes).nth(4)
    );
}

#[test]
fn fixed_bytes_of_an_extended_entry() {
    let bytes = [0x80, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0x8, 0x80, 0, 0, 0x0d];
    let list: Vec<_> = extended_entries(&bytes).collect();
    assert_eq!(list[0].entry, L2Entry::data(HostOffset(0x50000), true));
    let states: Vec<_> = (0..5).map(|i| list[0].bitmap.get(i)).collect();
    use Subcluster::{Data, Invalid, Unallocated};
    assert_eq!(states, [Data, Unallocated, Data, Invalid, Unallocated]);
    assert_eq!(
        (list[0].bitmap.get(31), list[0].bitmap.get(32)),
        (Data, Unallocated)
    );
    assert_eq!(list[0].bitmap.invalid(), 8);
    let mut again = Vec::new();
    list[0].encode(&mut again);
    assert_eq!(again, bytes);
}

#[test]
fn extended_entry_without_allocated_subclusters_is_zero_or_unallocated() {
    let g = Geometry::new(16, 4, true).unwrap();
    let host = HostOffset(0x50000);
    let entry = L2Entry::data(host, true);
    let of = |bitmap| ExtendedL2Entry { entry, bitmap }.mapping(g, false);
    assert_eq!(of(SubclusterBitmap(0)), Mapping::Unallocated);
    assert_eq!(
        of(SubclusterBitmap::ALL_ZERO),
        Mapping::Zero { host: Some(host) }
    );
    assert_eq!(of(SubclusterBitmap(1 << 40 | 1)), Mapping::Data { host });
}

#[test]
fn offset_zero_is_a_cluster_of_a_data_file_only() {
    let entry = L2Entry::data(HostOffset(0), true);
    assert_eq!(entry.mapping(geometry(16), false), Mapping::Unallocated);
    assert_eq!(
        entry.mapping(geometry(16), true),
        Mapping::Data {
            host: HostOffset(0)
        }
    );
    assert_eq!(L2Entry(0).mapping(geometry(16), true), Mapping::Unallocated);
}

#[test]
fn reserved_bits_of_each_kind() {
    let g = geometry(16);
    assert_eq!(
        L2Entry(1 << 61 | 1 << 8 | 1).reserved(g, true),
        1 << 61 | 1 << 8
    );
    assert_eq!(L2Entry(1).reserved(g, false), 1);
    assert_eq!(L2Entry(COMPRESSED | 1 << 60 | 1).reserved(g, false), 0);
    // With 512-byte clusters the offset field reaches up to bit 60.
    assert_eq!(
        L2Entry(COMPRESSED | 1 << 60 | 1).reserved(geometry(9), false),
        1 << 60
    );
}

proptest! {
    #[test]
    fn compressed_descriptor_covers_the_data(
        cluster_bits in 9_u32..=21, at in 0_u64..1 << 49, len in 1_u64..=1 << 21,
    ) {
        let g = geometry(cluster_bits);
        let Some(entry) = L2Entry::compressed(g, HostOffset(at), len) else {
            // A cluster's worth always fits.
            prop_assert!(len > g.cluster_size());
            return Ok(());
        };
        let (host, room) = entry.compressed_range(g);
        prop_assert_eq!(host, HostOffset(at));
        prop_assert!(room >= len && room - len < 512);
        prop_assert_eq!((at + room) % 512, 0);
        prop_assert_eq!((entry.reserved(g, true), entry.copied()), (0, false));
    }

    #[test]
    fn no_entry_overflows(raw: u64, bitmap: u64, cluster_bits in 9_u32..=21, data_file: bool) {
        let g = geometry(cluster_bits);
        let entry = L2Entry(raw);
        if let Mapping::Compressed { host, len } = entry.mapping(g, data_file) {
            prop_assert!(host.get() < 1 << 61 && len <= 2 << cluster_bits);
        }
        let extended = ExtendedL2Entry { entry, bitmap: SubclusterBitmap(bitmap) };
        let _ = extended.mapping(g, data_file);
        let mut bytes = Vec::new();
        extended.encode(&mut bytes);
        prop_assert_eq!(extended_entries(&bytes).collect::<Vec<_>>(), [extended]);
        prop_assert_eq!(entries(&bytes).next(), Some(entry));
    }
}
