//! [`Plan`]: the pieces that a disk is copied in, in order.

use std::ops::Range;

use super::{ConvertError, ConvertOptions, Overlay, sink::Sink};
use crate::{
    Error,
    disk::{Disk, DiskExt, Extent, ExtentKind, ExtentsAndHoles},
};

/// Zeros within a piece up to which it goes on behind them.
const GAP: u64 = 256 << 10;

/// What is done about zeros on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeros {
    /// Nothing: the target has zeros there.
    Skip,
    /// They are made, as large as they are.
    Make,
    /// They are stored like data.
    Store,
}

impl Zeros {
    /// On a disk that is there, which reads as zeros or as anything.
    pub(super) const fn on(is_zero: bool) -> Self {
        match is_zero {
            true => Self::Skip,
            false => Self::Make,
        }
    }
}

/// What is to be done about a part of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It is read from the source.
    Read,
    /// It is zeros.
    Zero,
    /// It is what the target has behind it.
    Leave,
}

/// A part of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    pub(super) what: What,
}

/// A piece of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its number: the turn in which it gets its places.
    pub(super) number: u64,
    /// Where it is; it begins with a cluster of the target.
    pub(super) range: Range<u64>,
    /// What it is made of. Of one that is all zeros there are none, and it may be long.
    pub(super) parts: Vec<Part>,
}

/// The pieces that are left.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    extents: ExtentsAndHoles<'a, dyn Disk + 'a>,
    current: Option<Extent>,
    size: u64,
    /// Bytes of a piece, and to which multiples it is cut.
    piece: u64,
    align: u64,
    zeros: Zeros,
    is_overlay: bool,
    /// Where what stands behind the target ends.
    base_size: u64,
    salvage: bool,
    at: u64,
    number: u64,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        source: &'a dyn Disk,
        sink: &impl Sink,
        overlay: Overlay<'_>,
        options: ConvertOptions,
    ) -> Self {
        let align = sink.align();
        Self {
            extents: source.extents_and_holes(0..u64::MAX),
            current: None,
            size: source.size(),
            piece: sink.piece().max(align).next_multiple_of(align),
            align,
            zeros: match options.sparse {
                0 => Zeros::Store,
                _ => sink.zeros(),
            },
            is_overlay: overlay.is_one,
            base_size: overlay.base.map_or(u64::MAX, Disk::size),
            salvage: options.salvage,
            at: 0,
            number: 0,
        }
    }

    /// The next piece; `None` when nothing is left.
    ///
    /// # Errors
    /// It can't be told what comes next.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, ConvertError> {
        while self.at < self.size {
            let start = self.at;
            let first = self.part(start, self.size)?;
            let whole = self.cut(first.range.end);
            if whole > start && self.is_skipped(first.what) {
                self.at = whole;
                if first.what == What::Zero && self.zeros == Zeros::Make {
                    return Ok(Some(self.number(start..whole, Vec::new())));
                }
                continue;
            }
            let limit = (start / self.piece + 1).saturating_mul(self.piece);
            let parts = self.collect(start, limit.min(self.size))?;
            let end = parts.last().map_or(start, |part| part.range.end);
            self.at = end;
            return Ok(Some(self.number(start..end, parts)));
        }
        Ok(None)
    }

    /// Whether a long stretch of this needs no piece that holds bytes.
    fn is_skipped(&self, what: What) -> bool {
        match what {
            What::Read => false,
            What::Zero => self.zeros != Zeros::Store,
            What::Leave => true,
        }
    }

    /// The last place up to `end` where a piece can begin, or the disk's end.
    fn cut(&self, end: u64) -> u64 {
        match end >= self.size {
            true => self.size,
            false => end / self.align * self.align,
        }
    }

    fn number(&mut self, range: Range<u64>, parts: Vec<Part>) -> Piece {
        let number = self.number;
        self.number += 1;
        Piece {
            number,
            range,
            parts,
        }
    }

    /// The parts from `start` to `limit`, or to where a long stretch of nothing begins.
    fn collect(&mut self, start: u64, limit: u64) -> Result<Vec<Part>, ConvertError> {
        let mut parts: Vec<Part> = Vec::new();
        let mut at = start;
        while at < limit {
            let part = self.part(at, self.size)?;
            // A piece ends where one can begin: here, or where the stretch has begun.
            let ends = at > start && at.is_multiple_of(self.align) && self.is_skipped(part.what);
            if ends && part.range.end.saturating_sub(at) >= GAP.max(self.align) {
                break;
            }
            let mut end = part.range.end.min(limit);
            let boundary = at.next_multiple_of(self.align);
            let is_long = part.range.end.saturating_sub(boundary) >= GAP.max(self.align);
            if boundary > at && boundary < end && is_long && self.is_skipped(part.what) {
                end = boundary;
            }
            match parts.last_mut() {
                Some(last) if last.what == part.what => last.range.end = end,
                _ => parts.push(Part {
                    range: at..end,
                    what: part.what,
                }),
            }
            at = end;
        }
        Ok(parts)
    }

    /// What there is from `at`, which only grows, to at most `end`.
    fn part(&mut self, at: u64, end: u64) -> Result<Part, ConvertError> {
        let extent = loop {
            match self.current {
                Some(extent) if extent.end() > at => break extent,
                _ => self.current = Some(self.extent(at)?),
            }
        };
        let mut end = extent.end().min(end).max(at + 1);
        let mut what = match extent {
            _ if self.is_overlay && extent.depth > 0 => What::Leave,
            extent if extent.reads_as_zeros() => What::Zero,
            _ => What::Read,
        };
        // Behind the end of what stands behind the target there are zeros anyway.
        if self.is_overlay && what == What::Zero {
            if at >= self.base_size {
                what = What::Leave;
            } else {
                end = end.min(self.base_size);
            }
        }
        Ok(Part {
            range: at..end,
            what,
        })
    }

    /// The next extent.
    fn extent(&mut self, at: u64) -> Result<Extent, ConvertError> {
        let unreadable =
            |start: u64, length| Extent::new(start..start.saturating_add(length), ExtentKind::Data);
        match self.extents.next() {
            Some(Ok(extent)) => Ok(extent),
            // The attempt to read it says what is wrong.
            Some(Err(Error::Guest { start, length, .. })) if self.salvage => {
                Ok(unreadable(start.0, length.max(1)))
            }
            Some(Err(source)) => Err(ConvertError::Status {
                at: match &source {
                    Error::Guest { start, .. } => start.0,
                    _ => at,
                },
                source,
            }),
            None => Ok(unreadable(at, self.size.saturating_sub(at).max(1))),
        }
    }
}
