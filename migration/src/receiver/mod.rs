//! [`Receiver`]: makes bitmaps out of what a stream brings.
//!
//! ```text
//!  START ──► busy, disabled ──── BITS … ────► COMPLETE ──► as it was at the source
//!            enabled ones: record ──► successor ──merged──┘
//! ```
//!
//! A fault of one bitmap loses that one alone. A fault of the stream ends it; what was
//! complete by then stays.

mod gather;
mod loading;
mod loss;
mod node;
mod outcome;
mod stream;

use std::{collections::HashMap, mem, ops::Range};

use hbitmap::DirtyBitmap;

use self::{
    gather::{Gather, Piece},
    loading::Loading,
    node::NodeState,
};
pub use self::{
    loss::Loss,
    node::Node,
    outcome::{Lost, Outcome, Received},
};
use crate::{
    AliasMap, BitmapFlags, Chunk, Command, Error, Item, Limits, Result, Sectors, Unmapped,
};

/// Memory that a bitmap takes whatever its bits are, generously.
const OVERHEAD: usize = 512;

/// How aliases are looked up.
#[derive(Debug)]
enum Names {
    Mapped(AliasMap),
    /// There is one node; the first alias that comes is its.
    Single(AliasMap, Option<String>),
    /// Every alias is a node.
    Survey,
}

/// A bitmap that the stream spoke of.
#[derive(Debug)]
struct Entry {
    node_alias: String,
    bitmap_alias: String,
    /// Number of its node and its name there, if the aliases are known.
    local: Option<(usize, String)>,
    /// What is counted of the memory limit: the most that it took.
    memory: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Loading(Box<Loading>),
    Complete(Box<Complete>),
    Lost(u64, Loss),
}

#[derive(Debug)]
struct Complete {
    bitmap: DirtyBitmap,
    flags: BitmapFlags,
    chunks: u64,
}

/// The destination's half: takes the items of a stream, and the writes to the disks here
/// since the switch-over.
#[derive(Debug)]
pub struct Receiver {
    names: Names,
    limits: Limits,
    nodes: Vec<NodeState>,
    /// Numbers of nodes by name.
    by_name: HashMap<String, usize>,
    entries: Vec<Entry>,
    /// Numbers of entries by alias of the node and the bitmap.
    by_alias: HashMap<String, HashMap<String, usize>>,
    /// The entry that the last chunk was for.
    last: Option<usize>,
    gather: Gather,
    /// Sum of what the entries count.
    memory: usize,
    /// Where the last item began.
    offset: u64,
    machine: Option<String>,
    switched_over: bool,
    whole: bool,
}

impl Receiver {
    /// For these nodes; what the stream calls them and their bitmaps, `map` tells. Of nodes
    /// of the same name the first one counts.
    #[must_use]
    pub fn new(nodes: Vec<Node>, map: AliasMap, limits: Limits) -> Self {
        Self::with(nodes, Names::Mapped(map), limits)
    }

    /// For one node: whatever alias the stream names first is taken for it. Of `map`, the
    /// bitmaps of this node count, not its alias.
    #[must_use]
    pub fn single(node: Node, map: AliasMap, limits: Limits) -> Self {
        Self::with(vec![node], Names::Single(map, None), limits)
    }

    /// For everything in the stream, to look at it: every alias is a name, and a disk is as
    /// long as the chunks say, in sectors.
    #[must_use]
    pub fn survey(limits: Limits) -> Self {
        Self::with(Vec::new(), Names::Survey, limits)
    }

    fn with(nodes: Vec<Node>, names: Names, limits: Limits) -> Self {
        let mut receiver = Self {
            names,
            limits,
            nodes: Vec::new(),
            by_name: HashMap::new(),
            entries: Vec::new(),
            by_alias: HashMap::new(),
            last: None,
            gather: Gather::default(),
            memory: 0,
            offset: 0,
            machine: None,
            switched_over: false,
            whole: false,
        };
        for node in nodes {
            receiver.add(node);
        }
        receiver
    }

    /// Adds a node, unless there is one of that name.
    fn add(&mut self, node: Node) {
        if !self.by_name.contains_key(&node.name) {
            self.by_name.insert(node.name.clone(), self.nodes.len());
            self.nodes.push(NodeState {
                node,
                written: false,
                entries: Vec::new(),
            });
        }
    }

    /// Takes one item, which began at `offset` of the stream.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a chunk that names no bitmap, and if there are more than
    /// [`Limits::bitmaps`]. A fault of a bitmap is not an error: it is lost.
    pub fn apply(&mut self, item: &Item<'_>, offset: u64) -> Result<()> {
        self.offset = offset;
        match item {
            Item::Configuration(configuration) => {
                self.machine = Some(configuration.machine.clone());
            }
            Item::Command(command) => {
                // The package of a postcopy holds its RUN.
                self.switched_over |=
                    matches!(command.number, Command::POSTCOPY_RUN | Command::PACKAGED);
            }
            Item::Eof => self.whole = true,
            Item::Rest { whole, .. } => self.whole = *whole,
            Item::Chunk {
                chunk: Chunk::Empty,
                ..
            } => {}
            Item::Chunk {
                node: Some(node),
                bitmap: Some(bitmap),
                chunk,
                ..
            } => self.chunk(node, bitmap, chunk)?,
            Item::Chunk { .. } => {
                return Err(Error::Invalid {
                    offset,
                    structure: "chunk".into(),
                    found: "no name of a node and a bitmap".into(),
                    allowed: "names in the chunk or before".into(),
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// A write (or discard) to a disk here since the switch-over, in bytes. It goes to every
    /// enabled bitmap of the node, complete or not.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no such node.
    pub fn record(&mut self, node: &str, range: Range<u64>) -> Result<()> {
        let number = self.by_name.get(node);
        let Some(state) = number.and_then(|i| self.nodes.get_mut(*i)) else {
            let node = node.escape_debug();
            return Err(Error::Refused(format!("there is no node '{node}'")));
        };
        state.written = true;
        for i in &state.entries {
            match self.entries.get_mut(*i).map(|e| &mut e.state) {
                Some(State::Loading(loading)) => loading.bitmap.record(range.clone()),
                Some(State::Complete(complete)) => complete.bitmap.record(range.clone()),
                Some(State::Lost(..)) | None => {}
            }
        }
        Ok(())
    }

    /// Whether the stream said that the machine runs here from now on (postcopy).
    #[must_use]
    pub const fn switched_over(&self) -> bool {
        self.switched_over
    }

    /// Bitmaps that were started and are neither complete nor lost.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        let open = |e: &&Entry| matches!(e.state, State::Loading(_));
        self.entries.iter().filter(open).count()
    }

    /// Bytes of memory that the stream made it take at most, beside a buffer of 64 KiB.
    #[must_use]
    pub const fn memory(&self) -> usize {
        self.memory
    }

    /// What came of the stream, whole or not: which bitmaps are complete, and which were
    /// lost.
    #[must_use]
    pub fn finish(self) -> Outcome {
        outcome::sort(self)
    }

    fn chunk(&mut self, node: &str, bitmap: &str, chunk: &Chunk<'_>) -> Result<()> {
        let i = match self.find(node, bitmap) {
            Some(i) => i,
            None => return self.enter(node, bitmap, chunk),
        };
        self.last = Some(i);
        let done = match *chunk {
            Chunk::Empty => Ok(()),
            Chunk::Start { .. } => Err(Loss::StartedTwice),
            Chunk::Bits(sectors, data) => self.bits(i, sectors, Some(data)),
            Chunk::Zeroes(sectors) => self.bits(i, sectors, None),
            Chunk::Complete => self.complete(i),
        };
        if let Err(loss) = done {
            self.lose(i, loss);
        }
        Ok(())
    }

    /// A chunk of bits of an entry.
    fn bits(&mut self, i: usize, sectors: Sectors, data: Option<&[u8]>) -> Result<(), Loss> {
        let loading = match self.entries.get_mut(i).map(|e| &mut e.state) {
            Some(State::Loading(loading)) => loading,
            Some(State::Complete(_)) => return Err(Loss::AfterComplete),
            Some(State::Lost(..)) | None => return Ok(()),
        };
        let word = loading.word();
        let (range, data) = loading.check(sectors, data)?;
        if range.is_empty() {
            return Ok(());
        }
        let piece = Piece { of: i, range, data };
        if let Some(gap) = self.gather.gap(&piece, word)
            && loading.is_covered(&gap)
        {
            self.gather.bridge(&gap, word, |out| {
                loading.bitmap.bits().write_linear(gap.clone(), out)
            });
        }
        if !self.gather.add(&piece, word) {
            self.load_gathered();
            self.gather.begin(&piece);
        }
        if self.gather.is_full(word) {
            self.load_gathered();
        }
        Ok(())
    }

    /// Loads the bits that were gathered into the bitmap that they are for.
    fn load_gathered(&mut self) {
        let Some(piece) = self.gather.take() else {
            return;
        };
        let i = piece.of;
        let Some(State::Loading(loading)) = self.entries.get_mut(i).map(|e| &mut e.state) else {
            return;
        };
        match loading.load(piece.range, piece.data) {
            Ok(()) => self.count(i),
            Err(loss) => self.lose(i, loss),
        }
    }

    /// COMPLETE of an entry.
    fn complete(&mut self, i: usize) -> Result<(), Loss> {
        if self.gather.of() == Some(i) {
            self.load_gathered();
        }
        let Some(entry) = self.entries.get_mut(i) else {
            return Ok(());
        };
        // QEMU takes it twice, too.
        let State::Loading(loading) = &mut entry.state else {
            return Ok(());
        };
        loading.complete()?;
        let between = State::Lost(self.offset, Loss::NotComplete);
        if let State::Loading(loading) = mem::replace(&mut entry.state, between) {
            entry.state = State::Complete(Box::new(Complete {
                bitmap: loading.bitmap,
                flags: loading.flags,
                chunks: loading.chunks,
            }));
        }
        Ok(())
    }

    /// The number of a bitmap that the stream spoke of before.
    fn find(&self, node: &str, bitmap: &str) -> Option<usize> {
        let same = |i: &usize| {
            self.entries
                .get(*i)
                .is_some_and(|e| e.node_alias == node && e.bitmap_alias == bitmap)
        };
        self.last
            .filter(same)
            .or_else(|| self.by_alias.get(node)?.get(bitmap).copied())
    }

    /// The first chunk of a bitmap.
    fn enter(&mut self, node: &str, bitmap: &str, chunk: &Chunk<'_>) -> Result<()> {
        if self.entries.len() >= self.limits.bitmaps {
            return Err(Error::Invalid {
                offset: self.offset,
                structure: "chunk".into(),
                found: "another bitmap".into(),
                allowed: format!("{} bitmaps", self.limits.bitmaps),
            });
        }
        let i = self.entries.len();
        let resolved = self.resolve(node, bitmap);
        let (local, state) = match resolved {
            Ok((number, name, persistent)) => {
                let started = self.start(number, &name, persistent, chunk);
                (Some((number, name)), started)
            }
            Err(loss) => (None, Err(loss)),
        };
        if let Some(state) = local.as_ref().and_then(|l| self.nodes.get_mut(l.0)) {
            state.entries.push(i);
        }
        self.by_alias
            .entry(node.into())
            .or_default()
            .insert(bitmap.into(), i);
        self.entries.push(Entry {
            node_alias: node.into(),
            bitmap_alias: bitmap.into(),
            local,
            memory: 0,
            state: match state {
                Ok(loading) => State::Loading(Box::new(loading)),
                Err(loss) => State::Lost(self.offset, loss),
            },
        });
        self.last = Some(i);
        self.count(i);
        Ok(())
    }

    /// Which bitmap here is meant: number of the node, name, persistence if it's decided.
    fn resolve(&mut self, node: &str, bitmap: &str) -> Result<(usize, String, Option<bool>), Loss> {
        let local = match &mut self.names {
            Names::Mapped(map) => map.incoming(node, bitmap),
            Names::Single(map, bound) => {
                if bound.get_or_insert_with(|| node.into()) != node {
                    return Err(Loss::UnknownNode);
                }
                let only = self.nodes.first().map_or("", |n| n.node.name.as_str());
                map.incoming_to(only, bitmap)
            }
            Names::Survey => {
                self.add(Node::unknown(node));
                AliasMap::identity().incoming(node, bitmap)
            }
        };
        let local = local.map_err(|unmapped| match unmapped {
            Unmapped::Node => Loss::UnknownNode,
            Unmapped::Bitmap => Loss::UnknownBitmap,
        })?;
        let number = self.by_name.get(&local.node).ok_or(Loss::UnknownNode)?;
        Ok((*number, local.bitmap, local.persistent))
    }

    /// Begins a bitmap here, if `chunk` is a START and nothing is against it.
    fn start(
        &mut self,
        number: usize,
        name: &str,
        persistent: Option<bool>,
        chunk: &Chunk<'_>,
    ) -> Result<Loading, Loss> {
        let Chunk::Start { granularity, flags } = *chunk else {
            return Err(Loss::NeverStarted);
        };
        let state = self.nodes.get_mut(number).ok_or(Loss::UnknownNode)?;
        if !state.node.taken.insert(name.into()) {
            return Err(Loss::NameTaken { name: name.into() });
        }
        if state.written && flags.enabled {
            return Err(Loss::StartedLate);
        }
        let len = state.node.len;
        let mut loading =
            Loading::new(name.into(), granularity, flags, len).map_err(|_| Loss::PastEnd {
                end: len.unwrap_or(0),
                len: hbitmap::MAX_LEN,
            })?;
        loading
            .bitmap
            .set_persistent(persistent.unwrap_or(flags.persistent));
        Ok(loading)
    }

    /// An entry is lost, unless it was before.
    fn lose(&mut self, i: usize, loss: Loss) {
        if let Some(entry) = self.entries.get_mut(i)
            && !matches!(entry.state, State::Lost(..))
        {
            entry.state = State::Lost(self.offset, loss);
        }
        self.count(i);
    }

    /// Counts the memory that an entry takes, and loses it if that is too much.
    fn count(&mut self, i: usize) {
        let Some(entry) = self.entries.get_mut(i) else {
            return;
        };
        let names = entry.node_alias.len() + entry.bitmap_alias.len();
        let fixed = OVERHEAD + 2 * names;
        let now = match &entry.state {
            // What is free within it is still not free for others.
            State::Loading(loading) => entry.memory.max(fixed + loading.memory()),
            State::Complete(_) => entry.memory,
            State::Lost(..) => fixed,
        };
        self.memory = self.memory - entry.memory + now;
        entry.memory = now;
        if self.memory > self.limits.memory && !matches!(entry.state, State::Lost(..)) {
            let limit = self.limits.memory;
            self.lose(i, Loss::Memory { limit });
        }
    }
}

#[cfg(test)]
mod tests;
