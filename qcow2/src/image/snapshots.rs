//! Internal snapshots: their list, and [`SnapshotDisk`], the disk as one of them has it.

use std::{
    ops::{ControlFlow, Range},
    sync::Arc,
};

use super::{Image, extents::View};
use crate::{
    Error, Result,
    addr::HostOffset,
    disk::{Disk, DiskExt, Extent, SECTOR},
    format::{
        Snapshot,
        header::MAX_L1_BYTES,
        snapshot::{FIXED_LEN, MAX_TABLE_BYTES, QEMU_MAX_EXTRA_DATA, entry_len},
    },
    io::Storage,
    table::L1Table,
};

impl Image {
    /// The internal snapshots in the order of the snapshot table, which is at most 64 MiB.
    ///
    /// # Errors
    /// I/O errors, and [`Error::Corrupt`] for an entry that can't be read.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let mut list = Vec::new();
        self.for_each_snapshot(|snapshot| {
            list.push(snapshot);
            ControlFlow::Continue(())
        })?;
        Ok(list)
    }

    /// The snapshot that has `id_or_name` as its ID; if none has, the first of that name.
    ///
    /// # Errors
    /// As [`snapshots`](Self::snapshots); [`Error::Refused`] if there is none.
    pub fn snapshot(&self, id_or_name: &[u8]) -> Result<Snapshot> {
        let find = |what: fn(&Snapshot) -> &[u8]| -> Result<Option<Snapshot>> {
            let mut found = None;
            self.for_each_snapshot(|snapshot| {
                if what(&snapshot) != id_or_name {
                    return ControlFlow::Continue(());
                }
                found = Some(snapshot);
                ControlFlow::Break(())
            })?;
            Ok(found)
        };
        let found = match find(|snapshot| &snapshot.id)? {
            None => find(|snapshot| &snapshot.name)?,
            found => found,
        };
        found.ok_or_else(|| Error::Refused("Can't find snapshot".into()))
    }

    /// The disk as the snapshot with that ID or name has it, to be read. What it doesn't
    /// have comes from the image's backing file.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot); I/O errors, and [`Error::Corrupt`] for an L1 table
    /// that can't be.
    pub fn snapshot_disk(self: &Arc<Self>, id_or_name: &[u8]) -> Result<SnapshotDisk> {
        SnapshotDisk::new(self, self.snapshot(id_or_name)?)
    }

    fn for_each_snapshot(&self, mut each: impl FnMut(Snapshot) -> ControlFlow<()>) -> Result<()> {
        let header = self.header();
        let start = header.snapshots_offset.0;
        let end = self.storage.size();
        let end = end.map_err(Error::io("asking for the size of the image"))?;
        let mut at = start;
        let corrupt = |index: u32, at: u64, found: String, allowed: String| {
            let structure = format!("snapshot table entry {index}");
            Error::corrupt(structure, HostOffset(at), found, allowed)
        };
        for index in 0..header.nb_snapshots {
            let read = |len: u64| {
                let inside = end.saturating_sub(at).min(len);
                let mut bytes = vec![0; usize::try_from(inside).unwrap_or(0)];
                let done = self.storage.read_padded(at, &mut bytes);
                done.map_err(Error::io_with(|| {
                    format!("reading the snapshot table at {at:#x}")
                }))?;
                Ok::<_, Error>(bytes)
            };
            let fixed = read(FIXED_LEN as u64)?;
            let Some(len) = entry_len(&fixed) else {
                let found = format!("the file's end at {end:#x}");
                return Err(corrupt(index, at, found, "a whole entry".into()));
            };
            // The most that ID, name and padding take.
            if len > u64::from(QEMU_MAX_EXTRA_DATA) + (128 << 10) + FIXED_LEN as u64 {
                let allowed = format!("at most {QEMU_MAX_EXTRA_DATA} bytes of extra data");
                return Err(corrupt(index, at, format!("{len} bytes"), allowed));
            }
            let bytes = read(len)?;
            let number = usize::try_from(index).unwrap_or(usize::MAX);
            let (_, snapshot) = Snapshot::parse(&bytes, HostOffset(at), number)?;
            if each(snapshot).is_break() {
                break;
            }
            at += len;
            if at - start > MAX_TABLE_BYTES {
                let found = format!("a table of more than {} bytes", at - start);
                let allowed = format!("{MAX_TABLE_BYTES}");
                return Err(corrupt(index, start, found, allowed));
            }
        }
        Ok(())
    }
}

/// The disk as an internal snapshot has it.
#[derive(Debug)]
pub struct SnapshotDisk {
    image: Arc<Image>,
    snapshot: Snapshot,
    l1: L1Table,
    size: u64,
}

impl SnapshotDisk {
    /// The disk of `snapshot`, which is one of the image's.
    ///
    /// # Errors
    /// I/O errors, and [`Error::Corrupt`] for an L1 table that can't be.
    pub fn new(image: &Arc<Image>, snapshot: Snapshot) -> Result<Self> {
        let geometry = image.geometry();
        let offset = snapshot.l1_table_offset;
        let wrong = |found: String, allowed: String| {
            let id = snapshot.id.escape_ascii();
            let structure = format!("L1 table of snapshot '{id}'");
            Err(Error::corrupt(structure, offset, found, allowed))
        };
        if !geometry.is_aligned(offset) {
            let allowed = format!("a multiple of {:#x}", geometry.cluster_size());
            return wrong(format!("{offset}, which is unaligned"), allowed);
        }
        let most = MAX_L1_BYTES / 8;
        if u64::from(snapshot.l1_size) > most {
            let found = format!("{} entries", snapshot.l1_size);
            return wrong(found, format!("at most {most}"));
        }
        let size = snapshot.disk_size().unwrap_or(image.virtual_size());
        let size = size / SECTOR * SECTOR;
        if size > geometry.l2_coverage().saturating_mul(most) {
            return wrong(
                format!("a disk of {size} bytes"),
                format!("at most {most} entries"),
            );
        }
        let len = u64::from(snapshot.l1_size).min(geometry.l1_entries(size));
        let l1 = L1Table::read(&**image.storage(), offset, len)?;
        Ok(Self {
            image: Arc::clone(image),
            snapshot,
            l1,
            size,
        })
    }

    /// The entry of the snapshot table.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn view(&self) -> View<'_> {
        View {
            image: &self.image,
            l1: &self.l1,
            size: self.size,
            changed: None,
        }
    }
}

impl Disk for SnapshotDisk {
    fn name(&self) -> &str {
        Disk::name(&*self.image)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
        self.view().query(range, out)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check_range(offset, out.len())?;
        self.view().read(offset, out)
    }

    fn file(&self) -> Option<&Arc<dyn Storage>> {
        self.image.file()
    }

    fn backing(&self) -> Option<&Arc<dyn Disk>> {
        self.image.backing()
    }

    fn has_holes(&self) -> Result<bool> {
        self.image.has_holes()
    }
}
