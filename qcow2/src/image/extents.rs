//! [`View`]: what an L1 table makes of the image: the answer to "where is this part of
//! the guest's disk?", on which reading, mapping and comparing rest.
//!
//! L2 tables are read in runs: slices that follow each other on the disk and in the file
//! are one read. Clusters that follow each other likewise are one [`Stretch`].

use std::{ops::Range, sync::Arc};

use super::{Image, entries::Entries};
use crate::{
    Error, Result,
    addr::HostOffset,
    disk::bad,
    table::{Bounds, DirtySlices, L1Table, SLICE},
};

/// Bytes of L2 tables that are read and looked at in one go.
const RUN: u64 = 64 << 10;
/// Stretches after which no further tables are looked at.
const AT_ONCE: usize = 1024;

/// What an image says of a stretch of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapped {
    /// Reads come from the backing file, or are zeros. `host` is where it would be
    /// stored, in a cluster of which other subclusters are.
    Unallocated { host: Option<HostOffset> },
    /// Reads are zeros; `host` is a preallocated place.
    Zero { host: Option<HostOffset> },
    /// Stored at `host`.
    Data { host: HostOffset },
    /// Part of one cluster that is stored compressed at `host`, within `len` bytes.
    Compressed { host: HostOffset, len: u64 },
}

/// A stretch of the disk of which an image says one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Where on the disk it begins.
    pub(crate) start: u64,
    /// Its bytes.
    pub(crate) length: u64,
    /// What is said of it.
    pub(crate) mapped: Mapped,
}

impl Stretch {
    /// The first byte after it.
    pub(crate) const fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }

    /// The part from `skip` bytes on.
    pub(super) fn skipping(self, skip: u64) -> Self {
        let on = |host: HostOffset| HostOffset(host.0.saturating_add(skip));
        let mapped = match self.mapped {
            Mapped::Unallocated { host } => Mapped::Unallocated { host: host.map(on) },
            Mapped::Zero { host } => Mapped::Zero { host: host.map(on) },
            Mapped::Data { host } => Mapped::Data { host: on(host) },
            whole @ Mapped::Compressed { .. } => whole,
        };
        Self {
            start: self.start + skip,
            length: self.length.saturating_sub(skip),
            mapped,
        }
    }

    /// Makes it longer by `next`, which adjoins it, if that continues it.
    fn join(&mut self, next: &Self) -> bool {
        let length = self.length;
        let follows = |host: HostOffset, next: HostOffset| host.checked_add(length) == Some(next);
        let both = |host: Option<HostOffset>, next: Option<HostOffset>| match (host, next) {
            (None, None) => true,
            (Some(host), Some(next)) => follows(host, next),
            _ => false,
        };
        use Mapped::{Data, Unallocated, Zero};
        let same = match (self.mapped, next.mapped) {
            (Unallocated { host }, Unallocated { host: next })
            | (Zero { host }, Zero { host: next }) => both(host, next),
            (Data { host }, Data { host: next }) => follows(host, next),
            _ => false,
        };
        if same {
            self.length += next.length;
        }
        same
    }
}

/// The stretches of a range, as they are found.
#[derive(Debug)]
pub(super) struct Found<'a> {
    /// What was asked for.
    pub(super) range: Range<u64>,
    out: &'a mut Vec<Stretch>,
    /// Where the stretches of this answer begin in `out`.
    first: usize,
}

impl Found<'_> {
    /// Takes a stretch that adjoins the one before; only what was asked for is kept.
    pub(super) fn push(&mut self, stretch: Stretch) {
        let end = stretch.end().min(self.range.end);
        let mut stretch = stretch.skipping(self.range.start.saturating_sub(stretch.start));
        stretch.length = end.saturating_sub(stretch.start);
        let mut before = self
            .out
            .get_mut(self.first..)
            .unwrap_or_default()
            .last_mut();
        if stretch.length > 0 && !before.as_mut().is_some_and(|b| b.join(&stretch)) {
            self.out.push(stretch);
        }
    }
}

/// A run of L2 entries that follow each other, on the disk and in the file.
#[derive(Debug)]
pub(super) struct Run {
    /// The entries.
    pub(super) bytes: Arc<Vec<u8>>,
    /// Where the first one stands in the image file.
    pub(super) host: HostOffset,
    /// Where on the disk its cluster begins.
    pub(super) guest: u64,
}

/// What becomes of L2 entries after they were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// They stay in memory: there will be other reads nearby.
    Yes,
    /// Those that were asked for whole don't: the caller goes over the disk once.
    Partial,
}

/// The disk as one L1 table shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) image: &'a Image,
    pub(crate) l1: &'a L1Table,
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// Entries that were changed and aren't in the file yet.
    pub(crate) changed: Option<&'a DirtySlices>,
}

impl View<'_> {
    /// Appends the stretches of `range` (which is within the disk) from its start on: all,
    /// or as many as are found in one go.
    ///
    /// # Errors
    /// [`Error::Guest`] if the first one can't be told.
    pub(crate) fn stretches(
        &self,
        range: Range<u64>,
        keep: Keep,
        out: &mut Vec<Stretch>,
    ) -> Result<()> {
        let first = out.len();
        let mut at = range.start;
        while at < range.end && out.len() - first < AT_ONCE {
            let mut found = Found {
                range: at..range.end,
                out,
                first,
            };
            match self.step(&mut found, keep) {
                Ok(next) => at = next,
                // It is told when it is the first.
                Err(_) if out.len() > first => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Finds the stretches at the range's start, as far as one run of entries tells;
    /// returns how far that is. Those before an error are found, too.
    fn step(&self, found: &mut Found<'_>, keep: Keep) -> Result<u64> {
        let (start, end) = (found.range.start, found.range.end);
        let coverage = self.image.geometry().l2_coverage();
        let index = start / coverage;
        let of_table = index.saturating_add(1).saturating_mul(coverage).min(end);
        let table = self.l2_table(index);
        match table.map_err(|error| bad(start, of_table - start, error))? {
            None => {
                found.push(Stretch {
                    start,
                    length: of_table - start,
                    mapped: Mapped::Unallocated { host: None },
                });
                Ok(of_table)
            }
            Some(table) => {
                let run = self.load(table, &found.range, keep)?;
                Entries::new(self.image, &run).find(found)
            }
        }
    }

    pub(super) fn l2_table(&self, index: u64) -> Result<Option<HostOffset>> {
        let image = self.image;
        self.l1.l2_table(index, image.geometry(), &image.bounds())
    }

    /// The entries for the start of `range`, in the L2 table at `table`, and as many of
    /// the range as follow them in the file.
    pub(super) fn load(&self, table: HostOffset, range: &Range<u64>, keep: Keep) -> Result<Run> {
        let geometry = self.image.geometry();
        let slice = geometry.cluster_size().min(SLICE);
        let coverage = slice / geometry.l2_entry_size() * geometry.cluster_size();
        let guest = range.start - range.start % coverage;
        let within = guest % geometry.l2_coverage() / geometry.cluster_size();
        let host = HostOffset(table.0 + within * geometry.l2_entry_size());
        if let Some(bytes) = self.changed.and_then(|changed| changed.get(host)) {
            let bytes = Arc::clone(bytes);
            return Ok(Run { bytes, host, guest });
        }
        let cache = &self.image.guest.l2;
        if let Some(bytes) = cache.get(host) {
            return Ok(Run { bytes, host, guest });
        }
        let mut len = slice;
        let mut next = guest.saturating_add(coverage);
        while len < RUN && next < range.end && self.continues(host, len, next)? {
            len += slice;
            next = next.saturating_add(coverage);
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let storage = &self.image.storage;
        storage.read_padded(host.0, &mut bytes).map_err(|e| {
            let error = Error::io(format!("reading L2 entries at {host}"))(e);
            bad(range.start, next.min(range.end) - range.start, error)
        })?;
        let pieces = bytes.chunks(usize::try_from(slice).unwrap_or(usize::MAX));
        for (index, piece) in (0..).zip(pieces) {
            let first = guest.saturating_add(coverage * index);
            let whole = range.start <= first && first.saturating_add(coverage) <= range.end;
            if keep == Keep::Yes || !whole {
                let at = HostOffset(host.0 + slice * index);
                cache.insert(at, Arc::new(piece.to_vec()));
            }
        }
        let bytes = Arc::new(bytes);
        Ok(Run { bytes, host, guest })
    }

    /// Whether the entries for the disk from `guest` on follow `len` bytes behind `host`
    /// in the file, and aren't in memory.
    fn continues(&self, host: HostOffset, len: u64, guest: u64) -> Result<bool> {
        let coverage = self.image.geometry().l2_coverage();
        let next = HostOffset(host.0.saturating_add(len));
        if guest.is_multiple_of(coverage) {
            // What is wrong with the next table is told when it is its turn.
            let table = self.l2_table(guest / coverage);
            if table.ok().flatten() != Some(next) {
                return Ok(false);
            }
        }
        let changed = self.changed.and_then(|changed| changed.get(next));
        Ok(changed.is_none() && !self.image.guest.l2.holds(next))
    }
}

impl Image {
    /// What references into the image file are judged by.
    pub(super) fn bounds(&self) -> Bounds<'_> {
        Bounds {
            storage: &*self.storage,
            header: self.header(),
            end: &self.guest.file_end,
        }
    }
}
