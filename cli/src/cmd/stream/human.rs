//! A stream for people.

use std::{
    ffi::OsStr,
    io::{self, BufWriter, StdoutLock, Write},
};

use hbitmap::State;
use migration::{Chunk, Configuration, Lost, Outcome, Received, Section, SectionKind};

use super::{
    show::{Fault, Show, Tallies, Tally},
    walk::{Content, Element, NamedChunk, Printer},
};
use crate::{
    cmd::bitmap::{Digests, NO_DIGEST, hex},
    output::{self, counted, escape_control},
    size,
};

/// Dirty ranges of a bitmap that are listed.
const RANGES: usize = 16;

/// Prints it.
pub(super) struct Human {
    out: BufWriter<StdoutLock<'static>>,
    chunks: bool,
    /// PARTs that follow each other are shown as one line for each section that they are
    /// of: there may be tens of thousands. Sections that come in parts are few.
    parts: Vec<Parts>,
    digests: Digests,
}

/// Parts of one section.
struct Parts {
    offset: u64,
    size: u64,
    count: u64,
    section: Section,
    content: Content,
}

impl Human {
    pub(super) fn new(name: &OsStr, chunks: bool) -> io::Result<Self> {
        let mut out = output::stdout();
        writeln!(out, "stream: {}", escape_control(&name.to_string_lossy()))?;
        writeln!(out, "\n{:>12} {:>12}", "Offset", "Size")?;
        Ok(Self {
            out,
            chunks,
            parts: Vec::new(),
            digests: Digests::of_a_stream(),
        })
    }

    fn line(&mut self, offset: u64, size: u64, text: &str) -> io::Result<()> {
        let text = escape_control(text);
        writeln!(self.out, "{offset:>#12x} {size:>12}  {text}")
    }

    /// Whether the PARTs of the section `begun` are listed chunk by chunk.
    fn lists_chunks(&self, section: &Section) -> bool {
        self.chunks && section.name == "dirty-bitmap"
    }

    /// Prints the PARTs that were held back.
    fn flush_parts(&mut self) -> io::Result<()> {
        for parts in std::mem::take(&mut self.parts) {
            let times = match parts.count {
                1 => String::new(),
                count => format!(" ({count} times)"),
            };
            let text = section(&parts.section, &parts.content);
            self.line(parts.offset, parts.size, &format!("{text}{times}"))?;
        }
        Ok(())
    }

    /// Holds a PART back.
    fn hold(&mut self, offset: u64, size: u64, section: &Section, content: &Content) {
        let same = |parts: &&mut Parts| parts.section.id == section.id;
        if let Some(parts) = self.parts.iter_mut().find(same) {
            parts.size += size;
            parts.count += 1;
            parts.content.add(content);
        } else {
            self.parts.push(Parts {
                offset,
                size,
                count: 1,
                section: section.clone(),
                content: content.clone(),
            });
        }
    }

    fn bitmap(&mut self, received: &Received, tally: &Tally) -> io::Result<()> {
        let out = &mut self.out;
        let bits = received.bitmap.bits();
        let recording = received.bitmap.state() == State::Recording;
        head(out, &received.node_alias, &received.bitmap_alias)?;
        started(out, tally, recording)?;
        let (dirty, count, len) = (bits.dirty_bytes(), bits.count(), bits.len());
        writeln!(
            out,
            "    dirty: {} ({dirty} bytes) in {}, of {} ({len} bytes)",
            size::Human(dirty),
            counted(count, "granule"),
            size::Human(len)
        )?;
        sent(out, tally)?;
        match self.digests.compute(bits) {
            Some(digest) => writeln!(out, "    sha256: {}", hex(&digest))?,
            None => writeln!(out, "    sha256: {NO_DIGEST}")?,
        }
        let mut ranges = bits.ranges();
        if dirty > 0 {
            writeln!(out, "    {:>20} {:>20}", "Offset", "Length")?;
        }
        for range in ranges.by_ref().take(RANGES) {
            writeln!(
                out,
                "    {:>20} {:>20}",
                range.start,
                range.end - range.start
            )?;
        }
        match ranges.count() {
            0 => Ok(()),
            more => writeln!(out, "    and {} more", counted(more as u64, "range")),
        }
    }

    fn lost(&mut self, lost: &Lost, tally: &Tally) -> io::Result<()> {
        let out = &mut self.out;
        head(out, &lost.node_alias, &lost.bitmap_alias)?;
        if tally.granularity > 0 {
            started(out, tally, tally.enabled)?;
        }
        let (offset, reason) = (lost.offset, lost.reason.to_string());
        writeln!(
            out,
            "    incomplete, at offset {offset:#x}: {}",
            escape_control(&reason)
        )?;
        sent(out, tally)
    }
}

fn head(out: &mut impl Write, node: &str, bitmap: &str) -> io::Result<()> {
    writeln!(
        out,
        "\nbitmap {}/{}",
        escape_control(node),
        escape_control(bitmap)
    )
}

fn started(out: &mut impl Write, tally: &Tally, recording: bool) -> io::Result<()> {
    let state = if recording { "recording" } else { "disabled" };
    let kept = if tally.persistent {
        "persistent"
    } else {
        "transient"
    };
    let granularity = tally.granularity;
    writeln!(
        out,
        "    {state}, {kept}, granularity {} ({granularity} bytes)",
        size::Human(granularity)
    )
}

fn sent(out: &mut impl Write, tally: &Tally) -> io::Result<()> {
    writeln!(
        out,
        "    sent as {} of bits ({}) and {} of zeroes",
        counted(tally.bits, "chunk"),
        counted(tally.bytes, "byte"),
        counted(tally.zeroes, "chunk")
    )
}

impl Printer for Human {
    fn begin(&mut self, offset: u64, element: &Element) -> io::Result<()> {
        if let Element::Section(begun) = element
            && self.lists_chunks(begun)
        {
            self.flush_parts()?;
            let text = section(begun, &Content::default());
            let text = escape_control(&text);
            writeln!(self.out, "{offset:>#12x} {:>12}  {text}", "")?;
        }
        Ok(())
    }

    fn chunk(&mut self, offset: u64, chunk: &NamedChunk<'_>) -> io::Result<()> {
        if !self.chunks {
            return Ok(());
        }
        let name = format!("{}/{}", chunk.node, chunk.bitmap);
        let text = match chunk.chunk {
            Chunk::Empty => return Ok(()),
            Chunk::Start { granularity, flags } => {
                let state = if flags.enabled { "enabled" } else { "disabled" };
                let kept = if flags.persistent {
                    "persistent"
                } else {
                    "transient"
                };
                let granularity = granularity.bytes();
                format!("START {name}: granularity {granularity}, {state}, {kept}")
            }
            Chunk::Zeroes(sectors) => {
                let (first, count) = (sectors.first, sectors.count);
                format!("ZEROES {name}: {count} sectors from {first}")
            }
            Chunk::Bits(sectors, data) => {
                let (first, count) = (sectors.first, sectors.count);
                let bytes = data.len();
                format!("BITS {name}: {count} sectors from {first}, {bytes} bytes")
            }
            Chunk::Complete => format!("COMPLETE {name}"),
        };
        let text = escape_control(&text);
        writeln!(self.out, "{offset:>#12x} {:>12}    {text}", "")
    }

    fn end(
        &mut self,
        offset: u64,
        size: u64,
        element: &Element,
        content: &Content,
    ) -> io::Result<()> {
        if let Element::Section(ended) = element {
            if self.lists_chunks(ended) {
                let end = offset.saturating_add(size);
                return self.line(end, size, "end of the section");
            }
            if ended.kind == SectionKind::Part {
                self.hold(offset, size, ended, content);
                return Ok(());
            }
        }
        self.flush_parts()?;
        let text = match element {
            Element::Section(ended) => section(ended, content),
            Element::Header { version } => format!("header, version {version}"),
            Element::Configuration(found) => configuration(found),
            Element::Command { number, name } => match name {
                Some(name) => format!("command {name}"),
                None => format!("command {number}"),
            },
            Element::Rest { whole: true } => "states of devices, to the end of the stream".into(),
            Element::Rest { whole: false } => "states of devices, or what there is of them".into(),
            Element::Eof => "EOF".into(),
            Element::VmDescription => "VMDESCRIPTION".into(),
        };
        self.line(offset, size, &text)
    }
}

fn configuration(found: &Configuration) -> String {
    let mut text = format!("configuration: machine '{}'", found.machine);
    if let Some(bits) = found.target_page_bits {
        text.push_str(&format!(
            ", pages of {} bytes",
            1_u64.checked_shl(bits).unwrap_or(0)
        ));
    }
    if !found.capabilities.is_empty() {
        text.push_str(&format!(", capabilities {}", found.capabilities.join(" ")));
    }
    if let Some(uuid) = &found.uuid {
        text.push_str(&format!(", UUID {}", hex(uuid)));
    }
    text
}

fn section(section: &Section, content: &Content) -> String {
    let Section {
        id,
        name,
        instance,
        version,
        ..
    } = section;
    let mut text = match section.kind {
        SectionKind::Start => {
            format!("START '{name}', id {id}, instance {instance}, version {version}")
        }
        SectionKind::Full => {
            format!("FULL '{name}', id {id}, instance {instance}, version {version}")
        }
        SectionKind::Part => format!("PART '{name}', id {id}"),
        SectionKind::End => format!("END '{name}', id {id}"),
    };
    let counts = counts(content);
    if !counts.is_empty() {
        text.push_str(": ");
        text.push_str(&counts);
    }
    text
}

fn counts(content: &Content) -> String {
    let mut counts = Vec::new();
    if content.chunks > 0 {
        counts.push(counted(content.chunks, "chunk"));
    }
    if let Some(ram) = &content.ram {
        if ram.blocks > 0 {
            counts.push(format!(
                "{} of {} bytes",
                counted(ram.blocks, "block"),
                ram.total
            ));
        }
        if ram.pages > 0 || ram.zero_pages > 0 {
            counts.push(format!(
                "{} pages, {} zero pages",
                ram.pages, ram.zero_pages
            ));
        }
    }
    if let Some(blocks) = &content.blocks {
        counts.push(counted(blocks.data, "block"));
        counts.push(counted(blocks.zero, "zero block"));
    }
    counts.join(", ")
}

impl Show for Human {
    fn finish(
        &mut self,
        size: u64,
        outcome: &Outcome,
        tallies: &Tallies,
        fault: Option<&Fault>,
    ) -> io::Result<()> {
        self.flush_parts()?;
        for received in &outcome.complete {
            let tally = tallies.get(&received.node_alias, &received.bitmap_alias);
            self.bitmap(received, &tally)?;
        }
        for lost in &outcome.lost {
            self.lost(lost, &tallies.get(&lost.node_alias, &lost.bitmap_alias))?;
        }
        let complete = counted(outcome.complete.len() as u64, "bitmap");
        let lost = outcome.lost.len();
        let dirty: u128 = outcome
            .complete
            .iter()
            .map(|received| u128::from(received.bitmap.bits().dirty_bytes()))
            .sum();
        let verdict = match fault {
            None => "whole",
            Some(_) if outcome.whole => "whole, but not all of it can be used",
            Some(_) => "damaged or cut off",
        };
        writeln!(
            self.out,
            "\n{size} bytes, {verdict}; {complete} complete, {lost} not; {dirty} bytes dirty"
        )?;
        self.out.flush()
    }
}
