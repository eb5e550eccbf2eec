//! The section `ram`: nothing is kept of it, but it has no length, so it is parsed.

use std::io::Read;

use super::RamSummary;
use crate::{
    Error, Result,
    error::{invalid, unsupported},
    input::Input,
};

/// One page that is all one byte.
const ZERO: u64 = 0x02;
/// The blocks of RAM follow.
const MEM_SIZE: u64 = 0x04;
/// One page, whole.
const PAGE: u64 = 0x08;
/// The end of this piece.
const EOS: u64 = 0x10;
/// The page is in the block of the page before, whose name isn't repeated.
const CONTINUE: u64 = 0x20;
/// One page, as the difference to what it was.
const XBZRLE: u64 = 0x40;
/// What only RDMA has.
const HOOK: u64 = 0x80;
/// One page, compressed.
const COMPRESS_PAGE: u64 = 0x100;
/// The pages are on other channels.
const MULTIFD_FLUSH: u64 = 0x200;

/// log2 of the bytes of a page, where nothing else is said.
const PAGE_BITS: u32 = 12;

/// What a reader has to know of `ram`.
#[derive(Debug)]
pub(crate) struct Ram {
    page_bits: u32,
    /// Blocks are announced with their address.
    addresses: bool,
    /// Whether a page's block was named.
    named: bool,
}

impl Default for Ram {
    fn default() -> Self {
        Self::new(None, false)
    }
}

impl Ram {
    pub(crate) fn new(page_bits: Option<u32>, addresses: bool) -> Self {
        Self {
            page_bits: page_bits.unwrap_or(PAGE_BITS),
            addresses,
            named: false,
        }
    }

    /// Reads a piece past, up to and with its EOS.
    pub(crate) fn read<R: Read>(&mut self, input: &mut Input<R>) -> Result<RamSummary> {
        let mut summary = RamSummary::default();
        let page = 1u64 << self.page_bits;
        loop {
            let offset = input.offset();
            let word = input.be64("section 'ram'")?;
            let flags = word & (page - 1);
            match flags & !CONTINUE {
                _ if flags & CONTINUE != 0
                    && (!self.named || flags & (ZERO | PAGE | XBZRLE) == 0) =>
                {
                    return Err(bad_flags(offset, flags));
                }
                EOS => return Ok(summary),
                MEM_SIZE => self.blocks(input, offset, word - flags, &mut summary)?,
                ZERO => {
                    self.block_name(input, flags)?;
                    input.u8("a page of RAM")?;
                    summary.zero_pages += 1;
                }
                PAGE => {
                    self.block_name(input, flags)?;
                    input.skip(page, "a page of RAM")?;
                    summary.pages += 1;
                }
                XBZRLE => {
                    self.block_name(input, flags)?;
                    input.u8("a page of RAM")?;
                    let len = u64::from(input.be16("a page of RAM")?);
                    if len > page {
                        return Err(invalid(
                            offset,
                            "a page of RAM as a difference",
                            format_args!("{len} bytes"),
                            format_args!("at most {page}"),
                        ));
                    }
                    input.skip(len, "a page of RAM")?;
                    summary.delta_pages += 1;
                }
                HOOK => return refuse(offset, "an RDMA stream", "pages don't come in the stream"),
                COMPRESS_PAGE => {
                    return refuse(
                        offset,
                        "a stream with the capability compress",
                        "QEMU no longer has it",
                    );
                }
                MULTIFD_FLUSH => {
                    return refuse(
                        offset,
                        "a multifd stream",
                        "pages come on other channels, and headers of theirs in this one",
                    );
                }
                _ => return Err(bad_flags(offset, flags)),
            }
        }
    }

    /// The blocks of RAM, until their sizes are the total.
    fn blocks<R: Read>(
        &self,
        input: &mut Input<R>,
        offset: u64,
        mut left: u64,
        summary: &mut RamSummary,
    ) -> Result<()> {
        const WHAT: &str = "the list of blocks of RAM";
        while left > 0 {
            input.counted(WHAT)?;
            let len = input.be64(WHAT)?;
            if self.addresses {
                input.be64(WHAT)?;
            }
            if len > left {
                return Err(invalid(
                    offset,
                    WHAT,
                    format_args!("a block of {len} bytes"),
                    format_args!("the {left} bytes that are left of the total"),
                ));
            }
            left -= len;
            summary.blocks += 1;
            summary.total = summary.total.saturating_add(len);
        }
        Ok(())
    }

    fn block_name<R: Read>(&mut self, input: &mut Input<R>, flags: u64) -> Result<()> {
        if flags & CONTINUE == 0 {
            input.counted("the name of a block of RAM")?;
            self.named = true;
        }
        Ok(())
    }
}

fn bad_flags(offset: u64, flags: u64) -> Error {
    invalid(
        offset,
        "section 'ram'",
        format_args!("flags {flags:#x}"),
        "one of 2, 4, 8, 0x10 and 0x40, and 0x20 with pages behind others",
    )
}

fn refuse<T>(offset: u64, feature: &'static str, reason: &'static str) -> Result<T> {
    Err(unsupported(offset, feature, reason))
}
