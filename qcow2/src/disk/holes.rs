//! [`ExtentsAndHoles`]: extents of data, cut where their file has holes.

use std::{collections::BTreeMap, io, ops::Range};

use super::{Disk, DiskExt, Extent, ExtentKind, Extents, bad};
use crate::{Error, Result, io::Storage};

/// The extents of a range, those of data cut where their file has holes. See
/// [`DiskExt::extents_and_holes`](super::DiskExt::extents_and_holes).
#[derive(Debug)]
pub struct ExtentsAndHoles<'a, D: ?Sized> {
    disk: &'a D,
    extents: Extents<'a, D>,
    /// What is left of an extent of data after what was given out.
    rest: Option<Extent>,
    /// What is known of the file of each layer, by its depth; `None` for those that have
    /// no holes to speak of.
    files: BTreeMap<u32, Option<Seen<'a>>>,
}

/// Stretches of a file after which those seen before are forgotten.
const MOST_SEEN: usize = 1 << 16;

/// A file, and what was seen of it. To ask takes longer than all the rest of what an
/// extent takes, and clusters in any order may be in one hole.
#[derive(Debug)]
struct Seen<'a> {
    file: &'a dyn Storage,
    /// Stretches that don't overlap, by their ends: where each begins, and whether it is a
    /// hole.
    stretches: BTreeMap<u64, (u64, bool)>,
}

impl Seen<'_> {
    /// Whether there is a hole at `at`, and where that or the data there ends.
    fn at(&mut self, at: u64) -> io::Result<(bool, u64)> {
        if let Some((end, (start, hole))) = self.after(at)
            && start <= at
        {
            return Ok((hole, end));
        }
        if self.stretches.len() >= MOST_SEEN {
            self.stretches.clear();
        }
        let data = self.file.next_data(at..u64::MAX)?;
        self.keep(data.clone(), false);
        self.keep(at..data.start, true);
        Ok(match data.start > at {
            true => (true, data.start),
            false => (false, data.end.max(at.saturating_add(1))),
        })
    }

    /// The first stretch that ends after `at`.
    fn after(&self, at: u64) -> Option<(u64, (u64, bool))> {
        let behind = self.stretches.range(at.saturating_add(1)..);
        behind.map(|(end, what)| (*end, *what)).next()
    }

    /// What is seen anew begins before what was seen of the same stretch.
    fn keep(&mut self, range: Range<u64>, hole: bool) {
        if range.is_empty() {
            return;
        }
        let known = self
            .stretches
            .entry(range.end)
            .or_insert((range.start, hole));
        known.0 = known.0.min(range.start);
    }
}

impl<'a, D: Disk + ?Sized> ExtentsAndHoles<'a, D> {
    pub(super) fn new(disk: &'a D, range: Range<u64>) -> Self {
        Self {
            disk,
            extents: disk.extents(range),
            rest: None,
            files: BTreeMap::new(),
        }
    }

    /// Leaves out what comes before `at`. Its holes are not asked for.
    pub fn skip_to(&mut self, at: u64) {
        self.rest = self.rest.and_then(|rest| rest.within(&(at..rest.end())));
        self.extents.skip_to(at);
    }

    /// Goes on with the extents of another range of the disk. What was seen of its files
    /// counts there, too.
    pub fn restart(&mut self, range: Range<u64>) {
        self.extents = self.disk.extents(range);
        self.rest = None;
    }

    /// The file of the layer at `depth`, if it is worth to ask it.
    fn file(&mut self, depth: u32) -> Result<Option<&mut Seen<'a>>> {
        if !self.files.contains_key(&depth) {
            let file = match depth.checked_sub(1) {
                None if self.disk.has_holes()? => self.disk.file(),
                None => None,
                Some(depth) => {
                    let backing = self.disk.backing().and_then(|disk| disk.layer(depth));
                    match backing {
                        Some(layer) if layer.has_holes()? => layer.file(),
                        _ => None,
                    }
                }
            };
            let seen = file.map(|file| Seen {
                file: &**file,
                stretches: BTreeMap::new(),
            });
            self.files.insert(depth, seen);
        }
        Ok(self.files.get_mut(&depth).and_then(Option::as_mut))
    }

    /// Cuts `extent` where the file goes from data to a hole, or back, for the first time.
    fn cut(&mut self, extent: Extent) -> Result<Extent> {
        let (ExtentKind::Data, Some(host)) = (extent.kind, extent.host) else {
            return Ok(extent);
        };
        let Some(file) = self.file(extent.depth)? else {
            return Ok(extent);
        };
        let (hole, end) = file.at(host.0).map_err(|e| {
            let error = Error::io(format!("asking for holes at {host}"))(e);
            bad(extent.start.0, extent.length, error)
        })?;
        let length = end.saturating_sub(host.0).min(extent.length);
        let at = extent.start.0.saturating_add(length);
        self.rest = extent.within(&(at..extent.end()));
        Ok(Extent {
            hole,
            length,
            ..extent
        })
    }
}

impl<D: Disk + ?Sized> Iterator for ExtentsAndHoles<'_, D> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        let extent = match self.rest.take() {
            Some(rest) => Ok(rest),
            None => self.extents.next()?,
        };
        Some(extent.and_then(|extent| self.cut(extent)))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        iter,
        os::unix::fs::FileExt,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use positioned_io::ReadAt;

    use super::*;
    use crate::disk::RawDisk;

    /// Bytes of a block.
    const BLOCK: u64 = 10;

    /// Has blocks of data and of holes, and counts the questions.
    #[derive(Debug)]
    struct Blocks {
        holes: Vec<bool>,
        asked: AtomicUsize,
    }

    impl ReadAt for Blocks {
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
    }

    impl Storage for Blocks {
        fn size(&self) -> io::Result<u64> {
            Ok(self.holes.len() as u64 * BLOCK)
        }

        fn write_all_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn zero(&self, _: Range<u64>) -> io::Result<()> {
            Ok(())
        }

        fn punch_hole(&self, _: Range<u64>) -> io::Result<()> {
            Ok(())
        }

        fn can_grow(&self) -> bool {
            false
        }

        fn allocated_bytes(&self) -> io::Result<u64> {
            Ok(0)
        }

        fn next_data(&self, range: Range<u64>) -> io::Result<Range<u64>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let size = self.size()?;
            let is = |at: u64, hole: bool| self.holes[usize::try_from(at / BLOCK).unwrap()] == hole;
            let find = |from: u64, hole: bool| (from..size).find(|at| is(*at, hole));
            let Some(start) = find(range.start, false) else {
                return Ok(range.end..range.end);
            };
            Ok(start..find(start, true).unwrap_or(size))
        }
    }

    #[test]
    fn each_stretch_is_told_in_any_order_and_asked_for_few_times() {
        let holes: Vec<bool> = (0..1000).map(|n: u32| n % 100 < 60 || n >= 960).collect();
        let blocks = Blocks {
            holes: holes.clone(),
            asked: AtomicUsize::new(0),
        };
        let mut seen = Seen {
            file: &blocks,
            stretches: BTreeMap::new(),
        };
        // 377 and 10000 have no common divisor: every byte once.
        for n in 0..10_000 {
            let at = n * 377 % 10_000;
            let block = usize::try_from(at / BLOCK).unwrap();
            let (hole, end) = seen.at(at).unwrap();
            assert_eq!(hole, holes[block], "{at}");
            let rest = holes[block..].iter().position(|&other| other != hole);
            let expected = rest.map(|blocks| (block + blocks) as u64 * BLOCK);
            assert_eq!(end, expected.unwrap_or(u64::MAX), "{at}");
        }
        let asked = blocks.asked.load(Ordering::Relaxed);
        assert!(asked < 300, "{asked} questions for 20 stretches");
    }

    #[test]
    fn holes_of_what_is_left_out_are_not_asked_for() {
        let holes: Vec<bool> = (0..1000).map(|n: u32| n % 2 == 1).collect();
        let blocks = Arc::new(Blocks {
            holes,
            asked: AtomicUsize::new(0),
        });
        let disk = RawDisk::new("blocks", Arc::<Blocks>::clone(&blocks)).unwrap();
        let mut extents = disk.extents_and_holes(0..10_000);
        let mut told = Vec::new();
        while let Some(extent) = extents.next() {
            let extent = extent.unwrap();
            told.push((extent.start.0, extent.end(), extent.hole));
            extents.skip_to(extent.end() + 995);
            // Never back.
            extents.skip_to(0);
        }
        // The even blocks are data; each time the other half of a block is the first.
        let expected: Vec<_> = iter::once((0, 10, false))
            .chain((1..10).map(|n| (n * 1000 + 5, n * 1000 + 10, false)))
            .collect();
        assert_eq!(told, expected);
        let asked = blocks.asked.load(Ordering::Relaxed);
        assert!(asked <= 3 * told.len(), "{asked} questions");
    }

    #[test]
    fn a_file_is_told_as_the_system_has_it() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let file: &File = temp.as_file();
        file.set_len(1 << 20).unwrap();
        for at in [65_536_u64, 393_216] {
            file.write_all_at(&[1; 65_536], at).unwrap();
        }
        let storage = crate::io::FileStorage::open(
            temp.path(),
            crate::io::Access::ReadOnly,
            crate::io::LockMode::None,
        );
        let storage = storage.unwrap();
        let mut seen = Seen {
            file: &storage,
            stretches: BTreeMap::new(),
        };
        for at in [500_000, 400_000, 70_000, 0, 300_000, 131_072, 65_536] {
            let (hole, end) = seen.at(at).unwrap();
            let expected = match at {
                0..65_536 => (true, 65_536),
                65_536..131_072 => (false, 131_072),
                131_072..393_216 => (true, 393_216),
                393_216..458_752 => (false, 458_752),
                _ => (true, u64::MAX),
            };
            assert_eq!((hole, end), expected, "{at}");
        }
    }
}
