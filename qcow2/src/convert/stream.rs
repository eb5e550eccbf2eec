//! [`stream`]: a new image to where nothing can be written twice, such as a pipe.
//!
//! Everything that comes before the data has to be known before the data is read. So the
//! extents are gone through first: parts that are zeros on record, or holes, get no
//! cluster, all others do, whatever is in them. Then header, tables and data follow each
//! other as in an image with preallocated metadata. A reader that gets less than all of it
//! has an image that is cut short, whose header is whole: who stores it has to look at how
//! the sender ended.

use std::{io::Write, ops::Range, sync::mpsc, thread};

use super::{ConvertError, Event};
use crate::{
    Error, Result,
    addr::HostOffset,
    disk::{Disk, DiskExt},
    format::{L1Entry, L2Entry, RefcountTableEntry, SubclusterBitmap, refcount},
    image::create::{Checked, CreateOptions, Layout, Preallocation},
};

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;
/// Pieces that are read ahead.
const AHEAD: usize = 4;

/// Writes a new image with the disk `source` to `out`, from the front to the back.
///
/// # Errors
/// [`ConvertError::Write`] with [`Error::Refused`] for options that can't be met: a backing
/// file, an external data file, preallocation; otherwise as
/// [`convert`](super::convert()).
pub fn stream(
    source: &dyn Disk,
    options: &CreateOptions,
    out: &mut dyn Write,
    events: &mut dyn FnMut(Event<'_>),
) -> Result<(), ConvertError> {
    let failed = |source| ConvertError::Write { at: 0, source };
    let checked = check(source, options).map_err(failed)?;
    let cluster_size = checked.geometry.cluster_size();
    let mapped = mapped(source, cluster_size)?;
    let tables = Tables::new(&checked, &mapped).map_err(failed)?;
    tables.write(&checked, &mapped, out).map_err(failed)?;
    copy(source, &mapped, cluster_size, out, events)
}

/// Writes the disk `source` as it is to `out`.
///
/// # Errors
/// As [`convert`](super::convert()).
pub fn stream_raw(
    source: &dyn Disk,
    out: &mut dyn Write,
    events: &mut dyn FnMut(Event<'_>),
) -> Result<(), ConvertError> {
    let sectors = source.size() / 512;
    copy(
        source,
        std::slice::from_ref(&(0..sectors)),
        512,
        out,
        events,
    )
}

fn check<'a>(source: &dyn Disk, options: &'a CreateOptions) -> Result<Checked<'a>> {
    let checked = options.check()?;
    let refused = |text: &str| Err(Error::Refused(text.into()));
    if options.backing.is_some() || options.data_file.is_some() {
        return refused("An image that is written to a pipe has no other files");
    }
    if options.preallocation != Preallocation::Off {
        return refused("Nothing can be preallocated in a pipe");
    }
    if checked.size != source.size() {
        return refused("The new image and the source differ in size");
    }
    Ok(checked)
}

/// The clusters that hold anything but zeros on record, as ranges of their indices.
fn mapped(source: &dyn Disk, cluster_size: u64) -> Result<Vec<Range<u64>>, ConvertError> {
    let mut mapped: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    for extent in source.extents_and_holes(0..u64::MAX) {
        let extent = extent.map_err(|source| ConvertError::Status { at, source })?;
        at = extent.end();
        if extent.reads_as_zeros() {
            continue;
        }
        let range = extent.start.0 / cluster_size..extent.end().div_ceil(cluster_size);
        match mapped.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => mapped.push(range),
        }
    }
    Ok(mapped)
}

/// What stands before the data.
struct Tables {
    layout: Layout,
    /// The L1 indices that have an L2 table.
    indices: Vec<u64>,
}

impl Tables {
    fn new(checked: &Checked<'_>, mapped: &[Range<u64>]) -> Result<Self> {
        let entries = checked.geometry.l2_entries();
        let mut indices: Vec<u64> = Vec::new();
        let mut clusters = 0;
        for range in mapped {
            clusters += range.end - range.start;
            let first = range.start / entries;
            let first = match indices.last() {
                Some(last) if *last >= first => last + 1,
                _ => first,
            };
            indices.extend(first..range.end.div_ceil(entries));
        }
        let layout = Layout::with(checked, indices.len() as u64, clusters)?;
        Ok(Self { layout, indices })
    }

    fn write(
        &self,
        checked: &Checked<'_>,
        mapped: &[Range<u64>],
        out: &mut dyn Write,
    ) -> Result<()> {
        let layout = &self.layout;
        let cluster = usize::try_from(layout.geometry.cluster_size()).unwrap_or(1);
        let mut put = |bytes: &mut Vec<u8>, what: &str| {
            bytes.resize(bytes.len().next_multiple_of(cluster), 0);
            let done = out.write_all(bytes);
            bytes.clear();
            done.map_err(Error::io_with(|| format!("writing {what}")))
        };
        put(&mut layout.first_cluster(checked)?, "the header")?;
        let mut bytes = Vec::new();
        for block in 0..layout.refcount_blocks {
            let at = layout.byte(layout.refcount_blocks_at() + block);
            RefcountTableEntry::new(HostOffset(at)).encode(&mut bytes);
        }
        let table = layout.refcount_table_clusters * layout.geometry.cluster_size();
        bytes.resize(usize::try_from(table).unwrap_or(0), 0);
        put(&mut bytes, "the refcount table")?;
        let per_block = layout.geometry.refcount_block_entries();
        let order = layout.geometry.refcount_order();
        for block in 0..layout.refcount_blocks {
            bytes.resize(cluster, 0);
            let counted = layout.clusters().saturating_sub(block * per_block);
            for index in 0..usize::try_from(counted.min(per_block)).unwrap_or(0) {
                let _ = refcount::set(&mut bytes, order, index, 1);
            }
            put(&mut bytes, "a refcount block")?;
        }
        let mut l1 = vec![L1Entry::default(); usize::try_from(layout.l1_entries).unwrap_or(0)];
        for (number, index) in (layout.l2_tables_at()..).zip(&self.indices) {
            let index = usize::try_from(*index).unwrap_or(usize::MAX);
            if let Some(entry) = l1.get_mut(index) {
                *entry = L1Entry::new(HostOffset(layout.byte(number)), true);
            }
        }
        l1.iter().for_each(|entry| entry.encode(&mut bytes));
        put(&mut bytes, "the L1 table")?;
        self.write_l2(mapped, &mut |bytes| put(bytes, "an L2 table"))
    }

    fn write_l2(
        &self,
        mapped: &[Range<u64>],
        put: &mut dyn FnMut(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let geometry = self.layout.geometry;
        let entries = geometry.l2_entries();
        let mut host = self.layout.first_data_offset();
        let mut ranges = mapped.iter();
        let mut range = ranges.next();
        let mut bytes = Vec::new();
        for index in &self.indices {
            for cluster in index * entries..(index + 1) * entries {
                while range.is_some_and(|range| range.end <= cluster) {
                    range = ranges.next();
                }
                let is_mapped = range.is_some_and(|range| range.start <= cluster);
                let entry = match is_mapped {
                    true => L2Entry::data(HostOffset(host), true),
                    false => L2Entry::default(),
                };
                entry.encode(&mut bytes);
                if geometry.extended_l2() {
                    let bitmap = match is_mapped {
                        true => SubclusterBitmap::ALL_DATA.0,
                        false => 0,
                    };
                    bytes.extend(bitmap.to_be_bytes());
                }
                if is_mapped {
                    host += geometry.cluster_size();
                }
            }
            put(&mut bytes)?;
        }
        Ok(())
    }
}

/// Writes these parts of the disk, one behind the other; one thread reads ahead.
fn copy(
    source: &dyn Disk,
    mapped: &[Range<u64>],
    unit: u64,
    out: &mut dyn Write,
    events: &mut dyn FnMut(Event<'_>),
) -> Result<(), ConvertError> {
    let size = source.size();
    let (sender, receiver) = mpsc::sync_channel(AHEAD);
    thread::scope(|scope| {
        scope.spawn(move || {
            for range in mapped {
                let (mut at, end) = (range.start * unit, range.end * unit);
                while at < end {
                    let next = end.min((at / PIECE + 1) * PIECE);
                    let mut bytes = vec![0; usize::try_from(next - at).unwrap_or(0)];
                    // A last cluster that goes on behind the disk ends in zeros.
                    let inside = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
                    let inside = inside.min(bytes.len());
                    let read = source.read(at, bytes.get_mut(..inside).unwrap_or_default());
                    let read = read.map_err(|source| ConvertError::Read { at, source });
                    let failed = read.is_err();
                    if sender.send((at, read.map(|()| bytes))).is_err() || failed {
                        return;
                    }
                    at = next;
                }
            }
        });
        for (at, piece) in receiver {
            let piece = piece?;
            let written = out.write_all(&piece);
            let written = written.map_err(Error::io("writing data"));
            written.map_err(|source| ConvertError::Write { at, source })?;
            events(Event::Progress(
                at.saturating_add(piece.len() as u64).min(size),
            ));
        }
        let flushed = out.flush().map_err(Error::io("writing data"));
        flushed.map_err(|source| ConvertError::Write { at: size, source })?;
        events(Event::Progress(size));
        Ok(())
    })
}
