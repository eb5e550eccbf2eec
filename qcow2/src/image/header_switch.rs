//! Replaces the header by another, so that an interruption leaves the old one or
//! the new one.
//!
//! A sector (512 bytes) is taken to be written whole or not at all. A change that
//! lies within one is written alone. One that doesn't is made harmless first: with
//! the autoclear bit off nobody looks at the bitmaps extension while it changes, and
//! a backing file's name that has to move is in both places for a while.

use std::ops::Range;

use crate::{
    Error, Result,
    format::{Autoclear, HeaderArea},
    io::Storage,
};

/// What a disk writes as one.
const SECTOR: usize = 512;
/// The header's fields, all within the first sector.
const HEADER: usize = 104;

/// Writes `next` over `current`, and returns once it is on stable storage.
pub(crate) fn switch(storage: &dyn Storage, current: &HeaderArea, next: &HeaderArea) -> Result<()> {
    let (old, new) = (current.encode(), next.encode());
    let Some(changed) = changed_sectors(&old, &new) else {
        return Ok(());
    };
    if changed.len() <= SECTOR {
        return write(storage, &new, changed);
    }
    if has_bitmaps(current) && has_bitmaps(next) {
        // Only if the extension lies across a boundary. One write of neighbouring
        // sectors is no sure thing, but a moment without bitmaps loses them surely.
        return write(storage, &new, changed);
    }
    let mut from = old;
    for to in stages(current, next) {
        if let Some(changed) = changed_sectors(&from, &to) {
            write(storage, &to, changed)?;
        }
        from = to;
    }
    Ok(())
}

fn has_bitmaps(area: &HeaderArea) -> bool {
    let features = area.header().autoclear_features;
    features.contains(Autoclear::BITMAPS)
}

/// What the cluster holds on the way from `current` to `next`, ending with the latter.
/// Each step lies within a sector, or changes only what nobody looks at.
fn stages(current: &HeaderArea, next: &HeaderArea) -> Vec<Vec<u8>> {
    let void = |area: &HeaderArea| {
        let mut area = area.clone();
        let features = &mut area.header_mut().autoclear_features;
        *features = features.without(Autoclear::BITMAPS);
        area.encode()
    };
    let (start, end) = (void(current), void(next));
    let mut stages = vec![start.clone()];
    if let Some((old_name, new_name)) = moved_name(current, next) {
        // The name is in both places while the header changes from one to the other.
        let mut both = start;
        copy(&end, &mut both, new_name);
        stages.push(both.clone());
        copy(&end, &mut both, 0..HEADER);
        stages.push(both.clone());
        // What an extension is to cover is no part of a name when it is half there.
        if let Some(old_name) = both.get_mut(old_name) {
            old_name.fill(0);
        }
        stages.push(both);
    }
    stages.extend([end, next.encode()]);
    stages
}

/// Where the backing file's name was and will be, if it moves to a place apart.
fn moved_name(current: &HeaderArea, next: &HeaderArea) -> Option<(Range<usize>, Range<usize>)> {
    let place = |area: &HeaderArea| {
        let header = area.header();
        let start = usize::try_from(header.backing_file_offset).ok()?;
        let len = header.backing_file.as_ref()?.len();
        Some(start..start.checked_add(len)?)
    };
    let (old, new) = (place(current)?, place(next)?);
    (old.start != 0 && old.end <= new.start).then_some((old, new))
}

fn copy(from: &[u8], to: &mut [u8], range: Range<usize>) {
    if let (Some(from), Some(to)) = (from.get(range.clone()), to.get_mut(range)) {
        to.copy_from_slice(from);
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
    use std::sync::Arc;

    use super::*;
    use crate::{
        OpenOptions,
        addr::HostOffset,
        format::{BitmapsExtension, Extension, ExtensionType, Extensions, Header},
        io::memory::{MemoryStorage, PowerLoss},
    };

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

    /// A header cluster in which an unknown extension of `len` bytes, a multiple of 8,
    /// comes first, and the name of the backing file last.
    fn area(len: usize, name: Option<&str>) -> HeaderArea {
        let mut bytes = vec![0; 112];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = 16;
        bytes[59] = 1;
        bytes[99] = 4;
        bytes[103] = 112;
        let mut header = Header::parse(&bytes).unwrap();
        header.backing_file = name.map(|name| name.as_bytes().to_vec());
        let list = vec![Extension::new(ExtensionType(77), vec![7; len])];
        let extensions = Extensions {
            list,
            end: Some(0),
            rest: Vec::new(),
        };
        HeaderArea::new(header, extensions).unwrap()
    }

    fn with_bitmaps(area: &HeaderArea, nb_bitmaps: u32) -> HeaderArea {
        let mut next = area.clone();
        let extension = BitmapsExtension {
            nb_bitmaps,
            reserved: 0,
            directory_size: 0x1_0101 * u64::from(nb_bitmaps),
            directory_offset: HostOffset(0x1_0001_0000 * u64::from(nb_bitmaps)),
        };
        next.set_bitmaps_extension(Some(extension)).unwrap();
        let features = &mut next.header_mut().autoclear_features;
        *features = features.with(Autoclear::BITMAPS);
        next
    }

    fn without_bitmaps(area: &HeaderArea) -> HeaderArea {
        let mut next = area.clone();
        next.set_bitmaps_extension(None).unwrap();
        let features = &mut next.header_mut().autoclear_features;
        *features = features.without(Autoclear::BITMAPS);
        next
    }

    /// Loses power everywhere in a switch: the bitmaps are as before or as after (or
    /// void, if there were none or are to be none), and all else is as it was.
    fn assert_switches(what: &str, current: &HeaderArea, next: &HeaderArea, tears: usize) {
        let storage = MemoryStorage::from_bytes(&current.encode());
        storage.start_journal();
        switch(&storage, current, next).unwrap();
        for state in storage.journal().power_losses(&PowerLoss {
            tears,
            ..PowerLoss::default()
        }) {
            let left = OpenOptions::new()
                .open_storage("x", Arc::new(state.storage.clone()))
                .unwrap_or_else(|e| panic!("{what} {state}: {e}"));
            let (found, header) = (left.header_area(), left.header());
            assert_eq!(
                header.backing_file,
                current.header().backing_file,
                "{what} {state}"
            );
            let unknown =
                |area: &HeaderArea| area.extensions().get(ExtensionType(77)).map(<[u8]>::to_vec);
            assert_eq!(unknown(found), unknown(current), "{what} {state}");
            if has_bitmaps(current) && has_bitmaps(next) {
                assert!(has_bitmaps(found), "{what} {state}");
            }
            if has_bitmaps(found) {
                let bitmaps = found.extensions().bitmaps().unwrap();
                let both = [current, next].map(|area| area.extensions().bitmaps().unwrap());
                assert!(both.contains(&bitmaps), "{what} {state}: {bitmaps:?}");
            }
        }
    }

    #[test]
    fn wherever_the_sectors_end_a_torn_switch_changes_nothing_else() {
        let long = "a/rather/long/name/of/a/backing/file/".repeat(4);
        for name in [None, Some("base.qcow2"), Some(&long)] {
            for len in (256..440).step_by(8) {
                let what = format!("{len} bytes, name {name:?}");
                let empty = area(len, name);
                let (one, two) = (with_bitmaps(&empty, 1), with_bitmaps(&empty, 2));
                assert_switches(&format!("{what}, first"), &empty, &one, 100);
                let last = without_bitmaps(&one);
                assert_switches(&format!("{what}, last"), &one, &last, 100);
                // The data of the extension: 112 bytes of header, two heads of 8.
                let across = 112 + 8 + len + 8;
                let tears = if across / SECTOR == (across + 23) / SECTOR {
                    100
                } else {
                    0
                };
                assert_switches(
                    &format!("{what}, again"),
                    &one,
                    &with_bitmaps(&one, 2),
                    tears,
                );
                assert_switches(
                    &format!("{what}, back"),
                    &two,
                    &with_bitmaps(&two, 1),
                    tears,
                );
            }
        }
    }
}
