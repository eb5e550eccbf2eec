//! Reading a stream for the bitmaps of some images.

use std::io::Read;

use migration::{AliasMap, Item, Limits, Node, Outcome, Receiver, StreamReader};

use super::names::Plan;
use crate::{cmd::stream::Input, error::Failure};

/// What came of a stream.
#[derive(Debug)]
pub(super) struct Incoming {
    /// The bitmaps that are complete, and those that were lost.
    pub(super) outcome: Outcome,
    /// What ended the stream early.
    pub(super) fault: Option<migration::Error>,
}

/// Reads a stream to its end, for `nodes`, which are those of the plan's images.
///
/// # Errors
/// The input can't be read at all. Damage to the stream is part of the answer.
pub(super) fn read(plan: &Plan, nodes: Vec<Node>, input: Input) -> Result<Incoming, Failure> {
    let mut stream = input.reader(true)?;
    let mut receivers = Receivers::new(plan, nodes, Limits::default());
    let fault = receivers.read(&mut stream).err();
    Ok(Incoming {
        outcome: receivers.finish(fault.is_none()),
        fault,
    })
}

/// Where the items of a stream go.
///
/// With one image and one node in the stream the two belong together whatever they are
/// called; only at the end of the stream is it certain that there was no other node. Until a
/// second one comes up, a receiver that goes by names and one that doesn't both listen.
struct Receivers {
    named: Receiver,
    single: Option<Receiver>,
    /// The alias of the image's node, where only one is given.
    alias: Option<String>,
    /// The first alias in the stream.
    first: Option<String>,
}

impl Receivers {
    fn new(plan: &Plan, mut nodes: Vec<Node>, limits: Limits) -> Self {
        let map = || plan.map.clone();
        let only = match (nodes.len(), plan.aliased) {
            (1, false) => nodes.pop(),
            _ => None,
        };
        let Some(node) = only else {
            return Self {
                named: Receiver::new(nodes, map(), limits),
                single: None,
                alias: None,
                first: None,
            };
        };
        Self {
            named: Receiver::new(vec![node.clone()], map(), limits),
            single: Some(Receiver::single(node, map(), limits)),
            alias: alias(&plan.map),
            first: None,
        }
    }

    fn read<R: Read>(&mut self, stream: &mut StreamReader<R>) -> migration::Result<()> {
        loop {
            let offset = stream.offset();
            let Some(item) = stream.next()? else {
                return Ok(());
            };
            if let (
                Some(_),
                Item::Chunk {
                    node: Some(node), ..
                },
            ) = (&self.single, &item)
            {
                let first = self.first.get_or_insert_with(|| (*node).to_owned());
                if first != node || self.alias.as_deref() == Some(node) {
                    self.single = None;
                }
            }
            self.named.apply(&item, offset)?;
            if let Some(single) = &mut self.single {
                single.apply(&item, offset)?;
            }
        }
    }

    fn finish(self, sound: bool) -> Outcome {
        let named = self.named.finish();
        match (self.single, self.first) {
            // What is cut off may have been the node that is meant.
            (Some(single), Some(_)) if sound && named.whole => single.finish(),
            _ => named,
        }
    }
}

fn alias(map: &AliasMap) -> Option<String> {
    map.nodes().next().map(|(_, alias)| alias.to_owned())
}
