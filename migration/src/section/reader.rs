//! Reading the frame of a stream.

use std::io::Read;

use super::{
    BlockData, BlockItem, Command, Configuration, Item, RamSummary, Section, SectionKind,
    VmDescription,
    block::{self, BLOCK_SIZE, Blocks},
    code, command, configuration, description,
    known::{Known, Started},
    ram::Ram,
};
use crate::{
    Chunk, Limits, Result,
    chunk::{self, Names},
    error::{invalid, unsupported},
    input::Input,
};

/// Reads a stream, item after item. It takes any stream that QEMU would load, as far as it
/// can tell without the machine, and refuses what QEMU refuses.
///
/// Bytes are read as they are needed and kept no longer; reading never waits for more than
/// the next item has.
///
/// ```
/// use migration::{Item, StreamReader};
///
/// let bytes = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\0";
/// let mut stream = StreamReader::new(&bytes[..]);
/// while let Some(item) = stream.next()? {
///     if let Item::Configuration(configuration) = item {
///         assert_eq!(configuration.machine, "none");
///     }
/// }
/// assert_eq!(stream.offset(), 18);
/// # Ok::<(), migration::Error>(())
/// ```
#[derive(Debug)]
pub struct StreamReader<R> {
    input: Input<R>,
    limits: Limits,
    description: VmDescription,
    state: State,
    /// Where the last item began.
    item: u64,
    configuration: Configuration,
    /// The head of the open section, or of the last one.
    section: Section,
    /// What it holds; `None` is the state of a device.
    known: Option<Known>,
    started: Started,
    names: Names,
    ram: Ram,
    blocks: Blocks,
    /// The argument of the last PACKAGED.
    package: [u8; 4],
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Configuration,
    /// A section, a command or the end.
    Between,
    /// The content of the open section.
    Content,
    Footer,
    /// Behind the EOF.
    Behind,
    /// Behind the VMDESCRIPTION.
    End,
    Done,
}

/// An item that borrows nothing.
#[derive(Clone, Copy, Debug)]
enum Event {
    Header,
    Configuration,
    Command(u16, usize),
    Package,
    Section,
    Chunk(chunk::Decoded, bool),
    Ram(RamSummary),
    Block(block::Decoded),
    Device(u64),
    Footer(u32),
    Rest { len: u64, whole: bool },
    Eof,
    VmDescription(u32),
}

impl<R: Read> StreamReader<R> {
    /// Reads a stream from its start, with the default limits.
    #[must_use]
    pub fn new(input: R) -> Self {
        Self::with_limits(input, Limits::default())
    }

    /// Reads a stream from its start.
    #[must_use]
    pub fn with_limits(input: R, limits: Limits) -> Self {
        Self {
            input: Input::new(input),
            limits,
            description: VmDescription::default(),
            state: State::Header,
            item: 0,
            configuration: Configuration::default(),
            section: Section {
                kind: SectionKind::Full,
                id: 0,
                name: String::new(),
                instance: 0,
                version: 0,
            },
            known: None,
            started: Started::default(),
            names: Names::default(),
            ram: Ram::default(),
            blocks: Blocks::default(),
            package: [0; 4],
        }
    }

    /// With the stream's own description, the sections of devices can be read past.
    #[must_use]
    pub fn describe(mut self, description: VmDescription) -> Self {
        self.description = description;
        self
    }

    /// Where the last item began, in bytes of the stream. Of an item that failed, too.
    #[must_use]
    pub const fn item_offset(&self) -> u64 {
        self.item
    }

    /// Bytes of the stream that were read so far.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.input.offset()
    }

    /// The next item; `None` behind the last, and behind an error.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read); [`Error::Truncated`](crate::Error::Truncated)
    /// if the stream ends before its EOF or within what follows it;
    /// [`Error::Invalid`](crate::Error::Invalid) for what QEMU would refuse;
    /// [`Error::Unsupported`](crate::Error::Unsupported) for what it would take and this
    /// crate can't read.
    // An iterator's items can't borrow from it.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Item<'_>>> {
        if self.state == State::Done {
            return Ok(None);
        }
        let event = self.step();
        if !matches!(event, Ok(Some(_))) {
            self.state = State::Done;
        }
        Ok(event?.map(|event| self.lend(event)))
    }

    fn step(&mut self) -> Result<Option<Event>> {
        self.item = self.input.offset();
        Ok(Some(match self.state {
            State::Header => self.header()?,
            State::Configuration => self.configuration()?,
            State::Between => self.between()?,
            State::Content => self.content()?,
            State::Footer => self.footer()?,
            State::Behind => match self.behind()? {
                Some(event) => event,
                None => return Ok(None),
            },
            State::End => {
                self.nothing_more()?;
                return Ok(None);
            }
            State::Done => return Ok(None),
        }))
    }

    fn header(&mut self) -> Result<Event> {
        let magic: [u8; 4] = self.input.array("the header")?;
        if magic != code::MAGIC {
            return Err(invalid(
                self.item,
                "the header",
                format_args!("\"{}\"", magic.escape_ascii()),
                "\"QEVM\"",
            ));
        }
        let version = self.input.be32("the header")?;
        if version != code::VERSION {
            return Err(invalid(
                self.item,
                "the header",
                format_args!("version {version}"),
                code::VERSION,
            ));
        }
        self.state = State::Configuration;
        Ok(Event::Header)
    }

    fn configuration(&mut self) -> Result<Event> {
        let byte = self.input.u8("the configuration")?;
        if byte != code::CONFIGURATION {
            return Err(invalid(
                self.item,
                "the configuration",
                format_args!("type {byte:#04x}"),
                "0x07, which every stream has behind its header",
            ));
        }
        self.configuration = configuration::read(&mut self.input, &self.limits)?;
        let page_bits = self
            .configuration
            .target_page_bits
            .or(self.description.page_bits());
        self.ram = Ram::new(page_bits, self.configuration.ignores_shared());
        self.state = State::Between;
        Ok(Event::Configuration)
    }

    fn between(&mut self) -> Result<Event> {
        let byte = self.input.u8("the list of sections, before its EOF")?;
        match byte {
            code::EOF => {
                self.state = State::Behind;
                return Ok(Event::Eof);
            }
            code::COMMAND => return self.command(),
            _ => {}
        }
        let kind = SectionKind::from_byte(byte).ok_or_else(|| {
            invalid(
                self.item,
                "a section",
                format_args!("type {byte:#04x}"),
                "0x00 (EOF), 0x01 to 0x04 and 0x08 (COMMAND)",
            )
        })?;
        let id = self.input.be32("the head of a section")?;
        if matches!(kind, SectionKind::Start | SectionKind::Full) {
            self.begin(kind, id)?;
        } else {
            self.resume(kind, id)?;
        }
        self.state = State::Content;
        Ok(Event::Section)
    }

    fn command(&mut self) -> Result<Event> {
        let (number, len) = command::read(&mut self.input, self.item)?;
        if number != Command::PACKAGED {
            return Ok(Event::Command(number, len));
        }
        self.package = self.input.last(len).try_into().unwrap_or_default();
        let len = u32::from_be_bytes(self.package);
        self.input
            .skip(len.into(), "the stream within a command PACKAGED")?;
        Ok(Event::Package)
    }

    /// A section that brings its name.
    fn begin(&mut self, kind: SectionKind, id: u32) -> Result<()> {
        let name = self.input.name("the name of a section")?;
        name.clone_into(&mut self.section.name);
        let instance = self.input.be32("the head of a section")?;
        let version = self.input.be32("the head of a section")?;
        self.section.kind = kind;
        self.section.id = id;
        self.section.instance = instance;
        self.section.version = version;
        let name = &self.section.name;
        self.known = Known::ALL.into_iter().find(|known| known.name() == name);
        let structure = || format!("section '{}'", name.escape_debug());
        let Some(known) = self.known else {
            return match kind {
                SectionKind::Full => Ok(()),
                _ => Err(unsupported(
                    self.item,
                    structure(),
                    "sections carry no length, and what it holds is unknown",
                )),
            };
        };
        if instance != 0 || version != known.version() {
            return Err(invalid(
                self.item,
                structure(),
                format_args!("instance {instance}, version {version}"),
                format_args!("instance 0, version {}", known.version()),
            ));
        }
        if let Some(other) = self.started.find(id).filter(|other| *other != known) {
            return Err(invalid(
                self.item,
                structure(),
                format_args!("id {id}"),
                format_args!("any but that of section '{}'", other.name()),
            ));
        }
        *self.started.id(known) = Some(id);
        Ok(())
    }

    /// A section that carries only the id of one that was started.
    fn resume(&mut self, kind: SectionKind, id: u32) -> Result<()> {
        let known = self.started.find(id).ok_or_else(|| {
            invalid(
                self.item,
                "a section's PART or END",
                format_args!("id {id}"),
                "the id of a section that was started",
            )
        })?;
        self.known = Some(known);
        self.section.kind = kind;
        self.section.id = id;
        known.name().clone_into(&mut self.section.name);
        self.section.instance = 0;
        self.section.version = known.version();
        Ok(())
    }

    fn content(&mut self) -> Result<Event> {
        let Some(known) = self.known else {
            return self.device();
        };
        let (event, last) = match known {
            Known::DirtyBitmap => {
                let (decoded, last) = chunk::decode(&mut self.input, &mut self.names)?;
                (Event::Chunk(decoded, last), last)
            }
            Known::Ram => (Event::Ram(self.ram.read(&mut self.input)?), true),
            Known::Block => {
                let decoded = self.blocks.read(&mut self.input)?;
                let last = matches!(decoded, block::Decoded::End);
                (Event::Block(decoded), last)
            }
        };
        if last {
            self.state = State::Footer;
        }
        Ok(event)
    }

    /// The state of a device, if it is known how long it is.
    fn device(&mut self) -> Result<Event> {
        let section = &self.section;
        let size = match (section.name.as_str(), section.version) {
            ("timer", 2) => Some(24),
            ("globalstate", 1) => Some(104),
            (name, _) => self.description.size(name, section.instance),
        };
        let Some(size) = size else {
            let (len, whole) = description::drain(&mut self.input, &self.limits)?;
            self.state = State::End;
            return Ok(Event::Rest { len, whole });
        };
        self.input.skip(size, "the state of a device")?;
        self.state = State::Footer;
        Ok(Event::Device(size))
    }

    fn footer(&mut self) -> Result<Event> {
        let structure = || {
            let name = self.section.name.escape_debug();
            format!("the footer of section '{name}'")
        };
        if !self.input.has(5)? {
            return Err(self.input.truncated(structure()));
        }
        let byte = self.input.u8("")?;
        let id = self.input.be32("")?;
        let wanted = self.section.id;
        if byte != code::FOOTER || id != wanted {
            return Err(invalid(
                self.item,
                structure(),
                format_args!("type {byte:#04x}, id {id}"),
                format_args!("type {:#04x}, id {wanted}", code::FOOTER),
            ));
        }
        self.state = State::Between;
        Ok(Event::Footer(id))
    }

    fn behind(&mut self) -> Result<Option<Event>> {
        if self.input.peek()? != Some(code::VMDESCRIPTION) {
            self.nothing_more()?;
            return Ok(None);
        }
        self.input.u8("the VMDESCRIPTION")?;
        let len = self.input.be32("the VMDESCRIPTION")?;
        self.input.skip(len.into(), "the VMDESCRIPTION")?;
        self.state = State::End;
        Ok(Some(Event::VmDescription(len)))
    }

    fn nothing_more(&mut self) -> Result<()> {
        match self.input.peek()? {
            None => Ok(()),
            Some(byte) => Err(invalid(
                self.item,
                "the end of the stream",
                format_args!("byte {byte:#04x}"),
                "nothing but one VMDESCRIPTION behind the EOF",
            )),
        }
    }

    /// The item of an event, with the bytes that were taken last.
    fn lend(&self, event: Event) -> Item<'_> {
        match event {
            Event::Header => Item::Header {
                version: code::VERSION,
            },
            Event::Configuration => Item::Configuration(&self.configuration),
            Event::Command(number, len) => Item::Command(Command {
                number,
                argument: self.input.last(len),
            }),
            Event::Package => Item::Command(Command {
                number: Command::PACKAGED,
                argument: &self.package,
            }),
            Event::Section => Item::Section(&self.section),
            Event::Chunk(decoded, last) => Item::Chunk {
                node: self.names.node(),
                bitmap: self.names.bitmap(),
                chunk: match decoded {
                    chunk::Decoded::Empty => Chunk::Empty,
                    chunk::Decoded::Start(granularity, flags) => {
                        Chunk::Start { granularity, flags }
                    }
                    chunk::Decoded::Zeroes(sectors) => Chunk::Zeroes(sectors),
                    chunk::Decoded::Bits(sectors, len) => {
                        Chunk::Bits(sectors, self.input.last(len))
                    }
                    chunk::Decoded::Complete => Chunk::Complete,
                },
                last,
            },
            Event::Ram(summary) => Item::Ram(summary),
            Event::Block(decoded) => Item::Block(match decoded {
                block::Decoded::Block { sector, zero } => BlockItem::Block {
                    device: self.blocks.device(),
                    sector,
                    data: if zero {
                        BlockData::Zero
                    } else {
                        BlockData::Data(self.input.last(BLOCK_SIZE))
                    },
                },
                block::Decoded::Progress(percent) => BlockItem::Progress(percent),
                block::Decoded::End => BlockItem::End,
            }),
            Event::Device(len) => Item::Device { len },
            Event::Footer(id) => Item::Footer { id },
            Event::Rest { len, whole } => Item::Rest { len, whole },
            Event::Eof => Item::Eof,
            Event::VmDescription(len) => Item::VmDescription { len },
        }
    }
}
