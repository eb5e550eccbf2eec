//! [`Slot`]: one bitmap in an edit, as it is stored and as it is to be; [`Slots`]: all of
//! them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

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

/// The bitmaps of an edit, in the order of the directory. There may be 65535, so that none
/// is looked for among all.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// By number. Numbers grow, and none is used again.
    slots: BTreeMap<usize, Slot>,
    next: usize,
    /// The numbers of those of a name; a damaged directory may have several.
    by_name: HashMap<Vec<u8>, BTreeSet<usize>>,
    /// Bytes of their entries in the directory.
    directory_len: usize,
}

impl Slots {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of their entries in the directory.
    pub(super) const fn directory_len(&self) -> usize {
        self.directory_len
    }

    /// The number of the first one of this name.
    pub(super) fn find(&self, name: &[u8]) -> Option<usize> {
        self.by_name.get(name)?.first().copied()
    }

    /// The one of that number.
    pub(super) fn get(&self, number: usize) -> Option<&Slot> {
        self.slots.get(&number)
    }

    /// The same, to change anything but its name and what it takes in the directory.
    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Slot> {
        self.slots.get_mut(&number)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// Adds one behind the others.
    pub(super) fn push(&mut self, slot: Slot) {
        self.put(self.next, slot);
        self.next += 1;
    }

    /// Takes one away.
    pub(super) fn remove(&mut self, number: usize) -> Option<Slot> {
        let slot = self.slots.remove(&number)?;
        self.directory_len -= slot.entry.encoded_len();
        if let Some(numbers) = self.by_name.get_mut(&slot.entry.name) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_name.remove(&slot.entry.name);
            }
        }
        Some(slot)
    }

    /// Gives one another name.
    pub(super) fn rename(&mut self, number: usize, name: &[u8]) {
        if let Some(mut slot) = self.remove(number) {
            slot.entry.name = name.to_vec();
            slot.entry = slot.entry.padded();
            self.put(number, slot);
        }
    }

    /// All of them, to be written.
    pub(super) fn into_vec(self) -> Vec<Slot> {
        self.slots.into_values().collect()
    }

    fn put(&mut self, number: usize, slot: Slot) {
        self.directory_len += slot.entry.encoded_len();
        let name = slot.entry.name.clone();
        self.by_name.entry(name).or_default().insert(number);
        self.slots.insert(number, slot);
    }
}

impl FromIterator<Slot> for Slots {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut all = Self::default();
        slots.into_iter().for_each(|slot| all.push(slot));
        all
    }
}
