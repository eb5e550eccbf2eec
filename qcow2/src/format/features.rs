//! The three feature bit sets of a version 3 header and the table of their names.
//!
//! ```text
//! incompatible  bit 0 dirty, 1 corrupt, 2 external data file, 3 compression type, 4 extended L2
//! compatible    bit 0 lazy refcounts
//! autoclear     bit 0 bitmaps, 1 raw external data
//! ```
//! Bits beyond these are kept: an unknown incompatible bit forbids opening, an
//! unknown compatible one is ignored, unknown autoclear ones must be cleared by
//! whoever writes the image (spec, "Header").

use nom::{Parser, bytes::complete::take, error::context, multi::many0, number::complete::be_u8};

use super::parse::Parse;

macro_rules! feature_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub u64);

        impl $name {
            $($(#[$bit_doc])* pub const $bit: Self = Self(1 << $number);)*

            /// All the bits that this crate knows.
            pub const KNOWN: Self = Self(0 $(| 1 << $number)*);

            /// Whether all bits of `other` are set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// With the bits of `other` set.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// With the bits of `other` cleared.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// The bits that this crate doesn't know.
            #[must_use]
            pub const fn unknown(self) -> Self {
                self.without(Self::KNOWN)
            }

            /// Whether no bit is set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// The numbers of the bits that are set, in rising order.
            pub fn bits(self) -> impl Iterator<Item = u8> {
                (0..64).filter(move |bit| self.0 >> bit & 1 == 1)
            }
        }
    };
}

feature_set! {
    /// `incompatible_features`: who doesn't know one of these must not open the image.
    Incompatible {
        /// Refcounts may be wrong (lazy refcounts after a crash).
        DIRTY = 0,
        /// Any structure may be corrupt; the image must not be written to.
        CORRUPT = 1,
        /// Guest clusters are stored in an external data file.
        DATA_FILE = 2,
        /// The `compression_type` field is not zero.
        COMPRESSION_TYPE = 3,
        /// L2 entries are 128 bits long and have a subcluster bitmap.
        EXTENDED_L2 = 4,
    }
}

feature_set! {
    /// `compatible_features`: may be ignored.
    Compatible {
        /// Refcount updates may be postponed behind the dirty bit.
        LAZY_REFCOUNTS = 0,
    }
}

feature_set! {
    /// `autoclear_features`: who doesn't know one of these and writes the image clears it.
    Autoclear {
        /// The bitmaps extension is consistent.
        BITMAPS = 0,
        /// The external data file can be read as a raw image.
        DATA_FILE_RAW = 1,
    }
}

/// One entry of the feature name table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// Which bit set: 0 incompatible, 1 compatible, 2 autoclear.
    pub kind: u8,
    /// Bit number in that set, 0 to 63.
    pub bit: u8,
    /// The name, padded with zeros, not terminated when it fills the field.
    pub name: [u8; FeatureName::NAME_LEN],
}

impl FeatureName {
    /// [`kind`](Self::kind) of the incompatible set.
    pub const INCOMPATIBLE: u8 = 0;
    /// [`kind`](Self::kind) of the compatible set.
    pub const COMPATIBLE: u8 = 1;
    /// [`kind`](Self::kind) of the autoclear set.
    pub const AUTOCLEAR: u8 = 2;
    /// Bytes of the name field.
    pub const NAME_LEN: usize = 46;
    /// Bytes of an entry.
    pub const LEN: usize = 48;

    /// An entry; a `name` longer than 46 bytes is cut.
    #[must_use]
    pub fn new(kind: u8, bit: u8, name: &str) -> Self {
        let mut padded = [0; Self::NAME_LEN];
        for (to, from) in padded.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self {
            kind,
            bit,
            name: padded,
        }
    }

    /// The name without its padding: bytes out of the image, to be escaped before printing.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.name
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
    }

    fn parse(input: &[u8]) -> Parse<'_, Self> {
        let (rest, kind) = context("type of feature", be_u8).parse(input)?;
        let (rest, bit) = context("bit number", be_u8).parse(rest)?;
        let (rest, name) = context("feature name", take(Self::NAME_LEN)).parse(rest)?;
        let mut padded = [0; Self::NAME_LEN];
        padded.copy_from_slice(name);
        Ok((
            rest,
            Self {
                kind,
                bit,
                name: padded,
            },
        ))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend([self.kind, self.bit]);
        out.extend(self.name);
    }
}

/// The feature name table: the data of header extension `0x6803f857`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureNames {
    /// The entries in their order.
    pub entries: Vec<FeatureName>,
    /// Bytes after the last whole entry, kept.
    pub rest: Vec<u8>,
}

impl FeatureNames {
    /// The table out of the extension's data; never fails, an incomplete last
    /// entry is in [`rest`](Self::rest). Memory follows `data`.
    #[must_use]
    pub fn parse(data: &[u8]) -> Self {
        match many0(FeatureName::parse).parse(data) {
            Ok((rest, entries)) => Self {
                entries,
                rest: rest.to_vec(),
            },
            Err(_) => Self {
                entries: Vec::new(),
                rest: data.to_vec(),
            },
        }
    }

    /// The extension's data.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for entry in &self.entries {
            entry.encode(out);
        }
        out.extend(&self.rest);
    }

    /// The name of bit `bit` of set `kind`; the first entry wins.
    #[must_use]
    pub fn find(&self, kind: u8, bit: u8) -> Option<&[u8]> {
        let entry = self
            .entries
            .iter()
            .find(|e| e.kind == kind && e.bit == bit)?;
        Some(entry.name())
    }

    /// The table of all features known here, in the words and the order of QEMU.
    #[must_use]
    pub fn known() -> Self {
        use FeatureName as N;
        let entries = vec![
            N::new(N::INCOMPATIBLE, 0, "dirty bit"),
            N::new(N::INCOMPATIBLE, 1, "corrupt bit"),
            N::new(N::INCOMPATIBLE, 2, "external data file"),
            N::new(N::INCOMPATIBLE, 3, "compression type"),
            N::new(N::INCOMPATIBLE, 4, "extended L2 entries"),
            N::new(N::COMPATIBLE, 0, "lazy refcounts"),
            N::new(N::AUTOCLEAR, 0, "bitmaps"),
            N::new(N::AUTOCLEAR, 1, "raw external data"),
        ];
        Self {
            entries,
            rest: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_survive_and_are_told() {
        let set = Incompatible(1 << 63 | 1 << 5).with(Incompatible::DIRTY);
        assert!(set.contains(Incompatible::DIRTY));
        assert_eq!(set.unknown().bits().collect::<Vec<_>>(), [5, 63]);
        assert_eq!(set.without(Incompatible::DIRTY), set.unknown());
        assert!(Autoclear::KNOWN.without(Autoclear(3)).is_empty());
        assert_eq!(Incompatible::KNOWN, Incompatible(31));
        assert_eq!(Compatible::KNOWN, Compatible::LAZY_REFCOUNTS);
    }

    #[test]
    fn name_table_keeps_a_cut_entry() {
        let mut bytes = Vec::new();
        FeatureNames::known().encode(&mut bytes);
        assert_eq!(bytes.len(), 8 * FeatureName::LEN);
        for end in 0..=bytes.len() {
            let names = FeatureNames::parse(&bytes[..end]);
            assert_eq!(names.entries.len(), end / FeatureName::LEN);
            let mut again = Vec::new();
            names.encode(&mut again);
            assert_eq!(again, bytes[..end]);
        }
    }

    #[test]
    fn full_length_name_is_not_terminated() {
        let long = "x".repeat(60);
        let names = FeatureNames {
            entries: vec![FeatureName::new(2, 9, &long)],
            rest: vec![],
        };
        assert_eq!(names.find(2, 9), Some("x".repeat(46).as_bytes()));
        assert_eq!(names.find(2, 8), None);
        assert_eq!(FeatureNames::known().find(0, 1), Some(&b"corrupt bit"[..]));
    }
}
