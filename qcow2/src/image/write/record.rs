//! [`Recorder`]: the enabled bitmaps while the disk is written.

use std::{ops::Range, sync::Arc};

use hbitmap::HBitmap;

use crate::{Error, Image, Result, addr::HostOffset, bitmap::BitmapState, format::BitmapFlags};

/// Where in a directory entry its flags are.
const FLAGS_AT: u64 = 12;

/// The bitmaps that record what is written.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    bitmaps: Vec<Recording>,
}

#[derive(Debug)]
struct Recording {
    name: Vec<u8>,
    /// Where the flags stand in the image file.
    flags_at: HostOffset,
    flags: BitmapFlags,
    bits: HBitmap,
    /// Granules that are dirty in the bitmap as it is stored.
    stored: u64,
}

impl Recorder {
    /// Reads the enabled bitmaps of `image`.
    ///
    /// # Errors
    /// What keeps one of them, or the directory, from being read: a write that isn't
    /// recorded is worse than none.
    pub(super) fn load(image: &Image) -> Result<Self> {
        let bitmaps = image.bitmaps()?;
        if bitmaps.is_voided() {
            return Ok(Self::default());
        }
        let refused = |what: &str, why: &Error| {
            Error::Refused(format!(
                "'{}' can't be written, because {what} can't be kept up to date: {why}",
                image.name
            ))
        };
        if let Some(fault) = bitmaps.fault() {
            return Err(refused("its bitmaps", fault));
        }
        let mut recorder = Self::default();
        for bitmap in bitmaps.iter(image) {
            let (entry, state) = (bitmap.entry(), bitmap.state());
            let flags = entry.flags;
            let lost = matches!(state, BitmapState::Inconsistent | BitmapState::Live);
            if lost || !flags.contains(BitmapFlags::AUTO) {
                continue;
            }
            let bits = bitmap.load().map_err(|why| {
                let what = format!("bitmap '{}'", bitmap.name_lossy());
                refused(&what, &why)
            })?;
            recorder.bitmaps.push(Recording {
                name: bitmap.name().to_vec(),
                flags_at: HostOffset(bitmap.offset().0.saturating_add(FLAGS_AT)),
                flags,
                stored: bits.count(),
                bits,
            });
        }
        Ok(recorder)
    }

    /// Marks the bitmaps as in use, on stable storage. Each mark is a write of 4 bytes
    /// within a sector.
    pub(super) fn begin(&self, image: &Image) -> Result<()> {
        if self.bitmaps.is_empty() {
            return Ok(());
        }
        for bitmap in &self.bitmaps {
            let flags = bitmap.flags.with(BitmapFlags::IN_USE).0.to_be_bytes();
            image
                .storage
                .write_all_at(bitmap.flags_at.0, &flags)
                .map_err(Error::io("marking a bitmap as in use"))?;
        }
        let synced = image.storage.sync();
        synced.map_err(Error::io("syncing the bitmap directory"))
    }

    /// `range` is about to be changed.
    pub(super) fn record(&mut self, range: Range<u64>) {
        for bitmap in &mut self.bitmaps {
            bitmap.bits.set(range.clone());
        }
    }

    /// Stores the bitmaps, no longer in use, with one switch of the header.
    pub(super) fn store(self, image: &mut Image) -> Result<()> {
        if self.bitmaps.is_empty() {
            return Ok(());
        }
        let mut edit = image.edit_bitmaps()?;
        for bitmap in self.bitmaps {
            // Bits are only ever added.
            let changed = bitmap.bits.count() != bitmap.stored;
            let bits = changed.then(|| Arc::new(bitmap.bits));
            edit.put_back(&bitmap.name, bits)?;
        }
        edit.commit()
    }
}
