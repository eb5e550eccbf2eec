//! Replaces the header by another, so that an interruption leaves the old one or
//! the new one.
//!
//! A sector (512 bytes) is taken to be written whole or not at all. A change that
//! lies within one is written alone. One that doesn't is made harmless first where
//! it concerns the bitmaps: with their autoclear bit off nobody looks at the
//! extension while it changes.

use std::ops::Range;

use crate::{
    Error, Result,
    format::{Autoclear, HeaderArea},
    io::Storage,
};

/// What a disk writes as one.
const SECTOR: usize = 512;

/// Writes `next` over `current`, and returns once it is on stable storage.
pub(super) fn switch(storage: &dyn Storage, current: &HeaderArea, next: &HeaderArea) -> Result<()> {
    let (old, new) = (current.encode(), next.encode());
    let Some(changed) = changed_sectors(&old, &new) else {
        return Ok(());
    };
    if changed.len() <= SECTOR {
        return write(storage, &new, changed);
    }
    let had = current
        .header()
        .autoclear_features
        .contains(Autoclear::BITMAPS);
    let has = next
        .header()
        .autoclear_features
        .contains(Autoclear::BITMAPS);
    if had == has {
        return write(storage, &new, changed);
    }
    let mut between = if has { next.clone() } else { current.clone() };
    let features = &mut between.header_mut().autoclear_features;
    *features = features.without(Autoclear::BITMAPS);
    let between = between.encode();
    for (from, to) in [(&old, &between), (&between, &new)] {
        if let Some(changed) = changed_sectors(from, to) {
            write(storage, to, changed)?;
        }
    }
    Ok(())
}

/// The sectors in which the two differ, as a range of bytes. Both are whole
/// clusters and so whole sectors.
fn changed_sectors(old: &[u8], new: &[u8]) -> Option<Range<usize>> {
    let differs = |(a, b): (&u8, &u8)| a != b;
    let first = old.iter().zip(new).position(differs)?;
    let last = old.iter().zip(new).rposition(differs)?;
    Some(first / SECTOR * SECTOR..(last / SECTOR + 1) * SECTOR)
}

fn write(storage: &dyn Storage, header: &[u8], range: Range<usize>) -> Result<()> {
    let start = range.start as u64;
    let bytes = header.get(range).unwrap_or_default();
    storage
        .write_all_at(start, bytes)
        .map_err(Error::io("writing the header"))?;
    storage.sync().map_err(Error::io("syncing the header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_found_by_sector() {
        let old = vec![0_u8; 2048];
        assert_eq!(changed_sectors(&old, &old), None);
        let mut new = old.clone();
        new[600] = 1;
        assert_eq!(changed_sectors(&old, &new), Some(512..1024));
        new[511] = 1;
        assert_eq!(changed_sectors(&old, &new), Some(0..1024));
        new[2047] = 1;
        assert_eq!(changed_sectors(&old, &new), Some(0..2048));
    }
}
