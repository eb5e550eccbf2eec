//! `stream blocks`: the disk's data in the section `block` that QEMU up to 9.0 wrote.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io::{self, Write},
};

use migration::{BLOCK_LEN, BlockData, BlockItem, Item, SECTOR};
use qcow2::disk::DiskMut;

use super::input::Input;
use crate::{
    cmd, disk,
    error::{Failure, chain, os_text},
    exit::Exit,
    image::Use,
    output::{self, counted, escape_control},
    size::Human,
};

/// Block devices that are told apart. No machine of QEMU's has so many.
const MOST_DEVICES: usize = 1024;

/// What a stream has of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Device {
    blocks: u64,
    zero: u64,
    /// First byte of the last block.
    last: u64,
}

/// Reads the whole stream, and if it is sound and its data fits, once more, writing it.
pub(super) fn run(input: Input, image: &OsStr, device: Option<&str>) -> Result<Exit, Failure> {
    let shown = image.to_string_lossy();
    let spec = cmd::image_spec(image, None, false)?;
    // An image that can't be opened needs no stream.
    let size = cmd::open(&spec, Use::Read)?.virtual_size();
    let unread = |e: io::Error| format!("Could not read the stream: {}", os_text(&e));
    let (input, again) = input.twice().map_err(unread)?;
    let devices = survey(input)?;
    let (name, found) = choose(&devices, device)?;
    let fits = |size: u64| match found.last < size {
        true => Ok(()),
        false => Err(format!(
            "the stream has a block of '{}' at byte {}, '{shown}' only {size} bytes: is it the \
             right disk?",
            escape_control(name),
            found.last
        )),
    };
    fits(size)?;
    let disk = disk::open_writable(&spec)?;
    let disk = disk.disk();
    fits(disk.size())?;
    let written = write(again.open().map_err(unread)?, name, disk);
    // What was written is recorded, all of it or not.
    let finished = disk.finish();
    let finished = finished.map_err(|e| escape_control(&chain(&e)).into_owned());
    written
        .and(finished)
        .map_err(|why| format!("'{shown}' has a part of the data at most: {why}"))?;
    let mut out = output::stdout();
    writeln!(
        out,
        "{} of data and {} of '{}' were written to '{}'",
        Human(found.blocks.saturating_mul(BLOCK_LEN)),
        counted(found.zero, "zero block"),
        escape_control(name),
        escape_control(&shown)
    )?;
    out.flush()?;
    Ok(Exit::Success)
}

/// Writes the blocks of `wanted` as the stream has them, later ones over earlier ones.
fn write(input: Input, wanted: &str, disk: &dyn DiskMut) -> Result<(), String> {
    let text = |e: &dyn std::error::Error| escape_control(&chain(e)).into_owned();
    let mut stream = input.reader(true).map_err(|_| "it can't be read again")?;
    let size = disk.size();
    while let Some(item) = stream.next().map_err(|e| text(&e))? {
        let Item::Block(BlockItem::Block {
            device,
            sector,
            data,
        }) = item
        else {
            continue;
        };
        if device != wanted {
            continue;
        }
        let start = sector.saturating_mul(SECTOR);
        // The last block is a whole one, also where the disk ends within.
        let end = start.saturating_add(BLOCK_LEN).min(size);
        let Some(len) = end.checked_sub(start).filter(|len| *len > 0) else {
            return Err(format!("the stream has changed: a block at byte {start}"));
        };
        let done = match data {
            BlockData::Zero => disk.zero(start..end, true),
            BlockData::Data(data) => {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                disk.write(start, data.get(..len).unwrap_or(data))
            }
        };
        done.map_err(|e| text(&e))?;
    }
    Ok(())
}

/// Reads a stream to its end.
fn survey(input: Input) -> Result<BTreeMap<String, Device>, Failure> {
    let mut stream = input.reader(true)?;
    let mut devices = BTreeMap::new();
    let damaged = |e: migration::Error| escape_control(&chain(&e)).into_owned();
    let mut whole = false;
    while let Some(item) = stream.next().map_err(damaged)? {
        match item {
            Item::Block(BlockItem::Block {
                device,
                sector,
                data,
            }) => {
                if !devices.contains_key(device) {
                    if devices.len() == MOST_DEVICES {
                        let text = format!("the stream has more than {MOST_DEVICES} block devices");
                        return Err(text.into());
                    }
                    devices.insert(device.to_owned(), Device::default());
                }
                if let Some(known) = devices.get_mut(device) {
                    match data {
                        BlockData::Zero => known.zero += 1,
                        BlockData::Data(_) => known.blocks += 1,
                    }
                    known.last = known.last.max(sector.saturating_mul(SECTOR));
                }
            }
            Item::Eof => whole = true,
            Item::Rest { whole: rest, .. } => whole = rest,
            _ => {}
        }
    }
    if !whole {
        return Err("it can't be told whether the stream is whole: it may be cut off".into());
    }
    Ok(devices)
}

/// The device that is meant.
fn choose<'a>(
    devices: &'a BTreeMap<String, Device>,
    wanted: Option<&str>,
) -> Result<(&'a str, Device), Failure> {
    let list = || {
        let names: Vec<_> = devices.keys().map(|name| escape_control(name)).collect();
        names.join(", ")
    };
    let mut all = devices.iter();
    match (all.next(), all.next(), wanted) {
        (None, ..) => Err("the stream has no section 'block' with data".into()),
        (Some((name, device)), None, None) => Ok((name, *device)),
        (Some(_), Some(_), None) => Err(format!(
            "the stream has data of several block devices: choose one with --device ({})",
            list()
        )
        .into()),
        (Some(_), _, Some(wanted)) => match devices.get_key_value(wanted) {
            Some((name, device)) => Ok((name, *device)),
            None => Err(format!(
                "the stream has no data of the block device '{wanted}': its devices are {}",
                list()
            )
            .into()),
        },
    }
}
