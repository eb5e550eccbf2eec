//! A disk of ours beside what qemu-img reads and maps.

use std::{path::Path, sync::Arc};

use qcow2::{
    BackingPolicy, DataFilePolicy, Image, OpenOptions,
    disk::{Disk, DiskExt, Extent, ExtentKind},
    io::LockMode,
};
use serde_json::Value;

use super::Qemu;

/// Random numbers, the same ones each time.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// One of `list`.
    pub(crate) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[usize::try_from(self.below(list.len() as u64)).unwrap()]
    }
}

/// Opens an image with all that belongs to it.
pub(crate) fn open(path: impl AsRef<Path>) -> qcow2::Result<Image> {
    OpenOptions::new()
        .lock(LockMode::None)
        .backing(BackingPolicy::Follow)
        .data_file(DataFilePolicy::Follow)
        .open(path)
}

/// What `qemu-img map` says of an extent: start, length, depth, present, zero, data,
/// compressed, offset.
pub(crate) type Mapped = (u64, u64, u64, bool, bool, bool, bool, Option<u64>);

/// Our extents of the whole disk.
pub(crate) fn our_map(disk: &(impl Disk + ?Sized)) -> Vec<Mapped> {
    let mapped = |e: Extent| {
        let present = e.kind != ExtentKind::Unallocated;
        let data = e.kind == ExtentKind::Data;
        (
            e.start.get(),
            e.length,
            e.depth.into(),
            present,
            e.reads_as_zeros(),
            data,
            e.compressed,
            e.host.map(|host| host.get()),
        )
    };
    disk.extents_and_holes(0..u64::MAX)
        .map(|extent| mapped(extent.unwrap()))
        .collect()
}

/// qemu-img's.
pub(crate) fn their_map(qemu: &Qemu, image: &str) -> Vec<Mapped> {
    let text = qemu.img(&format!("map --output=json {image}"));
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    let flag = |value: &Value| value.as_bool().unwrap();
    list.iter()
        .map(|e| {
            (
                number(&e["start"]),
                number(&e["length"]),
                number(&e["depth"]),
                flag(&e["present"]),
                flag(&e["zero"]),
                flag(&e["data"]),
                flag(&e["compressed"]),
                e.get("offset").map(number),
            )
        })
        .collect()
}

/// The first difference of two lists, for a message that can be read.
pub(crate) fn assert_same_map(ours: &[Mapped], theirs: &[Mapped], what: &str) {
    let differ = ours.iter().zip(theirs).position(|(a, b)| a != b);
    let at = differ.unwrap_or(ours.len().min(theirs.len()));
    assert!(
        ours == theirs,
        "{what}: extent {at} of {} and {}:\nours   {:?}\ntheirs {:?}",
        ours.len(),
        theirs.len(),
        &ours[at.saturating_sub(1)..ours.len().min(at + 3)],
        &theirs[at.saturating_sub(1)..theirs.len().min(at + 3)],
    );
}

/// All bytes of a disk, in pieces of random length.
pub(crate) fn read_all(disk: &(impl Disk + ?Sized), random: &mut Random) -> Vec<u8> {
    let size = usize::try_from(disk.size()).unwrap();
    let mut bytes = vec![0xee; size];
    let mut at = 0;
    while at < size {
        let most = *random.pick(&[700, 5000, 70_000, 3 << 20]);
        let len = usize::try_from(1 + random.below(most)).unwrap();
        let end = size.min(at + len);
        disk.read(at as u64, &mut bytes[at..end]).unwrap();
        at = end;
    }
    bytes
}

/// Both must have the same bytes in `image`, and say the same of where they are.
pub(crate) fn agree(qemu: &Qemu, image: &str, what: &str, random: &mut Random) {
    let disk: Arc<dyn Disk> = Arc::new(open(qemu.path(image)).unwrap());
    qemu.img(&format!("convert -f qcow2 -O raw {image} theirs.raw"));
    let theirs = qemu.bytes("theirs.raw");
    assert_same_bytes(&read_all(&*disk, random), &theirs, what);
    assert_same_map(&our_map(&*disk), &their_map(qemu, image), what);
    // Any part by itself, in any order.
    for _ in 0..50 {
        let size = theirs.len() as u64;
        let start = random.below(size);
        let most = *random.pick(&[10, 5000, 300_000]);
        let end = size.min(start + 1 + random.below(most));
        let mut part = vec![0xee; usize::try_from(end - start).unwrap()];
        disk.read(start, &mut part).unwrap();
        let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
        assert_same_bytes(&part, &theirs[range], what);
        let told: Vec<Extent> = disk.extents(start..end).map(Result::unwrap).collect();
        assert_eq!(told.first().map(|e| e.start.get()), Some(start), "{what}");
        assert_eq!(told.last().map(Extent::end), Some(end), "{what}");
        let gapless = told
            .windows(2)
            .all(|two| two[0].end() == two[1].start.get());
        assert!(gapless, "{what}: {told:?}");
    }
}

/// The first difference of two disks, for a message that can be read.
pub(crate) fn assert_same_bytes(ours: &[u8], theirs: &[u8], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    if ours != theirs {
        let at = ours.iter().zip(theirs).position(|(a, b)| a != b).unwrap();
        panic!(
            "{what}: byte {at:#x} is {} for us, {} for them",
            ours[at], theirs[at]
        );
    }
}

/// Random writes of every kind by qemu-io to the first `size` bytes of an image that was
/// made with `options`.
pub(crate) fn scribble(qemu: &Qemu, image: &str, size: u64, options: &str, random: &mut Random) {
    scribble_with(qemu, &format!("-f qcow2 {image}"), size, options, random);
}

/// As [`scribble`], with the words that name the image to qemu-io.
pub(crate) fn scribble_with(
    qemu: &Qemu,
    image: &str,
    size: u64,
    options: &str,
    random: &mut Random,
) {
    let cluster = options
        .split(',')
        .find_map(|option| option.strip_prefix("cluster_size="))
        .map_or(65536, |number| match number.strip_suffix(['k', 'M']) {
            Some(n) if number.ends_with('k') => n.parse::<u64>().unwrap() << 10,
            Some(n) => n.parse::<u64>().unwrap() << 20,
            None => number.parse().unwrap(),
        });
    let compressed = !options.contains("data_file");
    let mut commands = Vec::new();
    for _ in 0..24 {
        let start = random.below(size / 512) * 512;
        let most = *random.pick(&[4, 40, 400]);
        let len = ((1 + random.below(most)) * 512).min(size - start);
        let pattern = 1 + random.below(255);
        let command = match random.below(9) {
            0 => format!("write -z {start} {len}"),
            1 => format!("write -z -u {start} {len}"),
            2 => format!("discard {start} {len}"),
            3 | 4 if compressed => {
                let start = start / cluster * cluster;
                let len = (len.next_multiple_of(cluster)).min(size - start);
                format!("write -c -P {pattern} {start} {len}")
            }
            _ => format!("write -P {pattern} {start} {len}"),
        };
        commands.push(command);
    }
    // These have to come first to be done.
    commands.sort_by_key(|command| !command.starts_with("write -c"));
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    qemu.scribble(image, &commands);
}
