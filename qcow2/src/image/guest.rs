//! [`Guest`]: what an open image keeps in memory for reading the guest's disk; and
//! [`Disk`] for [`Image`].

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use super::{
    Image,
    compressed::ClusterCache,
    extents::{Keep, Mapped, Stretch, View},
};
use crate::{
    Error, Result,
    addr::GuestOffset,
    compress::Decompressor,
    crypt::DataCipher,
    disk::{Disk, DiskExt, DiskSource, Extent, ExtentKind, SECTOR, bad},
    format::{CryptMethod, Header},
    io::Storage,
    table::{FileEnd, L1Table, L2Cache},
};

/// Extents of backing files after which no more are asked for.
const AT_ONCE: usize = 4096;

/// What reading the guest's disk needs. Nothing is read before the first question.
#[derive(Debug)]
pub(crate) struct Guest {
    active: OnceLock<L1Table>,
    pub(super) l2: L2Cache,
    pub(super) file_end: FileEnd,
    pub(super) decompressor: Decompressor,
    pub(super) clusters: ClusterCache,
    pub(super) backing: Backing,
    /// For an encrypted image that was opened with its secret.
    pub(super) cipher: Option<DataCipher>,
    has_holes: OnceLock<bool>,
}

/// The disk that unallocated clusters are read from.
#[derive(Debug, Default)]
pub(super) enum Backing {
    /// There is none: they are zeros.
    #[default]
    Nothing,
    /// The image names one, and it was not opened.
    Closed,
    /// It is open.
    Open(Arc<dyn Disk>),
}

impl Guest {
    pub(super) fn new(header: &Header) -> Self {
        let backing = match header.backing_file.as_deref() {
            None | Some([]) => Backing::Nothing,
            Some(_) => Backing::Closed,
        };
        Self {
            active: OnceLock::new(),
            l2: L2Cache::default(),
            file_end: FileEnd::default(),
            decompressor: Decompressor::new(header.compression_type),
            clusters: ClusterCache::default(),
            backing,
            cipher: None,
            has_holes: OnceLock::new(),
        }
    }
}

impl Image {
    /// The active L1 table, as far as the disk needs it, in memory of its own.
    pub(super) fn read_active_l1(&self) -> Result<L1Table> {
        let header = self.header();
        let needed = self.geometry().l1_entries(self.virtual_size());
        let len = u64::from(header.l1_size).min(needed);
        L1Table::read(&*self.storage, header.l1_table_offset, len)
    }

    /// Forgets what was read of the tables: they were changed.
    pub(super) fn forget_tables(&mut self) {
        self.guest.active = OnceLock::new();
        self.guest.l2 = L2Cache::default();
        self.guest.clusters = ClusterCache::default();
        self.guest.file_end = FileEnd::default();
    }

    /// The disk as the active L1 table shows it.
    pub(super) fn active(&self) -> Result<View<'_>> {
        let size = self.virtual_size() / SECTOR * SECTOR;
        let l1 = match self.guest.active.get() {
            Some(l1) => l1,
            None => {
                let l1 = self.read_active_l1()?;
                self.guest.active.get_or_init(|| l1)
            }
        };
        Ok(View {
            image: self,
            l1,
            size,
            changed: None,
        })
    }

    /// Where clusters of guest data are: the image file, or the external data file.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is a data file that wasn't opened.
    pub(super) fn data_storage(&self) -> Result<&Arc<dyn Storage>> {
        if !self.header().has_data_file() {
            return Ok(&self.storage);
        }
        self.data_file.as_ref().ok_or_else(|| {
            let name = &self.name;
            Error::Refused(format!("the data file of '{name}' was not opened"))
        })
    }

    /// Whether guest data is encrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        self.header().crypt_method != CryptMethod::None
    }

    /// What guest data is encrypted with; `None` if it isn't.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it is, and the image was opened without its secret.
    pub(super) fn cipher(&self) -> Result<Option<&DataCipher>> {
        match &self.guest.cipher {
            None if self.is_encrypted() => {
                let name = &self.name;
                Err(Error::Unsupported(format!("'{name}' is encrypted")))
            }
            cipher => Ok(cipher.as_ref()),
        }
    }

    /// The disk behind this one; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Refused`] if it wasn't opened.
    pub(super) fn open_backing(&self) -> Result<Option<&Arc<dyn Disk>>> {
        match &self.guest.backing {
            Backing::Nothing => Ok(None),
            Backing::Open(disk) => Ok(Some(disk)),
            Backing::Closed => {
                let name = &self.name;
                let text = format!("the backing file of '{name}' was not opened");
                Err(Error::Refused(text))
            }
        }
    }
}

impl View<'_> {
    /// As [`Disk::query`].
    pub(super) fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
        let range = range.start..range.end.min(self.size);
        let (first, mut stretches) = (out.len(), Vec::new());
        self.stretches(range, Keep::Partial, &mut stretches)?;
        for stretch in stretches {
            if out.len() - first > AT_ONCE {
                break;
            }
            let told = match stretch.mapped {
                Mapped::Unallocated { .. } => self.unallocated(&stretch, out),
                mapped => {
                    out.push(self.extent(&stretch, mapped));
                    Ok(true)
                }
            };
            match told {
                Ok(true) => {}
                Ok(false) => break,
                // It is told when it is the first.
                Err(_) if out.len() > first => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn extent(&self, stretch: &Stretch, mapped: Mapped) -> Extent {
        let (kind, host) = match mapped {
            Mapped::Data { host } => (ExtentKind::Data, Some(host)),
            Mapped::Compressed { .. } => (ExtentKind::Data, None),
            Mapped::Zero { host } => (ExtentKind::Zero, host),
            Mapped::Unallocated { host } => (ExtentKind::Unallocated, host),
        };
        // What is there isn't what the guest sees.
        let host = host.filter(|_| !self.image.is_encrypted());
        Extent {
            start: GuestOffset(stretch.start),
            length: stretch.length,
            kind,
            compressed: matches!(mapped, Mapped::Compressed { .. }),
            host,
            hole: false,
            depth: 0,
        }
    }

    /// Tells what the backing file has of a stretch that isn't allocated here; whether all
    /// of it was told.
    fn unallocated(&self, stretch: &Stretch, out: &mut Vec<Extent>) -> Result<bool> {
        let backing = self.image.open_backing();
        let backing = backing.map_err(|error| bad(stretch.start, stretch.length, error))?;
        let mut at = stretch.start;
        if let Some(backing) = backing {
            let end = stretch.end().min(backing.size());
            while at < end {
                let first = out.len();
                backing.query(at..end, out).map_err(|error| match error {
                    // The fault may go on where it is no longer asked for.
                    Error::Guest {
                        start,
                        length,
                        source,
                    } => bad(start.0, length.min(end.saturating_sub(start.0)), *source),
                    other => other,
                })?;
                let told = out.get_mut(first..).unwrap_or_default();
                for extent in &mut *told {
                    extent.depth += 1;
                }
                let Some(last) = told.last() else {
                    break;
                };
                at = last.end();
                if at < end && out.len() > AT_ONCE {
                    return Ok(false);
                }
            }
        }
        if at < stretch.end() {
            let rest = stretch.skipping(at - stretch.start);
            out.push(self.extent(&rest, rest.mapped));
        }
        Ok(true)
    }
}

/// Bytes of L2 tables up to which QEMU keeps all of them in memory.
const QEMU_CACHE: u64 = 32 << 20;
/// Bytes of an L2 table that QEMU looks at for an answer if it doesn't.
const QEMU_SLICE: u64 = 4096;

impl Disk for Image {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.virtual_size() / SECTOR * SECTOR
    }

    fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
        self.active()?.query(range, out)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check_range(offset, out.len())?;
        self.active()?.read(offset, out)
    }

    fn file(&self) -> Option<&Arc<dyn Storage>> {
        self.data_storage().ok()
    }

    fn backing(&self) -> Option<&Arc<dyn Disk>> {
        self.open_backing().ok().flatten()
    }

    fn qemu_answer_end(&self, at: u64, compressed: bool) -> u64 {
        let geometry = self.geometry();
        let cluster_size = geometry.cluster_size();
        if compressed {
            return (at / cluster_size + 1).saturating_mul(cluster_size);
        }
        // All L2 tables of a disk of this size.
        let tables = geometry
            .clusters_for(self.size())
            .saturating_mul(geometry.l2_entry_size());
        let looked_at = match tables.next_multiple_of(cluster_size) <= QEMU_CACHE {
            true => cluster_size,
            false => cluster_size.min(QEMU_SLICE),
        };
        let unit = looked_at / geometry.l2_entry_size() * cluster_size;
        (at / unit + 1).saturating_mul(unit)
    }

    fn source(&self) -> Option<DiskSource> {
        // With another secret something else is read.
        if self.is_encrypted() {
            return None;
        }
        Some(DiskSource {
            image: self.storage.id()?,
            data: self.data_storage().ok()?.id()?,
            qcow2: true,
        })
    }

    fn has_holes(&self) -> Result<bool> {
        if let Some(has_holes) = self.guest.has_holes.get() {
            return Ok(*has_holes);
        }
        let has_holes = self.clusters_lack_space()?;
        Ok(*self.guest.has_holes.get_or_init(|| has_holes))
    }
}
