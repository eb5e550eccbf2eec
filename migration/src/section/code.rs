//! The bytes that tell what comes next.

use super::SectionKind;

/// "QEVM".
pub(crate) const MAGIC: [u8; 4] = *b"QEVM";
/// The one version of a stream.
pub(crate) const VERSION: u32 = 3;

pub(crate) const EOF: u8 = 0x00;
pub(crate) const SUBSECTION: u8 = 0x05;
pub(crate) const VMDESCRIPTION: u8 = 0x06;
pub(crate) const CONFIGURATION: u8 = 0x07;
pub(crate) const COMMAND: u8 = 0x08;
pub(crate) const FOOTER: u8 = 0x7e;

impl SectionKind {
    /// The byte that begins the section.
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            Self::Start => 0x01,
            Self::Part => 0x02,
            Self::End => 0x03,
            Self::Full => 0x04,
        }
    }

    /// From the byte that begins a section.
    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::Start,
            0x02 => Self::Part,
            0x03 => Self::End,
            0x04 => Self::Full,
            _ => return None,
        })
    }
}
