//! Zeros: entries that say so where the image can, and clusters given back.

use std::ops::Range;

use super::{
    State,
    data::{Part, Units},
};
use crate::{
    Error, Result,
    addr::HostOffset,
    format::{Autoclear, ExtendedL2Entry, L2Entry, SubclusterBitmap},
    table::slice_size,
};

/// Zeros are written in pieces of this many bytes, where they have to be.
const PIECE: usize = 64 << 10;

impl State {
    pub(super) fn zero(&mut self, range: Range<u64>, unmap: bool) -> Result<()> {
        self.each_part(range, unmap, |state, part| state.zero_part(part, unmap))
    }

    pub(super) fn discard(&mut self, range: Range<u64>) -> Result<()> {
        if self.image.header().version < 3 && self.backing_reaches(0) {
            return Ok(());
        }
        self.each_part(range, true, |state, part| {
            let whole = state.whole_units(part);
            state.zero_units(part, whole, true)
        })
    }

    /// Calls `each` for the clusters of `range`, but for those of which there is nothing
    /// and that read as zeros. Whole clusters whose entries are next to each other are
    /// made zeros at once where that comes to the same.
    fn each_part(
        &mut self,
        range: Range<u64>,
        unmap: bool,
        each: impl Fn(&mut Self, &Part) -> Result<()>,
    ) -> Result<()> {
        let coverage = self.image.geometry().l2_coverage();
        let mut at = range.start;
        while at < range.end {
            let index = at / coverage;
            let end = (index + 1).saturating_mul(coverage).min(range.end);
            let empty = self.l1.entry(index).0 == 0;
            if empty && !self.backing_reaches(at) && !self.is_raw_outside() {
                at = end;
                continue;
            }
            while at < end {
                let run = self.whole_clusters(at..end, unmap);
                if run.is_empty() {
                    let part = self.parts(at..end).next();
                    let Some(part) = part else { break };
                    each(self, &part)?;
                    at = part.start.saturating_add(part.range.end);
                } else {
                    at = run.end.min(end);
                    self.zero_clusters(run, unmap)?;
                }
            }
            at = end;
        }
        Ok(())
    }

    /// The whole clusters that `range` begins with and whose entries are in one slice, if
    /// an entry of each can say zeros; the disk's last cluster is whole, too.
    fn whole_clusters(&self, range: Range<u64>, unmap: bool) -> Range<u64> {
        let geometry = self.image.geometry();
        let cluster_size = geometry.cluster_size();
        let can_say = match self.image.header().version {
            ..3 => unmap && !self.backing_reaches(range.start),
            _ => true,
        };
        let aligned = range.start.is_multiple_of(cluster_size);
        if geometry.extended_l2() || self.is_raw_outside() || !can_say || !aligned {
            return range.start..range.start;
        }
        let coverage = slice_size(geometry) / geometry.l2_entry_size() * cluster_size;
        let slice_end = (range.start / coverage + 1).saturating_mul(coverage);
        let end = match range.end >= self.size {
            true => range.end.next_multiple_of(cluster_size),
            false => range.end / cluster_size * cluster_size,
        };
        range.start..end.min(slice_end)
    }

    /// Makes the clusters of `run` read as zeros: [`whole_clusters`](Self::whole_clusters).
    fn zero_clusters(&mut self, run: Range<u64>, unmap: bool) -> Result<()> {
        let geometry = self.image.geometry();
        let cluster_size = geometry.cluster_size();
        let all = Units::new(self).all();
        // (cluster, its entry, what that becomes, whether its cluster is given back)
        let mut changes = Vec::new();
        let bytes = self.entries(run.start, run.end.min(self.size))?;
        for (n, word) in (0..).zip(bytes.as_chunks::<8>().0) {
            let start = run.start + n * cluster_size;
            let entry = L2Entry(u64::from_be_bytes(*word));
            let old = ExtendedL2Entry {
                entry,
                bitmap: SubclusterBitmap::default(),
            };
            if entry.0 == 0 && !self.backing_reaches(start) {
                continue;
            }
            if let Some((new, drop)) = self.zeroed(start, old, all, unmap) {
                changes.push((start, entry, new.entry, drop));
            }
        }
        let Some((first, ..)) = changes.first() else {
            return Ok(());
        };
        self.make_room(*first, 0)?;
        let place = self.own_entry(*first)?;
        let entries = changes
            .iter()
            .map(|(start, _, new, _)| ((start - first) / cluster_size, *new));
        self.set_entries(place, entries);
        for (start, old, _, drop) in changes {
            if drop {
                self.drop_cluster(start, old, true);
            }
        }
        Ok(())
    }

    /// Whether guest data is in an external data file that can be read without us.
    fn is_raw_outside(&self) -> bool {
        let header = self.image.header();
        let raw = header.autoclear_features.contains(Autoclear::DATA_FILE_RAW);
        header.has_data_file() && raw
    }

    /// The bytes of the units that lie in `part` wholly; the last one ends with the disk.
    fn whole_units(&self, part: &Part) -> Range<u64> {
        let size = Units::new(self).size;
        let cluster_size = self.image.geometry().cluster_size();
        let start = part.range.start.next_multiple_of(size);
        let at_end = part.start.saturating_add(part.range.end) >= self.size;
        let end = match at_end {
            true => cluster_size,
            false => part.range.end / size * size,
        };
        start.min(end)..end
    }

    fn zero_part(&mut self, part: &Part, unmap: bool) -> Result<()> {
        let on_disk = |range: &Range<u64>| part.start + range.start..part.start + range.end;
        if self.image.header().version < 3 {
            // Nothing can say zeros, but what isn't there may be.
            let whole = self.whole_units(part);
            if unmap && !whole.is_empty() && !self.backing_reaches(part.start) {
                return self.zero_units(part, whole, true);
            }
            return self.write_zeros(on_disk(&part.range));
        }
        let whole = self.whole_units(part);
        if whole.is_empty() {
            return self.write_zeros(on_disk(&part.range));
        }
        if part.range.start < whole.start {
            self.write_zeros(on_disk(&(part.range.start..whole.start)))?;
        }
        if whole.end < part.range.end {
            self.write_zeros(on_disk(&(whole.end..part.range.end)))?;
        }
        self.zero_units(part, whole, unmap)
    }

    /// Writes zeros as data, unless they are there.
    fn write_zeros(&mut self, range: Range<u64>) -> Result<()> {
        if self.is_known_zero(range.clone())? && !self.is_raw_outside() {
            return Ok(());
        }
        let zeros = vec![0; PIECE];
        let mut at = range.start;
        while at < range.end {
            let len = usize::try_from(range.end - at)
                .unwrap_or(usize::MAX)
                .min(PIECE);
            self.write(at, zeros.get(..len).unwrap_or_default())?;
            at += len as u64;
        }
        Ok(())
    }

    /// Makes whole units of a cluster read as zeros.
    fn zero_units(&mut self, part: &Part, whole: Range<u64>, unmap: bool) -> Result<()> {
        if whole.is_empty() {
            return Ok(());
        }
        let units = Units::new(self);
        let set = units.touched(&whole);
        let old = self.entry(part.start)?;
        let unallocated = old == ExtendedL2Entry::default();
        if self.is_raw_outside() {
            self.zero_outside(part.start, &whole)?;
        } else if unallocated && !self.backing_reaches(part.start) {
            return Ok(());
        }
        let all = set == units.all();
        if old.entry.is_compressed() && !all {
            let start = part.start.saturating_add(whole.start);
            let end = part.start.saturating_add(whole.end).min(self.size);
            return self.write_zeros(start..end);
        }
        let Some((new, drop)) = self.zeroed(part.start, old, set, unmap) else {
            return Ok(());
        };
        self.make_room(part.start, 0)?;
        let place = self.own_entry(part.start)?;
        self.set_entry(place, new);
        if drop {
            self.drop_cluster(part.start, old.entry, true);
        }
        Ok(())
    }

    /// What becomes of an entry of which `set` is to read as zeros, and whether its
    /// cluster is given back; `None` if it stays as it is.
    fn zeroed(
        &self,
        start: u64,
        old: ExtendedL2Entry,
        set: u32,
        unmap: bool,
    ) -> Option<(ExtendedL2Entry, bool)> {
        let header = self.image.header();
        let data_file = header.has_data_file();
        let units = Units::new(self);
        let host = match old.entry.host(data_file) {
            // What is in a raw data file stays there.
            None if self.is_raw_outside() => Some(HostOffset(start)),
            host => host,
        };
        let keep = self.is_raw_outside() || (!unmap && old.entry.copied());
        let stored = match old.entry.is_compressed() {
            true => 0,
            false => units.stored(old, data_file) & !set,
        };
        let kept = host.filter(|_| keep || stored != 0);
        let copied = old.entry.copied() || data_file;
        let entry = kept.map_or(L2Entry::default(), |host| L2Entry::data(host, copied));
        let new = if self.image.geometry().extended_l2() {
            let zeros = match old.entry.is_compressed() {
                true => set,
                false => old.bitmap.zeros() | set,
            };
            let bitmap = SubclusterBitmap(u64::from(zeros) << 32 | u64::from(stored));
            ExtendedL2Entry { entry, bitmap }
        } else {
            let entry = match header.version {
                ..3 => L2Entry::default(),
                _ => L2Entry::zero(kept.map(|host| (host, copied))),
            };
            let bitmap = SubclusterBitmap::default();
            ExtendedL2Entry { entry, bitmap }
        };
        (new != old).then_some((new, kept.is_none()))
    }

    /// Says that a part of the external data file is referred to no more.
    pub(super) fn leave_hole(&mut self, range: Range<u64>) {
        match self.holes.last_mut() {
            Some(hole) if hole.end == range.start => hole.end = range.end,
            _ => self.holes.push(range),
        }
    }

    /// Gives the space of holes in the external data file back to the system, after
    /// nothing on stable storage refers to it. Where that can't be done it stays, which is
    /// no failure.
    pub(super) fn punch_holes(&mut self) {
        for hole in std::mem::take(&mut self.holes) {
            let mut free = hole.start..hole.start;
            for part in self.parts(hole) {
                // It may have been written again since.
                let entry = self.entry(part.start);
                let is_free = entry.is_ok_and(|both| both.entry.host(true).is_none());
                if free.end != part.start || !is_free {
                    self.punch(std::mem::replace(&mut free, part.start..part.start));
                }
                if is_free {
                    free.end = part.start.saturating_add(part.range.end);
                }
            }
            self.punch(free);
        }
    }

    fn punch(&self, hole: Range<u64>) {
        if let Ok(data) = self.image.data_storage()
            && !hole.is_empty()
        {
            let _ = data.punch_hole(hole);
        }
    }

    /// Zeros in the external data file, as they are on the disk.
    fn zero_outside(&mut self, start: u64, range: &Range<u64>) -> Result<()> {
        self.write_batch()?;
        self.unsynced = true;
        let end = start.saturating_add(range.end).min(self.size);
        let zeroed = match self.image.data_storage() {
            Ok(storage) => storage
                .zero(start + range.start..end)
                .map_err(Error::io("writing zeros to the data file")),
            Err(error) => Err(error),
        };
        self.stored(zeroed)
    }
}
