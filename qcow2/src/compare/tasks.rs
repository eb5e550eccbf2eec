//! The pieces of work of a comparison: parts of both disks that are to be read, or of one
//! that must be zeros.

use std::{collections::BTreeMap, ops::Range};

use hbitmap::SharedTracker;

use super::{CompareError, CompareOptions, Comparison, Which};
use crate::{
    Error, Result,
    disk::{Disk, DiskExt, Extent, ExtentsAndHoles, is_zero},
    io::PageBuffer,
};

/// Bytes that are read of a disk at once: buffers of two of them stay in a core's cache.
const PIECE: u64 = 256 << 10;
/// Bytes of a sector, the unit in which differences are told.
const SECTOR: usize = 512;

/// What ends a comparison.
#[derive(Debug)]
pub(super) enum Found {
    Differs(Comparison),
    Failed(CompareError),
}

impl Found {
    fn at(&self) -> u64 {
        match self {
            Self::Differs(Comparison::Content(at) | Comparison::Status(at))
            | Self::Failed(CompareError::Extent { at, .. } | CompareError::Read { at, .. }) => *at,
            Self::Differs(_) => 0,
        }
    }
}

/// What is read of either disk.
pub(super) type Buffers = (PageBuffer, PageBuffer);

/// A part of the disks to be looked at.
#[derive(Debug)]
pub(super) struct Task {
    /// The part.
    pub(super) range: Range<u64>,
    /// Whether the first disk is to be read, or has zeros there.
    first: bool,
    /// Whether the second one is.
    second: bool,
}

/// The extents of one disk, of which the one at hand may be used up in parts.
#[derive(Debug)]
struct Side<'a> {
    which: Which,
    disk: &'a (dyn Disk + 'a),
    size: u64,
    strict: bool,
    extents: ExtentsAndHoles<'a, dyn Disk + 'a>,
    current: Option<Extent>,
}

/// What a disk has at some place.
#[derive(Clone, Copy, Debug)]
struct Status {
    /// Where it ends.
    end: u64,
    is_zeros: bool,
    extent: Option<Extent>,
    /// The extent reaches the end of the disk.
    is_last: bool,
}

impl Side<'_> {
    /// What there is at `at`, which only grows. Beyond the disk's end are zeros.
    fn status(&mut self, at: u64) -> Result<Status, CompareError> {
        while self.current.is_none_or(|extent| extent.end() <= at) && at < self.size {
            match self.extents.next() {
                Some(Ok(extent)) => self.current = Some(extent),
                Some(Err(source)) => {
                    let (which, source) = (self.which, Box::new(source));
                    return Err(CompareError::Extent { which, at, source });
                }
                None => break,
            }
        }
        let extent = self.current.filter(|_| at < self.size);
        let end = extent.map_or(u64::MAX, |extent| match self.strict {
            true => extent.end().min(self.answer_end(at, &extent)),
            false => extent.end(),
        });
        Ok(Status {
            end,
            is_zeros: extent.is_none_or(|extent| extent.reads_as_zeros()),
            is_last: extent.is_some() && end >= self.size,
            extent,
        })
    }

    /// Where QEMU's answer for `extent` ends, asked at `at`: none of the layers down to the
    /// one that decides tells more.
    fn answer_end(&self, at: u64, extent: &Extent) -> u64 {
        let layers = (0..=extent.depth).filter_map(|depth| Some((depth, self.disk.layer(depth)?)));
        let ends = layers.map(|(depth, layer)| {
            layer.qemu_answer_end(at, extent.compressed && depth == extent.depth)
        });
        ends.min().unwrap_or(u64::MAX)
    }
}

impl Status {
    /// What must be the same in a strict comparison. To qemu-img, too, an answer that goes
    /// up to the disk's end is another thing than one that doesn't.
    fn strict(&self) -> impl PartialEq + use<> {
        self.extent.map(|extent| {
            let has_place = extent.host.is_some();
            (
                extent.kind,
                extent.hole,
                extent.compressed,
                has_place,
                self.is_last,
            )
        })
    }
}

/// The work that is left, handed out in the order of the disks.
#[derive(Debug)]
pub(super) struct Tasks<'a> {
    first: Side<'a>,
    second: Side<'a>,
    options: CompareOptions,
    /// Whether layers of the two, by their depths, are read from the same, as far as it
    /// was asked for; `None` if all is read.
    shared: Option<BTreeMap<(u32, u32), bool>>,
    /// Where it ends.
    limit: u64,
    at: u64,
    /// Up to here nothing is left to be looked at.
    skip: u64,
    /// The part that pieces are cut from.
    part: Option<Task>,
    /// What was found at the lowest place so far.
    found: Option<Found>,
}

impl<'a> Tasks<'a> {
    /// Up to `limit`, which is the size of one of them.
    pub(super) fn new(
        first: &'a dyn Disk,
        second: &'a dyn Disk,
        options: CompareOptions,
        limit: u64,
    ) -> Self {
        let side = |which, disk: &'a dyn Disk| Side {
            which,
            disk,
            size: disk.size(),
            strict: options.strict,
            extents: disk.extents_and_holes(0..u64::MAX),
            current: None,
        };
        Self {
            first: side(Which::First, first),
            second: side(Which::Second, second),
            options,
            shared: None,
            limit,
            at: 0,
            skip: 0,
            part: None,
            found: None,
        }
    }

    /// Leaves out what both disks read from the same place, unread.
    pub(super) fn without_shared(mut self) -> Self {
        self.shared = Some(BTreeMap::new());
        self
    }

    /// Whether both disks have this from the same place.
    fn is_shared(&mut self, first: Option<Extent>, second: Option<Extent>) -> bool {
        let (Some(shared), Some(first), Some(second)) = (&mut self.shared, first, second) else {
            return false;
        };
        let depths = (first.depth, second.depth);
        *shared.entry(depths).or_insert_with(|| {
            let source = |disk: &dyn Disk, depth| disk.layer(depth)?.source();
            let source_of_first = source(self.first.disk, first.depth);
            source_of_first.is_some() && source_of_first == source(self.second.disk, second.depth)
        })
    }

    /// The next piece; `None` when something was found before it, or nothing is left.
    pub(super) fn next(&mut self) -> Option<Task> {
        while self.part.is_none() {
            if self.found.is_some() || self.at >= self.limit {
                return None;
            }
            match self.next_part() {
                Ok(part) => self.part = part.filter(|part| part.range.end > self.skip),
                Err(found) => {
                    self.found(found);
                    return None;
                }
            }
        }
        // Whatever is handed out now stands behind what was found.
        if self.found.is_some() {
            return None;
        }
        let part = self.part.as_mut()?;
        part.range.start = part.range.start.max(self.skip.min(part.range.end - 1));
        let cut = part.range.end.min((part.range.start / PIECE + 1) * PIECE);
        let piece = Task {
            range: part.range.start..cut,
            ..*part
        };
        part.range.start = cut;
        if part.range.is_empty() {
            self.part = None;
        }
        Some(piece)
    }

    /// The next part of which each disk says one thing; `None` if both have zeros there.
    fn next_part(&mut self) -> Result<Option<Task>, Found> {
        let at = self.at;
        let first = self.first.status(at).map_err(Found::Failed)?;
        let second = self.second.status(at).map_err(Found::Failed)?;
        if self.options.strict && first.strict() != second.strict() {
            return Err(Found::Differs(Comparison::Status(at)));
        }
        // Beyond its end a disk says nothing of where the other's extents end.
        let end = first.end.min(second.end).min(self.limit).max(at + 1);
        let both = self.first.size.min(self.second.size);
        let end = if at < both { end.min(both) } else { end };
        self.at = end;
        if self.is_shared(first.extent, second.extent) {
            return Ok(None);
        }
        let (first, second) = (!first.is_zeros, !second.is_zeros);
        Ok((first || second).then_some(Task {
            range: at..end,
            first,
            second,
        }))
    }

    /// Up to `end` nothing is left to be looked at.
    pub(super) fn skip(&mut self, end: u64) {
        self.skip = self.skip.max(end);
    }

    /// Notes what ends the comparison, unless something before it does.
    pub(super) fn found(&mut self, found: Found) {
        let before = self.found.as_ref().is_some_and(|f| f.at() <= found.at());
        if !before {
            self.found = Some(found);
        }
    }

    /// What was found at the lowest place.
    pub(super) fn into_first(self) -> Option<Found> {
        self.found
    }
}

impl Task {
    /// Reads and compares; what was found, if anything.
    pub(super) fn run(
        &self,
        first: &dyn Disk,
        second: &dyn Disk,
        buffers: &mut Buffers,
    ) -> Option<Found> {
        let mut end = self.range.end;
        let mut failed = None;
        let sides = [
            (self.first, Which::First, first, &mut buffers.0),
            (self.second, Which::Second, second, &mut buffers.1),
        ];
        for (is_read, which, disk, buffer) in sides {
            if is_read && let Err((at, source)) = fill(disk, self.range.start..end, buffer) {
                end = at;
                let source = Box::new(source);
                failed = Some(Found::Failed(CompareError::Read { which, at, source }));
            }
        }
        // What is before the fault may differ.
        let len = usize::try_from(end - self.range.start).unwrap_or(0);
        let one = buffers.0.get(..len).unwrap_or_default();
        let two = buffers.1.get(..len).unwrap_or_default();
        let differs = match (self.first, self.second) {
            (true, true) => first_difference(one, two),
            (true, false) => first_data(one),
            (false, true) => first_data(two),
            (false, false) => None,
        };
        let differs = differs.map(|at| self.range.start + at as u64);
        match differs {
            Some(at) => Some(Found::Differs(Comparison::Content(at))),
            None => failed,
        }
    }
}

impl Task {
    /// Reads and compares, and marks what differs. Returns where the last granule that was
    /// marked ends.
    pub(super) fn mark(
        &self,
        first: &dyn Disk,
        second: &dyn Disk,
        buffers: &mut Buffers,
        marks: &SharedTracker,
    ) -> Result<u64, Found> {
        let sides = [
            (self.first, Which::First, first, &mut buffers.0),
            (self.second, Which::Second, second, &mut buffers.1),
        ];
        for (is_read, which, disk, buffer) in sides {
            if is_read {
                fill(disk, self.range.clone(), buffer).map_err(|(at, source)| {
                    let source = Box::new(source);
                    Found::Failed(CompareError::Read { which, at, source })
                })?;
            }
        }
        let unit = marks.granularity().bytes();
        let (mut at, mut marked) = (self.range.start, 0);
        while at < self.range.end {
            let granule_end = (at / unit).saturating_add(1).saturating_mul(unit);
            let end = granule_end.min(self.range.end);
            let of = |bytes: &'_ [u8]| -> Range<usize> {
                let index = |at: u64| usize::try_from(at - self.range.start).unwrap_or(bytes.len());
                index(at)..index(end)
            };
            let one = buffers.0.get(of(&buffers.0)).unwrap_or_default();
            let two = buffers.1.get(of(&buffers.1)).unwrap_or_default();
            let differs = match (self.first, self.second) {
                (true, true) => one != two,
                (true, false) => first_data(one).is_some(),
                (false, true) => first_data(two).is_some(),
                (false, false) => false,
            };
            if differs {
                marks.mark(at..end);
                marked = granule_end;
            }
            at = end;
        }
        Ok(marked)
    }
}

/// Reads `range` into `buffer`; of a part that can't be read, where it begins, and what is
/// before it is in the buffer.
fn fill(disk: &dyn Disk, range: Range<u64>, buffer: &mut PageBuffer) -> Result<(), (u64, Error)> {
    let mut end = range.end;
    let mut failed = None;
    loop {
        let len = usize::try_from(end - range.start).unwrap_or(0);
        buffer.resize(len);
        let Err(error) = disk.read(range.start, buffer) else {
            break;
        };
        let at = match &error {
            Error::Guest { start, .. } => start.0.clamp(range.start, end),
            _ => range.start,
        };
        // It gets shorter each time, or this was the last.
        let again = range.start < at && at < end;
        end = at;
        failed = Some((at, error));
        if !again {
            break;
        }
    }
    failed.map_or(Ok(()), Err)
}

/// The first sector that differs: the index of its first byte.
fn first_difference(one: &[u8], two: &[u8]) -> Option<usize> {
    if one == two {
        return None;
    }
    let sectors = one.chunks(SECTOR).zip(two.chunks(SECTOR));
    let same = sectors.take_while(|(one, two)| one == two).count();
    Some(same * SECTOR)
}

/// The first sector that isn't zeros: the index of its first byte.
fn first_data(bytes: &[u8]) -> Option<usize> {
    let zeros = bytes.chunks(SECTOR).take_while(|sector| is_zero(sector));
    let zeros = zeros.count() * SECTOR;
    (zeros < bytes.len()).then_some(zeros)
}
