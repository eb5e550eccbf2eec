//! The VMDESCRIPTION: JSON behind the stream's end, which says how long the device
//! sections are.

use std::{collections::HashMap, io::Read};

use serde::{Deserialize, de::IgnoredAny};

use super::code;
use crate::{Error, Limits, Result, input::Input};

/// The byte 05 of a subsection, the length of its name and its version.
const SUBSECTION_HEAD: u64 = 1 + 1 + 4;
/// EOF, the byte 06, and the length.
const HEAD: usize = 1 + 1 + 4;

/// How long the state of each device is. It stands at the end of the stream, so a reader
/// can know it only of a stream that it can seek in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmDescription {
    page_bits: Option<u32>,
    /// By name, then by instance.
    devices: HashMap<String, HashMap<u32, u64>>,
}

#[derive(Deserialize)]
struct Root {
    page_size: Option<u64>,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    name: String,
    instance_id: u32,
    #[serde(flatten)]
    content: Content,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    fields: Vec<Field>,
    #[serde(default)]
    subsections: Vec<Subsection>,
}

#[derive(Deserialize)]
struct Field {
    size: u64,
    array_len: Option<u64>,
}

#[derive(Deserialize)]
struct Subsection {
    vmsd_name: String,
    #[serde(flatten)]
    content: Content,
}

impl Content {
    /// Bytes in the stream; `None` if no stream could hold them.
    fn size(&self) -> Option<u64> {
        let fields = self.fields.iter().try_fold(0u64, |sum, field| {
            sum.checked_add(field.size.checked_mul(field.array_len.unwrap_or(1))?)
        });
        self.subsections.iter().try_fold(fields?, |sum, sub| {
            sum.checked_add(SUBSECTION_HEAD + sub.vmsd_name.len() as u64)?
                .checked_add(sub.content.size()?)
        })
    }
}

impl VmDescription {
    /// From the JSON text.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is something else.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let root: Root = serde_json::from_slice(json)
            .map_err(|error| Error::Refused(format!("not a VMDESCRIPTION: {error}")))?;
        let mut description = Self {
            page_bits: root
                .page_size
                .filter(|size| size.is_power_of_two())
                .map(u64::trailing_zeros)
                .filter(|bits| (10..=16).contains(bits)),
            devices: HashMap::new(),
        };
        for device in root.devices {
            let size = device.content.size().ok_or_else(|| {
                Error::Refused(format!(
                    "VMDESCRIPTION: the state of device '{}' has more than 2^64 bytes",
                    device.name.escape_debug()
                ))
            })?;
            description
                .devices
                .entry(device.name)
                .or_default()
                .entry(device.instance_id)
                .or_insert(size);
        }
        Ok(description)
    }

    /// From the last bytes of a stream, [`Limits::description`] or so of them; `None`
    /// unless they end with an EOF and a VMDESCRIPTION that fits.
    #[must_use]
    pub fn from_tail(tail: &[u8]) -> Option<Self> {
        Self::from_json(text(tail)?).ok()
    }

    /// Bytes of the state of a device; `None` if it isn't described.
    #[must_use]
    pub fn size(&self, name: &str, instance: u32) -> Option<u64> {
        self.devices.get(name)?.get(&instance).copied()
    }

    /// log2 of the bytes of a page of the guest's RAM, if it is said.
    #[must_use]
    pub const fn page_bits(&self) -> Option<u32> {
        self.page_bits
    }
}

/// The text of the VMDESCRIPTION that ends a stream.
fn text(tail: &[u8]) -> Option<&[u8]> {
    // JSON has no zero byte, so the last one is the EOF or in the length.
    let last = tail.iter().rposition(|byte| *byte == 0)?;
    (last.saturating_sub(HEAD - 1)..=last).find_map(|start| {
        let (head, text) = tail.get(start..)?.split_first_chunk::<HEAD>()?;
        let [code::EOF, code::VMDESCRIPTION, len @ ..] = *head else {
            return None;
        };
        let fits = usize::try_from(u32::from_be_bytes(len)) == Ok(text.len());
        (fits && text.first() == Some(&b'{')).then_some(text)
    })
}

/// Reads everything that is left; how much, and whether it ends as a stream does.
pub(crate) fn drain<R: Read>(input: &mut Input<R>, limits: &Limits) -> Result<(u64, bool)> {
    let start = input.offset();
    let mut tail = Tail::default();
    loop {
        let block = input.block()?;
        if block.is_empty() {
            break;
        }
        tail.push(block, limits.description);
    }
    let whole =
        text(&tail.bytes).is_some_and(|text| serde_json::from_slice::<IgnoredAny>(text).is_ok());
    Ok((input.offset() - start, whole))
}

/// As much of a stream's end as can be its EOF and VMDESCRIPTION.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    /// More bytes without a zero than a description may have.
    over: bool,
}

impl Tail {
    fn push(&mut self, block: &[u8], limit: usize) {
        // What matters starts at most so many bytes before the last zero.
        const BEFORE: usize = HEAD - 1;
        if let Some(last) = block.iter().rposition(|byte| *byte == 0) {
            self.over = false;
            let old = BEFORE.saturating_sub(last).min(self.bytes.len());
            self.bytes.drain(..self.bytes.len() - old);
            self.bytes
                .extend_from_slice(block.get(last.saturating_sub(BEFORE)..).unwrap_or_default());
        } else if !self.over {
            self.bytes.extend_from_slice(block);
        }
        if self.bytes.len() > limit.saturating_add(HEAD + BEFORE) {
            self.over = true;
            self.bytes = Vec::new();
        }
    }
}
