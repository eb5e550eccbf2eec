//! Random damage to the metadata of images of every kind.

use std::collections::BTreeSet;

use qcow2::{
    addr::HostOffset,
    check::{Finding, Referrer, Visitor, walk},
};

use super::{
    Qemu,
    check::{BASES, damaged, make, opened, u64_at},
};

/// Where an image's metadata is.
#[derive(Default)]
struct Places(BTreeSet<(u64, u64)>);

impl Visitor for Places {
    fn reference(&mut self, by: Referrer, offset: HostOffset, bytes: u64, _: u64) {
        if !matches!(
            by,
            Referrer::Data { .. } | Referrer::Compressed { .. } | Referrer::BitmapData(_)
        ) {
            self.0.insert((offset.get(), bytes));
        }
    }

    fn problem(&mut self, finding: Finding) {
        panic!("{finding}");
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    /// A change of some number in the metadata, near what could stand there.
    fn change(&mut self, bytes: &[u8], places: &[(u64, u64)]) -> (u64, u32, u64) {
        let cluster = 1_u64 << bytes[23];
        let (start, len) = places[usize::try_from(self.below(places.len() as u64)).unwrap()];
        // The used part of a table is nearly always its beginning.
        let span = if self.below(3) == 0 {
            len
        } else {
            len.min(128)
        };
        let at = (start + self.below(span.max(8) / 8) * 8).min(bytes.len() as u64 - 8);
        let old = u64_at(bytes, usize::try_from(at).unwrap());
        let clusters = bytes.len() as u64 / cluster + 2;
        let value = match self.below(12) {
            0 => old ^ 1 << self.below(64),
            1 => old ^ 1 << self.below(10),
            2 => old ^ 1 << 63,
            3 => old ^ 1 << 62,
            4 => old.wrapping_add(512),
            5 => old.wrapping_add(cluster),
            6 => old.wrapping_sub(cluster),
            7 => (1 << 63) | (self.below(clusters) * cluster),
            8 => 1 << 62 | self.below(clusters * cluster) | self.below(256) << 54,
            9 => self.below(clusters) * cluster + self.below(4),
            10 => self.below(1 << 20) << self.below(44),
            _ => 0,
        };
        (at, 8, value)
    }
}

/// Calls `each` with a description of every round, for which "t" is a damaged copy of one
/// of the images. `QIMG_CHECK_ROUNDS` asks for more rounds than `rounds` with each, from
/// another seed by `QIMG_CHECK_SEED`.
pub(crate) fn rounds(qemu: &Qemu, rounds: u64, mut each: impl FnMut(&str)) {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let rounds = number("QIMG_CHECK_ROUNDS").unwrap_or(rounds);
    let seed: u64 = number("QIMG_CHECK_SEED").unwrap_or(1);
    for base in BASES {
        make(qemu, base);
        let bytes = qemu.bytes(base);
        let mut places = Places::default();
        opened(qemu, base, |metadata| walk(metadata, &mut places).unwrap()).unwrap();
        // Not the header: what it says wrong decides whether the image opens at all.
        let places: Vec<_> = places.0.into_iter().filter(|(at, _)| *at != 0).collect();
        for round in 0..rounds {
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (seed * 1_000_003 + round) << 8);
            random.below(2);
            let changes: Vec<_> = (0..1 + random.below(3))
                .map(|_| random.change(&bytes, &places))
                .collect();
            damaged(qemu, base, &changes);
            each(&format!("{base} round {round}: {changes:x?}"));
        }
    }
}
