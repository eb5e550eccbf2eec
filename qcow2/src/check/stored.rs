//! [`Stored`]: the image's own refcounts, read once.

use std::collections::HashMap;

use super::{report::CheckFailed, walk::Metadata};
use crate::{
    Geometry,
    addr::HostOffset,
    format::refcount::{self, RefcountTableEntry},
};

/// QEMU reads nothing that ends beyond this, the largest file of its block layer
/// rounded down to 1 GiB.
pub(super) const MAX_READ_END: u64 = 0x7fff_ffff_c000_0000;

/// One refcount table entry's block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Block {
    /// None, or nothing but zeros.
    #[default]
    Zero,
    /// Read: index into [`Stored::blocks`].
    Data(u32),
    /// Not at a cluster boundary.
    Unaligned(HostOffset),
    /// Where nothing can be read.
    Unreadable,
}

/// Why a cluster's refcount can't be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRefcount {
    /// Its refcount block isn't at a cluster boundary.
    Unaligned {
        /// Where the block is.
        offset: HostOffset,
        /// Index in the refcount table.
        index: u64,
    },
    /// Its refcount block is where nothing can be read.
    Unreadable,
}

/// The refcounts as they are stored, packed. Memory follows the blocks that are in
/// the file and not all zeros, each kept once however many entries point to it.
#[derive(Debug)]
pub(super) struct Stored {
    order: u32,
    block_bits: u32,
    table: Vec<Block>,
    blocks: Vec<Box<[u8]>>,
}

impl Stored {
    /// Reads the refcount blocks of the image.
    pub(super) fn read(metadata: &Metadata<'_>) -> Result<Self, CheckFailed> {
        let geometry = metadata.geometry;
        let mut stored = Self {
            order: geometry.refcount_order(),
            block_bits: geometry.refcount_block_entries().trailing_zeros(),
            table: Vec::new(),
            blocks: Vec::new(),
        };
        let mut seen: HashMap<HostOffset, Block> = HashMap::new();
        let end = metadata
            .storage
            .size()
            .map_err(CheckFailed::io("the file's size", 0))?;
        metadata.for_each_refcount_block(|index, entry| {
            let block = match entry.block() {
                Some(offset) => match seen.get(&offset) {
                    Some(block) => *block,
                    None => {
                        let block = stored.read_block(metadata, end, entry, offset)?;
                        seen.insert(offset, block);
                        block
                    }
                },
                None => Block::Zero,
            };
            if block != Block::Zero {
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                stored.table.resize(index.saturating_add(1), Block::Zero);
                if let Some(slot) = stored.table.get_mut(index) {
                    *slot = block;
                }
            }
            Ok(())
        })?;
        Ok(stored)
    }

    fn read_block(
        &mut self,
        metadata: &Metadata<'_>,
        end: u64,
        entry: RefcountTableEntry,
        offset: HostOffset,
    ) -> Result<Block, CheckFailed> {
        let geometry: Geometry = metadata.geometry;
        if !geometry.is_aligned(offset) {
            return Ok(Block::Unaligned(offset));
        }
        let size = geometry.cluster_size();
        if offset
            .get()
            .checked_add(size)
            .is_none_or(|end| end > MAX_READ_END)
        {
            return Ok(Block::Unreadable);
        }
        if offset.get() >= end {
            return Ok(Block::Zero);
        }
        debug_assert_eq!(entry.block(), Some(offset));
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        metadata.read("a refcount block", offset.get(), &mut bytes)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Block::Zero);
        }
        self.blocks.push(bytes.into_boxed_slice());
        Ok(Block::Data(
            u32::try_from(self.blocks.len() - 1).unwrap_or(u32::MAX),
        ))
    }

    /// The stored refcount of `cluster`.
    #[allow(clippy::cast_possible_truncation, reason = "masked to less than 2^24")]
    pub(super) fn get(&self, cluster: u64) -> Result<u64, NoRefcount> {
        let block = self.block(cluster >> self.block_bits)?;
        let index = (cluster & ((1 << self.block_bits) - 1)) as usize;
        Ok(block
            .and_then(|block| refcount::get(block, self.order, index))
            .unwrap_or(0))
    }

    /// The refcounts of a block, packed; `None` if all are 0.
    pub(super) fn block(&self, index: u64) -> Result<Option<&[u8]>, NoRefcount> {
        let at = usize::try_from(index).ok();
        match at
            .and_then(|at| self.table.get(at))
            .copied()
            .unwrap_or_default()
        {
            Block::Zero => Ok(None),
            Block::Data(number) => {
                let number = usize::try_from(number).ok();
                Ok(number
                    .and_then(|number| self.blocks.get(number))
                    .map(|block| &**block))
            }
            Block::Unaligned(offset) => Err(NoRefcount::Unaligned { offset, index }),
            Block::Unreadable => Err(NoRefcount::Unreadable),
        }
    }

    /// One more than the last block with refcounts other than 0.
    pub(super) fn len(&self) -> u64 {
        self.table.len() as u64
    }
}
