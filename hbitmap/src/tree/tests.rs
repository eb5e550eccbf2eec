//! Trees of several levels against plain words, with every invariant checked.

use proptest::prelude::*;

use super::*;
use crate::Chunk;

/// Bits that need two levels of nodes, the last page cut in a word.
const LEN: u64 = (1 << 22) + 32768 * 3 + 1234;

#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64),
    Clear(u64, u64),
    /// Scatters bits: start, distance, number.
    Scatter(u64, u64, u64),
    Load(u64, u64, u64),
    Merge(Vec<(u64, u64)>, u64),
    Resize(u64),
}

/// Bits that page and node borders are near to, and any others.
fn bit() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => 0..LEN,
        1 => (0..LEN >> 15, 0..3u64).prop_map(|(p, d)| ((p << 15) + d).saturating_sub(1)),
        1 => (0..3u64, 0..3u64).prop_map(|(p, d)| ((p << 21) + d).saturating_sub(1)),
        1 => Just(0),
        1 => Just(LEN),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![1..64u64, 1..3000u64, 1..100_000u64, 1..LEN];
    prop_oneof![
        4 => (bit(), len.clone()).prop_map(|(a, n)| Op::Set(a, n)),
        4 => (bit(), len).prop_map(|(a, n)| Op::Clear(a, n)),
        3 => (bit(), 1..500u64, 1..5000u64).prop_map(|(a, d, n)| Op::Scatter(a, d, n)),
        2 => (bit(), 1..2000u64, any::<u64>()).prop_map(|(a, n, w)| Op::Load(a, n, w)),
        2 => (prop::collection::vec((bit(), 1..100_000u64), 0..5), 0..600u64)
            .prop_map(|(r, d)| Op::Merge(r, d)),
        1 => bit().prop_map(Op::Resize),
    ]
}

struct Plain {
    words: Vec<u64>,
    len: u64,
}

impl Plain {
    fn new(len: u64) -> Self {
        Self {
            words: vec![0; len.div_ceil(64) as usize],
            len,
        }
    }

    fn put(&mut self, lo: u64, hi: u64, on: bool) {
        for bit in lo..hi.min(self.len) {
            let m = 1 << (bit % 64);
            let w = &mut self.words[(bit / 64) as usize];
            *w = if on { *w | m } else { *w & !m };
        }
    }

    fn get(&self, bit: u64) -> bool {
        self.words[(bit / 64) as usize] >> (bit % 64) & 1 != 0
    }
}

fn both(tree: &mut Tree, plain: &mut Plain, lo: u64, hi: u64, on: bool) {
    let (lo, hi) = (lo.min(plain.len), hi.min(plain.len));
    if on {
        tree.set(lo, hi);
    } else {
        tree.clear(lo, hi);
    }
    plain.put(lo, hi, on);
}

fn apply(tree: &mut Tree, plain: &mut Plain, op: &Op) {
    match *op {
        Op::Set(a, n) => both(tree, plain, a, a + n, true),
        Op::Clear(a, n) => both(tree, plain, a, a + n, false),
        Op::Scatter(a, d, n) => {
            for i in 0..n {
                both(tree, plain, a + i * d, a + i * d + 1, n % 4 != 0);
            }
        }
        Op::Load(a, n, w) => {
            let lo = a.min(plain.len) / 64 * 64;
            let hi = (lo + n * 64).min(plain.len);
            let word = match w % 3 {
                0 => 0,
                1 => u64::MAX,
                _ => w,
            };
            let bytes: Vec<u8> = (lo / 64..hi.div_ceil(64))
                .flat_map(|_| word.to_le_bytes())
                .collect();
            tree.load(lo, hi, &bytes);
            for bit in lo..hi {
                plain.put(bit, bit + 1, word >> (bit % 64) & 1 != 0);
            }
        }
        Op::Merge(ref ranges, d) => {
            let (mut other, mut q) = (Tree::new(plain.len), Plain::new(plain.len));
            for (a, n) in ranges {
                both(&mut other, &mut q, *a, a + n, true);
            }
            for i in 0..if d == 0 { 0 } else { 20_000 } {
                both(&mut other, &mut q, i * d, i * d + 1, true);
            }
            other.check();
            tree.merge(&other);
            for (a, b) in plain.words.iter_mut().zip(&q.words) {
                *a |= b;
            }
        }
        Op::Resize(len) => {
            tree.resize(len);
            plain.put(len, plain.len, false);
            plain.words.resize(len.div_ceil(64) as usize, 0);
            plain.len = len;
        }
    }
}

fn compare(tree: &Tree, plain: &Plain) {
    tree.check();
    assert_eq!(tree.len(), plain.len);
    assert_eq!(
        tree.count(),
        plain
            .words
            .iter()
            .map(|w| u64::from(w.count_ones()))
            .sum::<u64>()
    );
    runs(tree, plain, 0, plain.len);
    let mut bytes = vec![0xaa; plain.words.len() * 8];
    tree.store(0, tree.len(), &mut bytes);
    let words: Vec<u8> = plain.words.iter().flat_map(|w| w.to_le_bytes()).collect();
    assert!(bytes == words, "stored words differ");
}

/// The runs within `lo..hi` are maximal, in order, and hold exactly the set bits.
fn runs(tree: &Tree, plain: &Plain, lo: u64, hi: u64) {
    let mut next = Runs::new(tree, lo, hi);
    let mut at = lo;
    while at < hi {
        let Some(start) = (at..hi).find(|b| plain.get(*b)) else {
            break;
        };
        let end = (start..hi).find(|b| !plain.get(*b)).unwrap_or(hi);
        assert_eq!(next.next(), Some(start..end), "{lo}..{hi}");
        at = end;
    }
    assert_eq!(next.next(), None);
    assert_eq!(next.next(), None);
}

/// What looking at `bit` says.
fn look(tree: &Tree, plain: &Plain, bit: u64) {
    if bit >= plain.len {
        assert_eq!(tree.next_one(bit), None);
        return;
    }
    assert_eq!(tree.get(bit), plain.get(bit));
    runs(tree, plain, bit, plain.len);
    runs(tree, plain, bit / 2, bit);
    assert_eq!(tree.next_one(bit), (bit..plain.len).find(|b| plain.get(*b)));
    assert_eq!(
        tree.next_zero(bit),
        (bit..plain.len).find(|b| !plain.get(*b))
    );
    let end = (bit + 70_000).min(plain.len);
    let kind = match (bit..end).filter(|b| plain.get(*b)).count() as u64 {
        0 => Chunk::Zeros,
        n if n == end - bit => Chunk::Ones,
        _ => Chunk::Data,
    };
    assert_eq!(tree.kind(bit, end), kind);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn behaves_like_words(
        ops in prop::collection::vec(op(), 1..8),
        bits in prop::collection::vec(bit(), 4),
    ) {
        let (mut tree, mut plain) = (Tree::new(LEN), Plain::new(LEN));
        for op in &ops {
            apply(&mut tree, &mut plain, op);
            compare(&tree, &plain);
        }
        for bit in bits {
            look(&tree, &plain, bit);
        }
        let copy = tree.clone();
        prop_assert!(copy.same_bits(&tree));
        let flip = bits_flip(&mut tree);
        prop_assert_eq!(copy.same_bits(&tree), !flip);
    }
}

/// Changes one bit, if there is one.
fn bits_flip(tree: &mut Tree) -> bool {
    let Some(bit) = tree.len().checked_sub(1) else {
        return false;
    };
    if tree.get(bit / 2) {
        tree.clear(bit / 2, bit / 2 + 1);
    } else {
        tree.set(bit / 2, bit / 2 + 1);
    }
    true
}

#[test]
fn uniform_trees_hold_no_memory() {
    let mut tree = Tree::new(1 << 63);
    tree.set(0, 1 << 63);
    assert_eq!(tree.count(), 1 << 63);
    assert_eq!(tree.used_bytes(), 0);
    tree.clear(12345, 12346);
    assert!(tree.used_bytes() > 0);
    tree.set(12345, 12346);
    assert_eq!(tree.used_bytes(), 0);
    for bit in (0..1 << 20).rev() {
        tree.clear(bit, bit + 1);
    }
    tree.check();
    tree.clear(1 << 20, 1 << 63);
    assert_eq!(tree.used_bytes(), 0);
}

#[test]
fn dense_pages_become_sparse_again() {
    let mut tree = Tree::new(1 << 20);
    for bit in (0..32768).step_by(7) {
        tree.set(bit, bit + 1);
    }
    let dense = tree.used_bytes();
    for bit in (7..32768).step_by(7) {
        tree.clear(bit, bit + 1);
    }
    tree.check();
    assert_eq!(tree.count(), 1);
    assert!(tree.used_bytes() + 3000 < dense);
}

#[test]
fn few_words_loaded_into_pages_of_any_kind() {
    let mut x = 1_u64;
    let mut random = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    // Two whole pages and one of 50 words.
    let len = 2 * 32768 + 50 * 64;
    let mut tree = Tree::new(len);
    let mut words = vec![0_u64; (len / 64) as usize];
    for round in 0..4000 {
        if round % 500 == 0 {
            // Begins with all clean or all dirty, in turn.
            words.fill(0);
            tree.clear_all();
            if round % 1000 != 0 {
                words.fill(u64::MAX);
                tree.set(0, len);
            }
        }
        let first = random() as usize % words.len();
        let count = [1, 3, 30, 102, 110, 512][random() as usize % 6].min(words.len() - first);
        let kind = random() % 5;
        for word in &mut words[first..first + count] {
            *word = match kind {
                0 => 0,
                1 => u64::MAX,
                2 => random(),
                _ => u64::from(random() % 9 == 0) << (random() % 64),
            };
        }
        let part = &words[first..first + count];
        let bytes: Vec<u8> = part.iter().flat_map(|w| w.to_le_bytes()).collect();
        let lo = first as u64 * 64;
        tree.load(lo, lo + count as u64 * 64, &bytes);
        tree.check();
        let mut got = vec![0; words.len() * 8];
        tree.store(0, len, &mut got);
        let want: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert!(got == want, "round {round}");
    }
}
