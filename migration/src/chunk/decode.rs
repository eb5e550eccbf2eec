//! Reading chunks.

use std::io::Read;

use hbitmap::Granularity;

use super::{BitmapFlags, SECTOR, Sectors, flags, layout::MAX_BUFFER};
use crate::{Result, error::invalid, input::Input};

/// The names in force. They persist across chunks and sections; empty is none.
#[derive(Debug, Default)]
pub(crate) struct Names {
    node: String,
    bitmap: String,
}

impl Names {
    pub(crate) fn node(&self) -> Option<&str> {
        (!self.node.is_empty()).then_some(&self.node)
    }

    pub(crate) fn bitmap(&self) -> Option<&str> {
        (!self.bitmap.is_empty()).then_some(&self.bitmap)
    }
}

/// A chunk, whose buffer are the bytes that were taken last.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Decoded {
    Empty,
    Start(Granularity, BitmapFlags),
    Zeroes(Sectors),
    Bits(Sectors, usize),
    Complete,
}

/// Takes a chunk; whether it ends the section's list.
pub(crate) fn decode<R: Read>(input: &mut Input<R>, names: &mut Names) -> Result<(Decoded, bool)> {
    let offset = input.offset();
    let byte = flag_byte(input)?;
    if byte & (flags::DEVICE_NAME | flags::BITMAP_NAME) != 0 {
        read_names(input, names, byte)?;
    }
    let decoded = if byte & (flags::START | flags::COMPLETE | flags::BITS) == 0 {
        Decoded::Empty
    } else if names.bitmap.is_empty() {
        let what = match byte {
            _ if byte & flags::START != 0 => "START chunk",
            _ if byte & flags::COMPLETE != 0 => "COMPLETE chunk",
            _ => "BITS chunk",
        };
        return Err(invalid(
            offset,
            what,
            "no bitmap's name in force",
            "the names of a node and a bitmap in it or before it",
        ));
    } else if byte & flags::START != 0 {
        start(input, offset)?
    } else if byte & flags::COMPLETE != 0 {
        Decoded::Complete
    } else {
        let sectors = sectors(input, offset)?;
        if byte & flags::ZEROES != 0 {
            Decoded::Zeroes(sectors)
        } else {
            Decoded::Bits(sectors, buffer(input, offset)?)
        }
    };
    Ok((decoded, byte & flags::EOS != 0))
}

/// The flags of a chunk: one byte, or the last one of two or four. The others hold
/// nothing but the mark that more follow.
fn flag_byte<R: Read>(input: &mut Input<R>) -> Result<u8> {
    const WHAT: &str = "the flags of a chunk";
    let offset = input.offset();
    let first = input.u8(WHAT)?;
    if first & flags::EXTRA == 0 {
        return Ok(first);
    }
    let refused = |found: &[u8]| {
        let found = found.iter().map(|byte| format!("{byte:02x}"));
        Err(invalid(
            offset,
            WHAT,
            found.collect::<Vec<_>>().join(" "),
            "one byte below 80, 80 and such a byte, or 80 80 00 and such a byte",
        ))
    };
    let second = input.u8(WHAT)?;
    if second & flags::EXTRA == 0 {
        return match first {
            flags::EXTRA => Ok(second),
            _ => refused(&[first, second]),
        };
    }
    let [third, last] = input.array(WHAT)?;
    match (first, second, third) {
        (flags::EXTRA, flags::EXTRA, 0) if last & flags::EXTRA == 0 => Ok(last),
        _ => refused(&[first, second, third, last]),
    }
}

fn read_names<R: Read>(input: &mut Input<R>, names: &mut Names, byte: u8) -> Result<()> {
    if byte & flags::DEVICE_NAME != 0 {
        let node = input.name("the node's name in a chunk")?;
        if node != names.node {
            node.clone_into(&mut names.node);
            names.bitmap.clear();
        }
    }
    if byte & flags::BITMAP_NAME != 0 {
        let offset = input.offset();
        let bitmap = input.name("the bitmap's name in a chunk")?;
        if names.node.is_empty() {
            return Err(invalid(
                offset,
                "the bitmap's name in a chunk",
                "no node's name in force",
                "a node's name in it or before it",
            ));
        }
        bitmap.clone_into(&mut names.bitmap);
    }
    Ok(())
}

fn start<R: Read>(input: &mut Input<R>, offset: u64) -> Result<Decoded> {
    let bytes = input.be32("a START chunk")?;
    let byte = input.u8("a START chunk")?;
    let granularity = Granularity::from_bytes(bytes.into())
        .ok()
        .filter(|granularity| granularity.bytes() >= SECTOR)
        .ok_or_else(|| {
            invalid(
                offset,
                "START chunk",
                format_args!("granularity {bytes}"),
                "a power of two from 512 to 2147483648",
            )
        })?;
    let state = BitmapFlags::from_byte(byte).ok_or_else(|| {
        invalid(
            offset,
            "START chunk",
            format_args!("bitmap flags {byte:#04x}"),
            "bits 0 (enabled), 1 (persistent) and 2 (ignored)",
        )
    })?;
    Ok(Decoded::Start(granularity, state))
}

fn sectors<R: Read>(input: &mut Input<R>, offset: u64) -> Result<Sectors> {
    /// From here on, bytes don't fit 64 bits.
    const END: u64 = 1 << 55;
    let first = input.be64("the range of a BITS chunk")?;
    let count = input.be32("the range of a BITS chunk")?;
    if first >= END || first + u64::from(count) > END {
        return Err(invalid(
            offset,
            "BITS chunk",
            format_args!("{count} sectors from sector {first} on"),
            "sectors below 2^55",
        ));
    }
    Ok(Sectors { first, count })
}

/// Takes the buffer; its size.
fn buffer<R: Read>(input: &mut Input<R>, offset: u64) -> Result<usize> {
    let size = input.be64("the size of a BITS chunk's buffer")?;
    let len = usize::try_from(size)
        .ok()
        .filter(|len| (1..=MAX_BUFFER).contains(len) && len.is_multiple_of(8))
        .ok_or_else(|| {
            invalid(
                offset,
                "BITS chunk",
                format_args!("a buffer of {size} bytes"),
                format_args!("multiples of 8 from 8 to {MAX_BUFFER}"),
            )
        })?;
    input.take(len, "the buffer of a BITS chunk")?;
    Ok(len)
}
