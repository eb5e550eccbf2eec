//! QEMU's image locks: how processes that use an image keep out of each other's way.
//!
//! A process says what it does with an image and what it can't bear others to do, by
//! read locks on single bytes of the file (open file description locks, which the
//! closing of another descriptor doesn't drop). With `i` the permission's number:
//!
//! ```text
//! byte 100+i   "I do this"            i  0 consistent read   2 write unchanged
//! byte 200+i   "others must not"         1 write             3 resize
//! ```
//!
//! Then it tests, without taking it, for a write lock: on byte 200+i of all that it
//! does, and on byte 100+i of all that others must not do. Read locks never exclude
//! each other, so the order "take, then test" lets no two slip past each other.
//!
//! | use | takes | tests |
//! |---|---|---|
//! | [`Info`](LockMode::Info) | 201 203 | 101 103 |
//! | [`Read`](LockMode::Read) | 100 201 203 | 200 101 103 |
//! | [`ReadWrite`](LockMode::ReadWrite) | 100 101 103 201 203 | 200 201 203 101 103 |
//! | [`Create`](LockMode::Create) | 101 103 203 | 201 203 103 |
//!
//! Source: QEMU 10.0.2, by tracing its calls. `flock` locks don't count there.

use std::{fs::File, io};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

use super::holder;
use crate::{Error, Result};

/// Byte of "I do this" for permission 0.
const DOES: u64 = 100;
/// Byte of "others must not" for permission 0.
const EXCLUDES: u64 = 200;

const CONSISTENT_READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;

/// What the caller is going to do with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Anything, without taking or testing a lock (`-U`, `--force-share`).
    None,
    /// Read metadata: `info`.
    Info,
    /// Read the guest's data: `check`, `map`, sources, backing files.
    Read,
    /// Read and write.
    ReadWrite,
    /// Write an image anew, over whatever is there.
    Create,
}

impl LockMode {
    /// The permissions that the use needs.
    const fn does(self) -> &'static [u64] {
        match self {
            Self::None | Self::Info => &[],
            Self::Read => &[CONSISTENT_READ],
            Self::ReadWrite => &[CONSISTENT_READ, WRITE, RESIZE],
            Self::Create => &[WRITE, RESIZE],
        }
    }

    /// The permissions that no other may have meanwhile.
    const fn excludes(self) -> &'static [u64] {
        match self {
            Self::None => &[],
            Self::Info | Self::Read | Self::ReadWrite => &[WRITE, RESIZE],
            Self::Create => &[RESIZE],
        }
    }

    /// The bytes to hold a read lock on.
    fn held(self) -> impl Iterator<Item = u64> {
        let does = self.does().iter().map(|i| DOES + i);
        does.chain(self.excludes().iter().map(|i| EXCLUDES + i))
    }

    /// The bytes that must be free of others' locks.
    fn tested(self) -> impl Iterator<Item = u64> {
        let does = self.does().iter().map(|i| EXCLUDES + i);
        does.chain(self.excludes().iter().map(|i| DOES + i))
    }
}

/// What came of asking for locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locking {
    /// None were asked for.
    NotAsked,
    /// They are held.
    Held,
    /// The file system or the kernel has no such locks: nothing is held, and other
    /// users of the file aren't seen.
    Unsupported,
}

/// Changes the locks that `file` holds from those of `from` to those of `to`.
///
/// Locks go when the last descriptor of this opening is closed.
///
/// # Errors
/// [`Error::Locked`] if another process excludes that; the locks are then as
/// before. [`Error::Io`] if the system refuses to lock.
pub(super) fn change(file: &File, from: LockMode, to: LockMode) -> Result<Locking> {
    if to == LockMode::None {
        release(file, from.held())?;
        return Ok(Locking::NotAsked);
    }
    let new: Vec<u64> = to
        .held()
        .filter(|byte| !from.held().any(|b| b == *byte))
        .collect();
    match take_and_test(file, &new, to) {
        Ok(Locking::Held) => {
            release(
                file,
                from.held().filter(|byte| !to.held().any(|b| b == *byte)),
            )?;
            Ok(Locking::Held)
        }
        Ok(other) => Ok(other),
        Err(e) => {
            // The reason matters more than a failure to undo; closing undoes it too.
            release(file, new.into_iter()).ok();
            Err(e)
        }
    }
}

/// Whether some process has the image open for writing: byte 101 is locked. Tells an
/// image in use from one that was left behind by a crash.
///
/// # Errors
/// The system's refusal, such as where there are no locks.
pub fn writer_present(file: &File) -> io::Result<bool> {
    Ok(excluded(file, DOES + WRITE)?)
}

fn take_and_test(file: &File, new: &[u64], mode: LockMode) -> Result<Locking> {
    for &byte in new {
        match set(file, libc::F_RDLCK, byte) {
            Ok(()) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(conflict(file, byte)),
            Err(e) if is_unsupported(e) => return Ok(Locking::Unsupported),
            Err(e) => return Err(Error::io(format!("locking byte {byte}"))(e.into())),
        }
    }
    for byte in mode.tested() {
        match excluded(file, byte) {
            Ok(false) => {}
            Ok(true) => return Err(conflict(file, byte)),
            Err(e) if is_unsupported(e) => return Ok(Locking::Unsupported),
            Err(e) => {
                return Err(Error::io(format!("testing the lock of byte {byte}"))(
                    e.into(),
                ));
            }
        }
    }
    Ok(Locking::Held)
}

fn release(file: &File, bytes: impl Iterator<Item = u64>) -> Result<()> {
    for byte in bytes {
        match set(file, libc::F_UNLCK, byte) {
            Ok(()) => {}
            Err(e) if is_unsupported(e) => {}
            Err(e) => return Err(Error::io(format!("unlocking byte {byte}"))(e.into())),
        }
    }
    Ok(())
}

/// Whether another opening of the file has any lock on `byte`.
fn excluded(file: &File, byte: u64) -> Result<bool, Errno> {
    let mut lock = region(libc::F_WRLCK, byte)?;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn set(file: &File, kind: libc::c_int, byte: u64) -> Result<(), Errno> {
    let lock = region(kind, byte)?;
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(|_| ())
}

fn region(kind: libc::c_int, byte: u64) -> Result<libc::flock, Errno> {
    Ok(libc::flock {
        l_type: libc::c_short::try_from(kind).map_err(|_| Errno::EINVAL)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(|_| Errno::EINVAL)?,
        l_start: libc::off_t::try_from(byte).map_err(|_| Errno::EINVAL)?,
        l_len: 1,
        // Must be zero for locks of this kind.
        l_pid: 0,
    })
}

/// `EINVAL`: a kernel before 3.15; the others: file systems without a lock service.
fn is_unsupported(e: Errno) -> bool {
    matches!(
        e,
        Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS
    )
}

/// The error for a `byte` that another process has locked, in QEMU's words.
fn conflict(file: &File, byte: u64) -> Error {
    let (shared, number) = if byte < EXCLUDES {
        ("shared ", byte - DOES)
    } else {
        ("", byte - EXCLUDES)
    };
    let name = match number {
        CONSISTENT_READ => "consistent read",
        WRITE => "write",
        RESIZE => "resize",
        _ => "write unchanged",
    };
    Error::Locked {
        permission: format!("{shared}\"{name}\""),
        holder: holder::of(file, byte),
    }
}

#[cfg(test)]
mod tests;
