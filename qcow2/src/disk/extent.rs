//! [`Extent`]: a stretch of a disk of which one thing can be said.

use std::ops::Range;

use crate::addr::{GuestOffset, HostOffset};

/// What a stretch of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// It is stored.
    Data,
    /// It reads as zeros, and that is on record: an entry says so, or a hole of the file.
    Zero,
    /// It isn't there, neither in the image nor in one behind it, and reads as zeros.
    Unallocated,
}

/// A stretch of a disk of which one thing can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where on the disk it begins.
    pub start: GuestOffset,
    /// Its bytes, never 0.
    pub length: u64,
    /// What it is.
    pub kind: ExtentKind,
    /// Whether the data is stored compressed.
    pub compressed: bool,
    /// Where in [`Disk::file`](super::Disk::file) of the layer at `depth` it begins: of
    /// data that is stored plainly, and of zeros and unallocated parts for which a
    /// cluster stands ready.
    pub host: Option<HostOffset>,
    /// Whether the data is a hole of its file, and so zeros; only told where it was asked
    /// for, see [`DiskExt::extents_and_holes`](super::DiskExt::extents_and_holes).
    pub hole: bool,
    /// The layer that decided: 0 is the disk that was asked, 1 its backing file, …
    /// Of an unallocated extent it is the last layer that is long enough.
    pub depth: u32,
}

impl Extent {
    /// An extent of the disk's own layer of which no more is known than its kind.
    #[must_use]
    pub const fn new(range: Range<u64>, kind: ExtentKind) -> Self {
        Self {
            start: GuestOffset(range.start),
            length: range.end.saturating_sub(range.start),
            kind,
            compressed: false,
            host: None,
            hole: false,
            depth: 0,
        }
    }

    /// The first byte after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.0.saturating_add(self.length)
    }

    /// Its bytes on the disk.
    #[must_use]
    pub const fn range(&self) -> Range<u64> {
        self.start.0..self.end()
    }

    /// Whether it reads as zeros, as far as is known without reading.
    #[must_use]
    pub const fn reads_as_zeros(&self) -> bool {
        self.hole || !matches!(self.kind, ExtentKind::Data)
    }

    /// Makes it longer by `next` if that adjoins it and says the same, in the file as
    /// well as on the disk; whether it did.
    pub fn join(&mut self, next: &Self) -> bool {
        let adjoining = match (self.host, next.host) {
            (None, None) => true,
            (Some(host), Some(next)) => host.checked_add(self.length) == Some(next),
            _ => false,
        };
        let same = adjoining
            && self.end() == next.start.0
            && (self.kind, self.compressed, self.hole, self.depth)
                == (next.kind, next.compressed, next.hole, next.depth);
        if same {
            self.length = self.length.saturating_add(next.length);
        }
        same
    }

    /// The part of it that is within `range`; `None` if nothing is.
    #[must_use]
    pub fn within(&self, range: &Range<u64>) -> Option<Self> {
        let start = self.start.0.max(range.start);
        let end = self.end().min(range.end);
        let skipped = start - self.start.0;
        (start < end).then(|| Self {
            start: GuestOffset(start),
            length: end - start,
            host: self.host.and_then(|host| host.checked_add(skipped)),
            ..*self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(start: u64, length: u64, host: Option<u64>) -> Extent {
        Extent {
            host: host.map(HostOffset),
            ..Extent::new(start..start + length, ExtentKind::Data)
        }
    }

    #[test]
    fn only_what_says_the_same_joins() {
        let first = data(0, 10, Some(100));
        let joins = |next: Extent| first.clone().join(&next);
        assert!(joins(data(10, 5, Some(110))));
        assert!(!joins(data(10, 5, Some(111))));
        assert!(!joins(data(10, 5, None)));
        assert!(!joins(data(11, 5, Some(110))));
        assert!(!joins(Extent {
            hole: true,
            ..data(10, 5, Some(110))
        }));
        assert!(!joins(Extent {
            depth: 1,
            ..data(10, 5, Some(110))
        }));
        assert!(!joins(Extent {
            kind: ExtentKind::Zero,
            ..data(10, 5, Some(110))
        }));
        let mut plain = data(0, 10, None);
        assert!(plain.join(&data(10, 5, None)));
        assert_eq!(plain, data(0, 15, None));
    }

    #[test]
    fn a_part_keeps_its_place_in_the_file() {
        let extent = data(10, 10, Some(100));
        assert_eq!(extent.within(&(13..15)), Some(data(13, 2, Some(103))));
        assert_eq!(extent.within(&(0..11)), Some(data(10, 1, Some(100))));
        assert_eq!(extent.within(&(20..30)), None);
        assert_eq!(extent.within(&(0..10)), None);
    }
}
