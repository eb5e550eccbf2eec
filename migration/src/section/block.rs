//! Reading the legacy section `block`: the disk's data, as QEMU sent it up to 9.0.

use std::io::Read;

use crate::{Result, error::invalid, input::Input};

/// Bytes of a block, whole even where the disk ends within.
pub const BLOCK_LEN: u64 = 1 << 20;
/// The same for slices.
pub(crate) const BLOCK_SIZE: usize = 1 << 20;

/// A block of a disk.
pub(crate) const DEVICE_BLOCK: u64 = 0x01;
/// The end of this piece's list; may be or'ed into the last item.
pub(crate) const EOS: u64 = 0x02;
/// Percent done.
pub(crate) const PROGRESS: u64 = 0x04;
/// With DEVICE_BLOCK: it reads as zeros, no data follows.
pub(crate) const ZERO_BLOCK: u64 = 0x08;
/// Bits of the flags below an item's value.
pub(crate) const FLAG_BITS: u32 = 9;

/// An item, whose data are the bytes that were taken last.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Decoded {
    Block { sector: u64, zero: bool },
    Progress(u64),
    End,
}

/// What a reader keeps of `block`.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// Name of the block backend of the last block.
    device: String,
    /// The item before had EOS or'ed in.
    ended: bool,
}

impl Blocks {
    pub(crate) fn device(&self) -> &str {
        &self.device
    }

    /// Takes an item.
    pub(crate) fn read<R: Read>(&mut self, input: &mut Input<R>) -> Result<Decoded> {
        if std::mem::take(&mut self.ended) {
            return Ok(Decoded::End);
        }
        let offset = input.offset();
        let word = input.be64("section 'block'")?;
        let value = word >> FLAG_BITS;
        let flags = word & ((1 << FLAG_BITS) - 1);
        let decoded = match flags & !EOS {
            0 if flags == EOS => return Ok(Decoded::End),
            PROGRESS => Decoded::Progress(value),
            DEVICE_BLOCK => {
                self.name(input)?;
                input.take(BLOCK_SIZE, "the data of a block")?;
                Decoded::Block {
                    sector: value,
                    zero: false,
                }
            }
            f if f == DEVICE_BLOCK | ZERO_BLOCK => {
                self.name(input)?;
                Decoded::Block {
                    sector: value,
                    zero: true,
                }
            }
            _ => {
                return Err(invalid(
                    offset,
                    "section 'block'",
                    format_args!("flags {flags:#x}"),
                    "1 (block), 9 (block of zeros) and 4 (progress), each with 2 (end) or not, and 2",
                ));
            }
        };
        self.ended = flags & EOS != 0;
        Ok(decoded)
    }

    fn name<R: Read>(&mut self, input: &mut Input<R>) -> Result<()> {
        input
            .name("the name of a block's device")?
            .clone_into(&mut self.device);
        Ok(())
    }
}
