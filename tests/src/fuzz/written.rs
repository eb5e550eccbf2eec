//! The guest's disk of a whole image in memory: repaired, and written. What is accepted
//! must read back, and must leave an image that checks clean.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use qcow2::{
    Error, Image, OpenOptions,
    addr::HostOffset,
    check::{CheckOptions, Finding, Referrer, Repair, RepairEvent, Verdict, Visitor, repair, walk},
    crypt::Secret,
    disk::{Disk, DiskExt, RawDisk},
    format::HeaderArea,
    image::{GuestWriter, SnapshotDisk},
    io::memory::MemoryStorage,
};

use super::{
    Input,
    image::{checked, image_seeds},
};

/// Bytes in front of the image that say what is written.
pub(super) const SCRIPT: usize = 32;
/// Bytes of one of them.
const STEP: usize = 4;
/// Bytes of a sector, the unit in which contents are compared.
const SECTOR: u64 = 512;
/// What is looked at around a write.
const AROUND: u64 = 96 << 10;
/// Extents that are compared of a disk, and bytes of each.
const EXTENTS: usize = 100;
const READ: usize = 20_000;
/// Snapshots that are looked at.
const SNAPSHOTS: usize = 3;
/// Images with more snapshots only take time: a finding for each, in every check.
const MOST_SNAPSHOTS: u32 = 1000;

/// Takes the head of `data` for a script and the rest for an image. Repairs the image, and
/// writes to it as the script says.
pub fn written(data: &[u8]) {
    let Some((script, bytes)) = data.split_at_checked(SCRIPT) else {
        return;
    };
    written_with(script, bytes, None);
}

/// The same with script and image apart, and the secret of an encrypted image.
pub(super) fn written_with(script: &[u8], bytes: &[u8], secret: Option<&Secret>) {
    let storage = MemoryStorage::from_bytes(bytes);
    let area = HeaderArea::read_for_check(&storage);
    if area.is_ok_and(|area| area.header().nb_snapshots > MOST_SNAPSHOTS) {
        return;
    }
    repaired(&storage.fork());
    let backing = MemoryStorage::from_bytes(&[0xbb; 70_001]);
    let data_file = MemoryStorage::from_bytes(&[0xdd; 70_001]);
    let files = Files {
        storage,
        backing,
        data_file,
        secret: secret.cloned(),
    };
    let Some(image) = files.open(true) else {
        return;
    };
    // What was left dirty has been repaired by now.
    let before = checked(&files.storage);
    let bitmaps = recording(&image);
    let snapshots = snapshots(image);
    let Some(image) = files.open(true) else {
        panic!("an image that was repaired can't be opened any more");
    };
    let Ok(writer) = GuestWriter::new(image) else {
        return;
    };
    let Some((0, leaks)) = before else {
        panic!("an image that has {before:?} wrong with it is written");
    };
    let mut model = Model::default();
    for step in script.chunks_exact(STEP) {
        model.step(&writer, step);
    }
    model.verify(&writer);
    let image = match writer.close() {
        Ok(image) => image,
        // There may be no room for bitmaps, or a damaged one in the way.
        Err(Error::Io { .. }) => panic!("memory doesn't fail"),
        Err(_) => match files.open(true) {
            Some(image) => image,
            None => panic!("the image can't be opened after it was written"),
        },
    };
    drop(image);
    let Some(image) = files.open(false) else {
        panic!("the image can't be opened after it was written");
    };
    model.verify(&image);
    let now = checked(&files.storage);
    let leaked_at_most = now.is_some_and(|(corruptions, _)| corruptions == 0);
    assert!(leaked_at_most, "writing made the image corrupt: {now:?}");
    for (name, old) in bitmaps {
        let stored = image.load_bitmap(&name);
        // One that couldn't be stored is in use, and can't be loaded.
        let Ok(bits) = stored else { continue };
        for range in old.into_iter().chain(model.changed.clone()) {
            let clean = bits.next_clean(range.start..range.end.min(bits.len()));
            assert_eq!(clean, None, "{name} doesn't have {range:?}");
        }
    }
    assert!(
        snapshots == self::snapshots(image),
        "writing changed a snapshot ({leaks} leaks before)"
    );
}

/// An image and what belongs to it.
struct Files {
    storage: MemoryStorage,
    backing: MemoryStorage,
    data_file: MemoryStorage,
    secret: Option<Secret>,
}

impl Files {
    fn open(&self, writable: bool) -> Option<Image> {
        let mut options = OpenOptions::new().writable(writable);
        if let Some(secret) = &self.secret {
            options = options.secret(secret.clone());
        }
        let image = options.open_storage("image", Arc::new(self.storage.clone()));
        let image = image.ok()?;
        let below = RawDisk::new("below", Arc::new(self.backing.clone())).unwrap();
        let image = match image.backing_name() {
            Some(_) => image.with_backing(Arc::new(below)),
            None => image,
        };
        Some(image.with_data_file(Arc::new(self.data_file.clone())))
    }
}

/// Names of the bitmaps that record, with what is dirty in them.
fn recording(image: &Image) -> Vec<(String, Vec<Range<u64>>)> {
    let Ok(bitmaps) = image.bitmaps() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for bitmap in bitmaps.iter(image).take(8) {
        let name = bitmap.name_lossy();
        if bitmap.state() == qcow2::bitmap::BitmapState::Recording
            && let Ok(bits) = bitmap.load()
        {
            found.push((name, bits.ranges().take(1000).collect()));
        }
    }
    found
}

/// A part of what each snapshot holds.
fn snapshots(image: Image) -> Vec<Sample> {
    let image = Arc::new(image);
    let all = image.snapshots().unwrap_or_default().into_iter();
    let disks = all
        .take(SNAPSHOTS)
        .filter_map(|snapshot| SnapshotDisk::new(&image, snapshot).ok());
    disks.map(|disk| sample(&disk, &|_| true)).collect()
}

/// What the beginnings of the first extents hold; `None` where that can't be read.
type Sample = Vec<(u64, Option<Vec<u8>>)>;

fn sample(disk: &dyn Disk, wanted: &dyn Fn(&qcow2::disk::Extent) -> bool) -> Sample {
    let extents = disk.extents(0..u64::MAX).take(EXTENTS).flatten();
    let read = |extent: qcow2::disk::Extent| {
        let len = usize::try_from(extent.length).map_or(READ, |len| len.min(READ));
        let mut bytes = vec![0; len];
        let start = extent.start.get();
        (start, disk.read(start, &mut bytes).ok().map(|()| bytes))
    };
    extents.filter(wanted).map(read).collect()
}

/// What the disk holds in the sectors that were looked at; `None` where it isn't known.
#[derive(Default)]
struct Model {
    sectors: BTreeMap<u64, Option<Vec<u8>>>,
    changed: Vec<Range<u64>>,
}

impl Model {
    /// Writes, zeroes, discards or flushes, as 4 bytes of the script say.
    fn step(&mut self, writer: &GuestWriter, step: &[u8]) {
        let [what, place, fine, length] = *step else {
            return;
        };
        let size = writer.size();
        if size == 0 {
            return;
        }
        // Most of it at the disk's beginning, where small images have their data.
        let start = match what >> 6 {
            0 => u64::from(place) << 8,
            1 => u64::from(place) << 16,
            2 => (u64::from(place) << 16) % size,
            _ => size - 1 - ((u64::from(place) << 10) % size),
        };
        let start = start.saturating_add(u64::from(fine)).min(size - 1);
        let length = (u64::from(length) * u64::from(length) + 1).min(size - start);
        let range = start..start + length;
        self.look(writer, &range);
        let done = match what & 7 {
            0..=2 => {
                let bytes: Vec<u8> = (0..length).map(|n| fine ^ (n / 64) as u8).collect();
                let done = writer.write(start, &bytes);
                self.change(&range, done.is_ok(), |at| bytes[(at - start) as usize]);
                done
            }
            3 | 4 => {
                let done = writer.zero(range.clone(), what & 7 == 3);
                self.change(&range, done.is_ok(), |_| 0);
                done
            }
            5 => {
                let done = writer.discard(range.clone());
                self.discarded(writer, &range);
                done
            }
            6 => writer.flush(),
            _ => {
                self.verify(writer);
                Ok(())
            }
        };
        if done.is_ok() && what & 7 < 6 {
            self.changed.push(range);
        }
        assert!(!matches!(done, Err(Error::Io { .. })), "{done:?}");
    }

    /// Reads what stands in and around `range`, where it isn't known yet.
    fn look(&mut self, disk: &dyn Disk, range: &Range<u64>) {
        let start = range.start.saturating_sub(AROUND) / SECTOR;
        let end = (range.end.saturating_add(AROUND)).min(disk.size()) / SECTOR;
        for sector in start..end {
            self.sectors
                .entry(sector)
                .or_insert_with(|| read(disk, sector));
        }
    }

    /// `range` was changed, or some of it if that failed.
    fn change(&mut self, range: &Range<u64>, is_done: bool, byte: impl Fn(u64) -> u8) {
        let sectors = range.start / SECTOR..range.end.div_ceil(SECTOR);
        for (sector, content) in self.sectors.range_mut(sectors) {
            let first = sector * SECTOR;
            let inside = first.max(range.start)..(first + SECTOR).min(range.end);
            if inside.end - inside.start == SECTOR && is_done {
                content.get_or_insert_with(|| vec![0; SECTOR as usize]);
            }
            match content {
                Some(bytes) if is_done => {
                    for at in inside {
                        bytes[(at - first) as usize] = byte(at);
                    }
                }
                content => *content = None,
            }
        }
    }

    /// What was discarded is zeros now, or what it was.
    fn discarded(&mut self, disk: &dyn Disk, range: &Range<u64>) {
        let sectors = range.start / SECTOR..range.end.div_ceil(SECTOR);
        for (sector, content) in self.sectors.range_mut(sectors) {
            let now = read(disk, *sector);
            let zeros = now
                .as_ref()
                .is_some_and(|now| now.iter().all(|byte| *byte == 0));
            let whole = sector * SECTOR >= range.start && (sector + 1) * SECTOR <= range.end;
            assert!(
                now == *content || zeros && whole,
                "a discard changed sector {sector}"
            );
            *content = now;
        }
    }

    /// The disk is as it should be.
    fn verify(&self, disk: &dyn Disk) {
        for (sector, content) in &self.sectors {
            if let Some(content) = content {
                let now = read(disk, *sector);
                assert!(now.as_ref() == Some(content), "sector {sector} is another");
            }
        }
    }
}

fn read(disk: &dyn Disk, sector: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; SECTOR as usize];
    let read = disk.read(sector * SECTOR, &mut bytes);
    read.ok().map(|()| bytes)
}

/// Where metadata is, and whether guest data is in the same clusters.
#[derive(Default)]
struct Places {
    metadata: Vec<Range<u64>>,
    data: Vec<Range<u64>>,
}

impl Visitor for Places {
    fn reference(&mut self, by: Referrer, offset: HostOffset, bytes: u64, _: u64) {
        let range = offset.get()..offset.get().saturating_add(bytes);
        match by {
            Referrer::Data { .. } | Referrer::Compressed { .. } => self.data.push(range),
            _ => self.metadata.push(range),
        }
    }

    fn problem(&mut self, _: Finding) {}
}

impl Places {
    /// Whether a change of metadata may be one of guest data.
    fn overlap(&mut self) -> bool {
        self.metadata.sort_by_key(|range| range.start);
        // Tables may lie in each other, so that the one before isn't enough to look at.
        let mut ends = 0;
        for range in &mut self.metadata {
            ends = range.end.max(ends);
            range.end = ends;
        }
        let metadata = &self.metadata;
        self.data.iter().any(|data| {
            let before = metadata.partition_point(|range| range.start < data.end);
            before > 0 && metadata[before - 1].end > data.start
        })
    }
}

/// Repairs the image, twice.
fn repaired(storage: &MemoryStorage) {
    let Ok(mut area) = HeaderArea::read_for_check(storage) else {
        return;
    };
    let mut places = Places::default();
    let view = area.clone();
    let metadata = qcow2::check::Metadata {
        storage,
        header: view.header(),
        extensions: view.extensions(),
        geometry: view.header().geometry(),
    };
    let apart = walk(&metadata, &mut places).is_ok() && !places.overlap();
    let guest = || {
        let image = OpenOptions::new().open_storage("image", Arc::new(storage.clone()));
        image.ok().map(|image| sample(&image, &|_| true))
    };
    let (before, worse) = (guest(), checked(storage));
    let mut tell = |event: RepairEvent<'_>| {
        let _ = event.to_string();
    };
    let options = CheckOptions::default();
    let Ok(outcome) = repair(storage, &mut area, Repair::All, options, &mut tell) else {
        return;
    };
    if let (true, Some(before), Some(after)) = (apart, &before, guest()) {
        for (start, bytes) in before {
            let Some(bytes) = bytes else { continue };
            // An extent may be another by now, not what is in it.
            let same = after.iter().filter(|(at, _)| at == start).all(|(_, now)| {
                let now = now.as_deref().unwrap_or_default();
                now.iter().zip(bytes).all(|(now, was)| now == was)
            });
            assert!(same, "a repair changed what is at {start}");
        }
    }
    // Where tables are left that make no sense, right refcounts may show more that is wrong.
    let now = checked(storage);
    if worse.is_some_and(|(corruptions, _)| corruptions == 0) {
        assert!(now.is_some_and(|(corruptions, _)| corruptions == 0));
    }
    if matches!(outcome.report.verdict(), Verdict::Clean | Verdict::Leaks) {
        // Of bitmaps there are findings that are none of a repair's.
        assert!(now.is_some(), "what was repaired can be checked");
        let mut area = HeaderArea::read_for_check(storage).unwrap();
        let again = repair(storage, &mut area, Repair::All, options, &mut |_| {}).unwrap();
        assert!(again.fixed.is_empty(), "{outcome:?}, and then {again:?}");
    }
}

/// Images with a script in front.
pub(super) fn seeds() -> Vec<Input> {
    let scripts = [
        [0x00, 0x00, 0x10, 0x80, 0x40, 0x01, 0x00, 0xff],
        [0x41, 0x02, 0x77, 0xc0, 0x05, 0x00, 0x00, 0xff],
        [0x43, 0x00, 0x00, 0xff, 0xc0, 0x00, 0x33, 0x21],
        [0x06, 0x00, 0x00, 0x00, 0x44, 0x01, 0x10, 0xf0],
    ];
    let with_script = |(index, (name, image)): (usize, Input)| {
        let mut data = Vec::new();
        while data.len() < SCRIPT {
            data.extend(scripts[(index + data.len() / 8) % scripts.len()]);
        }
        data.extend(image);
        (name, data)
    };
    image_seeds()
        .into_iter()
        .enumerate()
        .map(with_script)
        .collect()
}
