//! Writes a [`Layout`] in the order that leaves no half image behind.

use std::ops::Range;

use super::{
    layout::Layout,
    options::{Checked, Preallocation, SECTOR},
};
use crate::{
    Error, Result,
    addr::HostOffset,
    format::{L1Entry, L2Entry, RefcountTableEntry},
    io::Storage,
};

/// Most bytes of tables built and written at once.
const PIECE: u64 = 4 << 20;

/// What stands where an image's header would.
const NO_HEADER: [u8; 512] = [0; 512];

/// # Errors
/// I/O errors; the storage holds no image then. [`Error::Refused`] for a device that
/// is too small, and a header that doesn't fit.
pub(super) fn write(storage: &dyn Storage, checked: &Checked<'_>, layout: &Layout) -> Result<()> {
    let first_cluster = layout.first_cluster(checked)?;
    check_room(storage, checked, layout)?;
    empty(storage)?;
    let result = write_after(storage, checked, layout, &first_cluster);
    if result.is_err() {
        // The failure is reported; one of this adds nothing.
        if storage.can_grow() {
            storage.set_len(0).ok();
        } else {
            write_at(storage, 0, &NO_HEADER, "zeros over the new header").ok();
        }
    }
    result
}

/// Whether the image has room in `storage`, if that is a device. Nothing is written.
///
/// # Errors
/// [`Error::Refused`] with what qemu-img would fail at first; I/O errors.
pub(in crate::image) fn check_room(
    storage: &dyn Storage,
    checked: &Checked<'_>,
    layout: &Layout,
) -> Result<()> {
    if storage.can_grow() {
        return Ok(());
    }
    let size = storage
        .size()
        .map_err(Error::io("asking for the target's size"))?;
    let unmapped = Layout::with(checked, 0, 0)?.clusters();
    // It writes two clusters for the refcount table and its first block, whatever they hold.
    let steps = [
        (1, "Could not write qcow2 header"),
        (3, "Could not write refcount table"),
        (
            unmapped,
            "Could not resize image: Failed to grow the L1 table",
        ),
        (
            layout.metadata(),
            "Could not resize image: Allocating clusters failed",
        ),
    ];
    for (clusters, what) in steps {
        if layout.byte(clusters) > size {
            let text = format!("{what}: No space left on device");
            return Err(Error::Refused(text));
        }
    }
    let mode = checked.options.preallocation;
    let reserves = matches!(mode, Preallocation::Falloc | Preallocation::Full);
    if reserves && !layout.in_data_file {
        return Err(Error::Refused(format!(
            "Could not resize image: Failed to resize underlying file: Preallocation mode '{}' \
             unsupported for this non-regular file",
            mode.name()
        )));
    }
    if layout.byte(layout.clusters()) > size {
        let text = "Could not resize image: Cannot grow device files";
        return Err(Error::Refused(text.into()));
    }
    Ok(())
}

fn write_after(
    storage: &dyn Storage,
    checked: &Checked<'_>,
    layout: &Layout,
    first_cluster: &[u8],
) -> Result<()> {
    make_room(storage, layout)?;
    write_tables(storage, layout)?;
    if let Some(encryption) = &checked.options.encryption {
        let at = HostOffset(layout.byte(layout.encryption_at()));
        encryption.write(storage, at)?;
    }
    if !layout.in_data_file {
        let used = layout.byte(layout.clusters());
        reserve(
            storage,
            checked.options.preallocation,
            layout.first_data_offset()..used,
        )?;
    }
    let sector = usize::try_from(SECTOR).unwrap_or(usize::MAX);
    let (header, rest) = first_cluster
        .split_at_checked(sector)
        .unwrap_or((first_cluster, &[]));
    write_at(storage, SECTOR, rest, "the header extensions")?;
    sync(storage)?;
    write_at(storage, 0, header, "the header")?;
    sync(storage)
}

/// Has the storage hold no image, whatever it held, and be empty if it is a file. Returns
/// when that is on stable storage.
///
/// # Errors
/// I/O errors.
pub fn empty(storage: &dyn Storage) -> Result<()> {
    let size = storage
        .size()
        .map_err(Error::io("asking for the target's size"))?;
    if size == 0 {
        return Ok(());
    }
    if storage.can_grow() {
        storage
            .set_len(0)
            .map_err(Error::io("emptying the target"))?;
    } else {
        let sector = size.min(SECTOR);
        storage
            .write_zeros(0..sector)
            .map_err(Error::io("writing zeros over the old header"))?;
    }
    sync(storage)
}

/// Gives the file its length; of a device zeroes what is used.
fn make_room(storage: &dyn Storage, layout: &Layout) -> Result<()> {
    if storage.can_grow() {
        let bytes = layout.file_bytes();
        return storage
            .set_len(bytes)
            .map_err(Error::io("setting the target's length"));
    }
    // The last cluster is used as a whole.
    let used = layout.byte(layout.clusters());
    storage
        .zero(SECTOR..used)
        .map_err(Error::io("zeroing the target"))
}

/// Makes sure of the space of `range`, as the mode has it.
pub(super) fn reserve(storage: &dyn Storage, mode: Preallocation, range: Range<u64>) -> Result<()> {
    let reserved = match mode {
        Preallocation::Off | Preallocation::Metadata => return Ok(()),
        _ if range.is_empty() => return Ok(()),
        Preallocation::Falloc => storage.allocate(range),
        Preallocation::Full => storage.write_zeros(range),
    };
    reserved.map_err(Error::io("reserving space for the disk"))
}

fn write_tables(storage: &dyn Storage, layout: &Layout) -> Result<()> {
    let l2_tables_at = layout.l2_tables_at();
    let cluster_size = layout.geometry.cluster_size();
    let block =
        |i| RefcountTableEntry::new(HostOffset(layout.byte(layout.refcount_blocks_at() + i))).0;
    fill(
        storage,
        layout.byte(1),
        layout.refcount_blocks * 8,
        "the refcount table",
        |at, out| {
            number(out, |i| block(at / 8 + i));
        },
    )?;
    write_refcounts(storage, layout)?;
    if layout.l2_tables == 0 {
        return Ok(());
    }
    let table = |i| L1Entry::new(HostOffset(layout.byte(l2_tables_at + i)), true).0;
    fill(
        storage,
        layout.l1_offset(),
        layout.l1_entries * 8,
        "the L1 table",
        |at, out| {
            number(out, |i| table(at / 8 + i));
        },
    )?;
    let first = L2Entry::data(HostOffset(layout.first_data_offset()), true).0;
    let entry_size = layout.geometry.l2_entry_size();
    let l2_bytes = layout.mapped * entry_size;
    fill(
        storage,
        layout.byte(l2_tables_at),
        l2_bytes,
        "the L2 tables",
        |at, out| {
            // An extended entry's bitmap stays 0: no subcluster holds data yet.
            let first = first + at / entry_size * cluster_size;
            if entry_size == 8 {
                number(out, |i| first + i * cluster_size);
            } else {
                number(out, |i| {
                    if i % 2 == 0 {
                        first + i / 2 * cluster_size
                    } else {
                        0
                    }
                });
            }
        },
    )
}

/// The refcount blocks: a one for each cluster of the image.
fn write_refcounts(storage: &dyn Storage, layout: &Layout) -> Result<()> {
    let order = layout.geometry.refcount_order();
    let at = layout.byte(layout.refcount_blocks_at());
    let counted = layout.clusters();
    // Bytes that are full; for widths below a byte the last counts may fill one in part.
    let full = if order >= 3 {
        counted << (order - 3)
    } else {
        counted >> (3 - order)
    };
    let (width, one) = match order {
        0 => (1, 0b1111_1111),
        1 => (1, 0b0101_0101),
        2 => (1, 0b0001_0001),
        _ => (1_usize << (order - 3), 1),
    };
    fill(storage, at, full, "the refcount blocks", |at, out| {
        // All pieces are the same, but for the length of the last.
        if at == 0 {
            out.fill(0);
            out.iter_mut()
                .skip(width - 1)
                .step_by(width)
                .for_each(|last| *last = one);
        }
    })?;
    if order >= 3 {
        return Ok(());
    }
    let rest = counted - (full << (3 - order));
    if rest == 0 {
        return Ok(());
    }
    let last = (0..rest).fold(0_u8, |byte, i| byte | 1 << (i << order));
    write_at(storage, at + full, &[last], "the refcount blocks")
}

/// Writes `length` bytes at `offset` in large pieces; `build` is given where in them
/// a piece starts, and the piece before it.
fn fill(
    storage: &dyn Storage,
    offset: u64,
    length: u64,
    what: &str,
    build: impl Fn(u64, &mut [u8]),
) -> Result<()> {
    let mut buffer = vec![0; usize::try_from(length.min(PIECE)).unwrap_or(0)];
    let mut at = 0;
    while at < length {
        let piece = usize::try_from((length - at).min(PIECE)).unwrap_or(0);
        let piece = buffer.get_mut(..piece).unwrap_or_default();
        build(at, piece);
        write_at(storage, offset + at, piece, what)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Fills `out` with big-endian numbers.
fn number(out: &mut [u8], entry: impl Fn(u64) -> u64) {
    for (i, bytes) in (0..).zip(out.as_chunks_mut().0) {
        *bytes = entry(i).to_be_bytes();
    }
}

fn write_at(storage: &dyn Storage, offset: u64, bytes: &[u8], what: &str) -> Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    storage
        .write_all_at(offset, bytes)
        .map_err(Error::io_with(|| format!("writing {what}")))
}

fn sync(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(Error::io("syncing the target"))
}
