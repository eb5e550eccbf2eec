//! [`ClusterWriter`]: a [`Content`] → clusters of bits, one at a time. Clusters in
//! which all is clean or all is dirty are not stored; those that stay as they
//! are are not written again.

use std::{ops::Range, sync::Arc};

use crate::{
    Error, Geometry, Result,
    addr::HostOffset,
    bitmap::{
        content::Content,
        stored::{Piece, cluster_coverage, table_len},
    },
    format::{BitmapCluster, BitmapTableEntry},
    io::Storage,
};

/// Adjoining clusters smaller than this are written together, up to this many bytes.
const BATCH_BYTES: usize = 64 << 10;

/// A bitmap table, and which of its clusters were there before.
#[derive(Debug, Default)]
pub(super) struct WrittenTable {
    entries: Vec<BitmapTableEntry>,
    /// Clusters of the old table that this one names too.
    pub(super) kept: Vec<HostOffset>,
}

impl WrittenTable {
    /// The entry of the old table stays.
    fn keep(&mut self, entry: BitmapTableEntry) {
        if let BitmapCluster::Data(offset) = entry.cluster() {
            self.kept.push(offset);
        }
        self.entries.push(entry);
    }

    /// The table as it is stored.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.entries
            .iter()
            .flat_map(|entry| entry.0.to_be_bytes())
            .collect()
    }
}

/// Whether cluster `index` of the bits of `content` may need a cluster of its own.
pub(super) fn needs_cluster(geometry: Geometry, content: &Content, index: u64) -> bool {
    let range = chunk(geometry, content, index);
    if content.kept_entry(index).is_some() && content.is_base_only(&range) {
        return false;
    }
    match content.hint(range.clone()) {
        Piece::Data => true,
        Piece::Ones => !is_whole_words(granules(content, &range)),
        Piece::Zeros => false,
    }
}

/// Bits of `content` in the range.
fn granules(content: &Content, range: &Range<u64>) -> u64 {
    (range.end - range.start).div_ceil(content.granularity().bytes())
}

/// Whether an entry may say "all ones". QEMU sets whole 64-bit words then: where the disk
/// ends within one it would have bits behind the end, which count in its digest.
const fn is_whole_words(granules: u64) -> bool {
    granules.is_multiple_of(64)
}

/// Sets the first `granules` bits, and no other.
fn fill_ones(bits: &mut [u8], granules: u64) {
    bits.fill(0);
    let whole = usize::try_from(granules / 8).unwrap_or(usize::MAX);
    if let Some((full, rest)) = bits.split_at_mut_checked(whole) {
        full.fill(0xff);
        if let Some(last) = rest.first_mut() {
            *last = (1_u8 << (granules % 8)) - 1;
        }
    }
}

/// The part of the disk that cluster `index` of the bits covers.
fn chunk(geometry: Geometry, content: &Content, index: u64) -> Range<u64> {
    let coverage = cluster_coverage(geometry, content.granularity());
    let start = index.saturating_mul(coverage);
    start..start.saturating_add(coverage).min(content.len())
}

/// Writes clusters, several in a row as one piece.
#[derive(Debug)]
pub(super) struct ClusterWriter<'a> {
    storage: &'a Arc<dyn Storage>,
    geometry: Geometry,
    /// Bytes that wait to be written, and where.
    batch: Vec<u8>,
    batch_offset: u64,
}

impl<'a> ClusterWriter<'a> {
    pub(super) fn new(storage: &'a Arc<dyn Storage>, geometry: Geometry) -> Self {
        Self {
            storage,
            geometry,
            batch: Vec::new(),
            batch_offset: 0,
        }
    }

    /// Writes the bits of `content` into clusters that `take` supplies, as many as
    /// [`needs_cluster`] says at most.
    pub(super) fn write_bits(
        &mut self,
        content: &Content,
        take: &mut dyn FnMut() -> Result<HostOffset>,
    ) -> Result<WrittenTable> {
        let size = usize::try_from(self.geometry.cluster_size()).unwrap_or(0);
        let (mut bits, mut scratch) = (vec![0; size], Vec::new());
        let mut table = WrittenTable::default();
        for index in 0..table_len(self.geometry, content.granularity(), content.len()) {
            let range = chunk(self.geometry, content, index);
            let old = content.kept_entry(index);
            let unmerged = content.is_base_only(&range);
            if let Some(entry) = old.filter(|_| unmerged) {
                table.keep(entry);
                continue;
            }
            let base = content.read_base(range.clone(), &mut bits)?;
            let merged = content.read_merged(range.clone(), base, &mut bits, &mut scratch)?;
            if let Some(entry) = old.filter(|_| !merged.changed) {
                table.keep(entry);
                continue;
            }
            let granules = granules(content, &range);
            let piece = match merged.piece {
                Piece::Data if is_filled(&bits, granules, 0) => Piece::Zeros,
                Piece::Data if is_filled(&bits, granules, 0xff) => Piece::Ones,
                piece => piece,
            };
            table.entries.push(match piece {
                Piece::Zeros => BitmapTableEntry::new(BitmapCluster::Zeros),
                Piece::Ones if is_whole_words(granules) => {
                    BitmapTableEntry::new(BitmapCluster::Ones)
                }
                Piece::Ones | Piece::Data => {
                    if piece == Piece::Ones {
                        fill_ones(&mut bits, granules);
                    }
                    let offset = take()?;
                    self.write(offset, &bits)?;
                    BitmapTableEntry::new(BitmapCluster::Data(offset))
                }
            });
        }
        Ok(table)
    }

    /// Writes `bytes` at `offset`, with zeros up to the end of the last cluster.
    pub(super) fn write_padded(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
        let clusters = self.geometry.clusters_for(bytes.len() as u64);
        let size = clusters.saturating_mul(self.geometry.cluster_size());
        let mut padded = bytes.to_vec();
        padded.resize(usize::try_from(size).unwrap_or(bytes.len()), 0);
        self.write(offset, &padded)
    }

    fn write(&mut self, offset: HostOffset, bytes: &[u8]) -> Result<()> {
        let follows = self.batch_offset.saturating_add(self.batch.len() as u64) == offset.0;
        if !follows || self.batch.len() + bytes.len() > BATCH_BYTES {
            self.flush()?;
        }
        if self.batch.is_empty() {
            self.batch_offset = offset.0;
            if bytes.len() >= BATCH_BYTES {
                return self.write_now(offset.0, bytes);
            }
        }
        self.batch.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            self.write_now(self.batch_offset, &batch)?;
        }
        self.batch = batch;
        self.batch.clear();
        Ok(())
    }

    fn write_now(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.storage
            .write_all_at(offset, bytes)
            .map_err(Error::io_with(|| {
                format!("writing {} bytes of bitmaps at {offset:#x}", bytes.len())
            }))
    }
}

/// Whether the first `granules` bits are all as in `byte` (0 or 0xff).
fn is_filled(bits: &[u8], granules: u64, byte: u8) -> bool {
    let whole = usize::try_from(granules / 8).unwrap_or(usize::MAX);
    let Some((full, rest)) = bits.split_at_checked(whole) else {
        return false;
    };
    let mask = (1_u8 << (granules % 8)) - 1;
    full.iter().all(|found| *found == byte)
        && rest.first().copied().unwrap_or(0) & mask == byte & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_end_where_the_disk_does() {
        for (granules, expected) in [(1, [1, 0]), (8, [0xff, 0]), (11, [0xff, 7])] {
            let mut bits = [0xaa; 2];
            fill_ones(&mut bits, granules);
            assert_eq!(bits, expected);
            assert!(!is_whole_words(granules));
        }
        assert!(is_whole_words(64) && is_whole_words(128));
    }

    #[test]
    fn filled_looks_at_valid_bits_only() {
        assert!(is_filled(&[0xff, 0x07, 0], 11, 0xff));
        assert!(!is_filled(&[0xff, 0x03, 0], 11, 0xff));
        assert!(is_filled(&[0, 0], 16, 0));
        assert!(!is_filled(&[0, 1], 9, 0));
        assert!(is_filled(&[0, 0xfe], 9, 0));
    }
}
