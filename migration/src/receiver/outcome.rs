//! [`Outcome`]: which bitmaps of a stream arrived, and which were lost.

use hbitmap::DirtyBitmap;

use super::{Entry, Loss, Receiver, State};
use crate::BitmapFlags;

/// What came of a stream.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Bitmaps that are complete, in the order of their first chunks. Of a precopy that
    /// failed they are of no use: the machine goes on at the source.
    pub complete: Vec<Received>,
    /// Bitmaps that are not, in the same order. Their disks need a full backup.
    pub lost: Vec<Lost>,
    /// The machine type that the stream is of, if it came that far.
    pub machine: Option<String>,
    /// Whether the stream is known to have ended where it should. If it isn't, bitmaps may
    /// be missing that the stream never named.
    pub whole: bool,
    /// Whether the machine was switched over within the stream (postcopy).
    pub switched_over: bool,
}

/// A bitmap that arrived.
#[derive(Debug)]
#[non_exhaustive]
pub struct Received {
    /// Name of its node here.
    pub node: String,
    /// Alias of the node in the stream.
    pub node_alias: String,
    /// Alias of the bitmap in the stream.
    pub bitmap_alias: String,
    /// What the stream said of it.
    pub flags: BitmapFlags,
    /// Whether it is to be stored: the alias map's word, else the stream's.
    pub persistent: bool,
    /// The bitmap, under its name here; recording if it was at the source, not busy.
    pub bitmap: DirtyBitmap,
    /// Chunks of bits that it came in.
    pub chunks: u64,
}

/// A bitmap that didn't arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lost {
    /// Name of its node here, if the aliases are known.
    pub node: Option<String>,
    /// Its name here, if the aliases are known.
    pub bitmap: Option<String>,
    /// Alias of the node in the stream.
    pub node_alias: String,
    /// Alias of the bitmap in the stream.
    pub bitmap_alias: String,
    /// Where in the stream the chunk began that lost it; of one that is only not complete,
    /// where the stream's last item began.
    pub offset: u64,
    /// Why.
    pub reason: Loss,
}

/// Sorts what a receiver has.
pub(super) fn sort(receiver: Receiver) -> Outcome {
    let Receiver {
        nodes,
        mut entries,
        offset,
        machine,
        switched_over,
        whole,
        ..
    } = receiver;
    // A disk whose length is only known from the chunks is as long as the longest bitmap.
    for state in nodes.iter().filter(|n| n.node.len.is_none()) {
        let of = |e: &Entry| match &e.state {
            State::Complete(complete) => complete.bitmap.bits().len(),
            State::Loading(loading) => loading.bitmap.bits().len(),
            State::Lost(..) => 0,
        };
        let lens = state.entries.iter().filter_map(|i| entries.get(*i)).map(of);
        let len = lens.max().unwrap_or(0);
        for i in &state.entries {
            if let Some(entry) = entries.get_mut(*i)
                && matches!(entry.state, State::Complete(_))
                && of(entry) < len
            {
                let missing = of(entry)..len;
                entry.state = State::Lost(offset, Loss::Uncovered { missing, len });
            }
        }
    }
    let mut outcome = Outcome {
        complete: Vec::new(),
        lost: Vec::new(),
        machine,
        whole,
        switched_over,
    };
    for entry in entries {
        let (node, bitmap) = match entry.local {
            Some((i, bitmap)) => (nodes.get(i).map(|n| n.node.name.clone()), Some(bitmap)),
            None => (None, None),
        };
        let (offset, reason) = match entry.state {
            State::Complete(complete) => {
                outcome.complete.push(Received {
                    node: node.unwrap_or_default(),
                    node_alias: entry.node_alias,
                    bitmap_alias: entry.bitmap_alias,
                    flags: complete.flags,
                    persistent: complete.bitmap.is_persistent(),
                    bitmap: complete.bitmap,
                    chunks: complete.chunks,
                });
                continue;
            }
            State::Loading(_) => (offset, Loss::NotComplete),
            State::Lost(offset, loss) => (offset, loss),
        };
        outcome.lost.push(Lost {
            node,
            bitmap,
            node_alias: entry.node_alias,
            bitmap_alias: entry.bitmap_alias,
            offset,
            reason,
        });
    }
    outcome
}
