//! The flag byte of a chunk, and the one of a bitmap.

use super::BitmapFlags;

/// Ends the section's list; may be or'ed into the last chunk.
pub(crate) const EOS: u8 = 0x01;
/// With BITS: the range is clean, no buffer follows.
pub(crate) const ZEROES: u8 = 0x02;
/// The bitmap's name follows, behind the node's.
pub(crate) const BITMAP_NAME: u8 = 0x04;
/// The node's name follows.
pub(crate) const DEVICE_NAME: u8 = 0x08;
/// A bitmap begins: granularity and bitmap flags follow.
pub(crate) const START: u8 = 0x10;
/// Every bit of the bitmap has been sent.
pub(crate) const COMPLETE: u8 = 0x20;
/// A range follows, and its bits.
pub(crate) const BITS: u8 = 0x40;
/// More flag bytes follow.
pub(crate) const EXTRA: u8 = 0x80;

/// The bitmap records writes.
const ENABLED: u8 = 0x01;
/// The bitmap is to be stored.
const PERSISTENT: u8 = 0x02;
/// What `persistent` was called before QEMU 4.1 or so. It says nothing today.
const AUTOLOAD: u8 = 0x04;

impl BitmapFlags {
    /// The byte in a START chunk.
    pub(crate) const fn to_byte(self) -> u8 {
        (if self.enabled { ENABLED } else { 0 }) | (if self.persistent { PERSISTENT } else { 0 })
    }

    /// From the byte in a START chunk; `None` if a reserved bit is set.
    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        if byte & !(ENABLED | PERSISTENT | AUTOLOAD) != 0 {
            return None;
        }
        Some(Self {
            enabled: byte & ENABLED != 0,
            persistent: byte & PERSISTENT != 0,
        })
    }
}
