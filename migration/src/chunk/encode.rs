//! Writing chunks.

use std::io::Write;

use hbitmap::Granularity;

use super::{BitmapFlags, Sectors, flags, layout::MAX_BUFFER};
use crate::{Error, Output, Result};

/// Writes chunks as QEMU does: names appear only where they change.
///
/// Names stay in force across sections, so one writer serves a whole stream. `node` and
/// `bitmap` are the aliases on the wire, of 1 to 255 bytes without a NUL.
#[derive(Clone, Debug, Default)]
pub struct ChunkWriter {
    /// The names in force; empty as long as there are none.
    node: String,
    bitmap: String,
}

impl ChunkWriter {
    /// A writer with no names in force.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// START: a bitmap begins.
    ///
    /// # Errors
    /// [`Error::Refused`] for names, and granularities outside 512 to 2^31, that no stream
    /// can carry; [`Error::Write`]. The same for all chunks.
    pub fn start<W: Write>(
        &mut self,
        w: &mut Output<W>,
        node: &str,
        bitmap: &str,
        granularity: Granularity,
        state: BitmapFlags,
    ) -> Result<()> {
        let bytes = u32::try_from(granularity.bytes())
            .ok()
            .filter(|bytes| *bytes >= 512)
            .ok_or_else(|| {
                Error::Refused(format!(
                    "bitmap '{bitmap}' has granularity {granularity}: \
                     a stream can carry 512 to 2147483648 bytes"
                ))
            })?;
        self.head(w, flags::START, node, bitmap)?;
        let [a, b, c, d] = bytes.to_be_bytes();
        w.put(&[a, b, c, d, state.to_byte()])
    }

    /// BITS: the linear form of a range, 8 to 10240 bytes, with its padding.
    ///
    /// # Errors
    /// As [`start`](Self::start), and [`Error::Refused`] for a buffer of another size.
    pub fn bits<W: Write>(
        &mut self,
        w: &mut Output<W>,
        node: &str,
        bitmap: &str,
        sectors: Sectors,
        data: &[u8],
    ) -> Result<()> {
        self.bits_space(w, node, bitmap, sectors, data.len())?
            .copy_from_slice(data);
        Ok(())
    }

    /// BITS, whose buffer the caller fills in now.
    pub(crate) fn bits_space<'w, W: Write>(
        &mut self,
        w: &'w mut Output<W>,
        node: &str,
        bitmap: &str,
        sectors: Sectors,
        len: usize,
    ) -> Result<&'w mut [u8]> {
        if len == 0 || len > MAX_BUFFER || !len.is_multiple_of(8) {
            return Err(Error::Refused(format!(
                "no chunk has a buffer of {len} bytes: allowed are multiples of 8 to {MAX_BUFFER}"
            )));
        }
        self.head(w, flags::BITS, node, bitmap)?;
        let mut fields = [0; 20];
        let (range, size) = fields.split_at_mut(12);
        range.copy_from_slice(&range_fields(sectors));
        size.copy_from_slice(&(len as u64).to_be_bytes());
        w.put(&fields)?;
        w.space(len)
    }

    /// BITS with ZEROES: a range is clean.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn zeroes<W: Write>(
        &mut self,
        w: &mut Output<W>,
        node: &str,
        bitmap: &str,
        sectors: Sectors,
    ) -> Result<()> {
        self.head(w, flags::BITS | flags::ZEROES, node, bitmap)?;
        w.put(&range_fields(sectors))
    }

    /// As many ZEROES, each of as many sectors, one behind the other.
    pub(crate) fn zeroes_run<W: Write>(
        &mut self,
        w: &mut Output<W>,
        node: &str,
        bitmap: &str,
        mut sectors: Sectors,
        times: u64,
    ) -> Result<()> {
        for i in 0..times {
            if i == 0 {
                self.zeroes(w, node, bitmap, sectors)?;
            } else {
                let mut chunk = [flags::BITS | flags::ZEROES; 13];
                let [_, fields @ ..] = &mut chunk;
                *fields = range_fields(sectors);
                w.put(&chunk)?;
            }
            sectors.first += u64::from(sectors.count);
        }
        Ok(())
    }

    /// COMPLETE: every bit has been sent.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn complete<W: Write>(
        &mut self,
        w: &mut Output<W>,
        node: &str,
        bitmap: &str,
    ) -> Result<()> {
        self.head(w, flags::COMPLETE, node, bitmap)
    }

    /// COMPLETE and the end of the section's list in one chunk, for the compact form.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn complete_last<W: Write>(
        &mut self,
        w: &mut Output<W>,
        node: &str,
        bitmap: &str,
    ) -> Result<()> {
        self.head(w, flags::COMPLETE | flags::EOS, node, bitmap)
    }

    /// EOS: the end of the section's list. Names stay in force.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn end_of_list<W: Write>(&mut self, w: &mut Output<W>) -> Result<()> {
        w.put(&[flags::EOS])
    }

    /// The flag byte, and the names that change with it.
    fn head<W: Write>(
        &mut self,
        w: &mut Output<W>,
        mut byte: u8,
        node: &str,
        bitmap: &str,
    ) -> Result<()> {
        let node_changes = node != self.node;
        if !node_changes && bitmap == self.bitmap {
            return w.put(&[byte]);
        }
        let (node_len, bitmap_len) = (counted("node", node)?, counted("bitmap", bitmap)?);
        byte |= flags::BITMAP_NAME;
        if node_changes {
            byte |= flags::DEVICE_NAME;
        }
        w.put(&[byte])?;
        if node_changes {
            w.put(&[node_len])?;
            w.put(node.as_bytes())?;
            node.clone_into(&mut self.node);
        }
        w.put(&[bitmap_len])?;
        w.put(bitmap.as_bytes())?;
        bitmap.clone_into(&mut self.bitmap);
        Ok(())
    }
}

/// First sector and number of sectors.
fn range_fields(sectors: Sectors) -> [u8; 12] {
    let mut fields = [0; 12];
    let (first, count) = fields.split_at_mut(8);
    first.copy_from_slice(&sectors.first.to_be_bytes());
    count.copy_from_slice(&sectors.count.to_be_bytes());
    fields
}

/// The length byte of a name.
pub(crate) fn counted(what: &str, name: &str) -> Result<u8> {
    u8::try_from(name.len())
        .ok()
        .filter(|len| *len != 0 && !name.contains('\0'))
        .ok_or_else(|| {
            Error::Refused(format!(
                "no stream can carry the {what} name '{}': \
                 allowed are 1 to 255 bytes without a NUL",
                name.escape_debug()
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut ChunkWriter, &mut Output<Vec<u8>>)) -> Vec<u8> {
        let mut w = Output::new(Vec::new());
        write(&mut ChunkWriter::new(), &mut w);
        w.into_inner().unwrap()
    }

    #[test]
    fn every_field_is_where_the_format_has_it() {
        let granularity = Granularity::from_bytes(65536).unwrap();
        let both = BitmapFlags {
            enabled: true,
            persistent: true,
        };
        let range = Sectors {
            first: 0x0102_0304_0506,
            count: 0x0708_090a,
        };
        let got = written(|c, w| {
            c.start(w, "n0", "bm0", granularity, both).unwrap();
            c.bits(w, "n0", "bm0", range, &[0xee; 8]).unwrap();
            c.zeroes(w, "n0", "bm0", range).unwrap();
            c.complete(w, "n0", "bm0").unwrap();
            c.end_of_list(w).unwrap();
        });
        let mut want = b"\x1c\x02n0\x03bm0\x00\x01\x00\x00\x03".to_vec();
        want.extend(b"\x40\0\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\0\0\0\0\0\0\0\x08");
        want.extend([0xee; 8]);
        want.extend(b"\x42\0\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x20\x01");
        assert_eq!(got, want);
    }

    #[test]
    fn names_appear_where_they_change() {
        let got = written(|c, w| {
            c.complete(w, "n", "a").unwrap();
            c.complete(w, "n", "b").unwrap();
            c.end_of_list(w).unwrap();
            c.complete(w, "n", "b").unwrap();
            c.complete(w, "m", "b").unwrap();
            c.complete_last(w, "m", "b").unwrap();
        });
        assert_eq!(got, b"\x2c\x01n\x01a\x24\x01b\x01\x20\x2c\x01m\x01b\x21");
    }

    #[test]
    fn what_no_chunk_can_carry_is_refused() {
        let long = "x".repeat(256);
        let mut w = Output::new(Vec::new());
        let mut c = ChunkWriter::new();
        for (node, bitmap) in [
            ("", "b"),
            ("n", ""),
            (&long, "b"),
            ("n", &long),
            ("n", "a\0b"),
        ] {
            let refused = c.complete(&mut w, node, bitmap);
            assert!(matches!(refused, Err(Error::Refused(_))), "{node} {bitmap}");
        }
        let none = Sectors { first: 0, count: 0 };
        for len in [0, 1, 12, 10248] {
            let refused = c.bits(&mut w, "n", "b", none, &vec![0; len]);
            assert!(matches!(refused, Err(Error::Refused(_))), "{len}");
        }
        for bits in [0, 8, 32, 63] {
            let granularity = Granularity::from_bits(bits).unwrap();
            let refused = c.start(&mut w, "n", "b", granularity, BitmapFlags::default());
            assert!(matches!(refused, Err(Error::Refused(_))), "{bits}");
        }
        assert_eq!(w.offset(), 0);
        c.complete(&mut w, &long[1..], &long[1..]).unwrap();
        assert_eq!(w.offset(), 513);
    }
}
