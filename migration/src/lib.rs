//! QEMU's migration stream, as far as dirty bitmaps need it.
//!
//! A stream is a header, a configuration, and *sections*: START, PART and END of what is
//! sent in pieces, FULL of what is sent at once. Sections carry no length: a reader has to
//! know how to parse whatever comes before what it wants. Dirty bitmaps are the section
//! `dirty-bitmap`; its content is a list of *chunks*.
//!
//! ```text
//!  "QEVM" 3 │ CONFIGURATION │ START dirty-bitmap │ PART … │ END dirty-bitmap │ EOF
//!                             START of each bitmap  BITS     BITS, COMPLETE
//! ```
//!
//! Numbers are big-endian; a *sector* is 512 bytes of the disk.

mod alias;
mod chunk;
mod error;
mod input;
mod limits;
mod output;
mod receiver;
mod section;
mod sender;

pub use alias::{
    AliasMap, BitmapAlias, Local, NodeAlias, Unmapped, Wire, make_node_alias,
    well_formed_node_alias,
};
pub use chunk::{
    BitmapFlags, Chunk, ChunkLayout, ChunkWriter, SECTOR, Sectors, write_bits, write_compact,
};
pub use error::{Error, Result};
pub use limits::Limits;
pub use output::Output;
pub use receiver::{Loss, Lost, Node, Outcome, Received, Receiver};
pub use section::{
    BLOCK_LEN, BlockData, BlockItem, BlockWriter, Command, Configuration, Item, RamSummary,
    Section, SectionKind, StreamReader, StreamWriter, VmDescription,
};
pub use sender::{Design, Outgoing, Pending, Sender, SenderOptions, Source, Style};
