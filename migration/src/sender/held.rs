//! [`Held`]: a bitmap while it is being sent.

use std::{io::Write, ops::Range};

use hbitmap::{DirtyBitmap, Granularity, HBitmap, State};

use super::{Outgoing, Pending, Source};
use crate::{BitmapFlags, ChunkLayout, ChunkWriter, Error, Output, Result, write_bits};

/// The most bytes of a chunk, beside its buffer: flags, two names, range and size.
const HEAD: usize = 1 + 256 + 256 + 12 + 8;
/// Bytes of a ZEROES chunk without names.
const ZEROES: u64 = 13;

/// A bitmap of a sender: busy and followed until this is dropped.
#[derive(Debug)]
pub(super) struct Held<S: Source> {
    pub(super) source: S,
    pub(super) node: String,
    pub(super) name: String,
    pub(super) flags: BitmapFlags,
    layout: ChunkLayout,
    /// The one chunk of a disk of no bytes, which can't be followed, is still to be sent.
    empty: bool,
    /// Where the next pass begins.
    at: u64,
}

impl<S: Source> Held<S> {
    /// Makes a bitmap busy and follows it; all of it is to be sent.
    pub(super) fn new(outgoing: Outgoing<S>) -> Result<Self> {
        let Outgoing {
            node, name, source, ..
        } = outgoing;
        let (enabled, persistent) = (outgoing.enabled, outgoing.persistent);
        let (layout, flags) = source.with(|b| {
            let layout = ChunkLayout::of(b.bits()).map_err(|e| match e {
                Error::Refused(why) => {
                    Error::Refused(format!("bitmap '{}': {why}", b.name().escape_debug()))
                }
                other => other,
            })?;
            let flags = BitmapFlags {
                enabled: enabled.unwrap_or_else(|| b.state() == State::Recording),
                persistent: persistent.unwrap_or_else(|| b.is_persistent()),
            };
            b.set_busy(true)?;
            if let Err(e) = follow(b, &layout) {
                b.set_busy(false)?;
                return Err(e);
            }
            Ok((layout, flags))
        })?;
        Ok(Self {
            source,
            node,
            name,
            flags,
            layout,
            empty: layout.disk_len() == 0,
            at: 0,
        })
    }

    pub(super) const fn granularity(&self) -> Granularity {
        self.layout.granularity()
    }

    /// What is left to be sent, at most.
    pub(super) fn pending(&self) -> Pending {
        if self.empty {
            return Pending {
                chunks: 1,
                bytes: ZEROES + self.names(),
            };
        }
        let (chunks, dirty) = self.source.with(|b| {
            let (mut chunks, mut dirty) = (0, 0);
            // Where nothing follows it any more, all of it.
            let all = b.meta().is_none().then_some(0..self.layout.disk_len());
            let changed = b.meta().into_iter().flat_map(hbitmap::MetaBitmap::ranges);
            for range in changed.chain(all) {
                let range = self.whole(&range);
                chunks += (range.end - range.start).div_ceil(self.layout.chunk_bytes());
                let mut at = range.start;
                while let Some(found) = b.bits().next_dirty(at..range.end) {
                    dirty += 1;
                    at = self.layout.chunk_at(found).end;
                }
            }
            (chunks, dirty)
        });
        let names = if chunks == 0 { 0 } else { self.names() };
        let data = 8 + self.buffer() as u64;
        Pending {
            chunks,
            bytes: chunks * ZEROES + dirty * data + names,
        }
    }

    /// Whether anything is left to be sent; refused if that can't be known any more.
    pub(super) fn is_pending(&self) -> Result<bool> {
        let changed = self.source.with(|b| {
            self.check(b)?;
            Ok::<_, Error>(b.meta().is_some_and(|meta| meta.count() != 0))
        })?;
        Ok(self.empty || changed)
    }

    /// A copy of the bits; from now on they count as sent.
    pub(super) fn take(&mut self) -> Result<HBitmap> {
        self.empty = false;
        self.source.with(|b| {
            self.check(b)?;
            if let Some(meta) = b.meta_mut() {
                while meta.take(0, u64::MAX).is_some() {}
            }
            Ok(b.bits().clone())
        })
    }

    /// Sends what changed: from where the last pass stopped to the end of the disk, then
    /// what is before, each chunk once at most. Stops when `budget` may not hold another
    /// chunk, and says so by `false`.
    pub(super) fn send<W: Write>(
        &mut self,
        w: &mut Output<W>,
        chunks: &mut ChunkWriter,
        budget: &mut Budget,
    ) -> Result<bool> {
        if self.empty {
            let sectors = self.layout.sectors(&(0..0))?;
            chunks.zeroes(w, &self.node, &self.name, sectors)?;
            self.empty = false;
        }
        let (start, len) = (self.at, self.layout.disk_len());
        for part in [start..len, 0..start] {
            self.at = part.start;
            if !self.send_part(w, chunks, budget, part.end)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn send_part<W: Write>(
        &mut self,
        w: &mut Output<W>,
        chunks: &mut ChunkWriter,
        budget: &mut Budget,
        end: u64,
    ) -> Result<bool> {
        let most = HEAD + self.buffer();
        loop {
            // The transport may block; with the bitmap in hand it isn't written to.
            w.make_room(2 * most)?;
            let mut at = self.at;
            let step = self.source.with(|b| {
                while w.room() >= 2 * most {
                    let Some(room) = budget.chunks(w.room(), most) else {
                        return Ok(Some(false));
                    };
                    self.check(b)?;
                    // Taken before the bits are read, so that no change falls between.
                    let taken = b.meta_mut().and_then(|meta| meta.take_in(at..end, room));
                    let Some(range) = taken else {
                        return Ok(Some(true));
                    };
                    at = range.end;
                    let before = w.offset();
                    let range = self.whole(&range);
                    write_bits(w, chunks, &self.node, &self.name, b.bits(), range)?;
                    budget.spend(w.offset() - before);
                }
                Ok::<_, Error>(None)
            })?;
            self.at = at;
            if let Some(done) = step {
                return Ok(done);
            }
        }
    }

    /// The whole chunks that a range of changes touches. (Chunks that the number of
    /// sectors caps are no power of two, so that changes are followed in smaller ones.)
    fn whole(&self, range: &Range<u64>) -> Range<u64> {
        let last = self.layout.chunk_at(range.end.saturating_sub(1));
        self.layout.chunk_at(range.start).start..last.end
    }

    /// Bytes of the largest buffer.
    fn buffer(&self) -> usize {
        let words = self.layout.chunk_bytes() / self.layout.word_bytes();
        usize::try_from((words * 8).next_multiple_of(32)).unwrap_or(usize::MAX)
    }

    /// Bytes of the names, where they change.
    const fn names(&self) -> u64 {
        2 + self.node.len() as u64 + self.name.len() as u64
    }

    /// Whether the bitmap is still what was begun with.
    fn check(&self, b: &DirtyBitmap) -> Result<()> {
        let (len, disk_len) = (b.bits().len(), self.layout.disk_len());
        if b.state() == State::Inconsistent {
            let name = b.name().into();
            return Err(hbitmap::Error::Inconsistent { name }.into());
        }
        let fault = if len != disk_len {
            format!("its disk of {disk_len} bytes has {len} now")
        } else if b.bits().granularity() != self.granularity() || b.meta().is_none() {
            "it was replaced".into()
        } else {
            return Ok(());
        };
        Err(Error::Refused(format!(
            "bitmap '{}' can't be sent any further: {fault}",
            b.name().escape_debug()
        )))
    }
}

impl<S: Source> Drop for Held<S> {
    /// The bitmap is its owner's again.
    fn drop(&mut self) {
        self.source.with(|b| {
            b.unfollow();
            // Only a frozen one would be refused, and what is busy can't be frozen.
            let _ = b.set_busy(false);
        });
    }
}

/// Follows a bitmap's changes, in the largest power of two that a chunk holds. All of it
/// counts as changed.
fn follow(b: &mut DirtyBitmap, layout: &ChunkLayout) -> Result<()> {
    if b.meta().is_some() {
        let name = b.name().escape_debug();
        return Err(Error::Refused(format!(
            "something else follows the changes of bitmap '{name}'"
        )));
    }
    b.follow(Granularity::from_bits(layout.chunk_bytes().ilog2())?)?;
    if let Some(meta) = b.meta_mut() {
        meta.touch_all();
    }
    Ok(())
}

/// Bytes that a pass may still send.
#[derive(Debug)]
pub(super) struct Budget {
    left: u64,
    /// Whether a chunk was sent: the first one is, whatever the budget.
    begun: bool,
}

impl Budget {
    pub(super) const fn new(bytes: u64) -> Self {
        Self {
            left: bytes,
            begun: false,
        }
    }

    /// How many chunks of at most `most` bytes fit it and, with one to spare, the room.
    fn chunks(&self, room: usize, most: usize) -> Option<u64> {
        let most = most as u64;
        let fit = (room as u64 / most).saturating_sub(1);
        match self.left / most {
            0 if self.begun => None,
            n => Some(n.clamp(1, fit.max(1))),
        }
    }

    const fn spend(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        self.begun = true;
    }
}
