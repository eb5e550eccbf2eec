//! [`Entries`]: from the bytes of L2 entries to stretches of the disk. Each entry is
//! checked; one that can't be is an error for its cluster, or subcluster, alone.

use super::{
    Image,
    extents::{Found, Mapped, Run, Stretch},
};
use crate::{
    Error, Geometry, Result,
    addr::HostOffset,
    disk::bad,
    format::{
        ExtendedL2Entry, L2Entry, Mapping, Subcluster, SubclusterBitmap,
        l2::{self, SUBCLUSTERS},
    },
    table::Bounds,
};

/// Clusters whose offsets reach this are none: the bits above are reserved.
const HOST_LIMIT: u64 = 1 << 56;

/// What L2 entries are judged by.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    geometry: Geometry,
    bounds: Bounds<'a>,
    /// Guest data is in an external data file.
    data_file: bool,
    /// Bit 0 of a standard entry says that the cluster reads as zeros.
    zero_bit: bool,
}

/// A run of L2 entries, and what is needed to understand them.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    run: &'a Run,
    geometry: Geometry,
    rules: Rules<'a>,
}

/// What is wrong with an entry.
pub(super) struct Fault {
    found: String,
    allowed: String,
}

impl Fault {
    fn new(found: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self {
            found: found.into(),
            allowed: allowed.into(),
        }
    }
}

impl<'a> Rules<'a> {
    pub(super) fn new(image: &'a Image) -> Self {
        let header = image.header();
        let geometry = image.geometry();
        Self {
            geometry,
            bounds: image.bounds(),
            data_file: header.has_data_file(),
            zero_bit: header.version >= 3 && !geometry.extended_l2(),
        }
    }

    /// What the standard `entry` says, which begins `length` bytes of clusters alike.
    pub(super) fn mapped(&self, entry: L2Entry, length: u64) -> Result<Mapped, Fault> {
        let reserved = entry.reserved(self.geometry, self.zero_bit);
        if reserved != 0 {
            let found = format!("{:#018x}", entry.0);
            return Err(Fault::new(found, format!("bits {reserved:#x} clear")));
        }
        Ok(match entry.mapping(self.geometry, self.data_file) {
            Mapping::Unallocated => Mapped::Unallocated { host: None },
            Mapping::Zero { host } => {
                host.map_or(Ok(()), |host| self.check_offset(host, length))?;
                Mapped::Zero { host }
            }
            Mapping::Data { host } => {
                self.check_cluster(host, length)?;
                Mapped::Data { host }
            }
            Mapping::Compressed { host, len } => self.compressed(host, len)?,
        })
    }

    fn compressed(&self, host: HostOffset, len: u64) -> Result<Mapped, Fault> {
        if self.data_file {
            let allowed = "none in an image with an external data file";
            return Err(Fault::new("a compressed cluster", allowed));
        }
        self.check_place(host.0, len, host.0)?;
        Ok(Mapped::Compressed { host, len })
    }

    fn check_offset(&self, host: HostOffset, length: u64) -> Result<(), Fault> {
        if !self.geometry.is_aligned(host) {
            let allowed = format!("a multiple of {:#x}", self.geometry.cluster_size());
            return Err(Fault::new(format!("{host}, which is unaligned"), allowed));
        }
        if host.0.saturating_add(length) > HOST_LIMIT {
            return Err(Fault::new(format!("{host}"), "an offset below 2^56"));
        }
        Ok(())
    }

    /// Clusters of `length` bytes from `host` on, with guest data in them.
    fn check_cluster(&self, host: HostOffset, length: u64) -> Result<(), Fault> {
        self.check_offset(host, length)?;
        let last = host.0.saturating_add(length - self.geometry.cluster_size());
        self.check_place(host.0, length, last)
    }

    /// Guest data of `length` bytes at `host`, of which the last part begins at `last`.
    /// What a data file lacks at its end are zeros.
    fn check_place(&self, host: u64, length: u64, last: u64) -> Result<(), Fault> {
        if self.data_file {
            return Ok(());
        }
        let range = host..host.saturating_add(length);
        match self.bounds.fault(&range, last) {
            Ok(None) => Ok(()),
            Ok(Some(found)) => Err(Fault::new(found, "guest data inside the file")),
            Err(e) => Err(Fault::new(format!("no size of the file: {e}"), "one")),
        }
    }
}

impl<'a> Entries<'a> {
    pub(super) fn new(image: &'a Image, run: &'a Run) -> Self {
        let rules = Rules::new(image);
        Self {
            run,
            geometry: rules.geometry,
            rules,
        }
    }

    /// Finds the stretches of the entries that are in the range asked for; returns where
    /// the last of them ends.
    ///
    /// # Errors
    /// [`Error::Guest`] for the first entry that can't be understood, after the stretches
    /// before it.
    pub(super) fn find(&self, found: &mut Found<'_>) -> Result<u64> {
        if self.geometry.extended_l2() {
            self.find_extended(found)
        } else {
            self.find_standard(found)
        }
    }

    /// The indices of the entries that `found` asks for, out of `count`.
    fn wanted(&self, found: &Found<'_>, count: usize) -> (usize, usize) {
        let index = |offset: u64, up: u64| {
            let cluster =
                (offset.saturating_sub(self.run.guest) + up) / self.geometry.cluster_size();
            usize::try_from(cluster).unwrap_or(usize::MAX).min(count)
        };
        let last = self.geometry.cluster_size() - 1;
        (index(found.range.start, 0), index(found.range.end, last))
    }

    /// Where the cluster of entry `index` begins on the disk.
    fn guest(&self, index: usize) -> u64 {
        self.run.guest + index as u64 * self.geometry.cluster_size()
    }

    fn find_standard(&self, found: &mut Found<'_>) -> Result<u64> {
        let words = self.run.bytes.as_chunks::<8>().0;
        let (start, end) = self.wanted(found, words.len());
        let words = words.get(..end).unwrap_or_default();
        let mut at = start;
        while let Some((first, rest)) = words.get(at..).and_then(<[_]>::split_first) {
            let entry = L2Entry(u64::from_be_bytes(*first));
            let alike = self.alike(entry, rest);
            let stretch = match self.standard(entry, at, 1 + alike) {
                // What is wrong with one of them needn't be wrong with all.
                Err(_) if alike > 0 => self.standard(entry, at, 1),
                result => result,
            };
            let stretch = stretch.map_err(|fault| self.error(found, at, fault))?;
            at += usize::try_from(stretch.length / self.geometry.cluster_size()).unwrap_or(1);
            found.push(stretch);
        }
        Ok(self.guest(end).min(found.range.end))
    }

    /// How many of the entries `rest` continue `entry`: clusters that follow its cluster
    /// and differ in nothing else, or entries without a cluster that are the same.
    fn alike(&self, entry: L2Entry, rest: &[[u8; 8]]) -> usize {
        let step = match entry.host(self.rules.data_file) {
            _ if entry.is_compressed() => return 0,
            Some(_) => self.geometry.cluster_size(),
            None => 0,
        };
        // The copied flag is a matter for writers, unless it makes a cluster of offset 0.
        let plain = |raw: u64| raw & !L2Entry::data(HostOffset(0), true).0;
        let mut expected = plain(entry.0);
        let continues = |next: &&[u8; 8]| {
            expected = expected.wrapping_add(step);
            let next = L2Entry(u64::from_be_bytes(**next));
            plain(next.0) == expected && (step > 0 || next.host(self.rules.data_file).is_none())
        };
        rest.iter().take_while(continues).count()
    }

    /// The standard entry of the cluster that begins at `start` on the disk.
    ///
    /// # Errors
    /// [`Error::Guest`] if it can't be understood.
    pub(super) fn standard_at(&self, start: u64) -> Result<L2Entry> {
        let cluster_size = self.geometry.cluster_size();
        let index = start.saturating_sub(self.run.guest) / cluster_size;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let word = self.run.bytes.as_chunks::<8>().0.get(index);
        let entry = L2Entry(word.map_or(0, |word| u64::from_be_bytes(*word)));
        match self.rules.mapped(entry, cluster_size) {
            Ok(_) => Ok(entry),
            Err(fault) => Err(bad(start, cluster_size, self.corrupt(index, fault))),
        }
    }

    /// The stretch of `count` clusters that begins with that of `entry`, which is number
    /// `index`, and continues alike.
    fn standard(&self, entry: L2Entry, index: usize, count: usize) -> Result<Stretch, Fault> {
        let length = self.geometry.cluster_size() * count as u64;
        let mapped = self.rules.mapped(entry, length)?;
        let start = self.guest(index);
        Ok(Stretch {
            start,
            length,
            mapped,
        })
    }

    fn find_extended(&self, found: &mut Found<'_>) -> Result<u64> {
        let (start, end) = self.wanted(found, self.run.bytes.len() / 16);
        let entries = l2::extended_entries(&self.run.bytes);
        for (index, entry) in entries.enumerate().take(end).skip(start) {
            self.extended(entry, index, found)?;
        }
        Ok(self.guest(end).min(found.range.end))
    }

    /// Pushes the stretches of one cluster with subclusters.
    fn extended(&self, both: ExtendedL2Entry, index: usize, found: &mut Found<'_>) -> Result<()> {
        let ExtendedL2Entry { entry, bitmap } = both;
        let host = entry.host(self.rules.data_file);
        let cluster = (|| {
            let reserved = entry.reserved(self.geometry, false);
            if reserved != 0 {
                let raw = format!("{:#018x}", entry.0);
                return Err(Fault::new(raw, format!("bits {reserved:#x} clear")));
            }
            if entry.is_compressed() {
                let (host, len) = entry.compressed_range(self.geometry);
                return self.rules.compressed(host, len).map(Some);
            }
            let Some(host) = host else {
                if bitmap.allocated() != 0 {
                    let found = format!("no cluster for the bitmap {:#018x}", bitmap.0);
                    return Err(Fault::new(found, "one, as subclusters are allocated"));
                }
                return Ok(None);
            };
            self.rules
                .check_offset(host, self.geometry.cluster_size())?;
            Ok(match bitmap {
                SubclusterBitmap::ALL_DATA => {
                    self.rules
                        .check_cluster(host, self.geometry.cluster_size())?;
                    Some(Mapped::Data { host })
                }
                _ => None,
            })
        })();
        let start = self.guest(index);
        match cluster.map_err(|fault| self.error(found, index, fault))? {
            Some(mapped) => {
                let length = self.geometry.cluster_size();
                found.push(Stretch {
                    start,
                    length,
                    mapped,
                });
                Ok(())
            }
            None => self.subclusters(bitmap, host, index, found),
        }
    }

    /// Pushes the stretches of a cluster whose subclusters differ, or aren't allocated.
    fn subclusters(
        &self,
        bitmap: SubclusterBitmap,
        host: Option<HostOffset>,
        index: usize,
        found: &mut Found<'_>,
    ) -> Result<()> {
        let size = self.geometry.cluster_size() / u64::from(SUBCLUSTERS);
        let mut sub = 0;
        while sub < SUBCLUSTERS {
            let state = bitmap.get(sub);
            let alike = (sub..SUBCLUSTERS).take_while(|sub| bitmap.get(*sub) == state);
            let count = u32::try_from(alike.count()).unwrap_or(1).max(1);
            let start = self.guest(index) + u64::from(sub) * size;
            let length = u64::from(count) * size;
            sub += count;
            if start.saturating_add(length) <= found.range.start || start >= found.range.end {
                continue;
            }
            let host = host.map(|host| HostOffset(host.0 + (start - self.guest(index))));
            let mapped = match (state, host) {
                (Subcluster::Unallocated, host) => Ok(Mapped::Unallocated { host }),
                (Subcluster::Zero, host) => Ok(Mapped::Zero { host }),
                (Subcluster::Data, Some(host)) => {
                    let last = host.0 + length - size;
                    let place = self.rules.check_place(host.0, length, last);
                    place.map(|()| Mapped::Data { host })
                }
                (Subcluster::Invalid, _) | (Subcluster::Data, None) => Err(Fault::new(
                    format!("subcluster bitmap {:#018x}", bitmap.0),
                    "no subcluster that is both allocated and zeros",
                )),
            };
            let mapped = mapped.map_err(|fault| {
                let part = start.max(found.range.start)..start + length;
                let error = self.corrupt(index, fault);
                bad(
                    part.start,
                    part.end.min(found.range.end) - part.start,
                    error,
                )
            })?;
            found.push(Stretch {
                start,
                length,
                mapped,
            });
        }
        Ok(())
    }

    /// The error for the cluster of entry `index`, as far as it was asked for.
    fn error(&self, found: &Found<'_>, index: usize, fault: Fault) -> Error {
        let start = self.guest(index).max(found.range.start);
        let end = (self.guest(index) + self.geometry.cluster_size()).min(found.range.end);
        bad(start, end.saturating_sub(start), self.corrupt(index, fault))
    }

    fn corrupt(&self, index: usize, fault: Fault) -> Error {
        let entry_size = self.geometry.l2_entry_size();
        let number = self.guest(index) / self.geometry.cluster_size() % self.geometry.l2_entries();
        let at = HostOffset(self.run.host.0 + index as u64 * entry_size);
        Error::corrupt(
            format!("L2 table entry {number}"),
            at,
            fault.found,
            fault.allowed,
        )
    }
}
