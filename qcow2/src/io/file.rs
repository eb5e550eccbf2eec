//! [`FileStorage`]: an image in a regular file or on a block device.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use positioned_io::ReadAt;
use rustix::fs::{FallocateFlags, IFlags};

use super::{
    FileId, Storage,
    lock::{self, LockMode, Locking},
    open_file::{self, Access},
};
use crate::{Error, Result};

/// Largest offset that the system's calls take (`off_t`).
const MAX_OFFSET: u64 = i64::MAX.unsigned_abs();

/// An image in a regular file or on a block device, with its locks.
///
/// One opening serves all threads: no call uses the file's position. A failed
/// [`sync`](Storage::sync) is remembered: the kernel reports lost writes once and
/// then forgets them, so that all later syncs of this opening fail, too.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    path: PathBuf,
    is_block_device: bool,
    lost_writes: AtomicBool,
    locks: Mutex<(LockMode, Locking)>,
}

impl FileStorage {
    /// Opens an existing file and takes the locks for `mode`, before anything is read.
    ///
    /// # Errors
    /// [`Error::Open`] in qemu-img's words, also for everything but regular files and
    /// block devices, which is refused without waiting for anybody; [`Error::Locked`].
    pub fn open(path: impl AsRef<Path>, access: Access, mode: LockMode) -> Result<Self> {
        let path = path.as_ref();
        Self::new(open_file::existing(path, access)?, path, mode)
    }

    /// Opens a file to be written anew, making it if need be, and takes the locks of
    /// [`LockMode::Create`]. Its content is still there. With `exclusive` there must be
    /// no such file yet. Also says whether it was made.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn create(path: impl AsRef<Path>, exclusive: bool) -> Result<(Self, bool)> {
        let path = path.as_ref();
        let (file, is_new) = open_file::target(path, exclusive)?;
        Ok((Self::new(file, path, LockMode::Create)?, is_new))
    }

    /// A file that is open already, called `path` in messages.
    pub(super) fn from_file(file: File, path: &Path, mode: LockMode) -> Result<Self> {
        Self::new(file, path, mode)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn new(file: File, path: &Path, mode: LockMode) -> Result<Self> {
        let metadata = file
            .metadata()
            .map_err(Error::io("reading the file's status"))?;
        let locking = lock::change(&file, LockMode::None, mode)?;
        Ok(Self {
            is_block_device: metadata.file_type().is_block_device(),
            file,
            path: path.to_owned(),
            lost_writes: AtomicBool::new(false),
            locks: Mutex::new((mode, locking)),
        })
    }

    /// The name under which it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device; a regular file otherwise.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// The locks asked for last.
    #[must_use]
    pub fn lock_mode(&self) -> LockMode {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// What came of the locks asked for last.
    #[must_use]
    pub fn locking(&self) -> Locking {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// Takes the locks of another use instead of those held.
    ///
    /// # Errors
    /// [`Error::Locked`]; the locks are then as before.
    pub fn relock(&self, mode: LockMode) -> Result<Locking> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let locking = lock::change(&self.file, locks.0, mode)?;
        *locks = (mode, locking);
        Ok(locking)
    }

    /// Whether another process has the file open as an image for writing.
    ///
    /// # Errors
    /// The system's refusal, such as where there are no locks.
    pub fn writer_present(&self) -> io::Result<bool> {
        lock::writer_present(&self.file)
    }

    /// Device and inode: equal for two names of one file.
    ///
    /// # Errors
    /// I/O errors.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        self.file.metadata().map(|m| (m.dev(), m.ino()))
    }

    /// Asks the file system not to copy the file's blocks on writing (`chattr +C`,
    /// btrfs). Works on empty files only; file systems without it refuse.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn set_no_copy_on_write(&self) -> io::Result<()> {
        let flags = rustix::fs::ioctl_getflags(&self.file)?;
        Ok(rustix::fs::ioctl_setflags(
            &self.file,
            flags | IFlags::NOCOW,
        )?)
    }

    /// Whether any of it was ever written, as far as the file system tells: a file of
    /// nothing but holes holds no data, a device always does.
    ///
    /// # Errors
    /// I/O errors.
    pub fn holds_data(&self) -> io::Result<bool> {
        if self.is_block_device {
            return Ok(true);
        }
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(0)) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NXIO) => Ok(false),
            // No such question here.
            Err(rustix::io::Errno::INVAL) => Ok(self.size()? > 0),
            Err(e) => Err(e.into()),
        }
    }

    /// Returns when the file's name is on stable storage, too: what a new file needs
    /// beyond [`sync`](Storage::sync).
    ///
    /// # Errors
    /// I/O errors.
    pub fn sync_directory(&self) -> Result<()> {
        if self.is_block_device {
            return Ok(());
        }
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // One that may be entered but not read can't be synced; then the file's own
        // sync has to do, which on the common file systems it does.
        let Ok(directory) = File::open(directory) else {
            return Ok(());
        };
        match rustix::fs::fsync(&directory) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(Error::io("syncing the directory")(e.into())),
        }
    }

    /// Removes the name of a file made in vain, if it still leads here.
    ///
    /// # Errors
    /// I/O errors.
    pub fn remove(&self) -> io::Result<()> {
        let there = self.path.symlink_metadata()?;
        if self.identity()? == (there.dev(), there.ino()) {
            std::fs::remove_file(&self.path)?;
        }
        Ok(())
    }

    fn fallocate(&self, flags: FallocateFlags, range: &Range<u64>) -> io::Result<bool> {
        loop {
            let length = range.end.saturating_sub(range.start);
            match rustix::fs::fallocate(&self.file, flags, range.start, length) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                // The system can't do it here, or not with this alignment or number.
                Err(
                    rustix::io::Errno::OPNOTSUPP
                    | rustix::io::Errno::NOSYS
                    | rustix::io::Errno::INVAL
                    | rustix::io::Errno::NODEV,
                ) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Makes a regular file at least `bytes` long. Never shorter, whatever others do
    /// meanwhile, which a test of the length and `set_len` could.
    fn grow_to(&self, bytes: u64) -> io::Result<()> {
        if self.is_block_device || bytes == 0 || self.size()? >= bytes {
            return Ok(());
        }
        self.file.write_all_at(&[0], bytes - 1)
    }
}

impl ReadAt for FileStorage {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        ReadAt::read_at(&self.file, offset, out)
    }
}

impl Storage for FileStorage {
    fn size(&self) -> io::Result<u64> {
        if self.is_block_device {
            // The length in its status is 0. The position is used by nobody else.
            return (&self.file).seek(SeekFrom::End(0));
        }
        self.file.metadata().map(|m| m.len())
    }

    fn write_all_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        if self.lost_writes.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync failed, writes were lost"));
        }
        loop {
            match rustix::fs::fdatasync(&self.file) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    self.lost_writes.store(true, Ordering::Release);
                    return Err(e.into());
                }
            }
        }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        if !self.is_block_device {
            return self.file.set_len(bytes);
        }
        if bytes > self.size()? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "Cannot grow device files",
            ));
        }
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if range.end > MAX_OFFSET {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // The system's call would stop there without a word.
        if self.is_block_device && range.end > self.size()? {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        // Of a regular file the space stays reserved, and the file grows.
        let flags = if self.is_block_device {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        if self.fallocate(flags, &range)? {
            return Ok(());
        }
        if !self.is_block_device && self.punch(&range)? {
            return self.grow_to(range.end);
        }
        self.write_zeros(range)
    }

    fn punch_hole(&self, range: Range<u64>) -> io::Result<()> {
        // What lies past the end reads as zeros already.
        let end = range.end.min(self.size()?);
        let range = range.start..end;
        if range.is_empty() || self.punch(&range)? {
            return Ok(());
        }
        Err(io::ErrorKind::Unsupported.into())
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        if self.is_block_device || range.is_empty() {
            return Ok(());
        }
        if self.fallocate(FallocateFlags::empty(), &range)? {
            return Ok(());
        }
        // Where space can't be reserved, holes are filled by writing.
        self.grow_to(range.end)?;
        let mut at = range.start;
        while at < range.end {
            let data = self.next_data(at..range.end)?;
            self.write_zeros(at..data.start)?;
            at = data.end.max(data.start);
        }
        Ok(())
    }

    fn can_grow(&self) -> bool {
        !self.is_block_device
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.file.metadata().map(|m| m.blocks().saturating_mul(512))
    }

    fn id(&self) -> Option<FileId> {
        let (device, inode) = self.identity().ok()?;
        Some(FileId::new(device, inode))
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn next_data(&self, range: Range<u64>) -> io::Result<Range<u64>> {
        use rustix::fs::SeekFrom::{Data, Hole};
        if self.is_block_device || range.is_empty() {
            return Ok(range);
        }
        // These calls move the position, which nobody uses.
        let seek = |to| rustix::fs::seek(&self.file, to);
        let start = match seek(Data(range.start)) {
            Ok(start) if start < range.end => start,
            // Nothing but holes until the file's end.
            Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(range.end..range.end),
            // No such question here.
            Err(rustix::io::Errno::INVAL) => return Ok(range),
            Err(e) => return Err(e.into()),
        };
        let end = match seek(Hole(start)) {
            Ok(end) => end.clamp(start, range.end),
            // Cut short since.
            Err(rustix::io::Errno::NXIO) => start,
            Err(e) => return Err(e.into()),
        };
        Ok(start..end)
    }
}

impl FileStorage {
    /// False where it can't be done.
    fn punch(&self, range: &Range<u64>) -> io::Result<bool> {
        self.fallocate(
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            range,
        )
    }
}

#[cfg(test)]
mod tests;
