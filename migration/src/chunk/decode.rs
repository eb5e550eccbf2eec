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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// What a chunk of those bytes is, with names in force or not; how many it took.
    fn chunk(bytes: &[u8], named: bool) -> (Result<(Decoded, bool)>, Names, u64) {
        let mut names = Names::default();
        if named {
            names.node.push('n');
            names.bitmap.push('b');
        }
        let mut input = Input::new(bytes);
        let chunk = decode(&mut input, &mut names);
        (chunk, names, input.offset())
    }

    /// Of an error: where, the structure, what was found.
    fn refused(bytes: &[u8]) -> (u64, String, String) {
        match chunk(bytes, true).0 {
            Err(Error::Invalid {
                offset,
                structure,
                found,
                ..
            }) => (offset, structure.into_owned(), found),
            other => panic!("{bytes:02x?}: {other:?}"),
        }
    }

    /// The fields of a chunk of those flags, in their order.
    fn fields(flags: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        if flags & flags::DEVICE_NAME != 0 {
            bytes.extend(b"\x02no");
        }
        if flags & flags::BITMAP_NAME != 0 {
            bytes.extend(b"\x03bit");
        }
        // Priority where several are set.
        if flags & flags::START != 0 {
            bytes.extend(b"\0\x01\0\0\x03");
        } else if flags & flags::COMPLETE == 0 && flags & flags::BITS != 0 {
            bytes.extend(b"\0\0\0\0\0\0\x01\0\0\0\x02\0");
            if flags & flags::ZEROES == 0 {
                bytes.extend(b"\0\0\0\0\0\0\0\x0812345678");
            }
        }
        bytes
    }

    #[test]
    fn every_flag_byte_in_each_form() {
        for byte in 0..0x80u8 {
            for form in [&[][..], &[0x80], &[0x80, 0x80, 0]] {
                let mut bytes = [form, &[byte], &fields(byte)].concat();
                let len = bytes.len() as u64;
                bytes.extend([0xcc; 40]);
                let (chunk, names, taken) = chunk(&bytes, true);
                // Another node has other bitmaps.
                let node_alone = byte & 0x0c == 8;
                assert_eq!(names.node(), Some(if byte & 8 != 0 { "no" } else { "n" }));
                if node_alone && byte & 0x70 != 0 {
                    assert!(matches!(chunk, Err(Error::Invalid { .. })), "{byte:#04x}");
                    continue;
                }
                let bitmap = if byte & 4 != 0 { "bit" } else { "b" };
                assert_eq!(names.bitmap(), (!node_alone).then_some(bitmap));
                let (decoded, last) = chunk.unwrap();
                assert_eq!(last, byte & 1 != 0, "{byte:#04x}");
                assert_eq!(taken, len, "{byte:#04x}");
                match (byte & 0x70, byte & 2 != 0, decoded) {
                    (0, _, Decoded::Empty) | (0x20 | 0x60, _, Decoded::Complete) => {}
                    (0x10 | 0x30 | 0x50 | 0x70, _, Decoded::Start(granularity, state)) => {
                        assert_eq!(granularity.bytes(), 65536);
                        assert!(state.enabled && state.persistent);
                    }
                    (0x40, true, Decoded::Zeroes(sectors))
                    | (0x40, false, Decoded::Bits(sectors, 8)) => {
                        assert_eq!((sectors.first, sectors.count), (0x100, 0x200));
                    }
                    other => panic!("{byte:#04x}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn flags_that_are_more_than_a_mark_are_refused() {
        for first in 0x80..=0xffu8 {
            // Two bytes; only 80 may be the first.
            let two = [first, 0x01, 0xcc, 0xcc];
            match first {
                0x80 => assert!(chunk(&two, true).0.is_ok()),
                _ => {
                    let (offset, structure, found) = refused(&two);
                    assert_eq!((offset, structure.as_str()), (0, "the flags of a chunk"));
                    assert_eq!(found, format!("{first:02x} 01"));
                }
            }
            // Four bytes: 80 80 00, and one without the mark.
            for (at, good) in [(0, 0x80), (1, 0x80), (2, 0x00)] {
                let mut four = [0x80, 0x80, 0x00, 0x01];
                four[at] = first;
                if first != good {
                    assert_eq!(refused(&four).0, 0);
                }
            }
            assert_eq!(refused(&[0x80, 0x80, 0x00, first]).0, 0);
        }
        for third in 1..0x80 {
            let (_, _, found) = refused(&[0x80, 0x80, third, 0x01]);
            assert_eq!(found, format!("80 80 {third:02x} 01"));
        }
    }

    #[test]
    fn without_names_nothing_but_an_end_is_allowed() {
        for (byte, structure) in [
            (0x10, "START"),
            (0x20, "COMPLETE"),
            (0x40, "BITS"),
            (0x42, "BITS"),
        ] {
            let bytes = [&[byte], &fields(byte)[..]].concat();
            match chunk(&bytes, false).0 {
                Err(Error::Invalid { structure: s, .. }) => {
                    assert_eq!(s, format!("{structure} chunk"))
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(chunk(&[0x00], false).0.is_ok());
        assert!(chunk(&[0x01], false).0.is_ok());
        // A bitmap's name needs a node's.
        assert!(matches!(
            chunk(b"\x24\x01b", false).0,
            Err(Error::Invalid { .. })
        ));
        let (chunk, names, _) = chunk(b"\x2c\x01x\x01b", false);
        assert!(chunk.is_ok());
        assert_eq!((names.node(), names.bitmap()), (Some("x"), Some("b")));
    }

    #[test]
    fn the_same_node_again_keeps_the_bitmap() {
        let (chunk, names, _) = chunk(b"\x28\x01n", true);
        assert!(matches!(chunk, Ok((Decoded::Complete, false))));
        assert_eq!(names.bitmap(), Some("b"));
    }

    #[test]
    fn names_are_checked() {
        for bytes in [
            &b"\x08\0"[..],
            b"\x04\0",
            b"\x08\x01\0",
            b"\x04\x02a\0",
            b"\x08\x01\xff",
        ] {
            let (offset, structure, _) = refused(bytes);
            assert_eq!(offset, 1);
            assert!(structure.ends_with("name in a chunk"), "{structure}");
        }
        let long = [&b"\x0c\xff"[..], &[b'x'; 255], b"\xff", &[b'y'; 255]].concat();
        let (chunk, names, _) = chunk(&long, false);
        assert!(chunk.is_ok());
        assert_eq!(
            names.node().unwrap().len() + names.bitmap().unwrap().len(),
            510
        );
    }

    #[test]
    fn every_bitmap_flag() {
        for byte in 0..=255u8 {
            let bytes = [0x10, 0, 1, 0, 0, byte];
            if byte & 0xf8 != 0 {
                let (_, structure, found) = refused(&bytes);
                assert_eq!(structure, "START chunk");
                assert_eq!(found, format!("bitmap flags {byte:#04x}"));
                continue;
            }
            let Ok((Decoded::Start(_, state), false)) = chunk(&bytes, true).0 else {
                panic!("{byte:#04x}");
            };
            assert_eq!(
                (state.enabled, state.persistent),
                (byte & 1 != 0, byte & 2 != 0)
            );
        }
    }

    #[test]
    fn granularities() {
        let start = |bytes: u32| [&[0x10], &bytes.to_be_bytes()[..], &[0]].concat();
        for bits in 0..32 {
            let bytes = 1 << bits;
            match chunk(&start(bytes), true).0 {
                Ok((Decoded::Start(granularity, _), _)) => {
                    assert_eq!(granularity.bits(), bits);
                    assert!(bits >= 9);
                }
                Err(Error::Invalid { .. }) => assert!(bits < 9),
                other => panic!("{other:?}"),
            }
        }
        for bytes in [0, 3, 511, 513, 65535, 0x8000_0001, u32::MAX] {
            assert_eq!(refused(&start(bytes)).2, format!("granularity {bytes}"));
        }
    }

    #[test]
    fn ranges_stay_below_2_to_55_sectors() {
        let zeroes = |first: u64, count: u32| {
            [&[0x42], &first.to_be_bytes()[..], &count.to_be_bytes()].concat()
        };
        for (first, count) in [
            (0, 0),
            (0, u32::MAX),
            ((1 << 55) - 1, 1),
            ((1 << 55) - 1, 0),
        ] {
            let Ok((Decoded::Zeroes(sectors), _)) = chunk(&zeroes(first, count), true).0 else {
                panic!("{first} {count}");
            };
            assert_eq!((sectors.first, sectors.count), (first, count));
            assert_eq!(sectors.bytes().start, first * 512);
        }
        for (first, count) in [(1 << 55, 0), ((1 << 55) - 1, 2), (u64::MAX, u32::MAX)] {
            let (_, _, found) = refused(&zeroes(first, count));
            assert_eq!(found, format!("{count} sectors from sector {first} on"));
        }
    }

    #[test]
    fn sizes_of_buffers() {
        let mut bytes = b"\x40\0\0\0\0\0\0\0\0\0\0\x08\0".to_vec();
        bytes.resize(21 + 20_000, 0x5a);
        for size in (0..10_300).chain([16_384, 1 << 32, 1 << 63, u64::MAX]) {
            bytes[13..21].copy_from_slice(&size.to_be_bytes());
            if size % 8 == 0 && (8..=10_240).contains(&size) {
                let (chunk, _, taken) = chunk(&bytes, true);
                assert!(matches!(chunk, Ok((Decoded::Bits(_, len), _)) if len as u64 == size));
                assert_eq!(taken, 21 + size);
            } else {
                assert_eq!(refused(&bytes).2, format!("a buffer of {size} bytes"));
            }
        }
    }
}
