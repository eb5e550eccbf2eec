//! Writing the legacy section `block`.

use std::io::{Read, Write};

use super::{
    SectionKind,
    block::{self, BLOCK_SIZE},
};
use crate::{Error, Output, Result, SECTOR, StreamWriter, chunk::counted};

/// Blocks in a PART, so that other sections can come between.
const BLOCKS_IN_PART: u64 = 64;

/// Writes a `block` section as QEMU did up to 9.0: disks as blocks of 1 MiB, in pieces.
/// Blocks of zeros carry no data.
#[derive(Debug)]
pub struct BlockWriter {
    id: u32,
    /// Bytes of all disks, and how many were written.
    total: u64,
    done: u64,
    percent: u64,
    data: Vec<u8>,
}

impl BlockWriter {
    /// Starts the section. `total` are the bytes of all disks; progress is told by it.
    ///
    /// # Errors
    /// As [`StreamWriter::begin`].
    pub fn begin<W: Write>(w: &mut StreamWriter<W>, id: u32, total: u64) -> Result<Self> {
        let writer = Self {
            id,
            total,
            done: 0,
            percent: 0,
            data: Vec::new(),
        };
        writer.section(w, SectionKind::Start, |w| put(w, block::EOS, 0))?;
        Ok(writer)
    }

    /// Writes the `len` bytes of a disk in PARTs. The last block is filled up with zeros.
    /// `device` is the name of the block backend, of 1 to 255 bytes.
    ///
    /// # Errors
    /// [`Error::Disk`] if `disk` fails or ends too early; [`Error::Refused`] for a name
    /// that no stream can carry and for more than 2^63 bytes; [`Error::Write`].
    pub fn disk<W: Write>(
        &mut self,
        w: &mut StreamWriter<W>,
        device: &str,
        disk: &mut impl Read,
        len: u64,
    ) -> Result<()> {
        let name = counted("device", device)?;
        if len > hbitmap::MAX_LEN {
            return Err(hbitmap::Error::LenTooLarge { len }.into());
        }
        let mut data = std::mem::take(&mut self.data);
        data.resize(BLOCK_SIZE, 0);
        let mut at = 0;
        while at < len {
            let end = len.min(at.saturating_add(BLOCKS_IN_PART * block::BLOCK_LEN));
            w.begin(SectionKind::Part, self.id, "block", 0, 1)?;
            while at < end {
                let here = usize::try_from(end - at).map_or(BLOCK_SIZE, |n| n.min(BLOCK_SIZE));
                let (bytes, padding) = data.split_at_mut(here);
                disk.read_exact(bytes)
                    .map_err(|source| Error::Disk { offset: at, source })?;
                padding.fill(0);
                let zero = data.as_chunks::<64>().0.iter().all(|part| *part == [0; 64]);
                let flags = if zero { block::ZERO_BLOCK } else { 0 };
                let out = w.content();
                put(out, block::DEVICE_BLOCK | flags, at / SECTOR)?;
                out.put(&[name])?;
                out.put(device.as_bytes())?;
                if !zero {
                    out.put(&data)?;
                }
                at += here as u64;
                self.progress(out, here as u64)?;
            }
            put(w.content(), block::EOS, 0)?;
            w.end()?;
        }
        self.data = data;
        Ok(())
    }

    /// Ends the section.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn end<W: Write>(self, w: &mut StreamWriter<W>) -> Result<()> {
        self.section(w, SectionKind::End, |w| {
            put(w, block::PROGRESS, 100)?;
            put(w, block::EOS, 0)
        })
    }

    /// Tells how far it is, when that is a percent more. 100 is told at the end.
    fn progress<W: Write>(&mut self, out: &mut Output<W>, bytes: u64) -> Result<()> {
        self.done = self.done.saturating_add(bytes);
        let percent = u128::from(self.done) * 100 / u128::from(self.total.max(1));
        let percent = u64::try_from(percent).map_or(99, |percent| percent.min(99));
        if percent > self.percent {
            self.percent = percent;
            put(out, block::PROGRESS, percent)?;
        }
        Ok(())
    }

    fn section<W: Write>(
        &self,
        w: &mut StreamWriter<W>,
        kind: SectionKind,
        content: impl FnOnce(&mut Output<W>) -> Result<()>,
    ) -> Result<()> {
        w.begin(kind, self.id, "block", 0, 1)?;
        content(w.content())?;
        w.end()
    }
}

/// The first word of an item.
fn put<W: Write>(w: &mut Output<W>, flags: u64, value: u64) -> Result<()> {
    w.put(&(value << block::FLAG_BITS | flags).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockData, BlockItem, Item, StreamReader};

    #[test]
    fn disks_are_read_back() {
        let mut a = vec![0; (3 << 20) + 700];
        a[1 << 20] = 1;
        a[(3 << 20) + 699] = 2;
        let b = vec![3; 65 << 20];
        let mut w = StreamWriter::new(Vec::new(), "").unwrap();
        let total = (a.len() + b.len()) as u64;
        let mut blocks = BlockWriter::begin(&mut w, 3, total).unwrap();
        for (device, disk) in [("a", &a), ("b", &b)] {
            blocks
                .disk(&mut w, device, &mut &disk[..], disk.len() as u64)
                .unwrap();
        }
        blocks.end(&mut w).unwrap();
        let bytes = w.finish(false).unwrap();

        let mut stream = StreamReader::new(&bytes[..]);
        let mut got = [vec![9; 4 << 20], vec![9; 65 << 20]];
        let (mut last, mut zeros, mut kinds) = (0, 0, Vec::new());
        while let Some(item) = stream.next().unwrap() {
            match item {
                Item::Section(section) => kinds.push(section.kind),
                Item::Block(BlockItem::Block {
                    device,
                    sector,
                    data,
                }) => {
                    let disk = &mut got[usize::from(device == "b")];
                    let at = usize::try_from(sector * SECTOR).unwrap();
                    let to = &mut disk[at..at + BLOCK_SIZE];
                    match data {
                        BlockData::Zero => {
                            zeros += 1;
                            to.fill(0);
                        }
                        BlockData::Data(data) => to.copy_from_slice(data),
                    }
                }
                Item::Block(BlockItem::Progress(percent)) => {
                    assert!(percent > last);
                    last = percent;
                }
                _ => {}
            }
        }
        assert!(got[0][..a.len()] == a && got[1] == b);
        assert!(got[0][a.len()..].iter().all(|byte| *byte == 0));
        assert_eq!((last, zeros), (100, 2));
        use SectionKind::{End, Part, Start};
        assert_eq!(kinds, [Start, Part, Part, Part, End]);
    }

    #[test]
    fn a_disk_that_ends_too_early() {
        let mut w = StreamWriter::new(Vec::new(), "").unwrap();
        let mut blocks = BlockWriter::begin(&mut w, 3, 1 << 20).unwrap();
        let short = vec![1; 2 << 20];
        let done = blocks.disk(&mut w, "a", &mut &short[..], 3 << 20);
        assert!(matches!(
            done,
            Err(Error::Disk {
                offset: 0x20_0000,
                ..
            })
        ));
        let mut w = StreamWriter::new(Vec::new(), "").unwrap();
        let mut blocks = BlockWriter::begin(&mut w, 3, 1 << 20).unwrap();
        let done = blocks.disk(&mut w, "", &mut &short[..], 1);
        assert!(matches!(done, Err(Error::Refused(_))));
    }
}
