//! [`Source`]: where a sender finds a bitmap.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, PoisonError},
};

use hbitmap::DirtyBitmap;

use crate::Wire;

/// Where a sender finds a bitmap, again and again, while others record into it.
pub trait Source {
    /// Runs `f` on the bitmap, which nobody else has meanwhile. The sender does nothing
    /// long in there: it takes up to 64 KiB at once and never writes to the transport.
    fn with<T>(&self, f: impl FnOnce(&mut DirtyBitmap) -> T) -> T;

    /// Called before each pass, and before it is counted what is left: brings into the
    /// bitmap what was marked elsewhere, such as in a
    /// [`SharedTracker`](hbitmap::SharedTracker).
    fn refresh(&self) {}
}

/// It must not be borrowed by anything else while the sender works or is dropped.
impl Source for RefCell<DirtyBitmap> {
    fn with<T>(&self, f: impl FnOnce(&mut DirtyBitmap) -> T) -> T {
        f(&mut self.borrow_mut())
    }
}

impl Source for Mutex<DirtyBitmap> {
    fn with<T>(&self, f: impl FnOnce(&mut DirtyBitmap) -> T) -> T {
        // A thread that panicked elsewhere has not left the bitmap half-changed.
        f(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Source> Source for &S {
    fn with<T>(&self, f: impl FnOnce(&mut DirtyBitmap) -> T) -> T {
        (**self).with(f)
    }

    fn refresh(&self) {
        (**self).refresh();
    }
}

impl<S: Source> Source for Arc<S> {
    fn with<T>(&self, f: impl FnOnce(&mut DirtyBitmap) -> T) -> T {
        (**self).with(f)
    }

    fn refresh(&self) {
        (**self).refresh();
    }
}

/// A bitmap to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing<S> {
    /// Alias of its node on the wire.
    pub node: String,
    /// Its alias on the wire.
    pub name: String,
    /// Whether it is to record writes over there; `None` for what it does here.
    pub enabled: Option<bool>,
    /// Whether it is to be stored over there; `None` for what it is here.
    pub persistent: Option<bool>,
    /// Where it is.
    pub source: S,
}

impl<S> Outgoing<S> {
    /// The bitmap in `source`, under these aliases, enabled and persistent as it is.
    #[must_use]
    pub fn new(node: impl Into<String>, name: impl Into<String>, source: S) -> Self {
        Self {
            node: node.into(),
            name: name.into(),
            enabled: None,
            persistent: None,
            source,
        }
    }

    /// As an alias map says ([`AliasMap::outgoing`](crate::AliasMap::outgoing)).
    #[must_use]
    pub fn mapped(wire: Wire, source: S) -> Self {
        Self {
            persistent: wire.persistent,
            ..Self::new(wire.node, wire.bitmap, source)
        }
    }
}
