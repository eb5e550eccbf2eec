//! [`Sender`]: sends bitmaps, at rest or while they change.
//!
//! *Precopy*: passes over what changed while the machine runs here, then a last one while
//! its writers are held. *Postcopy*: the machine goes first and the bits follow.
//!
//! ```text
//!  precopy   START │ PART … PART │ hold writers │ END: BITS, COMPLETE │ EOF
//!  postcopy  START │ hold writers │ PACKAGED(LISTEN, RUN) │ PART … │ END: COMPLETE │ EOF
//! ```

mod held;
mod source;

use std::{collections::HashSet, io::Write};

use self::held::{Budget, Held};
pub use self::source::{Outgoing, Source};
use crate::{
    ChunkWriter, Command, Error, Output, Result, SectionKind, StreamWriter,
    alias::{check_bitmap_alias, check_node_alias},
    write_compact,
};

/// The section's id string.
const SECTION: &str = "dirty-bitmap";
/// Its version.
const VERSION: u32 = 1;
/// Its id in QEMU's own streams, where 1 is that of `ram`.
const QEMU_ID: u32 = 2;
/// Its id where nothing comes before.
const COMPACT_ID: u32 = 1;

/// When the bits are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Design {
    /// Before the machine is switched over.
    #[default]
    Precopy,
    /// After it.
    Postcopy,
}

/// How bits are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// Byte for byte what QEMU writes: sections START, PART and END, chunks of 8192
    /// granules, clean ones as ZEROES.
    #[default]
    Qemu,
    /// The smallest stream that QEMU loads: one FULL section, clean parts of any size in
    /// one chunk. For bitmaps at rest: completed straight after it is begun.
    Compact,
}

/// How a stream is begun.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SenderOptions {
    /// The machine type; what the destination's must start with. Empty for any.
    pub machine: String,
    /// When the bits are sent.
    pub design: Design,
    /// How they are written.
    pub style: Style,
    /// Whether an empty VMDESCRIPTION follows the stream, for which QEMU looks.
    pub describe: bool,
}

/// What is left to be sent, at most, if nothing else changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Chunks that changed.
    pub chunks: u64,
    /// Bytes that they take in the stream. The few that end it come on top.
    pub bytes: u64,
}

/// The bitmaps, and how far they are.
#[derive(Debug)]
struct Sending<S: Source> {
    bitmaps: Vec<Held<S>>,
    /// Which one the next pass begins with.
    next: usize,
    /// Knows the names in force.
    chunks: ChunkWriter,
}

/// The source's half: sends bitmaps that may be recorded into all the time.
///
/// They are busy until it is completed, cancelled or dropped, and are then as they were,
/// with what was recorded meanwhile. After an error nothing more can be sent.
#[derive(Debug)]
pub struct Sender<W: Write, S: Source> {
    stream: StreamWriter<W>,
    sending: Sending<S>,
    options: SenderOptions,
    switched_over: bool,
    failed: bool,
}

impl<W: Write, S: Source> Sender<W, S> {
    /// Begins a stream of these bitmaps, in this order. QEMU's is: those of a node together,
    /// newest first.
    ///
    /// # Errors
    /// [`Error::Bits`] for bitmaps that are busy or inconsistent; [`Error::Refused`] for
    /// aliases that no stream can carry or that name two bitmaps, granularities below 512
    /// bytes or above 2 GiB, and a compact postcopy; [`Error::Write`]. The bitmaps are then
    /// as before.
    pub fn begin(out: W, bitmaps: Vec<Outgoing<S>>, options: SenderOptions) -> Result<Self> {
        if (options.design, options.style) == (Design::Postcopy, Style::Compact) {
            return Err(only_at_rest());
        }
        let mut names = HashSet::new();
        for outgoing in &bitmaps {
            let Outgoing { node, name, .. } = outgoing;
            check_node_alias(node)?;
            check_bitmap_alias(name)?;
            if !names.insert((node, name)) {
                let name = name.escape_debug();
                return Err(Error::Refused(format!(
                    "two bitmaps of node '{node}' have the alias '{name}'"
                )));
            }
        }
        let bitmaps = bitmaps.into_iter().map(Held::new).collect::<Result<_>>()?;
        let mut sender = Self {
            stream: StreamWriter::new(out, &options.machine)?,
            sending: Sending {
                bitmaps,
                next: 0,
                chunks: ChunkWriter::new(),
            },
            options,
            switched_over: false,
            failed: false,
        };
        if sender.options.style == Style::Qemu {
            sender.start()?;
        }
        Ok(sender)
    }

    /// Bytes of the stream so far.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.stream.offset()
    }

    /// What is left to be sent.
    #[must_use]
    pub fn pending(&self) -> Pending {
        self.sending.refresh();
        self.sending.pending()
    }

    /// A pass: sends what changed, in about `max_bytes` at most (but one chunk at least),
    /// and says what is left. What is left over, and what changes meanwhile, is for the
    /// next one.
    ///
    /// # Errors
    /// [`Error::Write`]; [`Error::Refused`] if a disk was resized, an earlier call failed or
    /// the stream is compact; [`Error::Bits`] if a bitmap became inconsistent.
    pub fn pass(&mut self, max_bytes: u64) -> Result<Pending> {
        if self.options.style == Style::Compact {
            return Err(only_at_rest());
        }
        self.trying(|sender| {
            sender.sending.refresh();
            if sender.sending.changed()?.is_some() {
                sender.section(SectionKind::Part, |bitmaps, w| bitmaps.send(w, max_bytes))?;
                sender.stream.flush()?;
            }
            Ok(sender.pending())
        })
    }

    /// Passes until what is left takes at most `downtime_bytes`, but not more than
    /// `max_passes`; says what is left. If that is too much, the machine dirties faster
    /// than the transport is.
    ///
    /// # Errors
    /// As [`pass`](Self::pass).
    pub fn precopy(&mut self, downtime_bytes: u64, max_passes: usize) -> Result<Pending> {
        let mut pending = self.pending();
        for _ in 0..max_passes {
            if pending.bytes <= downtime_bytes {
                break;
            }
            pending = self.pass(u64::MAX)?;
        }
        Ok(pending)
    }

    /// Postcopy: the machine runs over there from now on. Its writers here are held, for
    /// good, when this is called.
    ///
    /// # Errors
    /// [`Error::Refused`] if [`Design::Postcopy`] wasn't begun with, or it was switched over
    /// before; [`Error::Write`].
    pub fn switch_over(&mut self) -> Result<()> {
        if self.options.design != Design::Postcopy || self.switched_over {
            let why = "switching over is for postcopy, once";
            return Err(Error::Refused(why.into()));
        }
        let plain = |number| Command {
            number,
            argument: &[],
        };
        self.trying(|sender| {
            sender.stream.packaged(&[
                plain(Command::POSTCOPY_LISTEN),
                plain(Command::POSTCOPY_RUN),
            ])?;
            sender.stream.flush()
        })?;
        self.switched_over = true;
        Ok(())
    }

    /// Sends all that is left, completes the bitmaps and ends the stream. Writers are held
    /// from before this is called: a bitmap that still changes would lack bits over there,
    /// so that is refused. The bitmaps here are not busy any more when this returns.
    ///
    /// # Errors
    /// As [`pass`](Self::pass); [`Error::Refused`] if a bitmap changed meanwhile or if
    /// postcopy has not switched over.
    pub fn complete(mut self) -> Result<W> {
        if self.options.design == Design::Postcopy && !self.switched_over {
            let why = "postcopy is completed after it was switched over";
            return Err(Error::Refused(why.into()));
        }
        self.trying(|sender| {
            sender.sending.refresh();
            match sender.options.style {
                Style::Qemu => sender.last_pass()?,
                Style::Compact => sender.compact()?,
            }
            sender.sending.at_rest()
        })?;
        self.stream.finish(self.options.describe)
    }

    /// Gives up: the stream stays without an end, and the bitmaps are as they were, with
    /// what was recorded meanwhile. Dropping does the same.
    pub fn cancel(self) {}

    /// What stands before the bits.
    fn start(&mut self) -> Result<()> {
        if self.options.design == Design::Postcopy {
            self.stream.command(Command::POSTCOPY_ADVISE, &[])?;
        }
        self.section(SectionKind::Start, |sending, w| {
            for b in &sending.bitmaps {
                let chunks = &mut sending.chunks;
                chunks.start(w, &b.node, &b.name, b.granularity(), b.flags)?;
            }
            Ok(())
        })?;
        self.stream.flush()
    }

    fn last_pass(&mut self) -> Result<()> {
        // QEMU writes no END for no bitmaps.
        if self.sending.bitmaps.is_empty() {
            return Ok(());
        }
        if self.switched_over && self.sending.changed()?.is_some() {
            self.section(SectionKind::Part, |sending, w| sending.send(w, u64::MAX))?;
        }
        self.section(SectionKind::End, |sending, w| {
            sending.send(w, u64::MAX)?;
            // Before the other side is told that it has everything.
            sending.at_rest()?;
            for b in &sending.bitmaps {
                sending.chunks.complete(w, &b.node, &b.name)?;
            }
            Ok(())
        })
    }

    /// The whole section at once.
    fn compact(&mut self) -> Result<()> {
        let (full, sending) = (SectionKind::Full, &mut self.sending);
        self.stream.begin(full, COMPACT_ID, SECTION, 0, VERSION)?;
        let w = self.stream.content();
        let chunks = &mut sending.chunks;
        let count = sending.bitmaps.len();
        for (i, b) in (1..).zip(&mut sending.bitmaps) {
            let bits = b.take()?;
            chunks.start(w, &b.node, &b.name, b.granularity(), b.flags)?;
            write_compact(w, chunks, &b.node, &b.name, &bits)?;
            if i < count {
                chunks.complete(w, &b.node, &b.name)?;
            } else {
                chunks.complete_last(w, &b.node, &b.name)?;
            }
        }
        if count == 0 {
            chunks.end_of_list(w)?;
        }
        self.stream.end()
    }

    /// A piece of the section, with what `fill` puts into it.
    fn section(
        &mut self,
        kind: SectionKind,
        fill: impl FnOnce(&mut Sending<S>, &mut Output<W>) -> Result<()>,
    ) -> Result<()> {
        self.stream.begin(kind, QEMU_ID, SECTION, 0, VERSION)?;
        fill(&mut self.sending, self.stream.content())?;
        self.sending.chunks.end_of_list(self.stream.content())?;
        self.stream.end()
    }

    /// Does something that leaves the stream of no use if it fails.
    fn trying<T>(&mut self, attempt: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.failed {
            let why = "an earlier error has ended this stream";
            return Err(Error::Refused(why.into()));
        }
        let done = attempt(self);
        self.failed = done.is_err();
        done
    }
}

/// The compact form has all in one section.
fn only_at_rest() -> Error {
    Error::Refused("the compact form is for bitmaps at rest: they are sent at once".into())
}

impl<S: Source> Sending<S> {
    fn refresh(&self) {
        for b in &self.bitmaps {
            b.source.refresh();
        }
    }

    fn pending(&self) -> Pending {
        self.bitmaps.iter().fold(Pending::default(), |sum, b| {
            let more = b.pending();
            Pending {
                chunks: sum.chunks + more.chunks,
                bytes: sum.bytes + more.bytes,
            }
        })
    }

    /// A bitmap that changed since it was sent.
    fn changed(&self) -> Result<Option<&Held<S>>> {
        for b in &self.bitmaps {
            if b.is_pending()? {
                return Ok(Some(b));
            }
        }
        Ok(None)
    }

    /// Refuses if a bitmap changed since it was sent for the last time.
    fn at_rest(&self) -> Result<()> {
        self.refresh();
        match self.changed()? {
            None => Ok(()),
            Some(b) => Err(Error::Refused(format!(
                "bitmap '{}' of node '{}' changed during the last pass: writers have to be held",
                b.name.escape_debug(),
                b.node
            ))),
        }
    }

    /// Sends what changed in all bitmaps, beginning where the last pass stopped.
    fn send<W: Write>(&mut self, w: &mut Output<W>, max_bytes: u64) -> Result<()> {
        let mut budget = Budget::new(max_bytes);
        let count = self.bitmaps.len();
        for i in (self.next..count).chain(0..self.next) {
            if let Some(b) = self.bitmaps.get_mut(i)
                && !b.send(w, &mut self.chunks, &mut budget)?
            {
                self.next = i;
                return Ok(());
            }
        }
        self.next = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
