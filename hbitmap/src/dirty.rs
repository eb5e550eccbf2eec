//! [`DirtyBitmap`]: a bitmap with a name and the life cycle that QEMU gives it.

use alloc::boxed::Box;
use alloc::string::String;
use core::ops::Range;

use crate::{Error, Granularity, HBitmap, MetaBitmap, Result};

/// Whether a bitmap takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Writes are recorded.
    Recording,
    /// Writes are not recorded.
    Disabled,
    /// It was in use when last stored, so bits may be missing: it can only be removed.
    Inconsistent,
}

/// A named dirty bitmap.
///
/// Whoever writes to the disk calls [`record`](Self::record), and nothing else. While an
/// operation such as a backup works with the bitmap it is *frozen*: busy, its bits don't
/// change, and writes go to its *successor*. [`abdicate`](Self::abdicate) ends an
/// operation that worked, [`reclaim`](Self::reclaim) one that failed.
///
/// ```text
///  record ──► bits            freeze      bits stay      abdicate: successor's bits remain
///                            ───────►    record ──► successor
///                                                        reclaim: both, merged
/// ```
#[derive(Clone, Debug)]
pub struct DirtyBitmap {
    name: String,
    bits: HBitmap,
    recording: bool,
    inconsistent: bool,
    busy: bool,
    persistent: bool,
    successor: Option<Box<Successor>>,
    meta: Option<MetaBitmap>,
}

/// Takes the writes of a frozen bitmap.
#[derive(Clone, Debug)]
struct Successor {
    bits: HBitmap,
    recording: bool,
}

impl DirtyBitmap {
    /// A bitmap that records, is not persistent, and starts with these bits.
    #[must_use]
    pub fn new(name: impl Into<String>, bits: HBitmap) -> Self {
        Self {
            name: name.into(),
            bits,
            recording: true,
            inconsistent: false,
            busy: false,
            persistent: false,
            successor: None,
            meta: None,
        }
    }

    /// A bitmap that was not stored properly. It has no bits to rely upon.
    ///
    /// # Errors
    /// [`Error::LenTooLarge`].
    pub fn inconsistent(
        name: impl Into<String>,
        len: u64,
        granularity: Granularity,
    ) -> Result<Self> {
        let bits = HBitmap::new(len, granularity)?;
        let (recording, persistent) = (false, true);
        Ok(Self {
            recording,
            persistent,
            inconsistent: true,
            ..Self::new(name, bits)
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its bits; without those of writes since it was frozen.
    #[must_use]
    pub const fn bits(&self) -> &HBitmap {
        &self.bits
    }

    /// Whether it takes writes; while frozen, whether its successor does.
    #[must_use]
    pub fn state(&self) -> State {
        let recording = self
            .successor
            .as_ref()
            .map_or(self.recording, |s| s.recording);
        match (self.inconsistent, recording) {
            (true, _) => State::Inconsistent,
            (false, true) => State::Recording,
            (false, false) => State::Disabled,
        }
    }

    /// Whether an operation is using it; frozen bitmaps are busy.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        self.busy || self.successor.is_some()
    }

    /// Whether it has a successor.
    #[must_use]
    pub const fn is_frozen(&self) -> bool {
        self.successor.is_some()
    }

    /// Whether it is to be stored in the image.
    #[must_use]
    pub const fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Sets whether it is to be stored in the image.
    pub const fn set_persistent(&mut self, persistent: bool) {
        self.persistent = persistent;
    }

    /// Changes the name.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub fn rename(&mut self, name: impl Into<String>) -> Result<()> {
        self.idle()?;
        self.name = name.into();
        Ok(())
    }

    /// The guest wrote or discarded this range. Recorded if the state is
    /// [`State::Recording`]; while frozen, in the successor.
    pub fn record(&mut self, range: Range<u64>) {
        if self.state() != State::Recording {
            return;
        }
        match &mut self.successor {
            Some(successor) => {
                successor.bits.set(range);
            }
            None => {
                if self.bits.set(range.clone()) != 0 {
                    self.touch(range);
                }
            }
        }
    }

    /// Starts to take writes.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Inconsistent`].
    pub fn enable(&mut self) -> Result<()> {
        self.usable()?;
        self.recording = true;
        Ok(())
    }

    /// Stops to take writes.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Inconsistent`].
    pub fn disable(&mut self) -> Result<()> {
        self.usable()?;
        self.recording = false;
        Ok(())
    }

    /// Marks a range dirty by hand, recording or not.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Inconsistent`].
    pub fn set(&mut self, range: Range<u64>) -> Result<()> {
        self.usable()?;
        self.bits.set(range.clone());
        self.touch(range);
        Ok(())
    }

    /// Marks the granules within a range clean by hand, recording or not.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Inconsistent`].
    pub fn reset(&mut self, range: Range<u64>) -> Result<()> {
        self.usable()?;
        self.bits.reset(range.clone());
        self.touch(range);
        Ok(())
    }

    /// Marks everything clean.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Inconsistent`].
    pub fn clear(&mut self) -> Result<()> {
        self.set_bits_with(|bits| {
            bits.reset_all();
            Ok(())
        })
    }

    /// Makes everything dirty that is dirty in `other`.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Inconsistent`], [`Error::LenMismatch`].
    pub fn merge(&mut self, other: &HBitmap) -> Result<()> {
        self.set_bits_with(|bits| bits.merge(other))
    }

    /// Follows the disk to another length. While frozen the successor follows as well.
    ///
    /// # Errors
    /// [`Error::LenTooLarge`].
    pub fn resize(&mut self, len: u64) -> Result<()> {
        self.bits.resize(len)?;
        if let Some(successor) = &mut self.successor {
            successor.bits.resize(len)?;
        }
        match &mut self.meta {
            Some(meta) => meta.resize(len),
            None => Ok(()),
        }
    }

    /// An operation takes the bitmap (`true`) or is done with it. What is busy can't be
    /// changed but by [`record`](Self::record).
    ///
    /// # Errors
    /// [`Error::Busy`] if it is taken already or frozen, [`Error::Inconsistent`].
    pub fn set_busy(&mut self, busy: bool) -> Result<()> {
        if busy {
            self.usable()?;
        } else if self.successor.is_some() {
            return Err(Error::Busy {
                name: self.name.clone(),
            });
        }
        self.busy = busy;
        Ok(())
    }

    /// The operation that has the bitmap replaces the bits of a range by their
    /// [linear form](HBitmap::load_linear). Writes recorded there before are gone, unless
    /// they are in a successor.
    ///
    /// # Errors
    /// [`Error::NotBusy`], [`Error::Inconsistent`], and those of
    /// [`HBitmap::load_linear`].
    pub fn load_linear(&mut self, range: Range<u64>, data: &[u8]) -> Result<()> {
        self.taken()?;
        self.bits.load_linear(range.clone(), data)?;
        self.touch(range);
        Ok(())
    }

    /// The operation that has the bitmap makes a range of the linear form all clean.
    ///
    /// # Errors
    /// [`Error::NotBusy`], [`Error::Inconsistent`], and those of
    /// [`HBitmap::load_zeros`].
    pub fn load_zeros(&mut self, range: Range<u64>) -> Result<()> {
        self.taken()?;
        self.bits.load_zeros(range.clone())?;
        self.touch(range);
        Ok(())
    }

    /// From now on its bits don't count: it was lost, cut off or overtaken. An operation
    /// that has it frozen can still end.
    pub fn mark_inconsistent(&mut self) {
        self.inconsistent = true;
        self.recording = false;
    }

    /// Its bits stay as they are, writes go to a new successor.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Inconsistent`].
    pub fn freeze(&mut self) -> Result<()> {
        self.usable()?;
        let bits = HBitmap::new(self.bits.len(), self.bits.granularity())?;
        self.successor = Some(Box::new(Successor {
            bits,
            recording: self.recording,
        }));
        Ok(())
    }

    /// The operation worked: the successor takes the name. Returns the bits that were
    /// frozen.
    ///
    /// # Errors
    /// [`Error::NotFrozen`].
    pub fn abdicate(&mut self) -> Result<HBitmap> {
        let successor = self.take_successor()?;
        self.recording = successor.recording && !self.inconsistent;
        self.touch_all();
        Ok(core::mem::replace(&mut self.bits, successor.bits))
    }

    /// The operation failed: what the successor recorded is merged back.
    ///
    /// # Errors
    /// [`Error::NotFrozen`].
    pub fn reclaim(&mut self) -> Result<()> {
        let successor = self.take_successor()?;
        self.recording = successor.recording && !self.inconsistent;
        // Both have been resized together, so this can't be refused.
        self.bits.merge(&successor.bits)?;
        if let Some(meta) = &mut self.meta {
            for range in &successor.bits {
                meta.touch(range);
            }
        }
        Ok(())
    }

    /// Enables or disables the successor of a frozen bitmap: what happens to the writes
    /// that arrive meanwhile.
    ///
    /// # Errors
    /// [`Error::NotFrozen`], [`Error::Inconsistent`].
    pub fn set_successor_recording(&mut self, recording: bool) -> Result<()> {
        self.consistent()?;
        match &mut self.successor {
            Some(successor) => successor.recording = recording,
            None => {
                return Err(Error::NotFrozen {
                    name: self.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// What the successor recorded so far.
    #[must_use]
    pub fn successor_bits(&self) -> Option<&HBitmap> {
        self.successor.as_ref().map(|s| &s.bits)
    }

    /// Starts to follow which chunks change, replacing what was followed before.
    ///
    /// # Errors
    /// [`Error::ChunkTooSmall`].
    pub fn follow(&mut self, chunk: Granularity) -> Result<()> {
        self.meta = Some(MetaBitmap::new(&self.bits, chunk)?);
        Ok(())
    }

    /// Stops to follow changes.
    pub fn unfollow(&mut self) {
        self.meta = None;
    }

    /// Which chunks changed since [`follow`](Self::follow).
    #[must_use]
    pub const fn meta(&self) -> Option<&MetaBitmap> {
        self.meta.as_ref()
    }

    /// The same, to take them.
    pub const fn meta_mut(&mut self) -> Option<&mut MetaBitmap> {
        self.meta.as_mut()
    }

    /// The bits, taken out.
    #[must_use]
    pub fn into_bits(self) -> HBitmap {
        self.bits
    }

    /// Changes any of the bits.
    fn set_bits_with(&mut self, change: impl FnOnce(&mut HBitmap) -> Result<()>) -> Result<()> {
        self.usable()?;
        change(&mut self.bits)?;
        self.touch_all();
        Ok(())
    }

    fn take_successor(&mut self) -> Result<Box<Successor>> {
        self.successor.take().ok_or_else(|| Error::NotFrozen {
            name: self.name.clone(),
        })
    }

    fn touch(&mut self, range: Range<u64>) {
        if let Some(meta) = &mut self.meta {
            // What a rounded-out granule covers lies in the chunks that its ends are in.
            meta.touch(range);
        }
    }

    fn touch_all(&mut self) {
        if let Some(meta) = &mut self.meta {
            meta.touch_all();
        }
    }

    fn idle(&self) -> Result<()> {
        if self.is_busy() {
            Err(Error::Busy {
                name: self.name.clone(),
            })
        } else {
            Ok(())
        }
    }

    fn taken(&self) -> Result<()> {
        if self.is_busy() {
            self.consistent()
        } else {
            Err(Error::NotBusy {
                name: self.name.clone(),
            })
        }
    }

    fn consistent(&self) -> Result<()> {
        if self.inconsistent {
            Err(Error::Inconsistent {
                name: self.name.clone(),
            })
        } else {
            Ok(())
        }
    }

    fn usable(&self) -> Result<()> {
        self.idle()?;
        self.consistent()
    }
}

#[cfg(test)]
mod tests;
