//! QEMU's migration stream, as far as dirty bitmaps need it: bitmaps go from one place to
//! another, at rest or while they change, in the form that QEMU itself sends and loads.
//!
//! ```
//! use std::cell::RefCell;
//!
//! use hbitmap::{DirtyBitmap, Granularity, HBitmap};
//! use migration::{AliasMap, Limits, Node, Outgoing, Receiver, Sender, SenderOptions, StreamReader};
//!
//! let mut bits = HBitmap::new(1 << 40, Granularity::from_bytes(65536)?)?; // 1 TiB
//! bits.set(5 << 30..6 << 30);
//! let digest = bits.sha256();
//! let daily = RefCell::new(DirtyBitmap::new("daily", bits));
//!
//! // There is a stream that `qemu-system-x86_64 -incoming` loads as well.
//! let outgoing = Outgoing::new("disk0", "daily", &daily);
//! let stream = Sender::begin(Vec::new(), vec![outgoing], SenderOptions::default())?.complete()?;
//! assert_eq!(stream.len(), 28_764); // 2046 clean chunks of 13 bytes, 2 of 1045, the frame
//!
//! let nodes = vec![Node::new("disk0", 1 << 40)];
//! let mut receiver = Receiver::new(nodes, AliasMap::identity(), Limits::default());
//! receiver.receive(&mut StreamReader::new(&stream[..]))?;
//! let outcome = receiver.finish();
//! assert!(outcome.lost.is_empty());
//! assert_eq!(outcome.complete[0].bitmap.bits().sha256(), digest);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The stream
//! A stream is a header, a configuration, and *sections*: START, PART and END of what is
//! sent in pieces, FULL of what is sent at once. **Sections carry no length**: a reader has
//! to know how to parse whatever comes before what it wants. Dirty bitmaps are the section
//! `dirty-bitmap`; its content is a list of *chunks*. Numbers are big-endian, only the bits
//! themselves are little-endian words; a *sector* is 512 bytes of the disk.
//!
//! ```text
//!  stream    "QEVM" 3 | CONFIGURATION | section ... section | EOF | VMDESCRIPTION
//!            \__________________  ________________/                 (may be missing)
//!                               \/     COMMANDs come between
//!  section   01 START  id "dirty-bitmap" instance 0 version 1 | content | 7e id
//!            02 PART   id                                     | content | 7e id
//!            03 END    id                                     | content | 7e id
//!            04 FULL   id "dirty-bitmap" instance 0 version 1 | content | 7e id
//!                                                               |       FOOTER
//!  content   chunk chunk ... chunk with EOS  <------------------'
//!              |
//!  chunk     flags | node's name | bitmap's name | START:    granularity, bitmap flags
//!                   \___ only where they change _/ BITS:     sector, sectors, size, buffer
//!                                                  ZEROES:   sector, sectors
//!                                                  COMPLETE: nothing      |
//!                                                                         |
//!  buffer    64-bit words, lowest bit first, of 8192 granules  <----------'
//! ```
//!
//! Each field with its bytes is in `docs/migration-stream.md`.
//!
//! # What is here
//! - [`StreamReader`] gives a stream's [`Item`]s one after the other, [`StreamWriter`]
//!   writes its frame, [`ChunkWriter`] the chunks of a section. [`write_bits`] writes a
//!   bitmap as QEMU does, by [`ChunkLayout`]; [`write_compact`] in as few bytes as QEMU
//!   takes. [`BlockWriter`] writes the section `block` of old QEMUs.
//! - [`Sender`] and [`Receiver`] are the two ends of a migration, before (precopy) or after
//!   (postcopy) the switch-over. [`AliasMap`] has the names that stand for others on the
//!   way.
//!
//! ```text
//!   DirtyBitmap -> Sender -> ChunkWriter -> StreamWriter ~~~ StreamReader -> Receiver -> DirtyBitmap
//!   (a Source)                write_bits      any Write      any Read  Items
//! ```
//!
//! # Promises
//! Nothing here panics, whatever a stream holds. Memory follows the bytes that came, never
//! a number in them, and is bounded by [`Limits`]. Faults have the offset, the structure,
//! what was found and what is allowed. Nothing is written in `Drop`.

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
