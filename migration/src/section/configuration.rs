//! The CONFIGURATION and its subsections.

use std::io::Read;

use super::{Configuration, code};
use crate::{
    Limits, Result,
    error::{invalid, unsupported},
    input::Input,
};

/// Capabilities that change the form of the stream in ways that can't be read.
const UNREADABLE: &[&str] = &[
    "multifd",
    "mapped-ram",
    "compress",
    "postcopy-ram",
    "x-colo",
];

/// RAM that both sides share isn't sent; its blocks are announced with their address.
const IGNORE_SHARED: &str = "x-ignore-shared";

impl Configuration {
    /// Whether blocks of RAM are announced with their address.
    pub(crate) fn ignores_shared(&self) -> bool {
        self.capabilities.iter().any(|name| name == IGNORE_SHARED)
    }
}

/// Takes the configuration behind its byte 07.
pub(crate) fn read<R: Read>(input: &mut Input<R>, limits: &Limits) -> Result<Configuration> {
    let mut configuration = Configuration {
        machine: machine(input, limits)?,
        ..Configuration::default()
    };
    let mut count = 0;
    while input.peek()? == Some(code::SUBSECTION) {
        let offset = input.offset();
        if count == limits.subsections {
            return Err(invalid(
                offset,
                "the configuration",
                "one subsection more",
                format_args!("{count}"),
            ));
        }
        count += 1;
        input.u8("a subsection of the configuration")?;
        subsection(input, limits, offset, &mut configuration)?;
    }
    Ok(configuration)
}

/// The machine's name; it is read in pieces, so that memory follows what is there.
fn machine<R: Read>(input: &mut Input<R>, limits: &Limits) -> Result<String> {
    const WHAT: &str = "the machine's name";
    const PIECE: usize = 4096;
    let offset = input.offset();
    let len = input.be32(WHAT)?;
    let mut left = usize::try_from(len)
        .ok()
        .filter(|len| *len <= limits.description)
        .ok_or_else(|| {
            invalid(
                offset,
                WHAT,
                format_args!("{len} bytes"),
                format_args!("at most {}", limits.description),
            )
        })?;
    let mut name = Vec::new();
    while left > 0 {
        let piece = left.min(PIECE);
        name.extend_from_slice(input.take(piece, WHAT)?);
        left -= piece;
    }
    String::from_utf8(name)
        .ok()
        .filter(|name| !name.contains('\0'))
        .ok_or_else(|| invalid(offset, WHAT, "other bytes", "UTF-8 without a NUL"))
}

fn subsection<R: Read>(
    input: &mut Input<R>,
    limits: &Limits,
    offset: u64,
    configuration: &mut Configuration,
) -> Result<()> {
    const WHAT: &str = "a subsection of the configuration";
    let name = input.name("the name of a subsection of the configuration")?;
    let name = name.to_owned();
    let version = input.be32(WHAT)?;
    match (name.as_str(), version) {
        ("configuration/target-page-bits", 1) => {
            let bits = input.be32(WHAT)?;
            if !(10..=16).contains(&bits) {
                return Err(invalid(
                    offset,
                    name,
                    format_args!("pages of 2^{bits} bytes"),
                    "2^10 to 2^16",
                ));
            }
            configuration.target_page_bits = Some(bits);
        }
        ("configuration/capabilities", 1) => {
            let count = input.be32(WHAT)?;
            if usize::try_from(count).map_or(true, |count| count > limits.subsections) {
                return Err(invalid(
                    offset,
                    name,
                    format_args!("{count} capabilities"),
                    format_args!("at most {}", limits.subsections),
                ));
            }
            for _ in 0..count {
                let offset = input.offset();
                let capability = input.name("the name of a capability")?;
                if UNREADABLE.contains(&capability) {
                    let feature = format!("a stream with the capability {capability}");
                    return Err(unsupported(
                        offset,
                        feature,
                        "it changes how RAM is sent, which is before the bitmaps",
                    ));
                }
                // A list may come twice, but not without end.
                if configuration.capabilities.len() < limits.subsections {
                    let capability = capability.to_owned();
                    configuration.capabilities.push(capability);
                }
            }
        }
        ("configuration/uuid", 1) => configuration.uuid = Some(input.array(WHAT)?),
        _ => {
            return Err(unsupported(
                offset,
                format!(
                    "subsection '{}' of version {version} of the configuration",
                    name.escape_debug()
                ),
                "subsections carry no length",
            ));
        }
    }
    Ok(())
}
