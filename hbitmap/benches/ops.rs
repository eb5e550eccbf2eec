//! Speed of each operation, beside roaring, croaring and fixedbitset where they do the
//! same, and beside plain loops as the limit of the memory.
//!
//! `cargo bench -p hbitmap` runs everything; `cargo bench -p hbitmap -- '2\^28/1r'` one row.
//! Names are operation/bits/pattern/what; a pattern is percent dirty, c for runs of 256
//! bits and r for single bits.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use fixedbitset::FixedBitSet;
use hbitmap::{Chunk, Granularity, HBitmap};
use roaring::RoaringBitmap;

/// Percent dirty, whether clustered, name.
const PATTERNS: [(f64, bool, &str); 8] = [
    (0.0, false, "0"),
    (0.01, true, "0.01c"),
    (0.01, false, "0.01r"),
    (1.0, true, "1c"),
    (1.0, false, "1r"),
    (50.0, true, "50c"),
    (50.0, false, "50r"),
    (100.0, false, "100"),
];

/// A bit for each byte of the disk, so that offsets are bit numbers.
fn empty(bits: u64) -> HBitmap {
    HBitmap::new(bits, Granularity::from_bits(0).unwrap()).unwrap()
}

fn random(x: &mut u64) -> u64 {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    *x
}

/// The words of a pattern.
fn words(bits: u64, percent: f64, clustered: bool, seed: u64) -> Vec<u64> {
    let mut x = seed;
    let mut out = vec![0; (bits / 64) as usize];
    if percent >= 100.0 {
        out.fill(u64::MAX);
        return out;
    }
    if percent >= 50.0 && !clustered {
        out.fill_with(|| random(&mut x));
        return out;
    }
    let run = if clustered { 256 } else { 1 };
    for _ in 0..(bits as f64 * percent / 100.0 / run as f64) as u64 {
        let start = random(&mut x) % (bits - run);
        for bit in start..start + run {
            out[(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }
    out
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn ones(words: &[u64]) -> impl Iterator<Item = u32> {
    words.iter().zip(0u32..).flat_map(|(word, i)| {
        (0..64)
            .filter(move |b| word >> b & 1 != 0)
            .map(move |b| i * 64 + b)
    })
}

/// One pattern in every form, twice with different bits.
struct Input {
    id: String,
    bits: u64,
    words: [Vec<u64>; 2],
}

fn inputs() -> impl Iterator<Item = Input> {
    [20, 24, 28].into_iter().flat_map(|log| {
        PATTERNS.into_iter().map(move |(percent, clustered, name)| {
            let bits = 1 << log;
            Input {
                id: format!("2^{log}/{name}"),
                bits,
                words: [1, 2].map(|seed| words(bits, percent, clustered, seed * 0x9e37_79b9)),
            }
        })
    })
}

fn load(input: &Input, which: usize) -> HBitmap {
    let mut b = empty(input.bits);
    b.load_linear(0..input.bits, &bytes(&input.words[which]))
        .unwrap();
    b
}

fn croaring(words: &[u64]) -> croaring::Bitmap {
    let mut b = croaring::Bitmap::of(&ones(words).collect::<Vec<_>>());
    b.run_optimize();
    b
}

fn fixed(words: &[u64]) -> FixedBitSet {
    FixedBitSet::with_capacity_and_blocks(words.len() * 64, words.iter().map(|w| *w as usize))
}

fn merge(c: &mut Criterion) {
    let mut group = c.benchmark_group("merge");
    for input in inputs() {
        let [a, b] = &input.words;
        // A new copy each time, since the second merge of the same bits adds none.
        let (x, y) = (load(&input, 0), load(&input, 1));
        group.bench_function(BenchmarkId::new("hbitmap", &input.id), |t| {
            t.iter_batched_ref(
                || x.clone(),
                |x| x.merge(&y).unwrap(),
                BatchSize::PerIteration,
            );
        });
        group.bench_function(BenchmarkId::new("plain OR", &input.id), |t| {
            let mut a = a.clone();
            t.iter(|| a.iter_mut().zip(b).for_each(|(a, b)| *a |= b));
        });
        let (x, y) = (croaring(a), croaring(b));
        group.bench_function(BenchmarkId::new("croaring", &input.id), |t| {
            t.iter_batched_ref(|| x.clone(), |x| x.or_inplace(&y), BatchSize::PerIteration);
        });
        let [x, y] = [a, b].map(|w| RoaringBitmap::from_sorted_iter(ones(w)).unwrap());
        group.bench_function(BenchmarkId::new("roaring", &input.id), |t| {
            t.iter_batched_ref(|| x.clone(), |x| *x |= &y, BatchSize::PerIteration);
        });
        let (mut x, y) = (fixed(a), fixed(b));
        group.bench_function(BenchmarkId::new("fixedbitset", &input.id), |t| {
            t.iter(|| x.union_with(&y));
        });
    }
    group.finish();
}

fn linear(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    for input in inputs() {
        let all = 0..input.bits;
        let data = bytes(&input.words[0]);
        let mut warm = load(&input, 1);
        group.bench_function(BenchmarkId::new("load warm", &input.id), |t| {
            t.iter(|| warm.load_linear(all.clone(), &data).unwrap());
        });
        group.bench_function(BenchmarkId::new("load fresh", &input.id), |t| {
            t.iter_batched_ref(
                || empty(input.bits),
                |b| b.load_linear(all.clone(), &data).unwrap(),
                BatchSize::PerIteration,
            );
        });
        let mut out = vec![1; data.len()];
        group.bench_function(BenchmarkId::new("memcpy", &input.id), |t| {
            t.iter(|| black_box(&mut out).copy_from_slice(&data));
        });
        group.bench_function(BenchmarkId::new("store", &input.id), |t| {
            t.iter(|| warm.write_linear(all.clone(), black_box(&mut out)).unwrap());
        });
        group.bench_function(BenchmarkId::new("1 KiB chunks", &input.id), |t| {
            let mut chunk = [0; 1024];
            t.iter(|| {
                for (range, kind) in warm.linear_chunks(8192).unwrap() {
                    if kind == Chunk::Data {
                        warm.write_linear(range, black_box(&mut chunk)).unwrap();
                    }
                }
            });
        });
        group.bench_function(BenchmarkId::new("sha256", &input.id), |t| {
            t.iter(|| warm.sha256())
        });
        group.bench_function(BenchmarkId::new("layered", &input.id), |t| {
            t.iter(|| warm.to_layered());
        });
    }
    group.finish();
}

fn ranges(c: &mut Criterion) {
    let mut group = c.benchmark_group("ranges");
    for input in inputs() {
        let b = load(&input, 0);
        group.bench_function(BenchmarkId::new("hbitmap", &input.id), |t| {
            t.iter(|| b.ranges().map(|r| r.end - r.start).sum::<u64>());
        });
        // Bit by bit, so comparable where bits are single, and slow where they are many.
        if b.count() > input.bits / 50 {
            continue;
        }
        let b = croaring(&input.words[0]);
        group.bench_function(BenchmarkId::new("croaring bits", &input.id), |t| {
            t.iter(|| b.iter().map(u64::from).sum::<u64>());
        });
        let b = fixed(&input.words[0]);
        group.bench_function(BenchmarkId::new("fixedbitset bits", &input.id), |t| {
            t.iter(|| b.ones().sum::<usize>());
        });
    }
    group.finish();
}

fn set(c: &mut Criterion) {
    let mut group = c.benchmark_group("set");
    for input in inputs() {
        for run in [1, 4096] {
            let mut b = load(&input, 0);
            let mut x = 77;
            group.bench_function(BenchmarkId::new(format!("hbitmap {run}"), &input.id), |t| {
                t.iter(|| {
                    let at = random(&mut x) % (input.bits - run);
                    b.set(at..at + run)
                });
            });
        }
        let mut b = croaring(&input.words[0]);
        let mut x = 77;
        group.bench_function(BenchmarkId::new("croaring 1", &input.id), |t| {
            t.iter(|| b.add((random(&mut x) % input.bits) as u32));
        });
        let mut b = fixed(&input.words[0]);
        group.bench_function(BenchmarkId::new("fixedbitset 1", &input.id), |t| {
            t.iter(|| b.insert((random(&mut x) % input.bits) as usize));
        });
    }
    group.finish();
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .without_plots()
}

criterion_group! { name = ops; config = config(); targets = merge, linear, ranges, set }
criterion_main!(ops);
