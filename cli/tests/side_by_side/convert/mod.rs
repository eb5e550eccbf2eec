//! `convert`: the same words and exit codes, and targets that hold the same disk.

mod bitmaps;
mod compressed;
mod faults;
mod forms;
mod onto;
mod pipe;
mod words;

use std::fs;

use crate::pair::Pair;

const MIB: usize = 1 << 20;

/// Data that compresses, data that doesn't, zeros, at places of all alignments.
fn content(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut bytes = vec![0; len];
    for index in 0..60 {
        let at = random(len);
        let size = 1 << (6 + random(13));
        let end = len.min(at + random(size));
        let spread = [1, 3, 255][index % 3];
        for byte in &mut bytes[at..end] {
            *byte = (1 + random(spread)).to_le_bytes()[0];
        }
    }
    bytes
}

/// Makes the raw disk `name`.
fn raw(pair: &Pair, name: &str, bytes: &[u8]) {
    fs::write(pair.work().join(name), bytes).unwrap();
}

/// Runs ours, which must succeed.
fn ours(pair: &Pair, line: &str) {
    let words: Vec<_> = line.split_whitespace().collect();
    let outcome = pair.ours(&words);
    assert_eq!(outcome.code, Some(0), "{line}: {}", outcome.stderr);
    assert_eq!(outcome.stderr, "", "{line}");
}

/// That qemu-img finds the image sound, and the disk in it the same as that of `source`.
fn assert_same(pair: &Pair, source: &str, image: &str, what: &str) {
    let check = pair.qemu(&["check", image]);
    assert_eq!(
        check.code,
        Some(0),
        "{what}: {}{}",
        check.stdout,
        check.stderr
    );
    let compared = pair.qemu(&["compare", source, image]);
    assert_eq!(compared.code, Some(0), "{what}: {}", compared.stdout);
}
