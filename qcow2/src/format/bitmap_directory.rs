//! The bitmaps extension and the bitmap directory it points to.
//!
//! ```text
//! extension   0  nb_bitmaps        8  bitmap_directory_size
//!             4  reserved         16  bitmap_directory_offset
//!
//! entry       0  bitmap_table_offset    17  granularity_bits
//!             8  bitmap_table_size      18  name_size
//!            12  flags                  20  extra_data_size
//!            16  type                   24  extra data, name, padding to a multiple of 8
//! ```
//! Parsing takes apart what is there; whether an entry can be *used* is for
//! [`BitmapDirectoryEntry::check`] to say, so that one bad entry doesn't hide the others.

use nom::{
    Parser,
    bytes::complete::take,
    error::context,
    number::complete::{be_u8, be_u16, be_u32, be_u64},
};

use super::parse::{Bad, Parse, field_error, run};
use crate::{Error, Geometry, Result, addr::HostOffset};

/// The most bitmaps in an image (QEMU's limit, quoted by the spec).
pub const MAX_BITMAPS: u32 = 65535;
/// The largest directory in bytes: QEMU's limit of 1024 bytes for each bitmap.
pub const MAX_DIRECTORY_BYTES: u64 = 1024 * MAX_BITMAPS as u64;
/// The most entries of a bitmap table (QEMU's limit).
pub const MAX_TABLE_ENTRIES: u32 = 0x800_0000;
/// The longest name in bytes (QEMU's limit, quoted by the spec).
pub const MAX_NAME: usize = 1023;
/// The granularities that QEMU supports (quoted by the spec), as log2 of bytes.
pub const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
/// The only type of bitmap: dirty tracking.
pub const TYPE_DIRTY_TRACKING: u8 = 1;
/// Bytes of an entry's fixed part.
pub const FIXED_LEN: usize = 24;

/// The data of header extension `0x23852875`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Bitmaps in the directory, at least 1.
    pub nb_bitmaps: u32,
    /// Reserved, 0; kept.
    pub reserved: u32,
    /// Bytes of the directory.
    pub directory_size: u64,
    /// Where the directory starts, cluster aligned.
    pub directory_offset: HostOffset,
}

/// What errors call it.
const EXTENSION: &str = "bitmaps extension";

impl BitmapsExtension {
    /// Bytes of the extension's data.
    pub const LEN: usize = 24;

    fn fields(input: &[u8]) -> Parse<'_, Self> {
        let (rest, nb_bitmaps) = context("nb_bitmaps", be_u32).parse(input)?;
        let (rest, reserved) = context("reserved", be_u32).parse(rest)?;
        let (rest, directory_size) = context("bitmap_directory_size", be_u64).parse(rest)?;
        let (rest, offset) = context("bitmap_directory_offset", be_u64).parse(rest)?;
        let directory_offset = HostOffset(offset);
        Ok((
            rest,
            Self {
                nb_bitmaps,
                reserved,
                directory_size,
                directory_offset,
            },
        ))
    }

    /// The extension out of its 24 bytes; its numbers are for [`check`](Self::check).
    ///
    /// # Errors
    /// [`Error::Corrupt`] for another length.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let (rest, extension) = run(EXTENSION, HostOffset(0), data, Self::fields)?;
        if rest.is_empty() {
            return Ok(extension);
        }
        let found = format!("{} bytes", data.len());
        Err(Error::corrupt(EXTENSION, HostOffset(0), found, "24 bytes"))
    }

    /// Appends the extension's 24 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.nb_bitmaps.to_be_bytes());
        out.extend(self.reserved.to_be_bytes());
        out.extend(self.directory_size.to_be_bytes());
        out.extend(self.directory_offset.get().to_be_bytes());
    }

    /// Checks the numbers against spec and limits, so that the directory can be read.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first one that is wrong.
    pub fn check(&self, geometry: Geometry) -> Result<()> {
        let fault = |field, at, bad| Err(field_error(EXTENSION, field, HostOffset(0), at, bad));
        if self.nb_bitmaps == 0 || self.nb_bitmaps > MAX_BITMAPS {
            return fault("nb_bitmaps", 0, Bad::new(self.nb_bitmaps, "1 to 65535"));
        }
        if self.reserved != 0 {
            return fault("reserved", 4, Bad::new(self.reserved, "0"));
        }
        let least = FIXED_LEN as u64 * u64::from(self.nb_bitmaps);
        if self.directory_size < least || self.directory_size > MAX_DIRECTORY_BYTES {
            let allowed = format!("{least} to {MAX_DIRECTORY_BYTES} bytes");
            return fault(
                "bitmap_directory_size",
                8,
                Bad::new(self.directory_size, allowed),
            );
        }
        let offset = self.directory_offset;
        let end = offset.get().checked_add(self.directory_size);
        if offset.get() == 0
            || !geometry.is_aligned(offset)
            || end.is_none_or(|end| end > i64::MAX as u64)
        {
            let allowed = format!("a multiple of {}, not 0", geometry.cluster_size());
            let bad = Bad::new(format!("{:#x}", offset.get()), allowed);
            return fault("bitmap_directory_offset", 16, bad);
        }
        Ok(())
    }
}

/// The flags of a directory entry; unknown ones are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BitmapFlags(pub u32);

impl BitmapFlags {
    /// The bitmap wasn't saved correctly and may be inconsistent.
    pub const IN_USE: Self = Self(1);
    /// The bitmap is enabled: it records every change of the disk.
    pub const AUTO: Self = Self(2);
    /// The bitmap may be used although its extra data isn't known.
    pub const EXTRA_DATA_COMPATIBLE: Self = Self(4);

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With the bits of `other` set.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// With the bits of `other` cleared.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The flags that this crate doesn't know.
    #[must_use]
    pub const fn unknown(self) -> Self {
        self.without(Self(7))
    }
}

/// An entry of the directory, with everything that is stored in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BitmapDirectoryEntry {
    /// Where the bitmap table starts, cluster aligned.
    pub table_offset: HostOffset,
    /// Entries of the bitmap table.
    pub table_size: u32,
    /// Flags.
    pub flags: BitmapFlags,
    /// Type: 1 is a dirty tracking bitmap.
    pub kind: u8,
    /// log2 of the bytes of the disk that a bit stands for.
    pub granularity_bits: u8,
    /// The name: bytes of the image, to be escaped before printing.
    pub name: Vec<u8>,
    /// Extra data, of which none is defined.
    pub extra: Vec<u8>,
    /// The bytes up to a multiple of 8, zeros in a valid entry.
    pub padding: Vec<u8>,
}

impl BitmapDirectoryEntry {
    fn parse(input: &[u8]) -> Parse<'_, Self> {
        let (rest, table_offset) = context("bitmap_table_offset", be_u64).parse(input)?;
        let (rest, table_size) = context("bitmap_table_size", be_u32).parse(rest)?;
        let (rest, flags) = context("flags", be_u32).parse(rest)?;
        let (rest, kind) = context("type", be_u8).parse(rest)?;
        let (rest, granularity_bits) = context("granularity_bits", be_u8).parse(rest)?;
        let (rest, name_size) = context("name_size", be_u16).parse(rest)?;
        let (rest, extra_size) = context("extra_data_size", be_u32).parse(rest)?;
        let (rest, extra) = context("extra_data", take(extra_size)).parse(rest)?;
        let (rest, name) = context("name", take(name_size)).parse(rest)?;
        let used = input.len() - rest.len();
        let (rest, padding) = context("padding", take(used.wrapping_neg() % 8)).parse(rest)?;
        let entry = Self {
            table_offset: HostOffset(table_offset),
            table_size,
            flags: BitmapFlags(flags),
            kind,
            granularity_bits,
            name: name.to_vec(),
            extra: extra.to_vec(),
            padding: padding.to_vec(),
        };
        Ok((rest, entry))
    }

    /// Appends the entry with its padding. A name beyond 65535 bytes is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let name = self.name.get(..usize::from(u16::MAX)).unwrap_or(&self.name);
        out.extend(self.table_offset.get().to_be_bytes());
        out.extend(self.table_size.to_be_bytes());
        out.extend(self.flags.0.to_be_bytes());
        out.extend([self.kind, self.granularity_bits]);
        out.extend(u16::try_from(name.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend(
            u32::try_from(self.extra.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        out.extend(&self.extra);
        out.extend(name);
        out.extend(&self.padding);
    }

    /// Bytes that [`encode`](Self::encode) appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        FIXED_LEN + self.extra.len() + self.name.len() + self.padding.len()
    }

    /// Sets [`padding`](Self::padding) to the zeros that the other parts need.
    #[must_use]
    pub fn padded(mut self) -> Self {
        self.padding.clear();
        self.padding = vec![0; self.encoded_len().wrapping_neg() % 8];
        self
    }

    /// Entries that the bitmap table needs for a disk of `virtual_size` bytes.
    /// `None` for a granularity above 2^63.
    #[must_use]
    pub fn needed_table_size(&self, geometry: Geometry, virtual_size: u64) -> Option<u64> {
        let granularity = 1_u64.checked_shl(u32::from(self.granularity_bits))?;
        Some(
            virtual_size
                .div_ceil(granularity)
                .div_ceil(8)
                .div_ceil(geometry.cluster_size()),
        )
    }

    /// Whether the bitmap can be used as the spec and QEMU's limits say. `base` is
    /// where the entry stands in the image, `virtual_size` the disk's in bytes.
    /// Being in use is no fault, and the table's size isn't compared then (it may be
    /// outdated, says the spec).
    ///
    /// # Errors
    /// [`Error::Corrupt`] for the first field that is wrong.
    pub fn check(&self, geometry: Geometry, virtual_size: u64, base: HostOffset) -> Result<()> {
        let fault = |field: &str, at: u64, bad: Bad| {
            let structure = format!("directory entry of bitmap '{}'", self.name.escape_ascii());
            Err(field_error(&structure, field, base, at, bad))
        };
        if self.name.is_empty() || self.name.len() > MAX_NAME {
            let bad = Bad::new(self.name.len(), "1 to 1023 bytes");
            return fault("name_size", 18, bad);
        }
        self.check_table(geometry, &fault)?;
        if self.flags.unknown() != BitmapFlags::default() {
            let bad = Bad::new(format!("{:#x}", self.flags.0), "bits 0 to 2");
            return fault("flags", 12, bad);
        }
        if self.kind != TYPE_DIRTY_TRACKING {
            return fault("type", 16, Bad::new(self.kind, "1 (dirty tracking bitmap)"));
        }
        if !GRANULARITY_BITS.contains(&self.granularity_bits) {
            return fault(
                "granularity_bits",
                17,
                Bad::new(self.granularity_bits, "9 to 31"),
            );
        }
        if !self.extra.is_empty() && !self.flags.contains(BitmapFlags::EXTRA_DATA_COMPATIBLE) {
            let allowed = "0, or flag extra_data_compatible";
            return fault("extra_data_size", 20, Bad::new(self.extra.len(), allowed));
        }
        let needed = self
            .needed_table_size(geometry, virtual_size)
            .unwrap_or(u64::MAX);
        if !self.flags.contains(BitmapFlags::IN_USE) && u64::from(self.table_size) != needed {
            let allowed = format!("{needed}, for the disk's size");
            return fault("bitmap_table_size", 8, Bad::new(self.table_size, allowed));
        }
        Ok(())
    }

    fn check_table(
        &self,
        geometry: Geometry,
        fault: &dyn Fn(&str, u64, Bad) -> Result<()>,
    ) -> Result<()> {
        let offset = self.table_offset;
        if self.table_size == 0 || self.table_size > MAX_TABLE_ENTRIES {
            let allowed = format!("1 to {MAX_TABLE_ENTRIES}");
            return fault("bitmap_table_size", 8, Bad::new(self.table_size, allowed));
        }
        let end = offset.get().checked_add(u64::from(self.table_size) * 8);
        if offset.get() == 0
            || !geometry.is_aligned(offset)
            || end.is_none_or(|end| end > i64::MAX as u64)
        {
            let allowed = format!("a multiple of {}, not 0", geometry.cluster_size());
            let bad = Bad::new(format!("{:#x}", offset.get()), allowed);
            return fault("bitmap_table_offset", 0, bad);
        }
        Ok(())
    }
}

/// The bitmap directory.
#[derive(Debug, Default)]
pub struct BitmapDirectory {
    /// The entries that could be taken apart, each with its place in the directory.
    pub entries: Vec<BitmapDirectoryEntry>,
    /// Bytes after them that aren't entries: none in a valid directory.
    pub rest: Vec<u8>,
    /// Why the directory could not be read to its end, or isn't as long as it should be.
    pub fault: Option<Error>,
}

impl BitmapDirectory {
    /// Takes the directory apart as far as that can be done: `bytes`, which stand at
    /// `base`, should hold `nb_bitmaps` entries and nothing else. Memory follows `bytes`.
    #[must_use]
    pub fn parse(bytes: &[u8], base: HostOffset, nb_bitmaps: u32) -> Self {
        let mut directory = Self::default();
        let mut rest = bytes;
        for index in 0..nb_bitmaps {
            let at = HostOffset(base.get().saturating_add((bytes.len() - rest.len()) as u64));
            let structure = format!("bitmap directory entry {index}");
            match run(&structure, at, rest, BitmapDirectoryEntry::parse) {
                Ok((after, entry)) => {
                    directory.entries.push(entry);
                    rest = after;
                }
                Err(fault) => {
                    directory.fault = Some(fault);
                    break;
                }
            }
        }
        if directory.fault.is_none() && !rest.is_empty() {
            let at = HostOffset(base.get().saturating_add((bytes.len() - rest.len()) as u64));
            let found = format!("{} bytes after {nb_bitmaps} entries", rest.len());
            directory.fault = Some(Error::corrupt("bitmap directory", at, found, "none"));
        }
        directory.rest = rest.to_vec();
        directory
    }

    /// The entries, each with where it stands if the directory starts at `base`.
    pub fn located(
        &self,
        base: HostOffset,
    ) -> impl Iterator<Item = (HostOffset, &BitmapDirectoryEntry)> {
        self.entries.iter().scan(base, |at, entry| {
            let here = *at;
            *at = HostOffset(at.get().saturating_add(entry.encoded_len() as u64));
            Some((here, entry))
        })
    }

    /// Appends the directory, byte for byte as parsed.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for entry in &self.entries {
            entry.encode(out);
        }
        out.extend(&self.rest);
    }
}

#[cfg(test)]
mod tests;
