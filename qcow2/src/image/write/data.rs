//! Guest data: in place where a cluster is ours alone, else into a new cluster together
//! with what stands around it.

use std::ops::Range;

use super::State;
use crate::{
    Error, Result,
    addr::HostOffset,
    crypt,
    disk::SECTOR,
    format::{ExtendedL2Entry, L2Entry, SubclusterBitmap, l2::SUBCLUSTERS},
    image::extents::{Keep, Mapped},
};

/// Writes that follow each other in the file are one write, up to this many bytes.
const BATCH_BYTES: usize = 1 << 20;

/// Guest data that waits to be written, and where.
#[derive(Debug, Default)]
pub(super) struct Batch {
    at: u64,
    bytes: Vec<u8>,
    /// How many of them, at the end, are zeros that what follows goes over.
    filling: usize,
}

impl Batch {
    /// Where the next byte would follow.
    fn end(&self) -> u64 {
        let len = self.bytes.len().saturating_sub(self.filling);
        self.at.saturating_add(len as u64)
    }

    fn take_filling(&mut self) {
        let len = self.bytes.len().saturating_sub(self.filling);
        self.bytes.truncate(len);
        self.filling = 0;
    }
}

/// Part of a cluster of the disk.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Where the cluster begins.
    pub(super) start: u64,
    /// The bytes of it that are meant, within 0 and the cluster size.
    pub(super) range: Range<u64>,
}

impl State {
    /// The clusters that `range` touches.
    pub(super) fn parts(&self, range: Range<u64>) -> impl Iterator<Item = Part> + use<> {
        let cluster_size = self.image.geometry().cluster_size();
        let first = range.start - range.start % cluster_size;
        let mut next = first;
        std::iter::from_fn(move || {
            let start = next;
            if start >= range.end {
                return None;
            }
            next = start.saturating_add(cluster_size);
            Some(Part {
                start,
                range: range.start.max(start) - start..range.end.min(next) - start,
            })
        })
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        // All of it is there, in a cluster that is ours alone: no entry changes.
        let stored = self.view().stored_at(&(offset..end));
        if let Some(stored) = stored.filter(|stored| stored.copied && !self.image.is_encrypted()) {
            self.write_batch()?;
            return self.write_data(stored.host.0, data);
        }
        let mut rest = data;
        for part in self.parts(offset..end) {
            let len = usize::try_from(part.range.end - part.range.start).unwrap_or(usize::MAX);
            let (piece, behind) = rest.split_at_checked(len).unwrap_or_default();
            self.write_part(&part, piece)?;
            rest = behind;
        }
        Ok(())
    }

    /// Writes `data` to a part of a cluster.
    pub(super) fn write_part(&mut self, part: &Part, data: &[u8]) -> Result<()> {
        let whole = self.whole_sectors(part, data)?;
        let (part, data) = match &whole {
            Some((part, data)) => (part, data.as_slice()),
            None => (part, data),
        };
        let old = self.entry(part.start)?;
        let units = Units::new(self);
        let data_file = self.image.header().has_data_file();
        let touched = units.touched(&part.range);
        let stored = units.stored(old, data_file);
        let ours = old.entry.host(data_file).filter(|_| old.entry.copied());
        if let Some(host) = ours
            && stored & touched == touched
        {
            // All of it is there: no entry changes.
            let at = HostOffset(host.0 + part.range.start);
            return self.put(part.start + part.range.start, at, &[data]);
        }
        let in_place = match ours {
            // In a data file each cluster has the place that it has on the disk.
            None if data_file => Some(HostOffset(part.start)),
            host => host,
        };
        self.make_room(part.start, u64::from(in_place.is_none()))?;
        // Nothing has changed if one of these fails; a table may be new, and empty.
        let place = self.own_entry(part.start)?;
        // Of a cluster that is left behind, what else is stored comes along.
        let along = match in_place {
            Some(_) => 0,
            None => stored & !touched,
        };
        let kept = match in_place {
            Some(_) => stored,
            None => 0,
        };
        let around = units.around(&part.range, kept);
        let (head, tail) = (around.start..part.range.start, part.range.end..around.end);
        let (head, tail) = match stored == 0 && !self.backing_reaches(part.start) {
            // Nothing of it is anywhere: no need to look.
            true => (OldBytes::zeros(&head), OldBytes::zeros(&tail)),
            false => (
                self.old_bytes(part.start, head)?,
                self.old_bytes(part.start, tail)?,
            ),
        };
        let others = units
            .runs(along)
            .map(|range| Ok((range.start, self.old_bytes(part.start, range)?)))
            .collect::<Result<Vec<_>>>()?;
        let host = match in_place {
            Some(host) => host,
            None => self.take_cluster()?,
        };
        let at = |within: u64| HostOffset(host.0 + within);
        let mut start = around.start;
        let encrypted = self.image.is_encrypted();
        let (head, tail) = match (head, tail) {
            (OldBytes::Zeros(before), OldBytes::Zeros(behind))
                if !data_file && !encrypted && self.space.is_untouched(host) =>
            {
                // Zeros are there. The file still ends with a whole sector.
                start += before / SECTOR * SECTOR;
                let rest = |len| OldBytes::Zeros(len % SECTOR).bytes();
                (rest(before), rest(behind))
            }
            (head, tail) => (head.bytes(), tail.bytes()),
        };
        self.put(part.start + start, at(start), &[&head, data, &tail])?;
        for (start, bytes) in others {
            self.put(part.start + start, at(start), &[&bytes.bytes()])?;
        }
        let new = units.entry(host, stored | touched, old, touched);
        self.set_entry(place, new);
        if in_place.is_none() {
            self.drop_cluster(part.start, old.entry, false);
        }
        Ok(())
    }

    /// Gives back the clusters that `old`, the entry of the cluster at `start` until now,
    /// refers to; with `punch` their space, too.
    pub(super) fn drop_cluster(&mut self, start: u64, old: L2Entry, punch: bool) {
        let geometry = self.image.geometry();
        if self.image.header().has_data_file() {
            if punch && old.host(true) == Some(HostOffset(start)) {
                self.leave_hole(start..start.saturating_add(geometry.cluster_size()));
            }
            return;
        }
        if old.is_compressed() {
            let (host, len) = old.compressed_range(geometry);
            self.space.give_back(host, len, punch);
        } else if let Some(host) = old.host(false) {
            self.space.give_back(host, geometry.cluster_size(), punch);
        }
    }

    /// What a part of the cluster at `start` holds so far.
    fn old_bytes(&mut self, start: u64, range: Range<u64>) -> Result<OldBytes> {
        let len = range.end.saturating_sub(range.start);
        let first = start.saturating_add(range.start);
        // What is past the disk's end is zeros.
        let inside = self.size.saturating_sub(first).min(len);
        if len == 0 || self.is_known_zero(first..first + inside)? {
            return Ok(OldBytes::zeros(&range));
        }
        // What is there may be what waits.
        self.write_batch()?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let part = bytes.get_mut(..usize::try_from(inside).unwrap_or(usize::MAX));
        self.view().read(first, part.unwrap_or_default())?;
        Ok(OldBytes::Data(bytes))
    }

    /// Whether `range` is known to read as zeros without reading it.
    pub(super) fn is_known_zero(&self, range: Range<u64>) -> Result<bool> {
        let mut at = range.start;
        let mut stretches = Vec::new();
        while at < range.end {
            stretches.clear();
            self.view()
                .stretches(at..range.end, Keep::Yes, &mut stretches)?;
            for stretch in &stretches {
                let zero = match stretch.mapped {
                    Mapped::Zero { .. } => true,
                    Mapped::Unallocated { .. } => !self.backing_reaches(stretch.start),
                    Mapped::Data { .. } | Mapped::Compressed { .. } => false,
                };
                if !zero {
                    return Ok(false);
                }
                at = stretch.end();
            }
            if stretches.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether there is, or may be, something in the backing file at `offset` or behind.
    pub(super) fn backing_reaches(&self, offset: u64) -> bool {
        match self.image.open_backing() {
            Ok(None) => false,
            Ok(Some(disk)) => offset < disk.size(),
            // One that isn't open.
            Err(_) => true,
        }
    }

    /// The part and its data, made longer to whole sectors where those are what is
    /// encrypted; `None` if they are whole, or needn't be.
    fn whole_sectors(&mut self, part: &Part, data: &[u8]) -> Result<Option<(Part, Vec<u8>)>> {
        let Range { start, end } = part.range;
        let range = start / crypt::SECTOR * crypt::SECTOR..end.next_multiple_of(crypt::SECTOR);
        if !self.image.is_encrypted() || range == part.range {
            return Ok(None);
        }
        let head = self.old_bytes(part.start, range.start..start)?.bytes();
        let tail = self.old_bytes(part.start, end..range.end)?.bytes();
        let whole = Part {
            start: part.start,
            range,
        };
        Ok(Some((whole, [&head, data, &tail].concat())))
    }

    /// Has guest data, which begins at `guest` on the disk, written at `at`, with that
    /// before it if it follows; encrypted, if the image is.
    fn put(&mut self, guest: u64, at: HostOffset, pieces: &[&[u8]]) -> Result<()> {
        if self.image.is_encrypted() {
            let mut bytes = pieces.concat();
            if let Some(cipher) = self.image.cipher()? {
                cipher.encrypt(guest, at, &mut bytes);
            }
            return self.put_stored(at, &[&bytes]);
        }
        self.put_stored(at, pieces)
    }

    /// Has bytes written at `at` as they are, with those before them if they follow.
    pub(super) fn put_stored(&mut self, at: HostOffset, pieces: &[&[u8]]) -> Result<()> {
        let mut at = at.0;
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            let room = BATCH_BYTES.saturating_sub(self.batch.bytes.len());
            if self.batch.end() != at || piece.len() > room {
                self.write_batch()?;
            }
            self.batch.take_filling();
            if self.batch.bytes.is_empty() {
                self.batch.at = at;
            }
            if piece.len() > BATCH_BYTES {
                self.write_data(at, piece)?;
            } else {
                self.batch.bytes.extend_from_slice(piece);
            }
            at = at.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Has `len` zeros written at `at`, unless something else goes there before they are.
    pub(super) fn fill(&mut self, at: HostOffset, len: usize) -> Result<()> {
        if self.batch.end() != at.0 {
            self.write_batch()?;
        }
        self.batch.take_filling();
        if self.batch.bytes.is_empty() {
            self.batch.at = at.0;
        }
        let filled = self.batch.bytes.len().saturating_add(len);
        self.batch.bytes.resize(filled, 0);
        self.batch.filling = len;
        Ok(())
    }

    /// Writes the data that waits.
    pub(super) fn write_batch(&mut self) -> Result<()> {
        if self.batch.bytes.is_empty() {
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.batch.bytes);
        self.batch.filling = 0;
        // After a failure nothing more is written.
        let written = self.require_unfailed();
        let written = written.and_then(|()| self.write_data(self.batch.at, &bytes));
        bytes.clear();
        self.batch.bytes = bytes;
        written
    }

    fn write_data(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.unsynced = true;
        let written = match self.image.data_storage() {
            Ok(storage) => storage.write_all_at(at, bytes).map_err(|error| {
                let name = &self.image.name;
                Error::io(format!("writing guest data at {at:#x} of '{name}'"))(error)
            }),
            Err(error) => Err(error),
        };
        self.stored(written)?;
        self.space.touched(at.saturating_add(bytes.len() as u64));
        Ok(())
    }
}

/// What was there before.
#[derive(Debug)]
enum OldBytes {
    Zeros(u64),
    Data(Vec<u8>),
}

impl OldBytes {
    fn zeros(range: &Range<u64>) -> Self {
        Self::Zeros(range.end.saturating_sub(range.start))
    }

    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Zeros(len) => vec![0; usize::try_from(len).unwrap_or(0)],
            Self::Data(bytes) => bytes,
        }
    }
}

/// The parts of a cluster that are allocated each by itself: its subclusters, or all of
/// it. A set of them has one bit each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Units {
    /// Bytes of one.
    pub(super) size: u64,
    count: u32,
}

impl Units {
    pub(super) fn new(state: &State) -> Self {
        let geometry = state.image.geometry();
        let count = match geometry.extended_l2() {
            true => SUBCLUSTERS,
            false => 1,
        };
        Self {
            size: geometry.cluster_size() / u64::from(count),
            count,
        }
    }

    /// All of them.
    pub(super) fn all(self) -> u32 {
        u32::MAX >> (32 - self.count)
    }

    /// Those from `first` up to, without, `end`.
    pub(super) fn between(self, first: u64, end: u64) -> u32 {
        let mask = |n: u64| match u32::try_from(n.min(32)) {
            Ok(32) | Err(_) => u32::MAX,
            Ok(n) => (1 << n) - 1,
        };
        mask(end) & !mask(first)
    }

    /// Those that `range` touches.
    pub(super) fn touched(self, range: &Range<u64>) -> u32 {
        self.between(range.start / self.size, range.end.div_ceil(self.size))
    }

    /// Those whose data `entry` has.
    pub(super) fn stored(self, both: ExtendedL2Entry, data_file: bool) -> u32 {
        let entry = both.entry;
        if entry.is_compressed() {
            return self.all();
        }
        match entry.host(data_file) {
            None => 0,
            Some(_) if self.count > 1 => both.bitmap.allocated(),
            Some(_) if entry.reads_as_zeros() => 0,
            Some(_) => 1,
        }
    }

    /// What has to be written for `range`: all of it, and the rest of the units that it
    /// touches in part and that aren't in `kept`.
    fn around(self, range: &Range<u64>, kept: u32) -> Range<u64> {
        let is_kept = |at: u64| kept & self.between(at / self.size, at / self.size + 1) != 0;
        let start = match is_kept(range.start) {
            true => range.start,
            false => range.start / self.size * self.size,
        };
        let end = match is_kept(range.end - 1) {
            true => range.end,
            false => range.end.div_ceil(self.size) * self.size,
        };
        start..end
    }

    /// The bytes of `set`, adjoining ones at once.
    fn runs(self, set: u32) -> impl Iterator<Item = Range<u64>> {
        let mut left = set;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let first = left.trailing_zeros();
            let end = first + (left >> first).trailing_ones();
            left &= !self.between(first.into(), end.into());
            Some(u64::from(first) * self.size..u64::from(end) * self.size)
        })
    }

    /// The entry of a cluster at `host` that has `stored`, of which `written` is new.
    fn entry(
        self,
        host: HostOffset,
        stored: u32,
        old: ExtendedL2Entry,
        written: u32,
    ) -> ExtendedL2Entry {
        let entry = L2Entry::data(host, true);
        let zeros = match old.entry.is_compressed() {
            true => 0,
            false => old.bitmap.zeros() & !written,
        };
        let bitmap = match self.count {
            1 => SubclusterBitmap::default(),
            _ => SubclusterBitmap(u64::from(zeros) << 32 | u64::from(stored)),
        };
        ExtendedL2Entry { entry, bitmap }
    }
}
