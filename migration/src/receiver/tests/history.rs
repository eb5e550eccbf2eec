//! Random chunks against bitmaps that they are loaded into one by one.

use hbitmap::HBitmap;

use super::*;

/// Numbers that are the same in each run.
fn random(x: &mut u64) -> u64 {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    *x
}

struct Model {
    name: &'static str,
    granularity: u64,
    bits: HBitmap,
    /// What has been covered, and what was written here.
    covered: HBitmap,
    written: HBitmap,
    /// Where the last chunk ended.
    at: u64,
}

impl Model {
    fn new(name: &'static str, len: u64, granularity: u64) -> Self {
        let empty = |bytes| HBitmap::new(len, self::granularity(bytes)).unwrap();
        Self {
            name,
            granularity,
            bits: empty(granularity),
            covered: empty(granularity * 64),
            written: empty(granularity),
            at: 0,
        }
    }

    /// Some words: mostly where the last ones ended, or a bit further.
    fn range(&mut self, x: &mut u64) -> Range<u64> {
        let (word, len) = (self.granularity * 64, self.bits.len());
        let words = len.div_ceil(word);
        let start = match random(x) % 8 {
            0 => random(x) % words,
            1..4 => self.at / word + random(x) % 90,
            _ => self.at / word,
        };
        let count = match random(x) % 8 {
            0 => words,
            1 => 1 + random(x) % 1280,
            _ => 1 + random(x) % 40,
        };
        let start = (start % words) * word;
        let end = (start + count.min(1280) * word).min(len);
        self.at = if end == len { 0 } else { end };
        start..end
    }

    fn feed(&mut self, r: &mut Receiver, x: &mut u64) {
        let range = self.range(x);
        self.covered.set(range.clone());
        if random(x).is_multiple_of(3) {
            feed(r, "n", self.name, &[zeroes(range.clone())]);
            self.bits.load_zeros(range).unwrap();
            return;
        }
        let mut data = vec![0; self.bits.linear_size(range.clone()).unwrap()];
        match random(x) % 4 {
            0 => data.fill(0xff),
            1 => data.fill_with(|| random(x).to_le_bytes()[0]),
            _ => data[0] = random(x).to_le_bytes()[1],
        }
        let granules = self::granularity(self.granularity).granules(range.end - range.start);
        if !granules.is_multiple_of(64) {
            // Nothing past the end of the disk.
            let last = data.len() - 8;
            let word = u64::from_le_bytes(data[last..].try_into().unwrap());
            let word = word & ((1 << (granules % 64)) - 1);
            data[last..].copy_from_slice(&word.to_le_bytes());
        }
        self.bits.load_linear(range.clone(), &data).unwrap();
        feed(r, "n", self.name, &[Chunk::Bits(sectors(range), &data)]);
    }
}

#[test]
fn any_chunks_in_any_order() {
    let mut complete = 0;
    for seed in 1..400 {
        let x = &mut u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15);
        let len = [MIB, 9 * MIB + 512, 700 * MIB + 1024, 2900 * MIB][(random(x) % 4) as usize];
        let mut r = Receiver::new(
            vec![Node::new("n", len)],
            AliasMap::identity(),
            Limits::default(),
        );
        let mut models = [Model::new("a", len, 512), Model::new("b", len, 4096)];
        for model in &models {
            feed(&mut r, "n", model.name, &[start(model.granularity)]);
        }
        if random(x).is_multiple_of(2) {
            for model in &mut models {
                model.covered.set_all();
                feed(&mut r, "n", model.name, &[zeroes(0..len)]);
            }
        }
        for _ in 0..random(x) % 60 {
            let model = &mut models[(random(x) % 2) as usize];
            for _ in 0..random(x) % 20 {
                model.feed(&mut r, x);
            }
            if random(x).is_multiple_of(8) {
                let start = random(x) % len;
                r.record("n", start..start + 1000).unwrap();
                for model in &mut models {
                    model.written.set(start..start + 1000);
                }
            }
        }
        for model in &models {
            feed(&mut r, "n", model.name, &[Chunk::Complete]);
        }
        let outcome = r.finish();
        let mut received = outcome.complete.iter();
        let mut lost = outcome.lost.iter();
        for model in &mut models {
            if model.covered.is_full() {
                model.bits.merge(&model.written).unwrap();
                assert!(
                    *received.next().unwrap().bitmap.bits() == model.bits,
                    "{seed}"
                );
                complete += 1;
            } else {
                let start = model.covered.next_clean(0..len).unwrap();
                let end = model.covered.next_dirty(start..len).unwrap_or(len);
                let missing = start..end;
                assert_eq!(
                    lost.next().unwrap().reason,
                    Loss::Uncovered { missing, len }
                );
            }
        }
        assert!(received.next().is_none() && lost.next().is_none());
    }
    assert!((300..700).contains(&complete), "{complete}");
}
