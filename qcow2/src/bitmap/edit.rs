//! [`BitmapEdit`]: actions on the bitmaps of one image, gathered and checked, then
//! made true by one switch of the header. Whatever fails, fails before it.

use std::sync::Arc;

use hbitmap::{Granularity, HBitmap};

use crate::{
    Image, Result,
    addr::HostOffset,
    bitmap::{
        Bitmap, BitmapError, BitmapState, commit,
        content::Content,
        slot::{Slot, Slots},
        stored::{self, MAX_BITMAP_BYTES, StoredBits},
    },
    format::{
        BitmapDirectoryEntry, BitmapFlags,
        bitmap_directory::{
            FIXED_LEN, MAX_BITMAPS, MAX_DIRECTORY_BYTES, MAX_NAME, TYPE_DIRTY_TRACKING,
        },
    },
};

/// Smallest granularity of a stored bitmap: 512 bytes (QEMU's limit).
pub const MIN_GRANULARITY: u64 = 512;
/// Largest granularity of a stored bitmap: 2 GiB (QEMU's limit).
pub const MAX_GRANULARITY: u64 = 2 << 30;

/// Actions on the bitmaps of an image.
///
/// Each method checks its action against the state that the actions before it
/// lead to, and records it; [`commit`](Self::commit) writes them all or, dropped
/// without it, none. Bitmaps that no action names keep their place in the file.
#[derive(Debug)]
pub struct BitmapEdit<'i> {
    image: &'i mut Image,
    slots: Slots,
    /// Entries of the directory on disk that will not be in the next.
    removed: Vec<BitmapDirectoryEntry>,
    voided: bool,
}

impl<'i> BitmapEdit<'i> {
    pub(crate) fn new(image: &'i mut Image) -> Result<Self> {
        image.require_writable()?;
        let bitmaps = image.bitmaps()?;
        // Where the autoclear bit is off the directory means nothing any more.
        let voided = bitmaps.is_voided();
        let entries = if voided {
            Vec::new()
        } else {
            bitmaps.into_entries()?
        };
        Ok(Self {
            image,
            slots: entries.into_iter().map(Slot::kept).collect(),
            removed: Vec::new(),
            voided,
        })
    }

    /// Whether the image had bitmaps that were void, because a program that doesn't keep
    /// bitmaps wrote to it: they are gone after the next [`commit`](Self::commit).
    #[must_use]
    pub fn drops_void_bitmaps(&self) -> bool {
        self.voided
    }

    /// The image that is edited.
    #[must_use]
    pub fn image(&self) -> &Image {
        self.image
    }

    /// The image's default: its cluster size, but within 4 KiB to 64 KiB.
    #[must_use]
    pub fn default_granularity(&self) -> u64 {
        self.image.geometry().cluster_size().clamp(4096, 65536)
    }

    /// Adds a bitmap in which nothing is dirty.
    ///
    /// # Errors
    /// [`BitmapError`]: the name is taken, empty or too long; the granularity is no
    /// power of two within 512 B and 2 GiB; the image can't hold it.
    pub fn add(&mut self, name: &[u8], granularity: u64, enabled: bool) -> Result<()> {
        let granularity = self.check_new(name, granularity)?;
        let content = Content::zeros(granularity, self.image.virtual_size());
        self.push(name, content, enabled)
    }

    /// Adds a bitmap with these bits. Its length has to be that of the disk.
    ///
    /// # Errors
    /// As [`add`](Self::add), and [`BitmapError::DifferentSizes`].
    pub fn add_with_bits(&mut self, name: &[u8], bits: Arc<HBitmap>, enabled: bool) -> Result<()> {
        self.check_new(name, bits.granularity().bytes())?;
        self.check_size(bits.len())?;
        self.push(name, Content::memory(bits), enabled)
    }

    /// Adds a bitmap with the bits, the granularity and the recording state of one
    /// from another image, which are read when this is committed.
    ///
    /// # Errors
    /// As [`add`](Self::add); [`BitmapError::DifferentSizes`]; what
    /// [`Bitmap::require_usable`] says of the other.
    pub fn add_copy(&mut self, name: &[u8], origin: &Bitmap<'_>) -> Result<()> {
        let stored = origin.open_bits()?;
        self.check_new(name, stored.granularity().bytes())?;
        self.check_size(stored.len())?;
        let mut content = Content::zeros(stored.granularity(), stored.len());
        content.merge(Arc::new(Content::stored(Arc::new(stored))));
        self.push(name, content, origin.state() == BitmapState::Recording)
    }

    /// Whether the actions so far leave a bitmap of this name.
    #[must_use]
    pub fn contains(&self, name: &[u8]) -> bool {
        self.position(name).is_some()
    }

    fn check_new(&self, name: &[u8], granularity: u64) -> Result<Granularity> {
        if name.is_empty() {
            return Err(BitmapError::EmptyName.into());
        }
        if !granularity.is_power_of_two()
            || !(MIN_GRANULARITY..=MAX_GRANULARITY).contains(&granularity)
        {
            return Err(BitmapError::Granularity.into());
        }
        let granularity = Granularity::from_bytes(granularity)?;
        if self.position(name).is_some() {
            return Err(BitmapError::Exists { name: lossy(name) }.into());
        }
        let (geometry, len) = (self.image.geometry(), self.image.virtual_size());
        let clusters = stored::table_len(geometry, granularity, len);
        let added = (FIXED_LEN + name.len()).next_multiple_of(8);
        let refusal = if name.len() > MAX_NAME {
            BitmapError::NameTooLong
        } else if self.image.header().version < 3 {
            BitmapError::Version2
        } else if len == 0 {
            BitmapError::EmptyDisk
        } else if clusters.saturating_mul(geometry.cluster_size()) > MAX_BITMAP_BYTES {
            BitmapError::TooLarge
        } else if self.slots.len() >= MAX_BITMAPS as usize {
            BitmapError::TooMany
        } else if (self.slots.directory_len() + added) as u64 > MAX_DIRECTORY_BYTES {
            BitmapError::DirectoryFull
        } else {
            return Ok(granularity);
        };
        Err(refusal.into())
    }

    fn check_size(&self, origin: u64) -> Result<()> {
        let target = self.image.virtual_size();
        if origin == target {
            return Ok(());
        }
        Err(BitmapError::DifferentSizes { target, origin }.into())
    }

    fn push(&mut self, name: &[u8], content: Content, enabled: bool) -> Result<()> {
        let flags = BitmapFlags::default();
        let bits = content.granularity().bits();
        let entry = BitmapDirectoryEntry {
            name: name.to_vec(),
            flags: if enabled {
                flags.with(BitmapFlags::AUTO)
            } else {
                flags
            },
            kind: TYPE_DIRTY_TRACKING,
            granularity_bits: u8::try_from(bits).map_err(|_| BitmapError::Granularity)?,
            ..BitmapDirectoryEntry::default()
        };
        self.slots.push(Slot::added(entry.padded(), content));
        Ok(())
    }

    /// Removes a bitmap, an inconsistent or unusable one too.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`].
    pub fn remove(&mut self, name: &[u8]) -> Result<()> {
        let index = self.find(name)?;
        let slot = self.slots.remove(index);
        let stored = slot.and_then(Slot::into_stored_entry);
        self.removed.extend(stored);
        Ok(())
    }

    /// Marks everything clean.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`], or that it is not usable.
    pub fn clear(&mut self, name: &[u8]) -> Result<()> {
        let slot = self.usable(name)?;
        let (image, slot) = (&*self.image, self.slots.get_mut(slot));
        if let Some(slot) = slot {
            let old = slot.content(image)?;
            slot.replace(Content::zeros(old.granularity(), old.len()));
        }
        Ok(())
    }

    /// Stores a bitmap whose writer is done with it: with these bits, or with those that
    /// it has, and no longer in use.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`].
    pub(crate) fn put_back(&mut self, name: &[u8], bits: Option<Arc<HBitmap>>) -> Result<()> {
        let index = self.find(name)?;
        if let Some(slot) = self.slots.get_mut(index) {
            slot.entry.flags = slot.entry.flags.without(BitmapFlags::IN_USE);
            if let Some(bits) = bits {
                slot.replace(Content::memory(bits));
            }
        }
        Ok(())
    }

    /// Says whether guest writes are to be recorded in it from now on.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`], or that it is not usable.
    pub fn set_enabled(&mut self, name: &[u8], enabled: bool) -> Result<()> {
        let slot = self.usable(name)?;
        if let Some(slot) = self.slots.get_mut(slot) {
            let flags = slot.entry.flags;
            slot.entry.flags = match enabled {
                true => flags.with(BitmapFlags::AUTO),
                false => flags.without(BitmapFlags::AUTO),
            };
        }
        Ok(())
    }

    /// Gives a bitmap, an inconsistent one too, another name.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`], [`BitmapError::Exists`], a bad name.
    pub fn rename(&mut self, name: &[u8], new_name: &[u8]) -> Result<()> {
        let index = self.find(name)?;
        if new_name.is_empty() {
            return Err(BitmapError::EmptyName.into());
        }
        if new_name.len() > MAX_NAME {
            return Err(BitmapError::NameTooLong.into());
        }
        if self.position(new_name).is_some_and(|other| other != index) {
            return Err(BitmapError::Exists {
                name: lossy(new_name),
            }
            .into());
        }
        self.slots.rename(index, new_name);
        Ok(())
    }

    /// Adds what is dirty in `origin`, a bitmap of this image as it is after the
    /// actions so far, to `name`. Granularities can differ.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`] of either, or that one is not usable.
    pub fn merge(&mut self, name: &[u8], origin: &[u8]) -> Result<()> {
        let target = self.usable(name)?;
        let origin = self.usable(origin)?;
        if origin == target {
            return Ok(());
        }
        let Some(origin) = self.slots.get(origin) else {
            return Ok(());
        };
        let content = Arc::new(origin.content(self.image)?);
        self.merge_content(target, content)
    }

    /// Adds what is dirty in `origin`, a bitmap of another image, to `name`.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`], that one is not usable, or
    /// [`BitmapError::DifferentSizes`].
    pub fn merge_from(&mut self, name: &[u8], origin: &Bitmap<'_>) -> Result<()> {
        let target = self.usable(name)?;
        let stored = origin.open_bits()?;
        self.check_size(stored.len())?;
        self.merge_content(target, Arc::new(Content::stored(Arc::new(stored))))
    }

    /// Adds what is dirty in `bits`, a bitmap in memory, to `name`. Granularities can differ.
    ///
    /// # Errors
    /// [`BitmapError::NotFound`], that it is not usable, or [`BitmapError::DifferentSizes`].
    pub fn merge_bits(&mut self, name: &[u8], bits: Arc<HBitmap>) -> Result<()> {
        let target = self.usable(name)?;
        self.check_size(bits.len())?;
        self.merge_content(target, Arc::new(Content::memory(bits)))
    }

    fn merge_content(&mut self, target: usize, origin: Arc<Content>) -> Result<()> {
        let (image, slot) = (&*self.image, self.slots.get_mut(target));
        if let Some(slot) = slot {
            let mut content = slot.content(image)?;
            content.merge(origin);
            slot.replace(content);
        }
        Ok(())
    }

    fn position(&self, name: &[u8]) -> Option<usize> {
        self.slots.find(name)
    }

    fn find(&self, name: &[u8]) -> Result<usize> {
        let found = self.position(name);
        Ok(found.ok_or_else(|| BitmapError::NotFound { name: lossy(name) })?)
    }

    /// The place of the bitmap called `name`, whose bits may be used. Those that this
    /// edit has made or remade can be, and have no table yet.
    fn usable(&self, name: &[u8]) -> Result<usize> {
        let index = self.find(name)?;
        if let Some(slot) = self
            .slots
            .get(index)
            .filter(|slot| slot.new_content().is_none())
        {
            // Tables that overlap are found by the walk before the commit.
            let bitmap = Bitmap {
                image: self.image,
                entry: &slot.entry,
                offset: HostOffset::default(),
                voided: false,
                overlaps: false,
            };
            bitmap.require_usable()?;
        }
        Ok(index)
    }

    /// Whether the actions so far change anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.slots.iter().all(Slot::is_unchanged)
    }

    /// Writes the new state. When this returns `Ok`, it is on stable storage; an
    /// interruption at any moment leaves the state before or the one after, and
    /// leaked clusters at most.
    ///
    /// # Errors
    /// I/O errors, corrupt tables or refcounts, no room. Nothing is lost: the
    /// bitmaps are as before, unless the write of the header itself failed, after
    /// which they are as before or as after.
    pub fn commit(self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        commit::commit(self.image, self.slots.into_vec(), self.removed)
    }
}

/// Opens the stored bits that `entry` describes, in `image`.
pub(super) fn open_bits(image: &Image, entry: &BitmapDirectoryEntry) -> Result<StoredBits> {
    StoredBits::open(
        image.storage(),
        image.geometry(),
        image.virtual_size(),
        entry,
    )
}

/// A name for a message.
pub(super) fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
