//! The sections of a stream and what else stands between header and end.

mod block;
mod block_writer;
mod code;
mod command;
mod configuration;
mod description;
mod known;
mod ram;
mod reader;
mod writer;

use std::fmt;

use crate::Chunk;
pub use block::BLOCK_LEN;
pub use block_writer::BlockWriter;
pub use description::VmDescription;
pub use reader::StreamReader;
pub use writer::StreamWriter;

/// How a section carries its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SectionKind {
    /// 01: the first piece; gives a name to the section's id.
    Start,
    /// 02: a piece of what goes on while the machine runs.
    Part,
    /// 03: the last piece.
    End,
    /// 04: everything at once; gives a name to the section's id.
    Full,
}

/// The head of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Which piece.
    pub kind: SectionKind,
    /// The id that pieces and footers carry.
    pub id: u32,
    /// The id string: `"ram"`, `"dirty-bitmap"`, `"block"`, a device's name.
    pub name: String,
    /// Which of several of that name.
    pub instance: u32,
    /// Version of the state's form.
    pub version: u32,
}

/// The CONFIGURATION and its subsections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The machine type, such as `"pc-i440fx-10.0"`; may be empty.
    pub machine: String,
    /// log2 of the guest's page size, if it is said.
    pub target_page_bits: Option<u32>,
    /// The capabilities that it lists.
    pub capabilities: Vec<String>,
    /// The machine's UUID, if it is said.
    pub uuid: Option<[u8; 16]>,
}

/// A COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Its number.
    pub number: u16,
    /// Its argument. Of PACKAGED (7), the length alone.
    pub argument: &'a [u8],
}

impl Command<'_> {
    /// The sender listens to a return path.
    pub const OPEN_RETURN_PATH: u16 = 1;
    /// A number that the receiver sends back on the return path.
    pub const PING: u16 = 2;
    /// Postcopy is possible: of dirty bitmaps without an argument, of RAM with 16 bytes.
    pub const POSTCOPY_ADVISE: u16 = 3;
    /// What was announced for postcopy may come from now on.
    pub const POSTCOPY_LISTEN: u16 = 4;
    /// The machine goes on at the receiver.
    pub const POSTCOPY_RUN: u16 = 5;
    /// Pages of RAM that the receiver is to drop.
    pub const POSTCOPY_RAM_DISCARD: u16 = 6;
    /// A nested stream follows; the argument is its length.
    pub const PACKAGED: u16 = 7;
    /// Checkpoints follow one another for ever.
    pub const ENABLE_COLO: u16 = 8;
    /// A broken postcopy of RAM goes on.
    pub const POSTCOPY_RESUME: u16 = 9;
    /// The sender asks which pages of RAM have arrived.
    pub const RECV_BITMAP: u16 = 10;
    /// The source has stopped (machine types from 10.0 on).
    pub const SWITCHOVER_START: u16 = 11;

    /// Its name in QEMU's words; `None` if the number is unknown.
    #[must_use]
    pub const fn name(&self) -> Option<&'static str> {
        Some(match self.number {
            Self::OPEN_RETURN_PATH => "OPEN_RETURN_PATH",
            Self::PING => "PING",
            Self::POSTCOPY_ADVISE => "POSTCOPY_ADVISE",
            Self::POSTCOPY_LISTEN => "POSTCOPY_LISTEN",
            Self::POSTCOPY_RUN => "POSTCOPY_RUN",
            Self::POSTCOPY_RAM_DISCARD => "POSTCOPY_RAM_DISCARD",
            Self::PACKAGED => "PACKAGED",
            Self::ENABLE_COLO => "ENABLE_COLO",
            Self::POSTCOPY_RESUME => "POSTCOPY_RESUME",
            Self::RECV_BITMAP => "RECV_BITMAP",
            Self::SWITCHOVER_START => "SWITCHOVER_START",
            _ => return None,
        })
    }
}

/// What a piece of the section `ram` held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RamSummary {
    /// Blocks of RAM that were announced.
    pub blocks: u64,
    /// Their bytes.
    pub total: u64,
    /// Pages that were sent whole.
    pub pages: u64,
    /// Pages that were sent as one byte.
    pub zero_pages: u64,
    /// Pages that were sent as the difference to what they were (XBZRLE).
    pub delta_pages: u64,
}

/// The data of a block of disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum BlockData<'a> {
    /// It reads as zeros.
    Zero,
    /// 1 MiB, whole even where the disk ends within.
    Data(&'a [u8]),
}

impl fmt::Debug for BlockData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => f.write_str("Zero"),
            Self::Data(data) => write!(f, "Data({} bytes)", data.len()),
        }
    }
}

/// An item of the legacy section `block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockItem<'a> {
    /// A block of a disk.
    Block {
        /// Name of the block backend.
        device: &'a str,
        /// Its first sector.
        sector: u64,
        /// What it holds.
        data: BlockData<'a>,
    },
    /// Percent done.
    Progress(u64),
    /// The end of this piece's list.
    End,
}

/// What a reader of a stream comes upon, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Item<'a> {
    /// Magic and version, always the first.
    Header {
        /// 3.
        version: u32,
    },
    /// The configuration.
    Configuration(&'a Configuration),
    /// A command. The nested stream of a PACKAGED command has been skipped.
    Command(Command<'a>),
    /// A section begins.
    Section(&'a Section),
    /// A chunk of a `dirty-bitmap` section.
    Chunk {
        /// The node's alias in force.
        node: Option<&'a str>,
        /// The bitmap's alias in force.
        bitmap: Option<&'a str>,
        /// The chunk.
        chunk: Chunk<'a>,
        /// Whether it ends the section's list.
        last: bool,
    },
    /// A piece of `ram`, read past.
    Ram(RamSummary),
    /// An item of a `block` section.
    Block(BlockItem<'a>),
    /// The state of a device, read past.
    Device {
        /// Its bytes.
        len: u64,
    },
    /// The footer that ends a section.
    Footer {
        /// The section's id.
        id: u32,
    },
    /// The state of a device whose length can't be known, and all that follows it. The
    /// stream's last bytes were looked at.
    Rest {
        /// Bytes that were skipped, to the end.
        len: u64,
        /// Whether they end with an EOF and the VMDESCRIPTION that belongs to it, so that
        /// the stream is known to be whole.
        whole: bool,
    },
    /// The end of the stream proper.
    Eof,
    /// The description of the device sections, behind the EOF.
    VmDescription {
        /// Its bytes.
        len: u32,
    },
}
