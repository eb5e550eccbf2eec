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
    let (mut old, new) = (current.encode(), next.encode());
    for moved in moved_name(current, next, &old).into_iter().flatten() {
        write_changes(storage, &old, &moved)?;
        old = moved;
    }
    let had = has_bitmaps(current);
    let has = has_bitmaps(next);
    let spread = changed_sectors(&old, &new).is_some_and(|changed| changed.len() > SECTOR);
    if spread && had != has {
        let between = if has { new.clone() } else { old.clone() };
        let between = without_bitmaps(between);
        write_changes(storage, &old, &between)?;
        old = between;
    }
    write_changes(storage, &old, &new)
}

fn has_bitmaps(area: &HeaderArea) -> bool {
    let features = area.header().autoclear_features;
    features.contains(Autoclear::BITMAPS)
}

/// The same header with the bitmaps' autoclear bit off: the lowest bit of bytes 88
/// to 95. Only headers of version 3 have bitmaps.
fn without_bitmaps(mut header: Vec<u8>) -> Vec<u8> {
    if let Some(lowest) = header.get_mut(95) {
        *lowest &= 0xfe;
    }
    header
}

/// Where the backing file's name moves: the header with the name at both places, and
/// then with its new offset, bytes 8 to 15. `None` if it stays, or can't be at both.
fn moved_name(current: &HeaderArea, next: &HeaderArea, old: &[u8]) -> Option<[Vec<u8>; 2]> {
    let name = next.header().backing_file.as_ref()?;
    let (from, to) = (
        current.header().backing_file_offset,
        next.header().backing_file_offset,
    );
    // Without an end mark the old name's place is what ends the extensions.
    if from == to || current.extensions().end.is_none() {
        return None;
    }
    let start = usize::try_from(to).ok()?;
    let mut both = old.to_vec();
    let place = both.get_mut(start..start.checked_add(name.len())?)?;
    if place.iter().any(|byte| *byte != 0) {
        return None;
    }
    place.copy_from_slice(name);
    let mut moved = both.clone();
    moved.get_mut(8..16)?.copy_from_slice(&to.to_be_bytes());
    Some([both, moved])
}

/// Writes the sectors in which `to` differs from `from`, and syncs them.
fn write_changes(storage: &dyn Storage, from: &[u8], to: &[u8]) -> Result<()> {
    match changed_sectors(from, to) {
        Some(changed) => write(storage, to, changed),
        None => Ok(()),
    }
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
