//! Bitmap to layered form.

use alloc::vec::Vec;

use super::{HEADER, MAGIC, VERSION, checksum};
use crate::crc::Crc32c;
use crate::tree::Tree;
use crate::tree::node::{Bits, Slot};
use crate::tree::span_bits;
use crate::{HBitmap, Result};

/// Takes the bytes of one chunk.
type Sink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

impl HBitmap {
    /// The layered form.
    #[must_use]
    pub fn to_layered(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // This sink can't fail.
        let _ = self.layered_chunks(&mut |bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        });
        out
    }

    /// Writes the layered form, a chunk at a time, and flushes.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) with the bytes written until then.
    #[cfg(feature = "std")]
    pub fn write_layered(&self, to: &mut impl std::io::Write) -> Result<()> {
        let mut offset = 0;
        let mut to = std::io::BufWriter::with_capacity(1 << 16, to);
        self.layered_chunks(&mut |bytes| {
            std::io::Write::write_all(&mut to, bytes)
                .map_err(|source| crate::Error::Io { offset, source })?;
            offset += bytes.len() as u64;
            Ok(())
        })?;
        std::io::Write::flush(&mut to).map_err(|source| crate::Error::Io { offset, source })
    }

    fn layered_chunks(&self, sink: &mut Sink<'_>) -> Result<()> {
        sink(&self.layered_header())?;
        for level in (0..=self.tree.height()).rev() {
            level_chunks(
                &self.tree,
                self.tree.root(),
                self.tree.height(),
                0,
                level,
                sink,
            )?;
        }
        Ok(())
    }

    fn layered_header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        // Below 64, so the first byte is all of it; the others are reserved zeros.
        out.extend(
            u64::from(self.granularity().bits())
                .to_le_bytes()
                .iter()
                .take(6),
        );
        out.extend(self.len().to_le_bytes());
        out.extend(self.count().to_le_bytes());
        let mut crc = Crc32c::new();
        crc.update(&out);
        out.extend(crc.finish().to_le_bytes());
        out
    }
}

/// The chunks of level `wanted` within a slot.
fn level_chunks(
    tree: &Tree,
    slot: Slot,
    level: u32,
    base: u64,
    wanted: u32,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let Slot::At(id) = slot else { return Ok(()) };
    if level > wanted {
        let node = tree.node(id);
        for i in Bits(node.any & !node.full) {
            let start = base + (u64::from(i) << span_bits(level - 1));
            level_chunks(tree, node.slot(i), level - 1, start, wanted, sink)?;
        }
        return Ok(());
    }
    let mut chunk = Vec::new();
    if level == 0 {
        page_chunk(tree, slot, base, &mut chunk);
    } else {
        let node = tree.node(id);
        chunk.extend(node.any.to_le_bytes());
        chunk.extend(node.full.to_le_bytes());
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "there are nine levels at most"
    )]
    let crc = checksum(level as u8, base, &chunk);
    chunk.extend(crc.to_le_bytes());
    sink(&chunk)
}

/// A page in blocks of 64 words.
fn page_chunk(tree: &Tree, slot: Slot, base: u64, out: &mut Vec<u8>) {
    let mut page = [0; 512];
    tree.expand_page(slot, base, &mut page);
    let (mut dirty, mut full) = (0u8, 0u8);
    let mut masks = Vec::with_capacity(128);
    let mut words = Vec::new();
    for (i, block) in page.as_chunks::<64>().0.iter().enumerate() {
        let (mut any, mut all, mut valid) = (0u64, 0u64, 0u64);
        for (j, word) in block.iter().enumerate() {
            let ones = tree.valid_word(base, i * 64 + j);
            valid |= u64::from(ones != 0) << j;
            any |= u64::from(*word != 0) << j;
            all |= u64::from(*word != 0 && *word == ones) << j;
        }
        dirty |= u8::from(any != 0) << i;
        if any != 0 && all == valid {
            full |= 1 << i;
        } else if any != 0 {
            masks.extend(any.to_le_bytes());
            masks.extend(all.to_le_bytes());
            for j in Bits(any & !all) {
                words.extend(
                    block
                        .get(j as usize)
                        .copied()
                        .unwrap_or_default()
                        .to_le_bytes(),
                );
            }
        }
    }
    out.extend([dirty, full]);
    out.extend(masks);
    out.extend(words);
}
