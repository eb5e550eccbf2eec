//! The layered form of a bitmap, as it stands and with its checksums put right: with
//! them wrong, hardly any input would get past the first chunk.

use hbitmap::{Granularity, HBitmap, layered::Limits};

use super::Input;

/// Bytes of the header, checksum included.
const HEADER: usize = 36;

/// Reads `data` as a layered form.
pub fn layered(data: &[u8]) {
    read(data);
    let mut mended = data.to_vec();
    mend(&mut mended);
    read(&mended);
}

fn read(data: &[u8]) {
    let limits = Limits {
        memory: 16 << 20,
        ..Limits::default()
    };
    let Ok(bitmap) = HBitmap::from_layered(data, &limits) else {
        return;
    };
    // A bitmap has one layered form only: what was read is what is written.
    assert!(bitmap.to_layered() == data, "accepted another form");
    let from_reader = HBitmap::read_layered(&mut &*data, &limits).unwrap();
    assert_eq!(from_reader.count(), bitmap.count());
    let (mut covered, mut at) = (0, 0);
    for range in bitmap.ranges().take(10_000) {
        assert!(range.start < range.end && (at == 0 || range.start > at));
        assert!(bitmap.get(range.start) && bitmap.get(range.end - 1));
        covered += range.end - range.start;
        at = range.end;
    }
    assert!(covered <= bitmap.dirty_bytes());

    let mut changed = bitmap.clone();
    changed.merge(&bitmap).unwrap();
    assert!(
        changed.to_layered() == data,
        "merging with itself changed it"
    );
    if let Some(first) = bitmap.next_dirty(0..bitmap.len()) {
        changed.reset(first..bitmap.len());
        assert!(changed.count() < bitmap.count());
    }
}

/// Puts every checksum right that a reader would look at, as far as the input goes.
fn mend(data: &mut [u8]) {
    if data.len() < HEADER {
        return;
    }
    // Version, reserved bytes and magic as they must be: the rest is the input's.
    data[..10].copy_from_slice(b"\x89HBM\r\n\x1a\n\x01\x00");
    data[10] &= 63;
    data[11..16].fill(0);
    let crc = crc32c(&[&data[..32]]);
    data[32..36].copy_from_slice(&crc.to_le_bytes());

    let number = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
    let granules = number(16).div_ceil(1 << data[10]);
    let mut height = 0;
    while height < 8 && granules.checked_shr(15 + 6 * height).unwrap_or(0) > 0 {
        height += 1;
    }
    let mut slots = vec![0_u64];
    let mut at = HEADER;
    for level in (0..=height).rev() {
        let mut below = Vec::new();
        for slot in slots {
            let Some(size) = chunk_size(&data[at..], level) else {
                return;
            };
            let base = slot << (15 + 6 * level);
            let body = at..at + size - 4;
            if level > 0 {
                let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
                let mixed = word(at) & !word(at + 8);
                below.extend(
                    (0..64)
                        .filter(|i| mixed >> i & 1 == 1)
                        .map(|i| slot * 64 + i),
                );
            }
            let crc = crc32c(&[&[level as u8], &base.to_le_bytes(), &data[body]]);
            data[at + size - 4..at + size].copy_from_slice(&crc.to_le_bytes());
            at += size;
        }
        slots = below;
    }
}

/// Bytes of the chunk that begins here, checksum included, if they are all there.
fn chunk_size(rest: &[u8], level: u32) -> Option<usize> {
    if level > 0 {
        return (rest.len() >= 20).then_some(20);
    }
    let (dirty, full) = (*rest.first()?, *rest.get(1)?);
    let blocks = (dirty & !full).count_ones() as usize;
    let mut words = 0;
    for block in 0..blocks {
        let at = 2 + 16 * block;
        let both = rest.get(at..at + 16)?;
        let word = |i: usize| u64::from_le_bytes(both[i..i + 8].try_into().unwrap());
        words += (word(0) & !word(8)).count_ones() as usize;
    }
    let size = 2 + 16 * blocks + 8 * words + 4;
    (rest.len() >= size).then_some(size)
}

fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut crc = !0_u32;
    for byte in parts.iter().copied().flatten() {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc = crc >> 1 ^ (low * 0x82f6_3b78);
        }
    }
    !crc
}

/// Bitmaps of all shapes.
pub(super) fn seeds() -> Vec<Input> {
    let bitmap = |name: &str, len: u64, bits: u32, ranges: &[(u64, u64)]| {
        let mut bitmap = HBitmap::new(len, Granularity::from_bits(bits).unwrap()).unwrap();
        for (start, end) in ranges {
            bitmap.set(*start..*end);
        }
        (name.to_owned(), bitmap.to_layered())
    };
    let mib = 1 << 20;
    let mut seeds = vec![
        bitmap("no-disk", 0, 0, &[]),
        bitmap("clean", 64 * mib, 16, &[]),
        bitmap("full", 64 * mib, 16, &[(0, 64 * mib)]),
        bitmap("one-bit", 1 << 44, 16, &[(7, 8)]),
        bitmap(
            "last-bit",
            (1 << 44) - 1,
            16,
            &[((1 << 44) - 2, (1 << 44) - 1)],
        ),
        bitmap(
            "some",
            64 * mib,
            9,
            &[(512, 9000), (mib, 3 * mib), (40 * mib, 41 * mib)],
        ),
        bitmap(
            "three-levels",
            1 << 44,
            16,
            &[(1 << 30, 1 << 40), (1 << 41, (1 << 41) + 5)],
        ),
        bitmap(
            "all-but-one",
            1 << 40,
            16,
            &[(0, 1 << 39), ((1 << 39) + 65536, 1 << 40)],
        ),
        bitmap("bytes", 1000, 0, &[(1, 2), (100, 900)]),
        bitmap("8-EiB", 1 << 63, 9, &[(1 << 62, (1 << 62) + 1), (5, 6)]),
    ];
    // And damaged ones: a wrong byte in every part, bytes too many.
    let (_, good) = seeds[6].clone();
    for at in [0, 8, 10, 12, 16, 24, 32, 36, 44, 52, 60, good.len() - 5] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        seeds.push((format!("byte-{at}-wrong"), bad));
    }
    let mut long = good;
    long.push(0);
    seeds.push(("too-long".to_owned(), long));
    seeds
}
