//! [`GuestWriter`]: the guest's disk of an image, to be written.
//!
//! ```text
//! write, zero, discard ──► record      bitmaps: in use on disk first, then bits in memory
//!                          data        clusters in place or new; data goes out at once
//!                          packed      compressed clusters, within host clusters
//!                          zero        entries that say zeros, clusters given back
//!                          tables      L1 and L2 entries, changed in memory
//! flush ─────────────────► flush       tables and refcounts reach the disk in order
//! ```
//!
//! Nothing on stable storage refers to anything that isn't there too, at any moment
//! (docs/crash-order.md). The image was proven sound when the writer was made
//! (`prove`): refcounts that are too low, or copied flags that lie, would let a write
//! hit what belongs to somebody else.

mod data;
mod flush;
mod packed;
mod prove;
mod record;
mod tables;
#[cfg(test)]
mod tests;
mod zero;

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use super::{Image, extents::View};
use crate::{
    Error, Result,
    compress::Compressor,
    disk::{Disk, DiskExt, DiskMut, Extent, SECTOR},
    format::Compatible,
    io::Storage,
    table::{DirtySlices, L1Table, Space},
};
use data::Batch;
pub(crate) use packed::Pieces;
use record::Recorder;

/// The guest's disk of an image, to be written and read.
///
/// What was written can be read back at once. It is on stable storage after
/// [`flush`](Self::flush); what was written before the last flush survives any
/// interruption, what was written since may or may not. [`close`](Self::close) ends it:
/// nothing is written when a writer is dropped.
///
/// **Every enabled bitmap of the image records every write, zero and discard.** Before
/// the first one they are marked as in use, and `close` stores them. A writer that ends
/// without it leaves them in use, so that nobody takes them for complete. Bitmaps that
/// are disabled, in use or void stay as they are.
///
/// An image with lazy refcounts has its dirty bit set before the first change, and
/// cleared by `close`, which stores the refcounts. Without it they are made right when the
/// image is next opened for writing.
///
/// After a write or a sync failed nothing more is written: every later call fails, too.
/// The image is then as an interruption would have left it.
///
/// Many threads can read at once; a write has the disk for itself.
#[derive(Debug)]
pub struct GuestWriter {
    name: String,
    size: u64,
    file: Option<Arc<dyn Storage>>,
    backing: Option<Arc<dyn Disk>>,
    cluster_size: u64,
    compressor: Compressor,
    state: RwLock<State>,
}

/// What a writer has in memory.
#[derive(Debug)]
struct State {
    image: Image,
    /// Bytes of the disk, whole sectors.
    size: u64,
    l1: L1Table,
    /// Indices of L1 entries that were changed.
    l1_changed: BTreeSet<u64>,
    l2: DirtySlices,
    space: Space,
    recorder: Recorder,
    batch: Batch,
    /// The image was made ready for the first change.
    begun: bool,
    /// Guest data was written since the last sync.
    unsynced: bool,
    /// Refcounts were lowered since the last sync.
    released: bool,
    failure: Option<Failure>,
    /// Nothing more is written: all of it is stored.
    finished: bool,
    /// Parts of the external data file that nothing will refer to after the next flush.
    holes: Vec<Range<u64>>,
    /// Refcounts are kept in memory while the header says that they may be wrong.
    lazy: bool,
}

/// A write or sync that failed.
#[derive(Clone, Debug)]
struct Failure {
    message: String,
    kind: std::io::ErrorKind,
}

impl Failure {
    fn of(error: &Error) -> Self {
        let (cause, kind) = match error {
            Error::Io { source, .. } => (format!(": {source}"), source.kind()),
            _ => (String::new(), std::io::ErrorKind::Other),
        };
        Self {
            message: format!("{error}{cause}"),
            kind,
        }
    }

    fn again(&self) -> Error {
        Error::Io {
            action: "writing after an earlier failure".into(),
            source: std::io::Error::new(self.kind, self.message.clone()),
        }
    }
}

impl GuestWriter {
    /// Takes the guest's disk of `image` for writing. All of the image's metadata is
    /// read, to prove that nothing else can be hit. Nothing is written yet.
    ///
    /// # Errors
    /// [`Error::Refused`] if the image wasn't opened for writing, if its check finds
    /// anything worse than leaked clusters, if a bitmap that is to record can't be read,
    /// or if its data file wasn't opened; [`Error::Unsupported`] for an encrypted image that
    /// was opened without its secret; I/O errors.
    pub fn new(image: Image) -> Result<Self> {
        image.require_writable()?;
        let file = Arc::clone(image.data_storage()?);
        let backing = image.open_backing().ok().flatten().cloned();
        let mut space = Space::new(&image.storage, image.header())?;
        prove::sound(&image, &mut space)?;
        let recorder = Recorder::load(&image)?;
        let l1 = image.read_active_l1()?;
        let size = image.virtual_size() / SECTOR * SECTOR;
        let features = image.header().compatible_features;
        let lazy = features.contains(Compatible::LAZY_REFCOUNTS);
        Ok(Self {
            name: image.name.clone(),
            size,
            file: Some(file),
            backing,
            cluster_size: image.geometry().cluster_size(),
            compressor: Compressor::new(image.header().compression_type),
            state: RwLock::new(State {
                image,
                size,
                l1,
                l1_changed: BTreeSet::new(),
                l2: DirtySlices::default(),
                space,
                recorder,
                batch: Batch::default(),
                begun: false,
                unsynced: false,
                released: false,
                failure: None,
                finished: false,
                holes: Vec::new(),
                lazy,
            }),
        })
    }

    /// Whether the guest's data is encrypted, so that none of it can be compressed.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.read_lock().image.is_encrypted()
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        self.cluster_size
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// [`Error::Refused`] for a range beyond the disk's end; [`Error::NoSpace`];
    /// [`Error::Guest`] if what stands around `data` in its cluster can't be read; I/O
    /// errors. Of the range any part may have been written then.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_range(offset, data.len())?;
        let range = offset..offset.saturating_add(data.len() as u64);
        self.change(range, |state, range| state.write(range.start, data))
    }

    /// Makes `range` read as zeros. With `unmap` its clusters are given back, else those
    /// that are there stay ready to be written.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn zero(&self, range: Range<u64>, unmap: bool) -> Result<()> {
        self.check_length(&range)?;
        self.change(range, |state, range| state.zero(range, unmap))
    }

    /// Gives the clusters in `range` back; afterwards they read as zeros. Parts of
    /// clusters at its ends (of subclusters in images that have them) stay as they are,
    /// and so does all of it in an image of version 2 with a backing file, where nothing
    /// could say that they are zeros.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn discard(&self, range: Range<u64>) -> Result<()> {
        self.check_length(&range)?;
        self.change(range, State::discard)
    }

    /// Returns when all that was written is on stable storage.
    ///
    /// # Errors
    /// I/O errors, after which nothing more is written.
    pub fn flush(&self) -> Result<()> {
        let mut state = self.lock();
        if state.finished {
            return Ok(());
        }
        state.require_unfailed()?;
        state.flush()
    }

    /// Flushes, and stores the bitmaps that recorded: as [`close`](Self::close) where the
    /// writer is shared. Afterwards it can be read only. A second time nothing is done.
    ///
    /// # Errors
    /// I/O errors; also those of an earlier failure. Bitmaps are in use then.
    pub fn finish(&self) -> Result<()> {
        self.lock().finish()
    }

    /// Flushes, and stores the bitmaps that recorded. Returns the image when all of it is
    /// on stable storage.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn close(self) -> Result<Image> {
        self.lock().finish()?;
        let state = self.state.into_inner();
        Ok(state.unwrap_or_else(PoisonError::into_inner).image)
    }

    fn check_length(&self, range: &Range<u64>) -> Result<()> {
        let len = range.end.saturating_sub(range.start);
        self.check_range(range.start, usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn change(
        &self,
        range: Range<u64>,
        change: impl FnOnce(&mut State, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.change_state(|state| {
            state.recorder.record(range.clone());
            change(state, range)
        })
    }

    /// Has the state changed by what records its ranges itself.
    fn change_state(&self, change: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        let mut state = self.lock();
        state.require_open()?;
        state.begin()?;
        let changed = change(&mut state);
        // Entries in memory already refer to what waits.
        let written = state.write_batch();
        changed.and(written)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| {
            // A thread has panicked in the middle of a change.
            let mut state = poisoned.into_inner();
            state.failure.get_or_insert_with(|| Failure {
                message: "a write was cut short by a panic".into(),
                kind: std::io::ErrorKind::Other,
            });
            state
        })
    }

    fn read_lock(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The disk as it is with all that was written.
    fn view(&self) -> View<'_> {
        View {
            image: &self.image,
            l1: &self.l1,
            size: self.size,
            changed: Some(&self.l2),
        }
    }

    fn require_unfailed(&self) -> Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(failure) => Err(failure.again()),
        }
    }

    /// Whether the disk can be changed.
    fn require_open(&self) -> Result<()> {
        if self.finished {
            let name = &self.image.name;
            return Err(Error::Refused(format!("writing to '{name}' has ended")));
        }
        self.require_unfailed()
    }

    /// Keeps in mind that a write or a sync failed.
    fn stored<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.failure.get_or_insert_with(|| Failure::of(error));
        }
        result
    }

    /// Before the first change: the bitmaps that record are in use, features that this
    /// crate doesn't know are void, and an image with lazy refcounts is dirty, on stable
    /// storage.
    fn begin(&mut self) -> Result<()> {
        if self.begun {
            return Ok(());
        }
        let begun = self
            .recorder
            .begin(&self.image)
            .and_then(|()| self.image.mark_written(self.lazy));
        self.stored(begun)?;
        self.begun = true;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if self.finished {
            return Ok(());
        }
        self.require_unfailed()?;
        let lazy = std::mem::take(&mut self.lazy);
        self.flush()?;
        if self.released {
            self.sync_image()?;
        }
        if lazy && self.begun {
            let clean = self.image.mark_clean();
            self.stored(clean)?;
        }
        self.image.forget_tables();
        if self.begun {
            let recorder = std::mem::take(&mut self.recorder);
            let stored = recorder.store(&mut self.image);
            self.stored(stored)?;
        }
        self.finished = true;
        Ok(())
    }
}

impl Disk for GuestWriter {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
        self.read_lock().view().query(range, out)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check_range(offset, out.len())?;
        self.read_lock().view().read(offset, out)
    }

    fn file(&self) -> Option<&Arc<dyn Storage>> {
        self.file.as_ref()
    }

    fn backing(&self) -> Option<&Arc<dyn Disk>> {
        self.backing.as_ref()
    }
}

impl DiskMut for GuestWriter {
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        Self::write(self, offset, data)
    }

    fn zero(&self, range: Range<u64>, unmap: bool) -> Result<()> {
        Self::zero(self, range, unmap)
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        Self::discard(self, range)
    }

    fn flush(&self) -> Result<()> {
        Self::flush(self)
    }

    fn finish(&self) -> Result<()> {
        Self::finish(self)
    }
}
