//! The counted references against the stored refcounts.

use super::{
    checker::Checker,
    counts::{Block, Counts},
    finding::Finding,
    report::CheckFailed,
    stored::{NoRefcount, Stored},
};
use crate::{addr::HostOffset, format::refcount};

impl Checker<'_> {
    /// Compares block by block, a whole block as bytes where that can be.
    pub(super) fn compare(&mut self) -> Result<(), CheckFailed> {
        let geometry = self.metadata.geometry;
        let entries = geometry.refcount_block_entries();
        let order = geometry.refcount_order();
        let clusters = self.counts.clusters();
        let mut highest = 0;
        let mut room = Vec::new();
        for block in compared_blocks(&self.counts, &self.stored) {
            let first = block * entries;
            let count = entries.min(clusters - first);
            let counted = self.counts.block(block);
            let stored = match self.stored.block(block) {
                Ok(stored) => stored,
                Err(why) => {
                    self.bad_copied |= counted.is_some_and(Block::has_flags);
                    self.no_refcounts(first..first + count, why)?;
                    continue;
                }
            };
            let packed = counted.map(|counted| counted.packed(&mut room));
            let equal = stored == packed;
            let last = [stored, packed].map(|bytes| last_nonzero(bytes?, order, count));
            if let Some(last) = last.into_iter().max().flatten() {
                highest = first + last;
            }
            self.bad_copied |=
                counted.is_some_and(|counted| !counted.copied_flags_fit(stored, equal));
            if !equal {
                self.compare_block(first, count)?;
            }
        }
        let end = (highest + 1).saturating_mul(geometry.cluster_size());
        self.report.image_end_offset = HostOffset(end);
        Ok(())
    }

    fn no_refcounts(
        &mut self,
        clusters: std::ops::Range<u64>,
        why: NoRefcount,
    ) -> Result<(), CheckFailed> {
        self.signal(why);
        for cluster in clusters {
            self.emit(&Finding::RefcountUnreadable { cluster });
            self.give_up_when_hopeless()?;
        }
        Ok(())
    }

    /// Says once that an unaligned refcount block was needed.
    pub(super) fn signal(&mut self, why: NoRefcount) {
        if let NoRefcount::Unaligned { offset, index } = why
            && !std::mem::replace(&mut self.signalled, true)
        {
            self.emit(&Finding::RefcountBlockNeeded {
                offset: offset.get(),
                index,
            });
        }
    }

    fn compare_block(&mut self, first: u64, count: u64) -> Result<(), CheckFailed> {
        for cluster in first..first + count {
            let references = self.counts.get(cluster);
            let stored = self.stored.get(cluster).unwrap_or(0);
            if stored != references {
                self.emit(&Finding::RefcountWrong {
                    cluster,
                    stored,
                    references,
                });
                self.give_up_when_hopeless()?;
            }
        }
        Ok(())
    }
}

/// The refcount blocks, there or not, with the refcounts of what is in the file.
pub(super) fn compared_blocks(
    counts: &Counts,
    stored: &Stored,
) -> impl Iterator<Item = u64> + use<> {
    let in_file = counts.clusters().div_ceil(counts.block_entries());
    let dense = stored.len().max(counts.dense_blocks());
    let sparse: Vec<u64> = counts.sparse_blocks().collect();
    let all = (0..dense.min(in_file)).chain(sparse);
    all.filter(move |block| *block < in_file)
}

/// The last of the first `count` numbers of a refcount block that isn't 0.
fn last_nonzero(packed: &[u8], order: u32, count: u64) -> Option<u64> {
    (0..count).rev().find(|index| {
        let index = usize::try_from(*index).unwrap_or(usize::MAX);
        refcount::get(packed, order, index).is_some_and(|value| value != 0)
    })
}
