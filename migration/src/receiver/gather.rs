//! [`Gather`]: chunks that follow each other become one piece.

use std::ops::Range;

/// The most bytes of bits in a piece: pages of the bitmap's levels, whole where a stream
/// goes through a disk in order.
const MOST: usize = 64 << 10;

/// The longest gap between two pieces that is bridged, in bytes of bits.
const MAX_GAP: usize = 512;

/// Bits of one bitmap that have been checked and not been loaded yet. To load a few large
/// pieces takes a fraction of what as many bits in small ones take.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// The number of the bitmap; `None` if there is nothing.
    of: Option<usize>,
    range: Range<u64>,
    /// All clean; `data` is empty then.
    zeros: bool,
    data: Vec<u8>,
}

/// What was gathered.
pub(super) struct Piece<'a> {
    /// The number of the bitmap.
    pub(super) of: usize,
    pub(super) range: Range<u64>,
    /// Its linear form; `None` if it's all clean.
    pub(super) data: Option<&'a [u8]>,
}

impl Gather {
    /// The bitmap whose bits are here.
    pub(super) const fn of(&self) -> Option<usize> {
        self.of
    }

    /// Adds a piece if it continues what is here. `word` is the bytes of the disk in 8 bytes
    /// of bits.
    pub(super) fn add(&mut self, piece: &Piece<'_>, word: u64) -> bool {
        if self.of != Some(piece.of) || self.range.end != piece.range.start {
            return false;
        }
        match (self.zeros, piece.data) {
            (true, None) => {}
            (true, Some(_)) => return false,
            (false, Some(data)) => {
                if self.data.len() + data.len() > MOST {
                    return false;
                }
                self.data.extend_from_slice(data);
            }
            // Clean chunks between others are few bytes.
            (false, None) => {
                let words = (piece.range.end - piece.range.start).div_ceil(word);
                let len = self.data.len() as u64 + words.saturating_mul(8);
                match usize::try_from(len) {
                    Ok(len) if len <= MOST => self.data.resize(len, 0),
                    _ => return false,
                }
            }
        }
        self.range.end = piece.range.end;
        true
    }

    /// The gap between what is here and a piece of data, if it is worth to be bridged.
    pub(super) fn gap(&self, piece: &Piece<'_>, word: u64) -> Option<Range<u64>> {
        let gap = self.range.end..piece.range.start;
        let near =
            gap.start < gap.end && gap.end - gap.start <= word.saturating_mul(MAX_GAP as u64 / 8);
        (near && self.of == Some(piece.of) && !self.zeros && piece.data.is_some()).then_some(gap)
    }

    /// Bridges a gap with the bits that are there already, which `bits` writes.
    pub(super) fn bridge<E>(
        &mut self,
        gap: &Range<u64>,
        word: u64,
        bits: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) {
        let mut buffer = [0; MAX_GAP];
        let words = (gap.end - gap.start).div_ceil(word);
        let len = usize::try_from(words.saturating_mul(8)).unwrap_or(usize::MAX);
        if let Some(buffer) = buffer.get_mut(..len)
            && self.data.len() + len <= MOST
            && bits(buffer).is_ok()
        {
            self.data.extend_from_slice(buffer);
            self.range.end = gap.end;
        }
    }

    /// Begins anew.
    pub(super) fn begin(&mut self, piece: &Piece<'_>) {
        self.of = Some(piece.of);
        self.range = piece.range.clone();
        self.zeros = piece.data.is_none();
        self.data.clear();
        self.data.extend_from_slice(piece.data.unwrap_or_default());
    }

    /// Whether it is time to load.
    pub(super) const fn is_full(&self, word: u64) -> bool {
        let step = word.saturating_mul(MOST as u64 / 8);
        self.data.len() >= MOST || (!self.zeros && self.range.end.is_multiple_of(step))
    }

    /// What is here, which is nothing from now on.
    pub(super) fn take(&mut self) -> Option<Piece<'_>> {
        Some(Piece {
            of: self.of.take()?,
            range: self.range.clone(),
            data: (!self.zeros).then_some(&self.data),
        })
    }
}
