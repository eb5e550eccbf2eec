//! Every operation against the plainest model there is: a list of booleans.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::{ops::Range, thread};

use hbitmap::{Chunk, Granularity, HBitmap};
use proptest::{prelude::*, test_runner::TestRunner};

/// A bitmap as nobody would build it.
#[derive(Clone, Debug)]
struct Model {
    len: u64,
    granularity: u64,
    dirty: Vec<bool>,
}

impl Model {
    fn new(len: u64, granularity: u64) -> Self {
        Self {
            len,
            granularity,
            dirty: vec![false; len.div_ceil(granularity) as usize],
        }
    }

    /// First and last byte of a granule, the latter exclusive.
    fn granule(&self, i: usize) -> Range<u64> {
        let start = i as u64 * self.granularity;
        start..(start + self.granularity).min(self.len)
    }

    fn set(&mut self, range: Range<u64>) {
        for i in 0..self.dirty.len() {
            let g = self.granule(i);
            if g.start < range.end && range.start < g.end && range.start < range.end {
                self.dirty[i] = true;
            }
        }
    }

    fn reset(&mut self, range: Range<u64>) {
        for i in 0..self.dirty.len() {
            let g = self.granule(i);
            if range.start <= g.start && g.end <= range.end {
                self.dirty[i] = false;
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        for i in 0..other.dirty.len() {
            if other.dirty[i] {
                self.set(other.granule(i));
            }
        }
    }

    fn resize(&mut self, len: u64) {
        self.len = len;
        self.dirty
            .resize(len.div_ceil(self.granularity) as usize, false);
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        let mut out: Vec<Range<u64>> = Vec::new();
        for i in (0..self.dirty.len()).filter(|i| self.dirty[*i]) {
            let g = self.granule(i);
            match out.last_mut() {
                Some(last) if last.end == g.start => last.end = g.end,
                _ => out.push(g),
            }
        }
        out
    }

    fn ranges_in(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        self.ranges()
            .into_iter()
            .map(|r| r.start.max(range.start)..r.end.min(range.end))
            .filter(|r| !r.is_empty())
            .collect()
    }

    fn linear(&self) -> Vec<u8> {
        let mut out = vec![0; self.dirty.len().div_ceil(64) * 8];
        for (i, _) in self.dirty.iter().enumerate().filter(|(_, d)| **d) {
            out[i / 8] |= 1 << (i % 8);
        }
        out
    }

    fn kind(&self, range: &Range<u64>) -> Chunk {
        let touched: Vec<bool> = (0..self.dirty.len())
            .filter(|i| {
                let g = self.granule(*i);
                g.start < range.end && range.start < g.end && range.start < range.end
            })
            .map(|i| self.dirty[i])
            .collect();
        if touched.iter().all(|d| !d) {
            Chunk::Zeros
        } else if touched.iter().all(|d| *d) {
            Chunk::Ones
        } else {
            Chunk::Data
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Set(Range<u64>),
    Reset(Range<u64>),
    SetAll,
    ResetAll,
    Merge(u32, Vec<Range<u64>>),
    Resize(u64),
    Load(Range<u64>, u64),
    LoadZeros(Range<u64>),
    LoadOnes(Range<u64>),
}

/// Ranges of all sizes, some past the end, some reversed.
fn range(len: u64) -> impl Strategy<Value = Range<u64>> {
    let end = len + len / 8 + 1;
    prop_oneof![
        4 => (0..end, 0..end).prop_map(|(a, b)| a.min(b)..a.max(b)),
        4 => (0..end, 1..2000u64).prop_map(|(a, n)| a..a + n),
        2 => (0..end).prop_map(move |a| a..u64::MAX),
        1 => (0..end, 0..end).prop_map(|(a, b)| a..b),
    ]
}

fn op(len: u64) -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => range(len).prop_map(Op::Set),
        6 => range(len).prop_map(Op::Reset),
        1 => Just(Op::SetAll),
        1 => Just(Op::ResetAll),
        2 => (0..14u32, prop::collection::vec(range(len), 0..6)).prop_map(|(g, r)| Op::Merge(g, r)),
        2 => (0..2 * len).prop_map(Op::Resize),
        3 => (range(len), any::<u64>()).prop_map(|(r, seed)| Op::Load(r, seed)),
        1 => range(len).prop_map(Op::LoadZeros),
        1 => range(len).prop_map(Op::LoadOnes),
    ]
}

/// Makes a range one that the linear form takes.
fn align(bitmap: &HBitmap, range: &Range<u64>) -> Range<u64> {
    let to = bitmap.linear_align();
    let start = range.start.min(bitmap.len()) / to * to;
    let end = range.end.min(bitmap.len()).max(start);
    start..if end == bitmap.len() {
        end
    } else {
        end / to * to
    }
}

/// Words that are often all clear or all set.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let word = match (seed >> 60, x >> 61) {
            (0..4, 1..) => 0,
            (4..8, 1..) => u64::MAX,
            (8, _) => 0,
            (9, _) => u64::MAX,
            _ => x,
        };
        out.extend(word.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

fn apply(bitmap: &mut HBitmap, model: &mut Model, op: &Op) {
    match op {
        Op::Set(r) => {
            let before = model.dirty.iter().filter(|d| **d).count();
            let added = bitmap.set(r.clone());
            model.set(r.clone());
            let after = model.dirty.iter().filter(|d| **d).count();
            assert_eq!(added, (after - before) as u64);
        }
        Op::Reset(r) => {
            let before = model.dirty.iter().filter(|d| **d).count();
            let removed = bitmap.reset(r.clone());
            model.reset(r.clone());
            let after = model.dirty.iter().filter(|d| **d).count();
            assert_eq!(removed, (before - after) as u64);
        }
        Op::SetAll => {
            bitmap.set_all();
            model.dirty.fill(true);
        }
        Op::ResetAll => {
            bitmap.reset_all();
            model.dirty.fill(false);
        }
        Op::Merge(bits, ranges) => {
            let mut other =
                HBitmap::new(model.len, Granularity::from_bits(*bits).unwrap()).unwrap();
            let mut other_model = Model::new(model.len, 1 << bits);
            for r in ranges {
                other.set(r.clone());
                other_model.set(r.clone());
            }
            bitmap.merge(&other).unwrap();
            model.merge(&other_model);
        }
        Op::Resize(len) => {
            bitmap.resize(*len).unwrap();
            model.resize(*len);
        }
        Op::Load(r, seed) => {
            let r = align(bitmap, r);
            let data = noise(*seed, bitmap.linear_size(r.clone()).unwrap());
            bitmap.load_linear(r.clone(), &data).unwrap();
            let first = (r.start / model.granularity) as usize;
            for i in first..r.end.div_ceil(model.granularity) as usize {
                let k = i - first;
                model.dirty[i] = data[k / 8] >> (k % 8) & 1 != 0;
            }
        }
        Op::LoadZeros(r) => {
            let r = align(bitmap, r);
            bitmap.load_zeros(r.clone()).unwrap();
            model.reset(r);
        }
        Op::LoadOnes(r) => {
            let r = align(bitmap, r);
            bitmap.load_ones(r.clone()).unwrap();
            model.set(r);
        }
    }
}

fn compare(bitmap: &HBitmap, model: &Model) {
    assert_eq!(bitmap.len(), model.len);
    assert_eq!(bitmap.granules(), model.dirty.len() as u64);
    let ranges = model.ranges();
    assert_eq!(
        bitmap.count(),
        model.dirty.iter().filter(|d| **d).count() as u64
    );
    assert_eq!(
        bitmap.dirty_bytes(),
        ranges.iter().map(|r| r.end - r.start).sum::<u64>()
    );
    assert_eq!(bitmap.is_empty(), ranges.is_empty());
    assert_eq!(bitmap.ranges().collect::<Vec<_>>(), ranges);
    let mut bytes = vec![0xaa; model.linear().len() + 3];
    bitmap.write_linear(0..model.len, &mut bytes).unwrap();
    assert_eq!(bytes[..bytes.len() - 3], model.linear());
    assert_eq!(bytes[bytes.len() - 3..], [0; 3]);
    let chunk = bitmap.linear_align() * 3;
    let mut at = 0;
    for (range, kind) in bitmap.linear_chunks(chunk).unwrap() {
        assert_eq!(range.start, at);
        assert!(range.end == model.len || range.end.is_multiple_of(chunk));
        assert!(kind != Chunk::Data || range.end - range.start <= chunk);
        for start in (range.start..range.end).step_by(chunk as usize) {
            assert_eq!(kind, model.kind(&(start..(start + chunk).min(model.len))));
        }
        at = range.end;
    }
    assert_eq!(at, model.len);
}

fn compare_part(bitmap: &HBitmap, model: &Model, range: Range<u64>, max: u64) {
    let expected = model.ranges_in(&range);
    assert_eq!(
        bitmap.ranges_in(range.clone()).collect::<Vec<_>>(),
        expected,
        "{range:?}"
    );
    assert_eq!(
        bitmap.next_dirty(range.clone()),
        expected.first().map(|r| r.start)
    );
    let cut = expected
        .first()
        .map(|r| r.start..r.end.min(r.start.saturating_add(max)));
    assert_eq!(
        bitmap.next_dirty_range(range.clone(), max),
        cut.filter(|r| !r.is_empty())
    );
    let disk = range.start..range.end.min(model.len);
    let clean = match expected.first() {
        _ if disk.is_empty() => None,
        Some(r) if r.start == disk.start => (r.end < disk.end).then_some(r.end),
        _ => Some(disk.start),
    };
    assert_eq!(bitmap.next_clean(range.clone()), clean, "{range:?}");
    assert_eq!(bitmap.chunk_kind(range.clone()), model.kind(&disk));
    assert_eq!(
        bitmap.get(range.start),
        range.start < model.len && model.dirty[(range.start / model.granularity) as usize]
    );
    let r = align(bitmap, &range);
    let mut bytes = vec![0xaa; bitmap.linear_size(r.clone()).unwrap()];
    bitmap.write_linear(r.clone(), &mut bytes).unwrap();
    let start = (r.start / model.granularity / 8) as usize;
    assert_eq!(bytes, model.linear()[start..start + bytes.len()]);
}

/// Operations in a row, and parts that are looked at in the end: `(range, max)`.
type Course = (u64, u32, Vec<Op>, Vec<(Range<u64>, u64)>);

fn course() -> impl Strategy<Value = Course> {
    (1..200_000_u64, 0..12_u32).prop_flat_map(|(len, bits)| {
        (
            Just(len),
            Just(bits),
            prop::collection::vec(op(len), 1..12),
            prop::collection::vec((range(len), 0..5000_u64), 8),
        )
    })
}

fn assert_like_booleans((len, bits, ops, parts): Course) {
    let mut bitmap = HBitmap::new(len, Granularity::from_bits(bits).unwrap()).unwrap();
    let mut model = Model::new(len, 1 << bits);
    for op in &ops {
        apply(&mut bitmap, &mut model, op);
        compare(&bitmap, &model);
    }
    for (range, max) in parts {
        compare_part(&bitmap, &model, range, max);
    }
}

/// Any sequence of operations leaves what it leaves in the model.
#[test]
fn behaves_like_booleans() {
    let config = ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::with_cases(100)
    };
    // 200 cases, on two cores.
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut runner = TestRunner::new(config.clone());
                let run = |course| {
                    assert_like_booleans(course);
                    Ok(())
                };
                runner.run(&course(), run).unwrap();
            });
        }
    });
}
