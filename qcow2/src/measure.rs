//! [`Measure`]: how large the file of a new image must be.
//!
//! The answers are those of `qemu-img measure`, byte for byte:
//!
//! - tables are those of a disk of which every cluster is there, also where less is;
//! - what is data is what the source says is data. Clusters of the new image that it
//!   touches are counted whole, nothing is read, and compression isn't foreseen;
//! - an external data file isn't told apart from the image;
//! - that a disk is too large for the image is said only of an empty one;
//! - with a backing file all of the disk is counted, as nobody knows what the two share.

use std::ops::Range;

use crate::{
    Error, Geometry, Image, Result,
    disk::{Disk, DiskExt, ExtentKind, SECTOR},
    format::header::MAX_L1_BYTES,
};

/// Bytes of a bitmap directory entry before its name.
const DIRECTORY_ENTRY: u64 = 24;

/// How large a file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// Bytes that hold the disk as it is now.
    pub required: u64,
    /// Bytes that hold it when all of it was written.
    pub fully_allocated: u64,
}

/// The image that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// A raw image: as large as the disk.
    Raw,
    /// A qcow2 image.
    Qcow2 {
        /// Clusters, refcounts and L2 entries.
        geometry: Geometry,
        /// Bytes of the LUKS header, 0 without one.
        luks_header: u64,
        /// All of the disk gets its space from the start: preallocation `falloc` or `full`.
        preallocated: bool,
        /// It is to have a backing file.
        backing: bool,
    },
}

impl Measure {
    /// For an empty disk of `size` bytes.
    ///
    /// # Errors
    /// [`Error::Refused`] if the disk is too large for the image.
    pub fn size(&self, size: u64) -> Result<Measurement> {
        self.whole(size, false).map(|(measured, _)| measured)
    }

    /// For the content of `disk`.
    ///
    /// # Errors
    /// As [`size`](Self::size), and as [`Disk::query`].
    pub fn disk(&self, disk: &dyn Disk) -> Result<Measurement> {
        self.disk_cut(disk, disk.size())
    }

    /// For the content of `disk`, made `size` bytes long: as qemu-img takes a snapshot,
    /// whose disk may have had another size than the image's has now.
    ///
    /// # Errors
    /// As [`disk`](Self::disk).
    pub fn disk_cut(&self, disk: &dyn Disk, size: u64) -> Result<Measurement> {
        let (measured, counted) = self.whole(size, true)?;
        let Some(cluster_size) = counted else {
            return Ok(measured);
        };
        let data = data_bytes(disk, 0..size, cluster_size)?;
        let required = measured.required.saturating_add(data);
        Ok(Measurement {
            required: required.min(measured.fully_allocated),
            ..measured
        })
    }

    /// The answer for a disk without data, and the cluster size if data of the source
    /// `with_content` is to be counted on top.
    fn whole(&self, size: u64, with_content: bool) -> Result<(Measurement, Option<u64>)> {
        let rounded = size.checked_next_multiple_of(SECTOR);
        let size = rounded.ok_or_else(too_large)?;
        let (geometry, luks_header, all) = match *self {
            Self::Raw => {
                let measured = Measurement {
                    required: size,
                    fully_allocated: size,
                };
                return Ok((measured, None));
            }
            Self::Qcow2 {
                geometry,
                luks_header,
                preallocated,
                backing,
            } => (
                geometry,
                luks_header,
                preallocated || backing && with_content,
            ),
        };
        // As by qemu-img, which asks only where nothing is copied.
        if !with_content && geometry.l1_entries(size) > MAX_L1_BYTES / 8 {
            return Err(too_large());
        }
        let cluster_size = geometry.cluster_size();
        let data = geometry.clusters_for(size).saturating_mul(cluster_size);
        let tables = metadata_bytes(geometry, size)
            .and_then(|tables| {
                tables.checked_add(geometry.clusters_for(luks_header) * cluster_size)
            })
            .ok_or_else(too_large)?;
        let fully_allocated = tables.checked_add(data).ok_or_else(too_large)?;
        let required = if all { fully_allocated } else { tables };
        let counted = (with_content && !all).then_some(cluster_size);
        let measured = Measurement {
            required,
            fully_allocated,
        };
        Ok((measured, counted))
    }

    /// Bytes that the persistent bitmaps of `source` take in the new image, on top of the
    /// rest: each as if all its bits were set, and the directory. Those that are in use
    /// count, too.
    ///
    /// # Errors
    /// I/O errors, and [`Error::Corrupt`] for a directory that can't be read.
    pub fn bitmaps(&self, source: &Image) -> Result<u64> {
        let Self::Qcow2 { geometry, .. } = self else {
            return Ok(0);
        };
        let bitmaps = source.bitmaps()?;
        let size = source.virtual_size();
        let clusters = |bytes: u64| geometry.clusters_for(bytes);
        let (mut directory, mut count) = (0_u64, 0_u64);
        for bitmap in bitmaps.iter(source) {
            let Some(granularity) = bitmap.granularity() else {
                continue;
            };
            let of_bits = clusters(size.div_ceil(granularity).div_ceil(8));
            let of_table = clusters(of_bits.saturating_mul(8));
            count = count.saturating_add(of_bits).saturating_add(of_table);
            let name = u64::try_from(bitmap.name().len()).unwrap_or(u64::MAX);
            let entry = DIRECTORY_ENTRY.saturating_add(name).next_multiple_of(8);
            directory = directory.saturating_add(entry);
        }
        let all = count.saturating_add(clusters(directory));
        Ok(all.saturating_mul(geometry.cluster_size()))
    }
}

fn too_large() -> Error {
    Error::Refused("The image size is too large (try using a larger cluster size)".into())
}

/// Bytes of everything but guest data in an image of which every cluster is there: header,
/// L1 table, L2 tables, refcounts. The tables of both levels are filled up to whole
/// clusters. `None` beyond 2^64.
fn metadata_bytes(geometry: Geometry, size: u64) -> Option<u64> {
    let l2_tables = geometry.l1_entries(size);
    let l1_clusters = geometry.clusters_for(l2_tables * 8);
    let data = geometry.clusters_for(size);
    let counted = 1 + l1_clusters + l2_tables + data;
    let refcounts = refcount_clusters(geometry, counted)?;
    let clusters = (counted - data).checked_add(refcounts)?;
    clusters.checked_mul(geometry.cluster_size())
}

/// Clusters of the least refcount table and blocks that count `counted` clusters and
/// themselves.
fn refcount_clusters(geometry: Geometry, counted: u64) -> Option<u64> {
    let mut own = 0_u64;
    loop {
        let blocks = counted
            .checked_add(own)?
            .div_ceil(geometry.refcount_block_entries());
        let table = geometry.clusters_for(blocks.checked_mul(8)?);
        let needed = blocks.checked_add(table)?;
        // It only grows, and what it adds shrinks by a factor each time.
        if needed <= own {
            return Some(own);
        }
        own = needed;
    }
}

/// Bytes of the clusters of `cluster_size` in `range` that `disk` has data in.
fn data_bytes(disk: &dyn Disk, range: Range<u64>, cluster_size: u64) -> Result<u64> {
    let mut bytes = 0_u64;
    // Up to here clusters were looked at.
    let mut counted = 0;
    let mut extents = disk.extents_and_holes(range);
    while let Some(extent) = extents.next() {
        let extent = extent?;
        if extent.kind != ExtentKind::Data || extent.hole {
            continue;
        }
        let start = extent.start.0 / cluster_size * cluster_size;
        let end = extent
            .end()
            .div_ceil(cluster_size)
            .saturating_mul(cluster_size);
        bytes = bytes.saturating_add(end.saturating_sub(start.max(counted)));
        counted = end;
        extents.skip_to(end);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
