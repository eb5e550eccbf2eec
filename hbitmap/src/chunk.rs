//! [`Chunk`]: what a part of the linear form holds, so that uniform parts need not be
//! written.

/// What a range of a bitmap holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Chunk {
    /// All clean. So is an empty range.
    Zeros,
    /// All dirty.
    Ones,
    /// Some of each.
    Data,
}
