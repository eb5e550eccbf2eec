//! [`Node`]: a disk that bitmaps arrive for.

use std::collections::HashSet;

/// A node of the destination.
#[derive(Clone, Debug)]
pub struct Node {
    pub(super) name: String,
    /// Bytes of the disk; `None` if only the chunks can tell.
    pub(super) len: Option<u64>,
    pub(super) taken: HashSet<String>,
}

impl Node {
    /// A node whose disk has `len` bytes.
    #[must_use]
    pub fn new(name: impl Into<String>, len: u64) -> Self {
        Self {
            name: name.into(),
            len: Some(len),
            taken: HashSet::new(),
        }
    }

    /// It has a bitmap of this name: another one can't arrive.
    #[must_use]
    pub fn taken(mut self, bitmap: impl Into<String>) -> Self {
        self.taken.insert(bitmap.into());
        self
    }

    /// A node whose disk is as long as the chunks say.
    pub(super) fn unknown(name: impl Into<String>) -> Self {
        Self {
            len: None,
            ..Self::new(name, 0)
        }
    }
}

/// A node and what came for it.
#[derive(Debug)]
pub(super) struct NodeState {
    pub(super) node: Node,
    /// Whether the disk has been written here.
    pub(super) written: bool,
    /// Numbers of the bitmaps that are for it.
    pub(super) entries: Vec<usize>,
}
