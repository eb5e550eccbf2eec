//! [`MemoryStorage`]: an image in memory that remembers every change, fails where it
//! is told to, and from which every state can be rebuilt that a kill or a power cut
//! could have left behind ([`Journal`]).
//!
//! ```
//! use qcow2::io::{Storage, memory::{MemoryStorage, PowerLoss}};
//!
//! let storage = MemoryStorage::default();
//! storage.write_all_at(0, b"old").unwrap();
//! storage.start_journal();
//! storage.write_all_at(100, b"data").unwrap();
//! storage.sync().unwrap();
//! storage.write_all_at(0, b"new").unwrap();
//! for state in storage.journal().power_losses(&PowerLoss::default()) {
//!     let image = state.storage.to_vec(1 << 20).unwrap();
//!     assert!(image.starts_with(b"old") || image.ends_with(b"data"), "{state}");
//! }
//! ```

mod crash;
mod sparse;
mod subsets;

use std::{
    fs::File,
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use positioned_io::ReadAt;

pub use crash::{CrashState, Journal, PowerLoss};
use sparse::Sparse;

use super::Storage;

/// One change of a storage, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bytes written.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        data: Arc<[u8]>,
    },
    /// The length was set.
    SetLen(u64),
    /// A range was zeroed; the storage grew as far as its end.
    Zero(Range<u64>),
    /// A range was given back; the length stayed.
    Punch(Range<u64>),
    /// Everything before is on stable storage.
    Sync,
    /// A sync failed: what was written since the sync before it may be lost, even if
    /// a later one succeeds.
    FailedSync,
}

/// What a [`Fault`] makes of the operation it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Nothing of it is done.
    Whole,
    /// A write is done as far as this many bytes; other operations not at all.
    After(usize),
}

/// Makes operations fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The number of the first operation to fail: the next one is 0. Everything that
    /// is an [`Operation`] counts.
    pub at: u64,
    /// Whether all later ones fail, too.
    pub for_good: bool,
    /// What happens to the data.
    pub damage: Damage,
    /// The system's number of the error, such as 28 for `ENOSPC`.
    pub errno: i32,
}

impl Fault {
    /// Operation `at` and it alone fails with an I/O error and does nothing.
    #[must_use]
    pub const fn once(at: u64) -> Self {
        Self {
            at,
            for_good: false,
            damage: Damage::Whole,
            errno: 5,
        }
    }

    /// Operation `at` and all after it fail with an I/O error and do nothing.
    #[must_use]
    pub const fn for_good(at: u64) -> Self {
        Self {
            at,
            for_good: true,
            damage: Damage::Whole,
            errno: 5,
        }
    }
}

/// An image in memory. Clones are handles to the same bytes.
///
/// Memory follows what was written, in pages of 4 KiB, not the length: a disk of
/// many TiB costs what its tables cost. Zeros that are written where nothing was
/// cost nothing.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    content: Sparse,
    journal: Option<Journal>,
    fault: Option<Fault>,
    /// Operations asked for since the fault was set, failed ones included.
    count: u64,
    fixed_size: bool,
    no_holes: bool,
}

impl MemoryStorage {
    /// A storage that holds `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut content = Sparse::default();
        content.write(0, bytes);
        Self::holding(content)
    }

    /// A block device of `bytes` bytes. It is full of what was there before, no byte of
    /// which is 0, can't grow, and gives no space back.
    #[must_use]
    pub fn device(bytes: usize) -> Self {
        let old: Vec<u8> = (1..=251).cycle().take(bytes).collect();
        let device = Self::from_bytes(&old);
        device.fix_size();
        device.lock().no_holes = true;
        device
    }

    fn holding(content: Sparse) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                content,
                ..Inner::default()
            })),
        }
    }

    /// Copies a file into memory; its zeros cost nothing.
    ///
    /// # Errors
    /// I/O errors.
    pub fn load(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut content = Sparse::default();
        content.set_len(length);
        let mut piece = vec![0; 1 << 20];
        let mut at = 0;
        while at < length {
            let read = ReadAt::read_at(&file, at, &mut piece)?;
            if read == 0 {
                break;
            }
            content.write(at, piece.get(..read).unwrap_or_default());
            at += read as u64;
        }
        Ok(Self::holding(content))
    }

    /// Copies the bytes into a (sparse) file, for programs that want one.
    ///
    /// # Errors
    /// I/O errors.
    pub fn save(&self, path: impl AsRef<Path>) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let content = self.lock().content.clone();
        let file = File::create(path)?;
        file.set_len(content.len())?;
        content
            .pages()
            .try_for_each(|(offset, bytes)| file.write_all_at(bytes, offset))
    }

    /// All bytes, if they are not more than `limit`.
    ///
    /// # Errors
    /// `FileTooLarge` if they are.
    pub fn to_vec(&self, limit: usize) -> io::Result<Vec<u8>> {
        let inner = self.lock();
        let length = usize::try_from(inner.content.len())
            .ok()
            .filter(|l| *l <= limit);
        let mut bytes = vec![0; length.ok_or(io::ErrorKind::FileTooLarge)?];
        inner.content.read(0, &mut bytes);
        Ok(bytes)
    }

    /// A storage of its own of the same kind, with the same bytes, without journal and
    /// fault.
    #[must_use]
    pub fn fork(&self) -> Self {
        let inner = self.lock();
        Self {
            inner: Arc::new(Mutex::new(Inner {
                content: inner.content.clone(),
                fixed_size: inner.fixed_size,
                no_holes: inner.no_holes,
                ..Inner::default()
            })),
        }
    }

    /// Refuses to grow from now on, as a block device does.
    pub fn fix_size(&self) {
        self.lock().fixed_size = true;
    }

    /// Starts a journal at the present content, which is taken to be on stable storage.
    pub fn start_journal(&self) {
        let mut inner = self.lock();
        inner.journal = Some(Journal::starting_at(inner.content.clone()));
    }

    /// What happened since [`start_journal`](Self::start_journal); empty without it.
    #[must_use]
    pub fn journal(&self) -> Journal {
        let inner = self.lock();
        inner
            .journal
            .clone()
            .unwrap_or_else(|| Journal::starting_at(inner.content.clone()))
    }

    /// Sets or lifts the fault; operations are counted from here.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut inner = self.lock();
        inner.fault = fault;
        inner.count = 0;
    }

    /// How many operations were asked for since the last [`set_fault`](Self::set_fault)
    /// (or ever): one more than the largest `at` that hits anything.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().count
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn perform(&self, operation: Operation) -> io::Result<()> {
        self.lock().perform(operation)
    }
}

impl Inner {
    fn perform(&mut self, operation: Operation) -> io::Result<()> {
        if self.fixed_size && operation.end() > self.content.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if operation.end() > i64::MAX.unsigned_abs() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let number = self.count;
        self.count += 1;
        let hit = self
            .fault
            .filter(|f| number == f.at || (f.for_good && number > f.at));
        let Some(fault) = hit else {
            self.apply(operation);
            return Ok(());
        };
        match (operation, fault.damage) {
            (Operation::Write { offset, data }, Damage::After(bytes)) => {
                let done = data.get(..bytes).unwrap_or(&data);
                self.apply(Operation::Write {
                    offset,
                    data: done.into(),
                });
            }
            (Operation::Sync, _) => self.apply(Operation::FailedSync),
            _ => {}
        }
        Err(io::Error::from_raw_os_error(fault.errno))
    }

    fn apply(&mut self, operation: Operation) {
        operation.apply_to(&mut self.content);
        if let Some(journal) = &mut self.journal {
            journal.push(operation);
        }
    }
}

impl Operation {
    /// How long the storage is at least afterwards.
    fn end(&self) -> u64 {
        match self {
            Self::Write { offset, data } => offset.saturating_add(data.len() as u64),
            Self::SetLen(bytes) => *bytes,
            Self::Zero(range) => range.end,
            Self::Punch(_) | Self::Sync | Self::FailedSync => 0,
        }
    }

    fn apply_to(&self, content: &mut Sparse) {
        match self {
            Self::Write { offset, data } => content.write(*offset, data),
            Self::SetLen(bytes) => content.set_len(*bytes),
            Self::Zero(range) => {
                content.zero(range.clone());
                content.set_len(content.len().max(range.end));
            }
            Self::Punch(range) => content.zero(range.clone()),
            Self::Sync | Self::FailedSync => {}
        }
    }
}

impl ReadAt for MemoryStorage {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        Ok(self.lock().content.read(offset, out))
    }
}

impl Storage for MemoryStorage {
    fn size(&self) -> io::Result<u64> {
        Ok(self.lock().content.len())
    }

    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.perform(Operation::Write {
            offset,
            data: data.into(),
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.perform(Operation::Sync)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.fixed_size && bytes <= inner.content.len() {
            return Ok(());
        }
        inner.perform(Operation::SetLen(bytes))
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.perform(Operation::Zero(range))
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if self.lock().no_holes {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.perform(Operation::Punch(range))
    }

    fn can_grow(&self) -> bool {
        !self.lock().fixed_size
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.lock().content.allocated())
    }
}

#[cfg(test)]
mod tests;
