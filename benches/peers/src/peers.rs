//! The three libraries, each with an image open, behind one [`Peer`].

use std::{error::Error, path::Path};

use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, file::File};
use qcow2::{Image, OpenOptions, disk::Disk, image::GuestWriter};
use qcow2_rs::{
    dev::{Qcow2Dev, Qcow2DevParams},
    ops::Qcow2IoOps,
    sync_io::Qcow2IoSync,
    uring::Qcow2IoUring,
    utils::{qcow2_setup_dev_sync, qcow2_setup_dev_uring},
};

/// Bytes of a request.
pub const BYTES: usize = 4096;

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How a library opens an image; `true` for writing.
pub type Open = fn(&Path, bool) -> Result<Box<dyn Peer>>;

/// Every library that is measured, ours first.
pub const PEERS: [(&str, Open); 4] = [
    ("qimg-qcow2", ours),
    ("imago 0.2.6, sync", imago),
    ("qcow2-rs 0.1.6, pread", blocking),
    ("qcow2-rs 0.1.6, io_uring", uring),
];

/// An image that one of the libraries has opened.
pub trait Peer {
    /// Reads [`BYTES`] at each of `offsets`, one after the other, and shows them to `see`.
    fn read(&self, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()>;

    /// Reads each of `shares` on a thread of its own, all at the same time.
    fn read_at_once(&self, shares: &[&[u64]]) -> Result<()>;

    /// Writes what [`Pattern`] says at each of `offsets`, one after the other, and returns
    /// when all of it is on stable storage.
    fn write(&self, offsets: &[u64], pattern: &mut Pattern) -> Result<()>;
}

/// What is written: random bytes that differ with the place and the run.
pub struct Pattern {
    bytes: Vec<u8>,
    run: u64,
}

impl Pattern {
    /// The pattern of run `run`: `bytes` but for the first 8 of them.
    pub fn new(bytes: Vec<u8>, run: u64) -> Self {
        Self { bytes, run }
    }

    /// The bytes for `offset`.
    pub fn at(&mut self, offset: u64) -> &[u8] {
        let mark = (offset + self.run).to_le_bytes();
        if let Some(head) = self.bytes.first_chunk_mut() {
            *head = mark;
        }
        &self.bytes
    }
}

fn unseen(bytes: &[u8]) {
    std::hint::black_box(bytes);
}

/// Calls `read` for each share on a thread of its own.
fn at_once(shares: &[&[u64]], read: impl Fn(&[u64]) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let read = &read;
        let threads: Vec<_> = shares
            .iter()
            .map(|share| scope.spawn(move || read(share)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err("a thread has panicked".into()))
        })
    })
}

/// Reads a disk of this library's.
fn read_each(disk: &dyn Disk, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()> {
    let mut bytes = vec![0; BYTES];
    for &offset in offsets {
        disk.read(offset, &mut bytes)?;
        see(&bytes);
    }
    Ok(())
}

impl Peer for Image {
    fn read(&self, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()> {
        read_each(self, offsets, see)
    }

    fn read_at_once(&self, shares: &[&[u64]]) -> Result<()> {
        at_once(shares, |share| Peer::read(self, share, &mut unseen))
    }

    fn write(&self, _: &[u64], _: &mut Pattern) -> Result<()> {
        Err("it is open read-only".into())
    }
}

impl Peer for GuestWriter {
    fn read(&self, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()> {
        read_each(self, offsets, see)
    }

    fn read_at_once(&self, shares: &[&[u64]]) -> Result<()> {
        at_once(shares, |share| Peer::read(self, share, &mut unseen))
    }

    fn write(&self, offsets: &[u64], pattern: &mut Pattern) -> Result<()> {
        for &offset in offsets {
            GuestWriter::write(self, offset, pattern.at(offset))?;
        }
        Ok(self.flush()?)
    }
}

impl Peer for FormatAccess<File> {
    fn read(&self, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut bytes = vec![0; BYTES];
        for &offset in offsets {
            FormatAccess::read(self, &mut bytes, offset)?;
            see(&bytes);
        }
        Ok(())
    }

    fn read_at_once(&self, shares: &[&[u64]]) -> Result<()> {
        at_once(shares, |share| Peer::read(self, share, &mut unseen))
    }

    fn write(&self, offsets: &[u64], pattern: &mut Pattern) -> Result<()> {
        for &offset in offsets {
            FormatAccess::write(self, pattern.at(offset), offset)?;
        }
        self.flush()?;
        Ok(self.sync()?)
    }
}

/// The name under which a peer was opened: qcow2-rs' devices belong to one thread, so that
/// each thread opens the image again.
type Again = std::path::PathBuf;

/// qcow2-rs with system calls that block, which its futures never wait for.
struct Blocking(tokio::runtime::Runtime, Qcow2Dev<Qcow2IoSync>, Again);

/// qcow2-rs with io_uring.
struct Uring(Qcow2Dev<Qcow2IoUring>, tokio_uring::Runtime, Again);

/// The whole loop is one future: entering the runtime is not part of a request.
async fn read_all<T: Qcow2IoOps>(
    dev: &Qcow2Dev<T>,
    offsets: &[u64],
    see: &mut dyn FnMut(&[u8]),
) -> Result<()> {
    let mut bytes = vec![0; BYTES];
    for &offset in offsets {
        let read = dev.read_at(&mut bytes, offset).await;
        if read.map_err(told)? != BYTES {
            return Err("qcow2-rs: a short read".into());
        }
        see(&bytes);
    }
    Ok(())
}

async fn write_all<T: Qcow2IoOps>(
    dev: &Qcow2Dev<T>,
    offsets: &[u64],
    pattern: &mut Pattern,
) -> Result<()> {
    for &offset in offsets {
        let written = dev.write_at(pattern.at(offset), offset).await;
        written.map_err(told)?;
    }
    dev.flush_meta().await.map_err(told)?;
    dev.fsync_range(0, 0).await.map_err(told)
}

impl Peer for Blocking {
    fn read(&self, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.0.block_on(read_all(&self.1, offsets, see))
    }

    fn read_at_once(&self, shares: &[&[u64]]) -> Result<()> {
        let path = self.2.as_path();
        at_once(shares, |share| {
            blocking(path, false)?.read(share, &mut unseen)
        })
    }

    fn write(&self, offsets: &[u64], pattern: &mut Pattern) -> Result<()> {
        self.0.block_on(write_all(&self.1, offsets, pattern))
    }
}

impl Peer for Uring {
    fn read(&self, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.1.block_on(read_all(&self.0, offsets, see))
    }

    fn read_at_once(&self, shares: &[&[u64]]) -> Result<()> {
        let path = self.2.as_path();
        at_once(shares, |share| uring(path, false)?.read(share, &mut unseen))
    }

    fn write(&self, offsets: &[u64], pattern: &mut Pattern) -> Result<()> {
        self.1.block_on(write_all(&self.0, offsets, pattern))
    }
}

fn told(error: qcow2_rs::error::Qcow2Error) -> Box<dyn Error + Send + Sync> {
    format!("qcow2-rs: {error:?}").into()
}

/// This library.
pub fn ours(path: &Path, writable: bool) -> Result<Box<dyn Peer>> {
    let image = OpenOptions::new().writable(writable).open(path)?;
    Ok(match writable {
        true => Box::new(image.into_writer()?),
        false => Box::new(image),
    })
}

/// imago, in its form without futures.
fn imago(path: &Path, writable: bool) -> Result<Box<dyn Peer>> {
    let image = imago::qcow2::Qcow2::<File>::builder_path(path);
    // To it, the image's own file is one that it opens by itself, too.
    let gate = PermissiveImplicitOpenGate::default();
    let image = image.write(writable).open(gate)?;
    Ok(Box::new(FormatAccess::new(image)))
}

/// Sectors of 512 bytes, the default caches, through the page cache.
fn params(writable: bool) -> Qcow2DevParams {
    Qcow2DevParams::new(9, None, None, !writable, false)
}

/// qcow2-rs with `pread`.
fn blocking(path: &Path, writable: bool) -> Result<Box<dyn Peer>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let dev = qcow2_setup_dev_sync(path, &params(writable)).map_err(told)?;
    runtime.block_on(dev.qcow2_prep_io()).map_err(told)?;
    Ok(Box::new(Blocking(runtime, dev, path.to_path_buf())))
}

/// qcow2-rs with io_uring, where the system has that.
fn uring(path: &Path, writable: bool) -> Result<Box<dyn Peer>> {
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder())?;
    let dev = runtime.block_on(qcow2_setup_dev_uring(path, &params(writable)));
    Ok(Box::new(Uring(
        dev.map_err(told)?,
        runtime,
        path.to_path_buf(),
    )))
}
