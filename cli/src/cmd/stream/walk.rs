//! From the items of a stream to what is shown of it: its elements, one after the other,
//! each with its offset and size.

use std::io;

use migration::{BlockData, BlockItem, Chunk, Configuration, Item, RamSummary, Section};

/// What a stream is a sequence of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// Magic and version.
    Header {
        /// The version.
        version: u32,
    },
    /// The configuration.
    Configuration(Configuration),
    /// A command.
    Command {
        /// Its number.
        number: u16,
        /// Its name, if it has one.
        name: Option<&'static str>,
    },
    /// A section with its footer.
    Section(Section),
    /// All that follows the head of a section of unknown length.
    Rest {
        /// Whether it ends as a stream does.
        whole: bool,
    },
    /// The end of the stream proper.
    Eof,
    /// The description behind it.
    VmDescription,
}

/// What was in a section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Chunks of bitmaps, empty ones not counted.
    pub(super) chunks: u64,
    /// What was in a section `ram`.
    pub(super) ram: Option<RamSummary>,
    /// What was in a section `block`.
    pub(super) blocks: Option<Blocks>,
}

impl Content {
    /// Adds what was in another piece of the section.
    pub(super) fn add(&mut self, other: &Self) {
        self.chunks += other.chunks;
        if let Some(ram) = &other.ram {
            self.add_ram(ram);
        }
        if let Some(blocks) = &other.blocks {
            let sum = self.blocks.get_or_insert_default();
            sum.data += blocks.data;
            sum.zero += blocks.zero;
        }
    }

    /// The numbers are the stream's: they may be any.
    fn add_ram(&mut self, other: &RamSummary) {
        let ram = self.ram.get_or_insert_default();
        ram.blocks = ram.blocks.saturating_add(other.blocks);
        ram.total = ram.total.saturating_add(other.total);
        ram.pages = ram.pages.saturating_add(other.pages);
        ram.zero_pages = ram.zero_pages.saturating_add(other.zero_pages);
    }
}

/// What was in a section `block`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Blocks with data.
    pub(super) data: u64,
    /// Blocks of zeros.
    pub(super) zero: u64,
}

/// Prints elements.
pub(super) trait Printer {
    /// An element begins.
    fn begin(&mut self, offset: u64, element: &Element) -> io::Result<()>;
    /// A chunk of the bitmaps, unless it is empty.
    fn chunk(&mut self, offset: u64, chunk: &NamedChunk<'_>) -> io::Result<()>;
    /// The element ends. Before damage its size is what there is of it.
    fn end(
        &mut self,
        offset: u64,
        size: u64,
        element: &Element,
        content: &Content,
    ) -> io::Result<()>;
}

/// A chunk, with the names in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamedChunk<'a> {
    /// The node's alias.
    pub(super) node: &'a str,
    /// The bitmap's alias.
    pub(super) bitmap: &'a str,
    /// The chunk.
    pub(super) chunk: &'a Chunk<'a>,
}

/// The elements so far.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// The one that has begun, and where.
    open: Option<(u64, Element)>,
    content: Content,
}

impl Walk {
    /// Takes an item that began at `offset`.
    pub(super) fn item(
        &mut self,
        offset: u64,
        item: &Item<'_>,
        printer: &mut impl Printer,
    ) -> io::Result<()> {
        let element = match item {
            Item::Header { version } => Element::Header { version: *version },
            Item::Configuration(configuration) => Element::Configuration((*configuration).clone()),
            Item::Command(command) => Element::Command {
                number: command.number,
                name: command.name(),
            },
            Item::Section(section) => Element::Section((*section).clone()),
            Item::Rest { whole, .. } => Element::Rest { whole: *whole },
            Item::Eof => Element::Eof,
            Item::VmDescription { .. } => Element::VmDescription,
            other => {
                self.count(other);
                return match other {
                    Item::Chunk {
                        chunk: Chunk::Empty,
                        ..
                    } => Ok(()),
                    Item::Chunk {
                        node,
                        bitmap,
                        chunk,
                        ..
                    } => {
                        let chunk = NamedChunk {
                            node: node.unwrap_or_default(),
                            bitmap: bitmap.unwrap_or_default(),
                            chunk,
                        };
                        printer.chunk(offset, &chunk)
                    }
                    _ => Ok(()),
                };
            }
        };
        // The rest belongs to the section whose head came last.
        self.end(offset, printer)?;
        printer.begin(offset, &element)?;
        self.open = Some((offset, element));
        Ok(())
    }

    /// Ends what is open, at `offset`.
    pub(super) fn end(&mut self, offset: u64, printer: &mut impl Printer) -> io::Result<()> {
        let content = std::mem::take(&mut self.content);
        match self.open.take() {
            Some((start, element)) => {
                printer.end(start, offset.saturating_sub(start), &element, &content)
            }
            None => Ok(()),
        }
    }

    fn count(&mut self, item: &Item<'_>) {
        match item {
            Item::Chunk { chunk, .. } if *chunk != Chunk::Empty => {
                self.content.chunks += 1;
            }
            Item::Ram(summary) => self.content.add_ram(summary),
            Item::Block(BlockItem::Block { data, .. }) => {
                let blocks = self.content.blocks.get_or_insert_default();
                match data {
                    BlockData::Zero => blocks.zero += 1,
                    BlockData::Data(_) => blocks.data += 1,
                }
            }
            _ => {}
        }
    }
}
