//! [`Bitmaps`]: the bitmap directory of an image.

use std::collections::HashSet;

use crate::{
    Error, Image, Result,
    addr::HostOffset,
    bitmap::{Bitmap, BitmapError, edit::lossy},
    format::{Autoclear, BitmapDirectory, BitmapDirectoryEntry, BitmapsExtension, HeaderArea},
    io::Storage,
};

/// The bitmap directory of an image, as far as it can be read.
#[derive(Debug, Default)]
pub struct Bitmaps {
    extension: Option<BitmapsExtension>,
    directory: BitmapDirectory,
    voided: bool,
    /// Entries, by their index, whose table lies on that of another entry.
    overlapping: HashSet<usize>,
}

impl Bitmaps {
    /// Reads the directory that the header names, if it names one.
    pub(crate) fn read(storage: &dyn Storage, area: &HeaderArea) -> Result<Self> {
        let voided = !area
            .header()
            .autoclear_features
            .contains(Autoclear::BITMAPS);
        let faulty = |extension, fault| Self {
            extension,
            directory: BitmapDirectory {
                fault: Some(fault),
                ..BitmapDirectory::default()
            },
            voided,
            overlapping: HashSet::new(),
        };
        let extension = match area.extensions().bitmaps() {
            Ok(None) => return Ok(Self::default()),
            Ok(Some(extension)) => extension,
            Err(fault) => return Ok(faulty(None, fault)),
        };
        let (at, bytes) = (extension.directory_offset, extension.directory_size);
        let size = storage
            .size()
            .map_err(Error::io("asking for the size of the image"))?;
        let checked = extension.check(area.header().geometry()).and_then(|()| {
            let inside = at.0.checked_add(bytes).is_some_and(|end| end <= size);
            let found = || format!("{bytes} bytes there");
            let allowed = || format!("a place inside the file of {size} bytes");
            if inside {
                Ok(())
            } else {
                Err(Error::corrupt("bitmap directory", at, found(), allowed()))
            }
        });
        if let Err(fault) = checked {
            return Ok(faulty(Some(extension), fault));
        }
        let mut raw = vec![0; usize::try_from(bytes).unwrap_or(0)];
        storage
            .read_padded(at.0, &mut raw)
            .map_err(Error::io_with(|| {
                format!("reading the bitmap directory at {at}")
            }))?;
        let directory = BitmapDirectory::parse(&raw, at, extension.nb_bitmaps);
        // An entry that can't be used anyway doesn't take the others down with it.
        let header = area.header();
        let usable = |entry: &BitmapDirectoryEntry| {
            let checked = entry.check(header.geometry(), header.size, HostOffset(0));
            checked.is_ok()
        };
        let overlapping = overlapping(&directory.entries, usable);
        Ok(Self {
            extension: Some(extension),
            directory,
            voided,
            overlapping,
        })
    }

    /// The header extension that names the directory, if the image has one.
    #[must_use]
    pub fn extension(&self) -> Option<&BitmapsExtension> {
        self.extension.as_ref()
    }

    /// Whether the image has a directory and was written by a program that doesn't
    /// keep bitmaps (the autoclear bit is off): all of them are void.
    #[must_use]
    pub fn is_voided(&self) -> bool {
        self.voided
    }

    /// What is wrong with the directory itself. Bitmaps before the damage are listed.
    #[must_use]
    pub fn fault(&self) -> Option<&Error> {
        self.directory.fault.as_ref()
    }

    /// The directory entries, in the order of the directory.
    #[must_use]
    pub fn entries(&self) -> &[BitmapDirectoryEntry] {
        &self.directory.entries
    }

    /// The entries, if the directory is whole.
    ///
    /// # Errors
    /// The [`fault`](Self::fault).
    pub(crate) fn into_entries(self) -> Result<Vec<BitmapDirectoryEntry>> {
        match self.directory.fault {
            Some(fault) => Err(fault),
            None => Ok(self.directory.entries),
        }
    }

    /// The bitmaps, in the order of the directory.
    pub fn iter<'a>(&'a self, image: &'a Image) -> impl Iterator<Item = Bitmap<'a>> {
        let base = self
            .extension
            .map_or(HostOffset(0), |extension| extension.directory_offset);
        let located = self.directory.located(base);
        (0..)
            .zip(located)
            .map(move |(index, (offset, entry))| Bitmap {
                image,
                entry,
                offset,
                voided: self.voided,
                overlaps: self.overlapping.contains(&index),
            })
    }

    /// The bitmap of this name.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`], or the directory's fault if that may have hidden it.
    pub fn find<'a>(&'a self, image: &'a Image, name: &[u8]) -> Result<Bitmap<'a>> {
        if let Some(found) = self.iter(image).find(|bitmap| bitmap.name() == name) {
            return Ok(found);
        }
        match self.fault() {
            Some(fault) if !self.voided => Err(Error::Refused(fault.to_string())),
            _ => Err(BitmapError::NotFound { name: lossy(name) }.into()),
        }
    }
}

/// Of the `usable` entries those, by their index, whose tables share bytes. They
/// can't both be right; and reading one table for each of 65535 entries would take for
/// ever.
fn overlapping(
    entries: &[BitmapDirectoryEntry],
    usable: impl Fn(&BitmapDirectoryEntry) -> bool,
) -> HashSet<usize> {
    let mut tables: Vec<(u64, u64, usize)> = (0..)
        .zip(entries)
        .filter(|(_, entry)| usable(entry))
        .map(|(index, entry)| {
            let start = entry.table_offset.0;
            let end = start.saturating_add(u64::from(entry.table_size) * 8);
            (start, end, index)
        })
        .collect();
    tables.sort_unstable();
    let mut overlapping = HashSet::new();
    let mut furthest = None;
    for &(start, end, index) in &tables {
        if let Some((other_end, other)) = furthest
            && start < other_end
        {
            overlapping.extend([index, other]);
        }
        if furthest.is_none_or(|(other_end, _)| end > other_end) {
            furthest = Some((end, index));
        }
    }
    overlapping
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(table_offset: u64, table_size: u32) -> BitmapDirectoryEntry {
        BitmapDirectoryEntry {
            table_offset: HostOffset(table_offset),
            table_size,
            ..BitmapDirectoryEntry::default()
        }
    }

    #[test]
    fn tables_that_share_bytes_are_found() {
        let usable = |entry: &BitmapDirectoryEntry| entry.table_size < 0x10000;
        let found = |entries: &[_]| overlapping(entries, usable);
        let apart = [entry(0x3000, 512), entry(0x1000, 512), entry(0x2000, 512)];
        assert!(found(&apart).is_empty());
        let shared = [entry(0x1000, 1), entry(0x9000, 1), entry(0x1000, 1)];
        assert_eq!(found(&shared), HashSet::from([0, 2]));
        let around = [entry(0x1000, 0x1000), entry(0x2000, 1), entry(0x3000, 1)];
        assert_eq!(found(&around), HashSet::from([0, 1, 2]));
        // One that can't be used is not held against the others.
        let absurd = [entry(0x1000, u32::MAX), entry(0x2000, 1), entry(0x3000, 1)];
        assert!(found(&absurd).is_empty());
    }
}
