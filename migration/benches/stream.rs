//! Speed of sending and receiving a bitmap, beside memcpy of its bits.
//!
//! `cargo bench -p qimg-migration` runs everything; `cargo bench -p qimg-migration -- '2\^28/1r'`
//! one row. Names are operation/bits/pattern; a pattern is percent dirty, c for runs of 256
//! bits and r for single bits. Streams go to and come from memory that is warm.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

use std::{cell::RefCell, hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hbitmap::{DirtyBitmap, Granularity, HBitmap};
use migration::{
    AliasMap, Limits, Node, Outgoing, Receiver, Sender, SenderOptions, StreamReader, Style,
};

/// log2 of the bytes a bit.
const GRANULARITY: u32 = 16;
/// Percent dirty, bits in a run, name.
const PATTERNS: [(f64, u64, &str); 8] = [
    (0.0, 1, "0"),
    (0.01, 256, "0.01c"),
    (0.01, 1, "0.01r"),
    (1.0, 256, "1c"),
    (1.0, 1, "1r"),
    (50.0, 256, "50c"),
    (50.0, 1, "50r"),
    (100.0, 1, "100"),
];

fn random(x: &mut u64) -> u64 {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    *x
}

fn bitmap(bits: u64, percent: f64, run: u64) -> RefCell<DirtyBitmap> {
    let len = bits << GRANULARITY;
    let mut out = HBitmap::new(len, Granularity::from_bits(GRANULARITY).unwrap()).unwrap();
    let mut x = 1;
    if percent >= 100.0 {
        out.set_all();
    } else if percent >= 50.0 && run == 1 {
        let words: Vec<_> = (0..bits / 64)
            .flat_map(|_| random(&mut x).to_le_bytes())
            .collect();
        out.load_linear(0..len, &words).unwrap();
    } else {
        for _ in 0..(bits as f64 * percent / 100.0 / run as f64) as u64 {
            let start = random(&mut x) % (bits - run);
            out.set(start << GRANULARITY..(start + run) << GRANULARITY);
        }
    }
    RefCell::new(DirtyBitmap::new("b", out))
}

fn send(source: &RefCell<DirtyBitmap>, style: Style, out: &mut Vec<u8>) {
    out.clear();
    let options = SenderOptions {
        style,
        ..SenderOptions::default()
    };
    let outgoing = vec![Outgoing::new("n", "b", source)];
    let sender = Sender::begin(out, outgoing, options).unwrap();
    sender.complete().unwrap();
}

fn receive(len: u64, stream: &[u8]) -> u64 {
    let node = Node::new("n", len);
    let mut receiver = Receiver::new(vec![node], AliasMap::identity(), Limits::default());
    receiver.receive(&mut StreamReader::new(stream)).unwrap();
    let outcome = receiver.finish();
    assert!(outcome.lost.is_empty());
    outcome.complete[0].bitmap.bits().count()
}

fn stream(c: &mut Criterion) {
    for bits in [1_u64 << 24, 1 << 28] {
        let mut group = c.benchmark_group("stream");
        group.throughput(Throughput::Bytes(bits / 8));
        let from = vec![0x55_u8; bits as usize / 8];
        let mut to = vec![0; from.len()];
        let exponent = bits.ilog2();
        let id = |what: &str, pattern: &str| {
            BenchmarkId::new(what, format_args!("2^{exponent}/{pattern}"))
        };
        group.bench_function(id("memcpy", "any"), |t| {
            t.iter(|| black_box(&mut to).copy_from_slice(black_box(&from)));
        });
        for (percent, run, name) in PATTERNS {
            let source = bitmap(bits, percent, run);
            let count = source.borrow().bits().count();
            for (style, what) in [(Style::Qemu, "qemu"), (Style::Compact, "compact")] {
                let mut out = Vec::new();
                group.bench_function(id(&format!("encode {what}"), name), |t| {
                    t.iter(|| send(&source, style, &mut out));
                });
                group.bench_function(id(&format!("decode {what}"), name), |t| {
                    t.iter(|| assert_eq!(receive(bits << GRANULARITY, &out), count));
                });
            }
        }
        group.finish();
    }
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .without_plots()
}

criterion_group! { name = streams; config = config(); targets = stream }
criterion_main!(streams);
