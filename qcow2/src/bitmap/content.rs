//! [`Content`]: what a bitmap will hold after an edit, as an expression over what
//! is stored. It is evaluated a cluster at a time when the edit is committed, so
//! that merging two bitmaps of 16 TiB takes the memory of two clusters.

use std::{ops::Range, sync::Arc};

use hbitmap::{Chunk, Granularity, HBitmap};

use crate::{
    Error, Result,
    bitmap::stored::{Piece, StoredBits},
    format::BitmapTableEntry,
};

/// The bits of a bitmap: a base, and what was merged into it.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    granularity: Granularity,
    /// Bytes of the guest's disk.
    len: u64,
    base: Base,
    merged: Vec<Arc<Content>>,
}

/// What merging led to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merged {
    /// What is there now.
    pub(crate) piece: Piece,
    /// Whether it differs from the base.
    pub(crate) changed: bool,
}

/// What a content starts from; of the content's own granularity.
#[derive(Clone, Debug)]
enum Base {
    /// Nothing is dirty.
    Zeros,
    /// What an image holds.
    Stored(Arc<StoredBits>),
    /// A bitmap in memory.
    Memory(Arc<HBitmap>),
}

impl Content {
    /// Nothing is dirty on a disk of `len` bytes.
    pub(crate) fn zeros(granularity: Granularity, len: u64) -> Self {
        Self {
            granularity,
            len,
            base: Base::Zeros,
            merged: Vec::new(),
        }
    }

    /// What an image holds.
    pub(crate) fn stored(stored: Arc<StoredBits>) -> Self {
        let (granularity, len) = (stored.granularity(), stored.len());
        Self {
            granularity,
            len,
            base: Base::Stored(stored),
            merged: Vec::new(),
        }
    }

    /// A bitmap in memory.
    pub(crate) fn memory(bits: Arc<HBitmap>) -> Self {
        let (granularity, len) = (bits.granularity(), bits.len());
        Self {
            granularity,
            len,
            base: Base::Memory(bits),
            merged: Vec::new(),
        }
    }

    /// Bytes of disk that a bit stands for.
    pub(crate) fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Bytes of the guest's disk.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Adds the dirty granules of `other`.
    pub(crate) fn merge(&mut self, other: Arc<Self>) {
        if !self.merged.iter().any(|merged| Arc::ptr_eq(merged, &other)) {
            self.merged.push(other);
        }
    }

    /// What `range` will hold, as far as can be told without reading bits.
    pub(crate) fn hint(&self, range: Range<u64>) -> Piece {
        let range = self.whole_granules(range);
        let base = match &self.base {
            Base::Zeros => Piece::Zeros,
            Base::Stored(stored) => stored.hint(range.clone()),
            Base::Memory(bits) => kind(bits, range.clone()),
        };
        self.merged
            .iter()
            .fold(base, |so_far, merged| match so_far {
                Piece::Ones => Piece::Ones,
                Piece::Zeros => merged.hint(range.clone()),
                Piece::Data => match merged.hint(range.clone()) {
                    Piece::Ones => Piece::Ones,
                    Piece::Zeros | Piece::Data => Piece::Data,
                },
            })
    }

    /// The entry for cluster `index` of the bitmap's own table in the image that is
    /// edited, if this started from it. (Bits of other bitmaps are only ever merged.)
    pub(crate) fn kept_entry(&self, index: u64) -> Option<BitmapTableEntry> {
        match &self.base {
            Base::Stored(stored) => stored.table().get(usize::try_from(index).ok()?).copied(),
            Base::Zeros | Base::Memory(_) => None,
        }
    }

    /// Whether nothing is merged into `range`.
    pub(crate) fn is_base_only(&self, range: &Range<u64>) -> bool {
        self.merged
            .iter()
            .all(|merged| merged.hint(range.clone()) == Piece::Zeros)
    }

    /// What the base alone holds in `range` (see [`read`](Self::read)).
    pub(crate) fn read_base(&self, range: Range<u64>, out: &mut [u8]) -> Result<Piece> {
        match &self.base {
            Base::Zeros => Ok(Piece::Zeros),
            Base::Stored(stored) => stored.read(range, out),
            Base::Memory(bits) => read_memory(bits, range, out),
        }
    }

    /// Adds what is merged into `range` to `out`, which holds the base there in
    /// linear form where `base` is [`Piece::Data`]. The range starts on a multiple
    /// of 64 granules. `out` has meaning afterwards only if the answer is `Data`.
    pub(crate) fn read_merged(
        &self,
        range: Range<u64>,
        base: Piece,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<Merged> {
        let mut so_far = base;
        let mut changed = false;
        for merged in &self.merged {
            if so_far == Piece::Ones {
                break;
            }
            let target = if so_far == Piece::Data {
                scratch.resize(out.len(), 0);
                &mut *scratch
            } else {
                &mut *out
            };
            let found = if merged.granularity == self.granularity {
                merged.read(range.clone(), target)?
            } else {
                merged.read_as(self.granularity, range.clone(), target)?
            };
            match (so_far, found) {
                (_, Piece::Zeros) => {}
                (_, Piece::Ones) => so_far = Piece::Ones,
                (Piece::Data, Piece::Data) => changed |= or_into(out, scratch),
                (_, Piece::Data) => so_far = Piece::Data,
            }
        }
        changed |= so_far != base;
        Ok(Merged {
            piece: so_far,
            changed,
        })
    }

    /// The bits of `range` in linear form at the content's own granularity.
    fn read(&self, range: Range<u64>, out: &mut [u8]) -> Result<Piece> {
        let base = self.read_base(range.clone(), out)?;
        if self.merged.is_empty() {
            return Ok(base);
        }
        Ok(self.read_merged(range, base, out, &mut Vec::new())?.piece)
    }

    /// The bits of `range` in linear form at another granularity, rounded outwards.
    fn read_as(
        &self,
        granularity: Granularity,
        range: Range<u64>,
        out: &mut [u8],
    ) -> Result<Piece> {
        let hint = self.hint(range.clone());
        if hint != Piece::Data {
            return Ok(hint);
        }
        let mut window = Window::new(granularity, range.clone())?;
        self.for_each_dirty(range, &mut |dirty| window.set(dirty))?;
        window.write(out)
    }

    /// Calls `dirty` with ranges that together are what is dirty in `range`; they
    /// can overlap and reach beyond `range`, not beyond the disk.
    pub(crate) fn for_each_dirty(
        &self,
        range: Range<u64>,
        dirty: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let range = self.whole_granules(range);
        let mut rounded = |found| dirty(self.whole_granules(found));
        self.base_dirty(range.clone(), &mut rounded)?;
        for merged in &self.merged {
            merged.for_each_dirty(range.clone(), &mut rounded)?;
        }
        Ok(())
    }

    /// The granules that `range` touches. What a finer bitmap has dirty anywhere in
    /// them makes them dirty, so all of them must be asked about.
    fn whole_granules(&self, range: Range<u64>) -> Range<u64> {
        let unit = self.granularity.bytes();
        let end = range.end.div_ceil(unit).saturating_mul(unit).min(self.len);
        range.start / unit * unit..end
    }

    fn base_dirty(
        &self,
        range: Range<u64>,
        dirty: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        match &self.base {
            Base::Zeros => Ok(()),
            Base::Stored(stored) => stored.for_each_dirty(range, dirty),
            Base::Memory(bits) => bits.ranges_in(range).try_for_each(dirty),
        }
    }
}

/// A small bitmap over a part of the disk.
struct Window {
    bits: HBitmap,
    range: Range<u64>,
}

impl Window {
    fn new(granularity: Granularity, range: Range<u64>) -> Result<Self> {
        let bits = HBitmap::new(range.end - range.start, granularity)?;
        Ok(Self { bits, range })
    }

    /// Marks the part of `dirty` that is inside.
    fn set(&mut self, dirty: Range<u64>) -> Result<()> {
        let start = dirty.start.max(self.range.start);
        let end = dirty.end.min(self.range.end);
        if start < end {
            self.bits
                .set(start - self.range.start..end - self.range.start);
        }
        Ok(())
    }

    fn write(&self, out: &mut [u8]) -> Result<Piece> {
        read_memory(&self.bits, 0..self.bits.len(), out)
    }
}

fn kind(bits: &HBitmap, range: Range<u64>) -> Piece {
    match bits.chunk_kind(range) {
        Chunk::Zeros => Piece::Zeros,
        Chunk::Ones => Piece::Ones,
        Chunk::Data => Piece::Data,
    }
}

fn read_memory(bits: &HBitmap, range: Range<u64>, out: &mut [u8]) -> Result<Piece> {
    let kind = kind(bits, range.clone());
    if kind != Piece::Data {
        return Ok(kind);
    }
    let size = bits.linear_size(range.clone())?;
    let (head, tail) = out
        .split_at_mut_checked(size)
        .ok_or_else(|| Error::Refused(format!("{size} bytes of bits in a cluster too small")))?;
    bits.write_linear(range, head)?;
    tail.fill(0);
    Ok(Piece::Data)
}

/// `into |= other`; whether that added anything.
fn or_into(into: &mut [u8], other: &[u8]) -> bool {
    let mut added = 0;
    for (a, b) in into.iter_mut().zip(other) {
        added |= b & !*a;
        *a |= b;
    }
    added != 0
}
