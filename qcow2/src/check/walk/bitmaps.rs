//! The bitmap directory, the bitmap tables and the bitmap data.

use std::collections::HashSet;

use super::{Budget, Metadata, Referrer, Visitor};
use crate::{
    Error, Result,
    addr::HostOffset,
    check::{finding::Finding, report::CheckFailed},
    format::{
        Autoclear, BitmapCluster, BitmapDirectory, BitmapDirectoryEntry, BitmapTableEntry,
        BitmapsExtension, bitmap_directory::MAX_TABLE_ENTRIES,
    },
};

/// Visits what the bitmaps extension refers to. Where the autoclear bit isn't set the
/// extension means nothing, as its clusters may have been given to others.
pub(super) fn walk_bitmaps<V: Visitor>(
    metadata: &Metadata<'_>,
    visitor: &mut V,
) -> Result<(), CheckFailed> {
    if !metadata
        .header
        .autoclear_features
        .contains(Autoclear::BITMAPS)
    {
        return Ok(());
    }
    let (extension, directory) = match metadata.bitmap_directory()? {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(()),
        Err(error) => {
            visitor.problem(Finding::BitmapDirectory(error));
            return Ok(());
        }
    };
    let base = extension.directory_offset;
    visitor.reference(Referrer::BitmapDirectory, base, extension.directory_size, 1);
    let mut budget = Budget::for_file(metadata.file_end()?);
    let mut names = HashSet::new();
    for (index, (at, entry)) in (0..).zip(directory.located(base)) {
        if let Err(error) = entry.check(metadata.geometry, metadata.header.size, at) {
            visitor.problem(Finding::BitmapEntry(error));
        } else if !names.insert(&entry.name) {
            let structure = format!("directory entry of bitmap '{}'", entry.name.escape_ascii());
            let error = Error::corrupt(structure, at, "a second one", "one of each name");
            visitor.problem(Finding::BitmapEntry(error));
        }
        walk_table(metadata, visitor, index, entry, &mut budget)?;
    }
    if let Some(error) = directory.fault {
        visitor.problem(Finding::BitmapDirectory(error));
    }
    Ok(())
}

fn walk_table<V: Visitor>(
    metadata: &Metadata<'_>,
    visitor: &mut V,
    index: u32,
    entry: &BitmapDirectoryEntry,
    budget: &mut Budget,
) -> Result<(), CheckFailed> {
    let geometry = metadata.geometry;
    let (offset, entries) = (entry.table_offset, entry.table_size);
    if offset == HostOffset(0) || !geometry.is_aligned(offset) || entries > MAX_TABLE_ENTRIES {
        return Ok(()); // Told with the entry; what it might refer to can't be known.
    }
    let entries = u64::from(entries);
    visitor.reference(
        Referrer::BitmapTable(index),
        offset,
        entries * BitmapTableEntry::LEN,
        1,
    );
    budget.spend(entries)?;
    metadata.for_each_entry("a bitmap table", offset, entries, |at, word| {
        let table_entry = BitmapTableEntry(word);
        let mut wrong = |reason| {
            let name = entry.name.clone();
            visitor.problem(Finding::BitmapTableEntry {
                name,
                index: at,
                entry: word,
                reason,
            });
        };
        if table_entry.reserved() != 0 {
            wrong("reserved bits are set");
        }
        if let BitmapCluster::Data(host) = table_entry.cluster() {
            if geometry.is_aligned(host) {
                let by = Referrer::BitmapData(index);
                visitor.reference(by, host, geometry.cluster_size(), 1);
            } else {
                wrong("not cluster aligned");
            }
        }
        Ok(())
    })
}

impl Metadata<'_> {
    /// The bitmaps extension and the directory, as much of it as is in the file;
    /// `None` without the extension. The inner error says what is wrong with it.
    pub(in crate::check) fn bitmap_directory(
        &self,
    ) -> Result<Result<Option<(BitmapsExtension, BitmapDirectory)>>, CheckFailed> {
        let checked = self.extensions.bitmaps().and_then(|extension| {
            extension
                .map(|e| e.check(self.geometry).map(|()| e))
                .transpose()
        });
        let extension = match checked {
            Ok(Some(extension)) => extension,
            Ok(None) => return Ok(Ok(None)),
            Err(error) => return Ok(Err(error)),
        };
        let offset = extension.directory_offset;
        let inside = self.file_end()?.saturating_sub(offset.get());
        let bytes = usize::try_from(extension.directory_size.min(inside)).unwrap_or(0);
        let mut bytes = vec![0; bytes];
        self.read("the bitmap directory", offset.get(), &mut bytes)?;
        let directory = BitmapDirectory::parse(&bytes, offset, extension.nb_bitmaps);
        Ok(Ok(Some((extension, directory))))
    }
}
