//! [`Slot`]: one bitmap in an edit, as it is stored and as it is to be.

use std::sync::Arc;

use crate::{
    Image, Result,
    bitmap::{content::Content, edit::open_bits},
    format::BitmapDirectoryEntry,
};

/// One entry of the directory that is to be written.
#[derive(Debug)]
pub(super) struct Slot {
    /// The entry as it is to be; its table is filled in at the commit.
    pub(super) entry: BitmapDirectoryEntry,
    /// The entry as it is on disk; `None` for a new bitmap.
    stored: Option<BitmapDirectoryEntry>,
    /// The bits, if they are to be rewritten.
    content: Option<Content>,
}

impl Slot {
    /// A bitmap as it is stored.
    pub(super) fn kept(entry: BitmapDirectoryEntry) -> Self {
        Self {
            stored: Some(entry.clone()),
            entry,
            content: None,
        }
    }

    /// A new bitmap.
    pub(super) fn added(entry: BitmapDirectoryEntry, content: Content) -> Self {
        Self {
            entry,
            stored: None,
            content: Some(content),
        }
    }

    /// The bits as the actions so far leave them.
    pub(super) fn content(&self, image: &Image) -> Result<Content> {
        match &self.content {
            Some(content) => Ok(content.clone()),
            None => Ok(Content::stored(Arc::new(open_bits(image, &self.entry)?))),
        }
    }

    /// Sets the bits.
    pub(super) fn replace(&mut self, content: Content) {
        self.content = Some(content);
    }

    /// The bits to be written, if they change.
    pub(super) fn new_content(&self) -> Option<&Content> {
        self.content.as_ref()
    }

    /// The entry on disk whose table the next directory will not name, if any.
    pub(super) fn replaced_entry(&self) -> Option<&BitmapDirectoryEntry> {
        self.stored.as_ref().filter(|_| self.content.is_some())
    }

    /// The entry on disk, of a bitmap that is to go.
    pub(super) fn into_stored_entry(self) -> Option<BitmapDirectoryEntry> {
        self.stored
    }

    /// Whether the directory and the bits stay as they are.
    pub(super) fn is_unchanged(&self) -> bool {
        self.content.is_none() && self.stored.as_ref() == Some(&self.entry)
    }
}
