//! Copies a disk into another form: [`convert`].
//!
//! ```text
//! source ──► Plan ──► pieces ──► read, look for zeros, compress ──► Queue ──► place, store
//!            extents             a thread for each core                       one thread
//! ```
//!
//! One thread writes, as the system lets no more than one at a time write to a file: of two
//! threads that both read and wrote, each spun in the kernel while the other wrote, which
//! took a third of all the time. In pieces of 1 MiB that go from thread to thread, 1 GiB
//! (of which a quarter is holes) in memory took 470 ms and 640 of the cores' time; with
//! threads that do both 470 and 910, in pieces of 256 KiB 580 and 760. A lock around
//! writing saved as much of the cores' time, but took a fifth longer.
//!
//! The source is any [`Disk`]; several in a row are one, [`Concat`]. The target is a new
//! qcow2 image ([`Builder`]), a disk that can be written, or an image that is there whose
//! clusters are stored compressed ([`GuestWriter`]). Parts that are known to be zeros
//! aren't read, those that turn out to be aren't written. Memory is a few MiB for each
//! core, whatever the disk.

mod concat;
mod moved;
mod pack;
mod part;
mod plan;
mod queue;
mod sink;
mod stream;
#[cfg(test)]
mod tests;
mod work;

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

pub use concat::Concat;
pub use part::Part;
pub use stream::{stream, stream_raw};

use crate::{
    Error,
    disk::{Disk, DiskMut},
    image::{GuestWriter, build::Builder},
};
use pack::PackSink;
use plan::Plan;
use queue::Queue;
use sink::{BuildSink, DiskSink, Sink};
use work::{Shared, Worker};

/// Threads that read at most.
const MAX_THREADS: usize = 64;

/// The granularity in which zeros are looked for if nothing else is said, as qemu-img's.
pub const SPARSE: u64 = 4096;

/// How to convert.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// Bytes of zeros in a row, a multiple of 512, that aren't stored where something
    /// else can say that they are zeros. 0: everything is stored.
    pub sparse: u64,
    /// What can't be read becomes zeros, sector by sector.
    pub salvage: bool,
    /// Bytes that are copied in a second, at most.
    pub rate: Option<u64>,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            sparse: SPARSE,
            salvage: false,
            rate: None,
        }
    }
}

/// Where a disk is copied to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A new image, to be finished by the caller. If it has a backing file, then only
    /// what the source's first layer holds is copied, and `base` is that file: what is
    /// read where a cluster comes from both.
    New {
        /// The image.
        builder: &'a Builder,
        /// The disk behind it.
        base: Option<&'a dyn Disk>,
    },
    /// A disk that is there, to be flushed by the caller.
    Disk {
        /// The disk, at least as large as the source.
        disk: &'a dyn DiskMut,
        /// It reads as zeros, so that none need to be written.
        is_zero: bool,
        /// The disk behind it, if only what the source's first layer holds is to be
        /// copied.
        base: Option<&'a dyn Disk>,
    },
    /// As [`Target::Disk`], with the clusters compressed that become smaller by it,
    /// whatever is there so far.
    Compressed {
        /// The image, which is neither encrypted nor has an external data file.
        writer: &'a GuestWriter,
        /// It reads as zeros, so that none need to be written.
        is_zero: bool,
        /// The disk behind it, if only what the source's first layer holds is to be
        /// copied.
        base: Option<&'a dyn Disk>,
    },
}

/// What is told meanwhile.
#[derive(Debug)]
pub enum Event<'a> {
    /// The disk is copied up to here.
    Progress(u64),
    /// A sector could not be read and was replaced by zeros.
    Salvaged {
        /// Where it begins.
        at: u64,
        /// What is wrong with it.
        error: &'a Error,
    },
}

/// Why a conversion failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// It can't be told where a part of the source is.
    #[error("the place of the disk at {at} can't be told")]
    Status {
        /// Where the part begins.
        at: u64,
        /// What is wrong.
        #[source]
        source: Error,
    },
    /// A part of the source can't be read.
    #[error("the disk can't be read at {at}")]
    Read {
        /// Where the part begins.
        at: u64,
        /// What is wrong.
        #[source]
        source: Error,
    },
    /// A part of the target can't be written.
    #[error("the target can't be written at {at}")]
    Write {
        /// Where on the disk the part begins.
        at: u64,
        /// What is wrong.
        #[source]
        source: Error,
    },
}

impl ConvertError {
    /// Where on the disk it failed.
    #[must_use]
    pub const fn at(&self) -> u64 {
        match self {
            Self::Status { at, .. } | Self::Read { at, .. } | Self::Write { at, .. } => *at,
        }
    }
}

/// Copies the disk `source` to `target`. `events` is told how far it is, and what could
/// not be read.
///
/// # Errors
/// [`ConvertError`]; the target then holds a part of the disk, or is no image.
pub fn convert(
    source: &dyn Disk,
    target: Target<'_>,
    options: ConvertOptions,
    events: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<(), ConvertError> {
    match target {
        Target::New { builder, base } => {
            let overlay = builder.has_backing();
            let sink = BuildSink::new(builder, options.sparse);
            run(source, &sink, Overlay::new(overlay, base), options, events)
        }
        Target::Disk {
            disk,
            is_zero,
            base,
        } => {
            let sink = DiskSink::new(disk, is_zero, options.sparse);
            let overlay = Overlay::new(base.is_some(), base);
            run(source, &sink, overlay, options, events)
        }
        Target::Compressed {
            writer,
            is_zero,
            base,
        } => {
            let sink = PackSink::new(writer, is_zero);
            let overlay = Overlay::new(base.is_some(), base);
            run(source, &sink, overlay, options, events)
        }
    }
}

/// What the target has behind it.
#[derive(Clone, Copy, Debug)]
struct Overlay<'a> {
    /// Only the source's first layer is copied.
    is_one: bool,
    base: Option<&'a dyn Disk>,
}

impl<'a> Overlay<'a> {
    const fn new(is_one: bool, base: Option<&'a dyn Disk>) -> Self {
        Self { is_one, base }
    }
}

fn run<S: Sink>(
    source: &dyn Disk,
    sink: &S,
    overlay: Overlay<'_>,
    options: ConvertOptions,
    events: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<(), ConvertError> {
    let plan = Plan::new(source, sink, overlay, options);
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let readers = cores.min(MAX_THREADS);
    // One piece with each thread, and one that waits.
    let queue = Queue::new(readers, readers + 2);
    let shared = Shared::new(plan, queue, events);
    let worker = Worker {
        source,
        sink,
        overlay,
        options,
        shared: &shared,
    };
    thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| worker.read_all());
        }
        worker.write_all();
    });
    let (failed, events) = shared.into_outcome();
    match failed {
        Some(error) => Err(error),
        None => {
            events(Event::Progress(source.size()));
            Ok(())
        }
    }
}

/// A lock that is taken even if a thread that held it panicked: the panic itself is
/// reported by the scope that the thread was started in.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
