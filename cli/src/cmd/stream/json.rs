//! A stream as JSON, written as it is read.

use std::{
    ffi::OsStr,
    io::{self, BufWriter, StdoutLock},
    os::unix::ffi::OsStrExt,
};

use hbitmap::State;
use migration::{Chunk, Outcome, Section, SectionKind};

use super::{
    show::{Fault, Show, Tallies, Tally},
    walk::{Content, Element, NamedChunk, Printer},
};
use crate::{
    cmd::bitmap::{Digests, extents, hex},
    output::{self, Json, Tree},
};

type Out = Json<BufWriter<StdoutLock<'static>>>;

/// Writes it.
pub(super) struct Report {
    json: Out,
    chunks: bool,
}

impl Report {
    pub(super) fn new(name: &OsStr, chunks: bool) -> io::Result<Self> {
        let mut json = Json::new(output::stdout());
        json.object("")?;
        json.string("stream", name.as_bytes())?;
        json.list("elements")?;
        Ok(Self { json, chunks })
    }

    /// Whether the chunks of this section are listed in it.
    fn lists_chunks(&self, section: &Section) -> bool {
        self.chunks && section.name == "dirty-bitmap"
    }
}

impl Printer for Report {
    fn begin(&mut self, offset: u64, element: &Element) -> io::Result<()> {
        let json = &mut self.json;
        json.object("")?;
        json.number("offset", offset.into())?;
        let kind: &[u8] = match element {
            Element::Header { .. } => b"header",
            Element::Configuration(_) => b"configuration",
            Element::Command { .. } => b"command",
            Element::Section(_) => b"section",
            Element::Rest { .. } => b"rest",
            Element::Eof => b"eof",
            Element::VmDescription => b"vmdescription",
        };
        json.string("type", kind)?;
        match element {
            Element::Header { version } => json.number("version", (*version).into()),
            Element::Configuration(found) => {
                json.string("machine", found.machine.as_bytes())?;
                match found.target_page_bits {
                    Some(bits) => json.number("target-page-bits", bits.into())?,
                    None => json.null("target-page-bits")?,
                }
                json.list("capabilities")?;
                for name in &found.capabilities {
                    json.string("", name.as_bytes())?;
                }
                json.end()?;
                match &found.uuid {
                    Some(uuid) => json.string("uuid", hex(uuid).as_bytes()),
                    None => json.null("uuid"),
                }
            }
            Element::Command { number, name } => {
                json.number("command", (*number).into())?;
                match name {
                    Some(name) => json.string("name", name.as_bytes()),
                    None => json.null("name"),
                }
            }
            Element::Section(section) => {
                let kind: &[u8] = match section.kind {
                    SectionKind::Start => b"START",
                    SectionKind::Part => b"PART",
                    SectionKind::End => b"END",
                    SectionKind::Full => b"FULL",
                };
                json.string("kind", kind)?;
                json.string("name", section.name.as_bytes())?;
                json.number("id", section.id.into())?;
                json.number("instance", section.instance.into())?;
                json.number("version", section.version.into())?;
                if self.lists_chunks(section) {
                    self.json.list("chunks")?;
                }
                Ok(())
            }
            Element::Rest { whole } => json.flag("whole", *whole),
            Element::Eof | Element::VmDescription => Ok(()),
        }
    }

    fn chunk(&mut self, offset: u64, chunk: &NamedChunk<'_>) -> io::Result<()> {
        if !self.chunks {
            return Ok(());
        }
        let json = &mut self.json;
        json.object("")?;
        json.number("offset", offset.into())?;
        let kind: &[u8] = match chunk.chunk {
            Chunk::Start { .. } => b"START",
            Chunk::Zeroes(_) => b"ZEROES",
            Chunk::Bits(..) => b"BITS",
            Chunk::Complete => b"COMPLETE",
            Chunk::Empty => b"EMPTY",
        };
        json.string("type", kind)?;
        json.string("node-alias", chunk.node.as_bytes())?;
        json.string("alias", chunk.bitmap.as_bytes())?;
        match chunk.chunk {
            Chunk::Start { granularity, flags } => {
                json.number("granularity", granularity.bytes().into())?;
                json.flag("enabled", flags.enabled)?;
                json.flag("persistent", flags.persistent)?;
            }
            Chunk::Zeroes(sectors) | Chunk::Bits(sectors, _) => {
                json.number("first-sector", sectors.first.into())?;
                json.number("sectors", sectors.count.into())?;
            }
            Chunk::Complete | Chunk::Empty => {}
        }
        if let Chunk::Bits(_, data) = chunk.chunk {
            json.number("bytes", data.len() as i128)?;
        }
        json.end()
    }

    fn end(
        &mut self,
        _offset: u64,
        size: u64,
        element: &Element,
        content: &Content,
    ) -> io::Result<()> {
        if let Element::Section(section) = element {
            if self.lists_chunks(section) {
                self.json.end()?;
            } else if section.name == "dirty-bitmap" {
                self.json.number("chunk-count", content.chunks.into())?;
            }
        }
        let json = &mut self.json;
        if let Some(ram) = &content.ram {
            json.object("ram")?;
            json.number("blocks", ram.blocks.into())?;
            json.number("block-bytes", ram.total.into())?;
            json.number("pages", ram.pages.into())?;
            json.number("zero-pages", ram.zero_pages.into())?;
            json.end()?;
        }
        if let Some(blocks) = &content.blocks {
            json.object("blocks")?;
            json.number("data", blocks.data.into())?;
            json.number("zero", blocks.zero.into())?;
            json.end()?;
        }
        json.number("size", size.into())?;
        json.end()
    }
}

/// The members that a bitmap has whether it is complete or not.
fn tally(json: &mut Out, tally: &Tally, recording: bool) -> io::Result<()> {
    if tally.granularity > 0 {
        json.number("granularity", tally.granularity.into())?;
        let state: &[u8] = if recording { b"recording" } else { b"disabled" };
        json.string("state", state)?;
        json.flag("persistent", tally.persistent)?;
    } else {
        for key in ["granularity", "state", "persistent"] {
            json.null(key)?;
        }
    }
    json.number("bits-chunks", tally.bits.into())?;
    json.number("bits-bytes", tally.bytes.into())?;
    json.number("zeroes-chunks", tally.zeroes.into())
}

impl Show for Report {
    fn finish(
        &mut self,
        size: u64,
        outcome: &Outcome,
        tallies: &Tallies,
        fault: Option<&Fault>,
    ) -> io::Result<()> {
        let json = &mut self.json;
        let mut digests = Digests::of_a_stream();
        json.end()?;
        json.number("size", size.into())?;
        json.flag("whole", outcome.whole && fault.is_none())?;
        match fault {
            Some(fault) => {
                json.object("error")?;
                json.number("offset", fault.offset.into())?;
                json.string("message", fault.message.as_bytes())?;
                json.end()?;
            }
            None => json.null("error")?,
        }
        json.list("bitmaps")?;
        for received in &outcome.complete {
            let bits = received.bitmap.bits();
            let (node, alias) = (&received.node_alias, &received.bitmap_alias);
            json.object("")?;
            json.string("node-alias", node.as_bytes())?;
            json.string("alias", alias.as_bytes())?;
            json.flag("complete", true)?;
            let recording = received.bitmap.state() == State::Recording;
            tally(json, &tallies.get(node, alias), recording)?;
            json.number("disk-size", bits.len().into())?;
            json.number("dirty-count", bits.count().into())?;
            json.number("dirty-bytes", bits.dirty_bytes().into())?;
            match digests.compute(bits) {
                Some(digest) => json.string("sha256", hex(&digest).as_bytes())?,
                None => json.null("sha256")?,
            }
            json.null("message")?;
            json.list("extents")?;
            extents(json, bits)?;
            json.end()?;
            json.end()?;
        }
        for lost in &outcome.lost {
            let (node, alias) = (&lost.node_alias, &lost.bitmap_alias);
            let known = tallies.get(node, alias);
            json.object("")?;
            json.string("node-alias", node.as_bytes())?;
            json.string("alias", alias.as_bytes())?;
            json.flag("complete", false)?;
            tally(json, &known, known.enabled)?;
            for key in ["disk-size", "dirty-count", "dirty-bytes", "sha256"] {
                json.null(key)?;
            }
            let (offset, reason) = (lost.offset, &lost.reason);
            let message = format!("at offset {offset:#x}: {reason}");
            json.string("message", message.as_bytes())?;
            json.null("extents")?;
            json.end()?;
        }
        json.end()?;
        json.end()?;
        json.flush()
    }
}
