//! `stream show`: everything that is in a stream.

use std::{
    collections::HashMap,
    io::{self, IsTerminal, Read},
};

use migration::{Chunk, Error, Item, Limits, Outcome, Receiver, StreamReader};

use super::{
    human::Human,
    input::Input,
    json::Report,
    walk::{Printer, Walk},
};
use crate::{
    error::{Failure, chain},
    exit::Exit,
    output::{Form, escape_control},
};

/// What the chunks of a bitmap came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Bytes of disk that a bit stands for; 0 if it was never started.
    pub(super) granularity: u64,
    /// Whether it records writes.
    pub(super) enabled: bool,
    /// Whether it is to be stored.
    pub(super) persistent: bool,
    /// Chunks with bits.
    pub(super) bits: u64,
    /// Chunks that say that a range is clean.
    pub(super) zeroes: u64,
    /// Bytes of bits.
    pub(super) bytes: u64,
}

/// The tallies of the bitmaps, by alias of the node and the bitmap.
#[derive(Debug, Default)]
pub(super) struct Tallies(HashMap<String, HashMap<String, Tally>>);

impl Tallies {
    /// That of a bitmap.
    pub(super) fn get(&self, node: &str, bitmap: &str) -> Tally {
        let known = self.0.get(node).and_then(|bitmaps| bitmaps.get(bitmap));
        known.copied().unwrap_or_default()
    }

    fn note(&mut self, item: &Item<'_>) {
        let Item::Chunk {
            node: Some(node),
            bitmap: Some(bitmap),
            chunk,
            ..
        } = item
        else {
            return;
        };
        if !self.0.contains_key(*node) {
            self.0.insert((*node).to_owned(), HashMap::new());
        }
        let Some(bitmaps) = self.0.get_mut(*node) else {
            return;
        };
        if !bitmaps.contains_key(*bitmap) {
            bitmaps.insert((*bitmap).to_owned(), Tally::default());
        }
        let Some(tally) = bitmaps.get_mut(*bitmap) else {
            return;
        };
        match chunk {
            Chunk::Start { granularity, flags } => {
                tally.granularity = granularity.bytes();
                tally.enabled = flags.enabled;
                tally.persistent = flags.persistent;
            }
            Chunk::Zeroes(_) => tally.zeroes += 1,
            Chunk::Bits(_, data) => {
                tally.bits += 1;
                tally.bytes += data.len() as u64;
            }
            Chunk::Empty | Chunk::Complete => {}
        }
    }
}

/// What is wrong with a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Where.
    pub(super) offset: u64,
    /// What.
    pub(super) message: String,
}

/// Prints a stream from its first element to its bitmaps.
pub(super) trait Show: Printer {
    /// What was found out when the stream had been read.
    fn finish(
        &mut self,
        size: u64,
        outcome: &Outcome,
        tallies: &Tallies,
        fault: Option<&Fault>,
    ) -> io::Result<()>;
}

/// Does it.
pub(super) fn run(input: Input, chunks: bool, form: Form) -> Result<Exit, Failure> {
    let name = input.name().to_owned();
    // A bar and what is shown would be in each other's way.
    let stream = input.reader(!io::stdout().is_terminal())?;
    match form {
        Form::Human => show(stream, &mut Human::new(&name, chunks)?),
        Form::Json => show(stream, &mut Report::new(&name, chunks)?),
    }
}

fn show<R: Read>(mut stream: StreamReader<R>, printer: &mut impl Show) -> Result<Exit, Failure> {
    let mut walk = Walk::default();
    let mut survey = Receiver::survey(Limits::default());
    let mut tallies = Tallies::default();
    let ended = loop {
        let offset = stream.offset();
        let item = match stream.next() {
            Ok(Some(item)) => item,
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        };
        walk.item(offset, &item, printer)?;
        // It knows the limits of what may be kept.
        if let Err(e) = survey.apply(&item, offset) {
            break Err(e);
        }
        tallies.note(&item);
    };
    let (size, end) = match &ended {
        Ok(()) => (stream.offset(), stream.offset()),
        Err(Error::Truncated { offset, .. }) => (*offset, stream.item_offset()),
        Err(_) => (stream.offset(), stream.item_offset()),
    };
    walk.end(end, printer)?;
    // What was being shown of the progress goes with the reader.
    drop(stream);
    let outcome = survey.finish();
    let fault = fault(size, ended, &outcome);
    printer.finish(size, &outcome, &tallies, fault.as_ref())?;
    match fault {
        Some(fault) => Err(Failure::Message(
            escape_control(&fault.message).into_owned(),
        )),
        None => Ok(Exit::Success),
    }
}

/// What is wrong with the stream, or with the first bitmap that isn't complete.
fn fault(size: u64, ended: Result<(), Error>, outcome: &Outcome) -> Option<Fault> {
    if let Err(e) = ended {
        return Some(Fault {
            offset: e.offset().unwrap_or(size),
            message: chain(&e),
        });
    }
    if let Some(lost) = outcome.lost.first() {
        let (node, bitmap) = (&lost.node_alias, &lost.bitmap_alias);
        let (reason, offset) = (&lost.reason, lost.offset);
        return Some(Fault {
            offset,
            message: format!("bitmap '{node}/{bitmap}' at offset {offset:#x}: {reason}"),
        });
    }
    (!outcome.whole).then(|| Fault {
        offset: size,
        message: "it can't be told whether the stream is whole: what follows the bitmaps has no \
                  known length, and no description is behind it"
            .into(),
    })
}
