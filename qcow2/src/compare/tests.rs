mod shared;

use std::{ops::Range, sync::Arc};

use super::*;
use crate::{
    addr::GuestOffset,
    disk::{Extent, ExtentKind, bad},
    io::Storage,
};

/// A disk of parts that say what they are, some of them bad.
#[derive(Debug, Default)]
struct Parts {
    bytes: Vec<u8>,
    /// Ends of parts, and what they are.
    parts: Vec<(u64, ExtentKind)>,
    /// Cannot be told.
    untold: Option<Range<u64>>,
    /// Cannot be read.
    unread: Option<Range<u64>>,
}

impl Parts {
    fn data(bytes: Vec<u8>) -> Self {
        let parts = vec![(bytes.len() as u64, ExtentKind::Data)];
        Self {
            bytes,
            parts,
            ..Self::default()
        }
    }

    fn zeros(len: usize, kind: ExtentKind) -> Self {
        Self {
            bytes: vec![0; len],
            parts: vec![(len as u64, kind)],
            ..Self::default()
        }
    }
}

impl Disk for Parts {
    fn name(&self) -> &str {
        "parts"
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
        let untold = self.untold.clone().unwrap_or(u64::MAX..u64::MAX);
        if untold.contains(&range.start) {
            return Err(bad(range.start, untold.end - range.start, Error::NotQcow2));
        }
        let (end, kind) = *self
            .parts
            .iter()
            .find(|(end, _)| *end > range.start)
            .unwrap();
        let mut end = end.min(range.end);
        if untold.start > range.start {
            end = end.min(untold.start);
        }
        out.push(Extent {
            start: GuestOffset(range.start),
            length: end - range.start,
            kind,
            compressed: false,
            host: None,
            hole: false,
            depth: 0,
        });
        Ok(())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset + out.len() as u64;
        if let Some(unread) = self.unread.clone()
            && unread.start < end
            && offset < unread.end
        {
            let start = unread.start.max(offset);
            return Err(bad(start, unread.end.min(end) - start, Error::NotQcow2));
        }
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.bytes[start..start + out.len()]);
        Ok(())
    }

    fn file(&self) -> Option<&Arc<dyn Storage>> {
        None
    }
}

const STRICT: CompareOptions = CompareOptions { strict: true };
const MIB: usize = 1 << 20;

fn compared(one: &Parts, two: &Parts, options: CompareOptions) -> Comparison {
    let (mut last, mut first_call) = (0, true);
    let result = compare(one, two, options, &mut |done| {
        assert!(first_call || done >= last, "{done} after {last}");
        (last, first_call) = (done, false);
    });
    let result = result.unwrap();
    if result == Comparison::Same {
        assert_eq!(last, one.size().max(two.size()));
    }
    result
}

fn noise(len: usize) -> Vec<u8> {
    let byte = |n: usize| (n.wrapping_mul(0x9e37_79b9) >> 13).to_le_bytes()[0] | 1;
    (0..len).map(byte).collect()
}

#[test]
fn the_first_sector_that_differs() {
    let bytes = noise(5 * MIB);
    let one = Parts::data(bytes.clone());
    for places in [
        &[4_000_000][..],
        &[511],
        &[512],
        &[700, 3_000_000],
        &[5 * MIB - 1],
    ] {
        let mut changed = bytes.clone();
        places.iter().for_each(|at| changed[*at] ^= 0x40);
        let two = Parts::data(changed);
        let expected = Comparison::Content((places[0] / 512 * 512) as u64);
        for options in [CompareOptions::default(), STRICT] {
            assert_eq!(compared(&one, &two, options), expected);
            assert_eq!(compared(&two, &one, options), expected);
        }
    }
    assert_eq!(compared(&one, &one, STRICT), Comparison::Same);
}

#[test]
fn zeros_are_zeros_however_they_are_stored() {
    let kinds = [ExtentKind::Zero, ExtentKind::Unallocated, ExtentKind::Data];
    for (one, first) in kinds.iter().enumerate() {
        for (two, second) in kinds.iter().enumerate() {
            let first = Parts::zeros(MIB, *first);
            let second = Parts::zeros(MIB, *second);
            let plain = CompareOptions::default();
            assert_eq!(compared(&first, &second, plain), Comparison::Same);
            let expected = match one == two {
                true => Comparison::Same,
                false => Comparison::Status(0),
            };
            assert_eq!(compared(&first, &second, STRICT), expected);
        }
    }
    let mut bytes = vec![0; MIB];
    bytes[600_000] = 1;
    let data = Parts::data(bytes);
    let zeros = Parts::zeros(MIB, ExtentKind::Zero);
    let expected = Comparison::Content(599_552);
    assert_eq!(compared(&data, &zeros, CompareOptions::default()), expected);
    assert_eq!(compared(&zeros, &data, CompareOptions::default()), expected);
}

#[test]
fn what_is_beyond_the_shorter_disk_must_be_zeros() {
    let short = Parts::data(noise(MIB));
    let mut bytes = noise(MIB);
    bytes.resize(3 * MIB, 0);
    let long = Parts::data(bytes.clone());
    let plain = CompareOptions::default();
    assert_eq!(compared(&short, &long, plain), Comparison::Same);
    assert_eq!(compared(&long, &short, STRICT), Comparison::Size);
    bytes[2 * MIB] = 1;
    let long = Parts::data(bytes);
    let expected = Comparison::Content((2 * MIB) as u64);
    assert_eq!(compared(&short, &long, plain), expected);
    assert_eq!(compared(&long, &short, plain), expected);
    let empty = Parts::default();
    assert_eq!(compared(&empty, &empty, STRICT), Comparison::Same);
    assert_eq!(compared(&empty, &short, plain), Comparison::Content(0));
}

#[test]
fn what_comes_first_counts() {
    let mut one = Parts::data(noise(4 * MIB));
    let mut two = Parts::data(noise(4 * MIB));
    for (disk, rest) in [
        (&mut one, ExtentKind::Zero),
        (&mut two, ExtentKind::Unallocated),
    ] {
        disk.parts = vec![(3 << 20, ExtentKind::Data), (4 << 20, rest)];
        disk.bytes[3 * MIB..].fill(0);
    }
    two.bytes[2 * MIB] ^= 1;
    let expected = Comparison::Content(2 << 20);
    assert_eq!(compared(&one, &two, STRICT), expected);
    two.bytes[2 * MIB] ^= 1;
    assert_eq!(compared(&one, &two, STRICT), Comparison::Status(3 << 20));
    // An extent that reaches the disk's end isn't one that doesn't.
    let whole = Parts::data(two.bytes.clone());
    assert_eq!(compared(&one, &whole, STRICT), Comparison::Status(0));
    let failure = |one: &Parts, two: &Parts| match compare(
        one,
        two,
        CompareOptions::default(),
        &mut |_| {},
    ) {
        Err(CompareError::Read { which, at, .. }) => Ok((which, at)),
        Err(CompareError::Extent { which, at, .. }) => Err((which, at)),
        Ok(same) => panic!("{same:?}"),
    };
    let bytes = noise(4 * MIB);
    let one = Parts::data(bytes.clone());
    let mut two = Parts::data(bytes);
    two.unread = Some(1_000_000..1_000_100);
    let expected = Ok((Which::Second, 1_000_000));
    assert_eq!(failure(&one, &two), expected);
    assert_eq!(failure(&two, &one), Ok((Which::First, 1_000_000)));
    two.untold = Some(900_000..901_000);
    assert_eq!(failure(&one, &two), Err((Which::Second, 900_000)));
    // A difference before the fault, in the same piece.
    two.bytes[899_999] ^= 1;
    let found = compared(&one, &two, CompareOptions::default());
    assert_eq!(found, Comparison::Content(899_999 / 512 * 512));
}

/// The ranges that differ, rounded to granules.
fn differing(old: &dyn Disk, new: &dyn Disk, len: u64, granularity: u64) -> Vec<Range<u64>> {
    let granularity = hbitmap::Granularity::from_bytes(granularity).unwrap();
    let marks = SharedTracker::new(len, granularity).unwrap();
    let mut last = 0;
    differences(old, new, &marks, &mut |done| {
        assert!(done >= last);
        last = done;
    })
    .unwrap();
    assert_eq!(last, old.size().min(new.size()));
    marks.snapshot().unwrap().ranges().collect()
}

#[test]
fn every_difference_is_marked_and_nothing_else() {
    let bytes = noise(5 * MIB);
    let mut changed = bytes.clone();
    for at in [0, 4095, 4096, 300_000, 2 * MIB - 1, 2 * MIB, 5 * MIB - 1] {
        changed[at] ^= 0x80;
    }
    let (one, two) = (Parts::data(bytes), Parts::data(changed));
    for unit in [512, 4096, 65536, 1 << 20, 2 << 20, 1 << 31] {
        let granule = |at: u64| {
            let first = at / unit * unit;
            first..(first + unit).min(5 << 20)
        };
        let mut expected: Vec<Range<u64>> = Vec::new();
        for at in [
            0,
            4095,
            4096,
            300_000,
            (2 << 20) - 1,
            2 << 20,
            (5 << 20) - 1,
        ] {
            let granule = granule(at);
            match expected.last_mut() {
                Some(last) if last.end >= granule.start => last.end = granule.end,
                _ => expected.push(granule),
            }
        }
        for (one, two) in [(&one, &two), (&two, &one)] {
            assert_eq!(differing(one, two, 5 << 20, unit), expected, "{unit}");
            assert_eq!(differing(one, one, 5 << 20, unit), []);
        }
    }
}

/// Random parts of data and zeros, against a comparison byte by byte.
#[test]
fn random_disks_against_every_byte() {
    let mut state = 0x5eed_u64;
    let mut below = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    let sizes = [1 << 20, (1 << 20) + 512, 700 << 10];
    for round in 0..60 {
        let mut disk = || {
            let size = sizes[usize::try_from(below(3)).unwrap()];
            let mut disk = Parts::default();
            while (disk.bytes.len() as u64) < size {
                let room = size - disk.bytes.len() as u64;
                let len = ((1 + below(300)) * 512).min(room);
                let kind = [ExtentKind::Data, ExtentKind::Zero, ExtentKind::Unallocated];
                let kind = kind[usize::try_from(below(3)).unwrap()];
                // Data may be zeros as well.
                let byte = match kind {
                    ExtentKind::Data => u8::try_from(below(2)).unwrap(),
                    _ => 0,
                };
                let end = disk.bytes.len() as u64 + len;
                disk.bytes.resize(usize::try_from(end).unwrap(), byte);
                disk.parts.push((end, kind));
            }
            disk
        };
        let (old, new) = (disk(), disk());
        let unit = 512 << below(12);
        let mut expected: Vec<Range<u64>> = Vec::new();
        let len = new.bytes.len();
        let differs = |at: &usize| old.bytes.get(*at) != new.bytes.get(*at);
        for at in (0..len).filter(differs) {
            let first = at as u64 / unit * unit;
            let end = (first + unit).min(len as u64);
            match expected.last_mut() {
                Some(last) if last.end >= first => last.end = end,
                _ => expected.push(first..end),
            }
        }
        let found = differing(&old, &new, len as u64, unit);
        assert_eq!(found, expected, "round {round}, granularity {unit}");
    }
}

#[test]
fn what_only_one_disk_has_is_marked_if_it_is_the_new_one() {
    let (short, long) = (Parts::data(noise(MIB)), Parts::data(noise(3 * MIB)));
    assert_eq!(
        differing(&short, &long, 3 << 20, 4096),
        [Range {
            start: 1 << 20,
            end: 3 << 20
        }]
    );
    assert_eq!(differing(&long, &short, 1 << 20, 4096), []);
    let zeros = Parts::zeros(3 * MIB, ExtentKind::Unallocated);
    assert_eq!(
        differing(&Parts::default(), &zeros, 3 << 20, 512),
        [Range {
            start: 0,
            end: 3 << 20
        }]
    );
    // A disk that ends within a sector is seen without its last bytes.
    assert_eq!(
        differing(&short, &short, (1 << 20) + 100, 512),
        [Range {
            start: 1 << 20,
            end: (1 << 20) + 100
        }]
    );
}

#[test]
fn differences_that_can_not_be_told() {
    let marks = SharedTracker::new(3 << 20, hbitmap::Granularity::from_bytes(512).unwrap());
    let marks = marks.unwrap();
    let good = Parts::data(noise(3 * MIB));
    let bad = || Parts::data(noise(3 * MIB));
    let (untold, unread) = (Some(70_000..80_000), Some(2_000_000..2_000_512));
    let untold = Parts { untold, ..bad() };
    let unread = Parts { unread, ..bad() };
    let mut quiet = |_| {};
    assert!(matches!(
        differences(&untold, &good, &marks, &mut quiet),
        Err(CompareError::Extent {
            which: Which::First,
            at: 70_000,
            ..
        })
    ));
    assert!(matches!(
        differences(&good, &unread, &marks, &mut quiet),
        Err(CompareError::Read {
            which: Which::Second,
            at: 2_000_000,
            ..
        })
    ));
}
