//! `stream blocks`: the disk's data in the section `block` that QEMU up to 9.0 wrote.

use std::{collections::BTreeMap, ffi::OsStr};

use migration::{BLOCK_LEN, BlockData, BlockItem, Item, SECTOR};

use super::input::Input;
use crate::{
    cmd,
    error::{Failure, chain},
    exit::Exit,
    image::Use,
    output::{counted, escape_control},
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

/// Checks what can be checked, and writes nothing.
pub(super) fn run(input: Input, image: &OsStr, device: Option<&str>) -> Result<Exit, Failure> {
    let shown = image.to_string_lossy();
    let spec = cmd::image_spec(image, None, false)?;
    let size = cmd::open(&spec, Use::Read)?.virtual_size();
    let devices = survey(input)?;
    let (name, found) = choose(&devices, device)?;
    let name = escape_control(name);
    if found.last >= size {
        return Err(format!(
            "the stream has a block of '{name}' at byte {}, '{shown}' only {size} bytes: is it the \
             right disk?",
            found.last
        )
        .into());
    }
    let data = Human(found.blocks.saturating_mul(BLOCK_LEN));
    Err(format!(
        "{data} of data and {} of '{name}' fit '{shown}', but guest data can't be \
         written yet: nothing was written",
        counted(found.zero, "zero block")
    )
    .into())
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
