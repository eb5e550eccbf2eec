//! Bytes in pages that exist only where something other than zeros was written.
//! Clones share their pages until one of them changes a page.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// Bytes in a page.
const PAGE: usize = 4096;
const PAGE_BYTES: u64 = PAGE as u64;

#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
    /// Bytes beyond are absent; within the last page they are zeros.
    length: u64,
}

impl Sparse {
    pub(super) fn len(&self) -> u64 {
        self.length
    }

    pub(super) fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE_BYTES
    }

    /// Reads as much of `out` as there is; the rest stays as it was.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let there = self.length.saturating_sub(offset);
        let length = usize::try_from(there).unwrap_or(usize::MAX).min(out.len());
        let out = out.get_mut(..length).unwrap_or_default();
        let mut rest = out;
        for (page, within) in pieces(offset, length) {
            let (piece, next) = rest.split_at_mut(within.len());
            match self.pages.get(&page).and_then(|p| p.get(within)) {
                Some(bytes) => piece.copy_from_slice(bytes),
                None => piece.fill(0),
            }
            rest = next;
        }
        length
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut rest = data;
        for (page, within) in pieces(offset, data.len()) {
            let (piece, next) = rest.split_at(within.len());
            self.write_within(page, within, piece);
            rest = next;
        }
        self.length = self.length.max(offset + data.len() as u64);
    }

    fn write_within(&mut self, page: u64, within: Range<usize>, piece: &[u8]) {
        if !self.pages.contains_key(&page) && piece.iter().all(|b| *b == 0) {
            return;
        }
        let bytes = self
            .pages
            .entry(page)
            .or_insert_with(|| Arc::new([0; PAGE]));
        if let Some(target) = Arc::make_mut(bytes).get_mut(within) {
            target.copy_from_slice(piece);
        }
    }

    pub(super) fn set_len(&mut self, bytes: u64) {
        if bytes < self.length {
            self.zero(bytes..self.length);
        }
        self.length = bytes;
    }

    /// Has the range read as zeros; the length stays.
    pub(super) fn zero(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let touched = range.start / PAGE_BYTES..=(range.end - 1) / PAGE_BYTES;
        let touched: Vec<u64> = self.pages.range(touched).map(|(page, _)| *page).collect();
        for page in touched {
            let start = page * PAGE_BYTES;
            let from = usize::try_from(range.start.saturating_sub(start)).unwrap_or(PAGE);
            let to = usize::try_from(range.end - start).unwrap_or(PAGE).min(PAGE);
            if from == 0 && to == PAGE {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page)
                && let Some(target) = Arc::make_mut(bytes).get_mut(from..to)
            {
                target.fill(0);
            }
        }
    }

    /// The pages that there are, with their offsets, the last cut at the length.
    pub(super) fn pages(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().map(|(page, bytes)| {
            let start = page * PAGE_BYTES;
            let length = self.length.saturating_sub(start).min(PAGE_BYTES);
            let length = usize::try_from(length).unwrap_or(PAGE);
            (start, bytes.get(..length).unwrap_or_default())
        })
    }
}

/// Cuts a range at page borders: page numbers and the bytes within each page.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut at = offset;
    let end = offset + length as u64;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE_BYTES;
        let stop = end.min((page + 1) * PAGE_BYTES);
        let within = |n: u64| usize::try_from(n - page * PAGE_BYTES).unwrap_or(PAGE);
        let piece = (page, within(at)..within(stop));
        at = stop;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Zero(u64, u64),
        SetLen(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let byte = prop_oneof![Just(0_u8), any::<u8>()];
        prop_oneof![
            (0..20_000_u64, proptest::collection::vec(byte, 0..9000))
                .prop_map(|(o, d)| Step::Write(o, d)),
            (0..20_000_u64, 0..9000_u64).prop_map(|(o, n)| Step::Zero(o, n)),
            (0..20_000_u64).prop_map(Step::SetLen),
        ]
    }

    fn range(offset: u64, length: usize) -> Range<usize> {
        let start = usize::try_from(offset).unwrap();
        start..start + length
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_as_a_plain_vector(steps in proptest::collection::vec(step(), 1..12)) {
            let (mut sparse, mut plain) = (Sparse::default(), Vec::new());
            let original = sparse.clone();
            for step in steps {
                match step {
                    Step::Write(offset, data) => {
                        sparse.write(offset, &data);
                        let at = range(offset, data.len());
                        plain.resize(plain.len().max(at.end), 0);
                        plain[at].copy_from_slice(&data);
                    }
                    Step::Zero(offset, length) => {
                        sparse.zero(offset..offset + length);
                        let at = range(offset, usize::try_from(length).unwrap());
                        let end = at.end.min(plain.len());
                        if at.start < end {
                            plain[at.start..end].fill(0);
                        }
                    }
                    Step::SetLen(length) => {
                        sparse.set_len(length);
                        plain.resize(usize::try_from(length).unwrap(), 0);
                    }
                }
                let mut read = vec![0xEE; plain.len() + 10];
                prop_assert_eq!(sparse.read(0, &mut read), plain.len());
                prop_assert_eq!(&read[..plain.len()], &plain[..]);
            }
            prop_assert_eq!(original.len(), 0);
        }
    }

    #[test]
    fn memory_follows_what_is_written() {
        let mut sparse = Sparse::default();
        sparse.set_len(1 << 60);
        sparse.write(1 << 50, &[0; 100_000]);
        assert_eq!(sparse.allocated(), 0);
        sparse.write((1 << 50) + 4095, &[1, 1]);
        assert_eq!(sparse.allocated(), 2 * PAGE_BYTES);
        sparse.zero(0..1 << 60);
        assert_eq!(sparse.allocated(), 0);
        assert_eq!(sparse.len(), 1 << 60);
    }
}
