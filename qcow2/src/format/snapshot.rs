//! Snapshot table entry.
//!
//! ```text
//! byte  0  l1_table_offset           24  vm_clock in nanoseconds
//!       8  l1_size                   32  vm_state_size, 32 bits
//!      12  length of the ID          36  length of the extra data
//!      14  length of the name        40  extra data: 40 vm_state_size, 64 bits
//!      16  date, seconds                             48 virtual disk size
//!      20  date, nanoseconds                         56 icount
//! then ID, name, padding to a multiple of 8
//! ```

use nom::{
    Parser,
    bytes::complete::take,
    error::context,
    number::complete::{be_u16, be_u32, be_u64},
};

use super::parse::{Parse, run};
use crate::{Result, addr::HostOffset};

/// Bytes of the fixed part of an entry.
pub const FIXED_LEN: usize = 40;
/// QEMU refuses to open an image with more extra data in an entry (it can cut it
/// off in a repair); this crate keeps any length.
pub const QEMU_MAX_EXTRA_DATA: u32 = 1024;
/// The longest snapshot table that QEMU reads, in bytes: 65536 entries of 1 KiB.
pub const MAX_TABLE_BYTES: u64 = 64 << 20;

/// An entry, with everything that is stored in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Where the snapshot's L1 table starts, cluster aligned.
    pub l1_table_offset: HostOffset,
    /// Its number of entries.
    pub l1_size: u32,
    /// When the snapshot was taken: seconds since the Epoch.
    pub date_seconds: u32,
    /// And nanoseconds in that second.
    pub date_nanoseconds: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock: u64,
    /// Bytes of the VM state; counts only where the extra data has no 64-bit one.
    pub vm_state_size_32: u32,
    /// The extra data, known parts and unknown.
    pub extra: Vec<u8>,
    /// The unique ID: bytes of the image, to be escaped before printing.
    pub id: Vec<u8>,
    /// The name: bytes of the image, to be escaped before printing.
    pub name: Vec<u8>,
    /// The bytes up to a multiple of 8.
    pub padding: Vec<u8>,
}

/// Lengths of the variable parts, out of the fixed one.
struct Lengths {
    id: u16,
    name: u16,
    extra: u32,
}

/// Bytes of the entry, its padding included, whose first [`FIXED_LEN`] bytes are
/// `fixed`, so that a reader knows how much to read; at most 4 GiB + 128 KiB. `None` if
/// `fixed` is shorter.
#[must_use]
pub fn entry_len(fixed: &[u8]) -> Option<u64> {
    unpadded_len(fixed).map(|len| len.next_multiple_of(8))
}

/// As [`entry_len`], without the padding.
#[must_use]
pub fn unpadded_len(fixed: &[u8]) -> Option<u64> {
    let (_, (_, lengths)) = fixed_part(fixed).ok()?;
    let variable = u64::from(lengths.extra) + u64::from(lengths.id) + u64::from(lengths.name);
    Some(FIXED_LEN as u64 + variable)
}

fn fixed_part(input: &[u8]) -> Parse<'_, (Snapshot, Lengths)> {
    let (rest, l1_table_offset) = context("l1_table_offset", be_u64).parse(input)?;
    let (rest, l1_size) = context("l1_size", be_u32).parse(rest)?;
    let (rest, id) = context("length of the ID", be_u16).parse(rest)?;
    let (rest, name) = context("length of the name", be_u16).parse(rest)?;
    let (rest, date_seconds) = context("date, seconds", be_u32).parse(rest)?;
    let (rest, date_nanoseconds) = context("date, nanoseconds", be_u32).parse(rest)?;
    let (rest, vm_clock) = context("vm_clock", be_u64).parse(rest)?;
    let (rest, vm_state_size_32) = context("vm_state_size", be_u32).parse(rest)?;
    let (rest, extra) = context("length of the extra data", be_u32).parse(rest)?;
    let snapshot = Snapshot {
        l1_table_offset: HostOffset(l1_table_offset),
        l1_size,
        date_seconds,
        date_nanoseconds,
        vm_clock,
        vm_state_size_32,
        ..Snapshot::default()
    };
    Ok((rest, (snapshot, Lengths { id, name, extra })))
}

/// The padding of the table's last entry may be missing: the table ends with the file there.
fn entry(input: &[u8]) -> Parse<'_, Snapshot> {
    let (rest, (mut snapshot, lengths)) = fixed_part(input)?;
    let (rest, extra) = context("extra data", take(lengths.extra)).parse(rest)?;
    let (rest, id) = context("ID", take(lengths.id)).parse(rest)?;
    let (rest, name) = context("name", take(lengths.name)).parse(rest)?;
    let used = input.len() - rest.len();
    let padding = (used.wrapping_neg() % 8).min(rest.len());
    let (rest, padding) = context("padding", take(padding)).parse(rest)?;
    snapshot.extra = extra.to_vec();
    snapshot.id = id.to_vec();
    snapshot.name = name.to_vec();
    snapshot.padding = padding.to_vec();
    Ok((rest, snapshot))
}

impl Snapshot {
    /// The entry at the start of `table`, whose first byte stands at `base` in the
    /// image, and the bytes that follow it. `index` is for the error. Memory follows
    /// the bytes that are really there.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] for an entry that goes beyond `table`.
    pub fn parse(table: &[u8], base: HostOffset, index: usize) -> Result<(&[u8], Self)> {
        run(&format!("snapshot table entry {index}"), base, table, entry)
    }

    /// Appends the entry with its padding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.l1_table_offset.get().to_be_bytes());
        out.extend(self.l1_size.to_be_bytes());
        out.extend(
            u16::try_from(self.id.len())
                .unwrap_or(u16::MAX)
                .to_be_bytes(),
        );
        out.extend(
            u16::try_from(self.name.len())
                .unwrap_or(u16::MAX)
                .to_be_bytes(),
        );
        out.extend(self.date_seconds.to_be_bytes());
        out.extend(self.date_nanoseconds.to_be_bytes());
        out.extend(self.vm_clock.to_be_bytes());
        out.extend(self.vm_state_size_32.to_be_bytes());
        out.extend(
            u32::try_from(self.extra.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        out.extend(&self.extra);
        out.extend(self.id.get(..usize::from(u16::MAX)).unwrap_or(&self.id));
        out.extend(self.name.get(..usize::from(u16::MAX)).unwrap_or(&self.name));
        out.extend(&self.padding);
    }

    /// Sets [`padding`](Self::padding) to the zeros that the other parts need.
    #[must_use]
    pub fn padded(mut self) -> Self {
        let used = FIXED_LEN + self.extra.len() + self.id.len() + self.name.len();
        self.padding = vec![0; used.wrapping_neg() % 8];
        self
    }

    /// The 64-bit number `at` bytes into the extra data.
    fn extra_u64(&self, at: usize) -> Option<u64> {
        self.extra
            .get(at..)?
            .first_chunk()
            .map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// Bytes of the VM state, 0 without one.
    #[must_use]
    pub fn vm_state_size(&self) -> u64 {
        self.extra_u64(0)
            .unwrap_or(u64::from(self.vm_state_size_32))
    }

    /// Virtual disk size when the snapshot was taken; `None` in old images, where it
    /// is the image's.
    #[must_use]
    pub fn disk_size(&self) -> Option<u64> {
        self.extra_u64(8)
    }

    /// The record/replay instruction count; `None` where absent or disabled (-1).
    #[must_use]
    pub fn icount(&self) -> Option<u64> {
        self.extra_u64(16).filter(|count| *count != u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Error;

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(0x50000_u64.to_be_bytes());
        bytes.extend([0, 0, 0, 2, 0, 1, 0, 4]);
        bytes.extend([0x65, 0, 0, 1, 0, 0, 0, 9]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 5, 0, 0, 0, 24]);
        bytes.extend(6_u64.to_be_bytes());
        bytes.extend((64_u64 << 20).to_be_bytes());
        bytes.extend(u64::MAX.to_be_bytes());
        bytes.extend(b"1snap\x01\x02\x03");
        bytes
    }

    #[test]
    fn fixed_bytes() {
        let mut table = sample();
        table.extend(b"next");
        let (rest, snapshot) = Snapshot::parse(&table, HostOffset(0), 0).unwrap();
        assert_eq!(rest, b"next");
        assert_eq!(
            (&snapshot.id[..], &snapshot.name[..]),
            (&b"1"[..], &b"snap"[..])
        );
        assert_eq!(
            (snapshot.l1_table_offset, snapshot.l1_size),
            (HostOffset(0x50000), 2)
        );
        assert_eq!(
            (snapshot.date_seconds, snapshot.date_nanoseconds),
            (0x6500_0001, 9)
        );
        assert_eq!((snapshot.vm_clock, snapshot.vm_state_size()), (7, 6));
        assert_eq!(
            (snapshot.disk_size(), snapshot.icount()),
            (Some(64 << 20), None)
        );
        assert_eq!(snapshot.padding, [1, 2, 3]);
        let mut again = Vec::new();
        snapshot.encode(&mut again);
        assert_eq!(again, sample());
        assert_eq!(entry_len(&table), Some(sample().len() as u64));
        assert_eq!(unpadded_len(&table), Some(sample().len() as u64 - 3));
    }

    #[test]
    fn without_extra_data_the_32_bit_size_counts() {
        let snapshot = Snapshot {
            vm_state_size_32: 9,
            ..Snapshot::default()
        };
        assert_eq!((snapshot.vm_state_size(), snapshot.disk_size()), (9, None));
        let snapshot = Snapshot {
            extra: vec![0; 16],
            ..snapshot
        };
        assert_eq!(
            (snapshot.vm_state_size(), snapshot.disk_size()),
            (0, Some(0))
        );
    }

    #[test]
    fn cut_before_the_padding_it_is_refused() {
        let bytes = sample();
        for end in 0..bytes.len() - 3 {
            let error = Snapshot::parse(&bytes[..end], HostOffset(0x1000), 7).unwrap_err();
            let Error::Corrupt {
                structure, offset, ..
            } = error
            else {
                panic!("{error}")
            };
            assert!(
                structure.starts_with("snapshot table entry 7, field "),
                "{structure}"
            );
            assert!(offset.get() >= 0x1000 && offset.get() <= 0x1000 + end as u64);
            assert_eq!(entry_len(&bytes[..end]).is_some(), end >= FIXED_LEN);
        }
        for end in bytes.len() - 3..bytes.len() {
            let (_, snapshot) = Snapshot::parse(&bytes[..end], HostOffset(0), 0).unwrap();
            let mut again = Vec::new();
            snapshot.encode(&mut again);
            assert_eq!(again, bytes[..end]);
        }
    }

    proptest! {
        #[test]
        fn parse_gives_what_was_encoded(
            fixed: (u64, u32, u32, u32, u64, u32), extra: Vec<u8>, id: Vec<u8>, name: Vec<u8>,
        ) {
            let snapshot = Snapshot {
                l1_table_offset: HostOffset(fixed.0),
                l1_size: fixed.1,
                date_seconds: fixed.2,
                date_nanoseconds: fixed.3,
                vm_clock: fixed.4,
                vm_state_size_32: fixed.5,
                extra, id, name,
                padding: vec![],
            }.padded();
            let mut bytes = Vec::new();
            snapshot.encode(&mut bytes);
            prop_assert_eq!(bytes.len() % 8, 0);
            prop_assert_eq!(entry_len(&bytes), Some(bytes.len() as u64));
            bytes.push(1);
            let (rest, parsed) = Snapshot::parse(&bytes, HostOffset(0), 0).unwrap();
            prop_assert_eq!((rest, parsed), (&[1][..], snapshot));
        }
    }
}
