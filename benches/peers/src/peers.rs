//! The three libraries, each with an image open, behind one [`Peer`].

use std::{error::Error, path::Path};

use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, file::File};
use qcow2::{Image, OpenOptions, disk::Disk};
use qcow2_rs::{
    dev::{Qcow2Dev, Qcow2DevParams},
    ops::Qcow2IoOps,
    sync_io::Qcow2IoSync,
    uring::Qcow2IoUring,
    utils::{qcow2_setup_dev_sync, qcow2_setup_dev_uring},
};

/// Bytes of a request.
pub const BYTES: usize = 4096;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// An image that one of the libraries has opened.
pub trait Peer {
    /// Reads [`BYTES`] at each of `offsets`, one after the other, and shows them to `see`.
    fn read(&self, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()>;
}

impl Peer for Image {
    fn read(&self, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut bytes = vec![0; BYTES];
        for &offset in offsets {
            Disk::read(self, offset, &mut bytes)?;
            see(&bytes);
        }
        Ok(())
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
}

/// qcow2-rs with system calls that block, which its futures never wait for.
struct Blocking(tokio::runtime::Runtime, Qcow2Dev<Qcow2IoSync>);

/// qcow2-rs with io_uring.
struct Uring(Qcow2Dev<Qcow2IoUring>, tokio_uring::Runtime);

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

impl Peer for Blocking {
    fn read(&self, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.0.block_on(read_all(&self.1, offsets, see))
    }
}

impl Peer for Uring {
    fn read(&self, offsets: &[u64], see: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.1.block_on(read_all(&self.0, offsets, see))
    }
}

fn told(error: qcow2_rs::error::Qcow2Error) -> Box<dyn Error> {
    format!("qcow2-rs: {error:?}").into()
}

/// This library.
pub fn ours(path: &Path) -> Result<Box<dyn Peer>> {
    Ok(Box::new(OpenOptions::new().open(path)?))
}

/// imago, in its form without futures.
pub fn imago(path: &Path) -> Result<Box<dyn Peer>> {
    let image = imago::qcow2::Qcow2::<File>::builder_path(path);
    // To it, the image's own file is one that it opens by itself, too.
    let gate = PermissiveImplicitOpenGate::default();
    let image = image.write(false).open(gate)?;
    Ok(Box::new(FormatAccess::new(image)))
}

/// Sectors of 512 bytes, the default caches, read-only, through the page cache.
fn params() -> Qcow2DevParams {
    Qcow2DevParams::new(9, None, None, true, false)
}

/// qcow2-rs with `pread`.
pub fn blocking(path: &Path) -> Result<Box<dyn Peer>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let dev = qcow2_setup_dev_sync(path, &params()).map_err(told)?;
    runtime.block_on(dev.qcow2_prep_io()).map_err(told)?;
    Ok(Box::new(Blocking(runtime, dev)))
}

/// qcow2-rs with io_uring, where the system has that.
pub fn uring(path: &Path) -> Result<Box<dyn Peer>> {
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder())?;
    let dev = runtime.block_on(qcow2_setup_dev_uring(path, &params()));
    Ok(Box::new(Uring(dev.map_err(told)?, runtime)))
}
