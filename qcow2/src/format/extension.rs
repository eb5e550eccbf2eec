//! Header extensions: what stands between the header and the backing file name.
//!
//! ```text
//! byte 0 - 3  type; 0 ends the list
//!      4 - 7  length of the data
//!      8 - n  data
//!      n - m  padding to a multiple of 8
//! ```
//! All are kept in their order with their padding bytes, whether this crate knows
//! them or not.

use nom::{
    Parser,
    bytes::complete::take,
    error::context,
    number::complete::{be_u32, be_u64},
};

use super::{
    bitmap_directory::BitmapsExtension,
    features::FeatureNames,
    parse::{Parse, run},
};
use crate::{Error, Result, addr::HostOffset};

/// The type of a header extension, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtensionType(pub u32);

impl ExtensionType {
    /// End of the header extension area.
    pub const END: Self = Self(0);
    /// Backing file format name.
    pub const BACKING_FORMAT: Self = Self(0xe279_2aca);
    /// Feature name table.
    pub const FEATURE_NAMES: Self = Self(0x6803_f857);
    /// Bitmaps extension.
    pub const BITMAPS: Self = Self(0x2385_2875);
    /// Full disk encryption header pointer.
    pub const ENCRYPTION: Self = Self(0x0537_be77);
    /// External data file name.
    pub const DATA_FILE: Self = Self(0x4441_5441);
}

/// One extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its type.
    pub kind: ExtensionType,
    /// Its data.
    pub data: Vec<u8>,
    /// The bytes after the data up to a multiple of 8; fewer where the area ends.
    pub padding: Vec<u8>,
}

impl Extension {
    /// An extension with zeros as padding.
    #[must_use]
    pub fn new(kind: ExtensionType, data: Vec<u8>) -> Self {
        let padding = vec![0; padding_len(data.len())];
        Self {
            kind,
            data,
            padding,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.kind.0.to_be_bytes());
        // The area is less than a cluster; data beyond 4 GiB can't come from it.
        out.extend(
            u32::try_from(self.data.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        out.extend(&self.data);
        out.extend(&self.padding);
    }
}

const fn padding_len(data: usize) -> usize {
    data.wrapping_neg() % 8
}

/// The list of extensions of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// All of them in their order, the end marker aside.
    pub list: Vec<Extension>,
    /// The length field of the end marker (0, if not damaged); `None` where the
    /// area ends without a marker.
    pub end: Option<u32>,
    /// Bytes after the last extension that are too few for another one.
    pub rest: Vec<u8>,
}

/// Where the LUKS header is inside the image: data of extension `0x0537be77`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncryptionHeader {
    /// Where it starts, cluster aligned.
    pub offset: HostOffset,
    /// Its bytes; the clusters it takes up may be longer.
    pub length: u64,
}

impl EncryptionHeader {
    fn parse(input: &[u8]) -> Parse<'_, Self> {
        let (rest, offset) = context("offset", be_u64).parse(input)?;
        let (rest, length) = context("length", be_u64).parse(rest)?;
        Ok((
            rest,
            Self {
                offset: HostOffset(offset),
                length,
            },
        ))
    }

    /// Appends the extension's data, 16 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.offset.get().to_be_bytes());
        out.extend(self.length.to_be_bytes());
    }
}

impl Extensions {
    /// The list out of `area`: the bytes from the header's end at `base` to the
    /// backing file name, or to the end of the first cluster where there is none.
    /// Memory follows `area`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for data that goes beyond the area.
    pub fn parse(area: &[u8], base: HostOffset) -> Result<Self> {
        let mut extensions = Self::default();
        let mut rest = area;
        while rest.len() >= 8 {
            let at = (area.len() - rest.len()) as u64;
            let base = HostOffset(base.get().saturating_add(at));
            let (after, (kind, length)) = run("header extension", base, rest, head)?;
            if kind == ExtensionType::END {
                extensions.end = Some(length);
                return Ok(extensions);
            }
            let structure = format!("header extension {:#x}", kind.0);
            let (after, (data, padding)) =
                run(&structure, HostOffset(base.get() + 8), after, |input| {
                    body(length, input)
                })?;
            let (data, padding) = (data.to_vec(), padding.to_vec());
            extensions.list.push(Extension {
                kind,
                data,
                padding,
            });
            rest = after;
        }
        extensions.rest = rest.to_vec();
        Ok(extensions)
    }

    /// Appends the list with its end marker, byte for byte as parsed.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for extension in &self.list {
            extension.encode(out);
        }
        if let Some(length) = self.end {
            out.extend(ExtensionType::END.0.to_be_bytes());
            out.extend(length.to_be_bytes());
        }
        out.extend(&self.rest);
    }

    /// Bytes that [`encode`](Self::encode) appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let list: usize = self
            .list
            .iter()
            .map(|e| 8 + e.data.len() + e.padding.len())
            .sum();
        list + if self.end.is_some() { 8 } else { 0 } + self.rest.len()
    }

    /// The data of the first extension of type `kind`.
    #[must_use]
    pub fn get(&self, kind: ExtensionType) -> Option<&[u8]> {
        self.list
            .iter()
            .find(|extension| extension.kind == kind)
            .map(|e| e.data.as_slice())
    }

    /// Replaces the data of the extension of type `kind`, in its place, or adds it
    /// at the end of the list.
    pub fn set(&mut self, kind: ExtensionType, data: Vec<u8>) {
        let new = Extension::new(kind, data);
        match self
            .list
            .iter_mut()
            .find(|extension| extension.kind == kind)
        {
            Some(extension) => *extension = new,
            None => self.list.push(new),
        }
        self.complete();
    }

    /// Makes the list one that may stand anywhere: with an end marker and nothing behind
    /// it, and with all of its padding, of which the last extension may lack some where
    /// the area ended.
    pub(crate) fn complete(&mut self) {
        for extension in &mut self.list {
            let padding = padding_len(extension.data.len());
            extension.padding.resize(padding, 0);
        }
        self.end.get_or_insert(0);
        self.rest.clear();
    }

    /// Takes the extensions of type `kind` off the list; whether there was one.
    pub fn remove(&mut self, kind: ExtensionType) -> bool {
        let before = self.list.len();
        self.list.retain(|extension| extension.kind != kind);
        self.list.len() != before
    }

    /// The backing file's format name: bytes of the image.
    #[must_use]
    pub fn backing_format(&self) -> Option<&[u8]> {
        self.get(ExtensionType::BACKING_FORMAT)
    }

    /// The external data file's name: bytes of the image.
    #[must_use]
    pub fn data_file(&self) -> Option<&[u8]> {
        self.get(ExtensionType::DATA_FILE)
    }

    /// The feature name table; empty without the extension.
    #[must_use]
    pub fn feature_names(&self) -> FeatureNames {
        self.get(ExtensionType::FEATURE_NAMES)
            .map(FeatureNames::parse)
            .unwrap_or_default()
    }

    /// The bitmaps extension. Whether it may be believed is for the autoclear bit to say.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for data of another length.
    pub fn bitmaps(&self) -> Result<Option<BitmapsExtension>> {
        self.get(ExtensionType::BITMAPS)
            .map(BitmapsExtension::parse)
            .transpose()
    }

    /// The pointer to the LUKS header.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for data of another length.
    pub fn encryption(&self) -> Result<Option<EncryptionHeader>> {
        let Some(data) = self.get(ExtensionType::ENCRYPTION) else {
            return Ok(None);
        };
        let structure = "full disk encryption header pointer";
        let (rest, header) = run(structure, HostOffset(0), data, EncryptionHeader::parse)?;
        if rest.is_empty() {
            return Ok(Some(header));
        }
        let found = format!("{} bytes", data.len());
        Err(Error::corrupt(structure, HostOffset(0), found, "16 bytes"))
    }
}

fn head(input: &[u8]) -> Parse<'_, (ExtensionType, u32)> {
    let (rest, kind) = context("type", be_u32).parse(input)?;
    let (rest, length) = context("length", be_u32).parse(rest)?;
    Ok((rest, (ExtensionType(kind), length)))
}

/// Data and padding; the last extension may lack its padding.
fn body(length: u32, input: &[u8]) -> Parse<'_, (&[u8], &[u8])> {
    let (rest, data) = context("data", take(length)).parse(input)?;
    let padding = padding_len(data.len()).min(rest.len());
    let (rest, padding) = context("padding", take(padding)).parse(rest)?;
    Ok((rest, (data, padding)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: HostOffset = HostOffset(112);

    /// Backing format "raw", an unknown one with odd padding, the encryption pointer, end.
    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend([
            0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3, b'r', b'a', b'w', 0, 0, 0, 0, 0,
        ]);
        bytes.extend([
            0, 0, 0, 7, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xaa, 0xbb, 0xcc,
        ]);
        bytes.extend([0xdd, 0xee, 0xff, 0x99]);
        bytes.extend([0x05, 0x37, 0xbe, 0x77, 0, 0, 0, 16]);
        bytes.extend([0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0x1f, 0x90, 0]);
        bytes.extend([0; 8]);
        bytes
    }

    #[test]
    fn fixed_bytes_survive_with_their_padding() {
        let extensions = Extensions::parse(&sample(), BASE).unwrap();
        assert_eq!(extensions.list.len(), 3);
        assert_eq!(extensions.backing_format(), Some(&b"raw"[..]));
        assert_eq!(
            extensions.list[1].padding,
            [0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x99]
        );
        let luks = EncryptionHeader {
            offset: HostOffset(0x40000),
            length: 0x1f_9000,
        };
        assert_eq!(extensions.encryption().unwrap(), Some(luks));
        assert_eq!(
            (extensions.bitmaps().unwrap(), extensions.data_file()),
            (None, None)
        );
        let mut again = Vec::new();
        extensions.encode(&mut again);
        assert_eq!((again.len(), again), (extensions.encoded_len(), sample()));
    }

    #[test]
    fn cut_anywhere_it_fails_or_gives_back_its_bytes() {
        let bytes = sample();
        for end in 0..bytes.len() {
            let mut again = Vec::new();
            match Extensions::parse(&bytes[..end], BASE) {
                Ok(extensions) => extensions.encode(&mut again),
                Err(Error::Corrupt { .. }) => continue,
                Err(other) => panic!("{other}"),
            }
            assert_eq!(again, bytes[..end]);
        }
    }

    #[test]
    fn data_beyond_the_area_is_refused_with_its_place() {
        let bytes = [0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
        let error = Extensions::parse(&bytes, BASE).unwrap_err().to_string();
        assert!(
            error.starts_with("header extension 0x7, field data at 0x78: "),
            "{error}"
        );
    }

    #[test]
    fn setting_and_removing_leaves_the_others_alone() {
        let mut extensions = Extensions::parse(&sample(), BASE).unwrap();
        let before = extensions.clone();
        extensions.set(ExtensionType::BACKING_FORMAT, b"qcow2".to_vec());
        extensions.set(ExtensionType::DATA_FILE, b"disk.raw".to_vec());
        assert_eq!(extensions.backing_format(), Some(&b"qcow2"[..]));
        assert_eq!(extensions.list[1..3], before.list[1..]);
        assert!(extensions.remove(ExtensionType::DATA_FILE));
        assert!(!extensions.remove(ExtensionType::DATA_FILE));
        extensions.set(ExtensionType::BACKING_FORMAT, b"raw".to_vec());
        assert_eq!(extensions, before);
    }

    #[test]
    fn pointer_of_another_length_is_refused() {
        let mut extensions = Extensions::default();
        for length in (0..40).filter(|length| *length != 16) {
            extensions.set(ExtensionType::ENCRYPTION, vec![0; length]);
            assert!(
                matches!(extensions.encryption(), Err(Error::Corrupt { .. })),
                "{length}"
            );
        }
    }

    proptest! {
        #[test]
        fn parse_gives_what_was_encoded(
            list in prop::collection::vec((1_u32.., any::<Vec<u8>>()), 0..6), end in any::<u32>(),
        ) {
            let list = list.into_iter().map(|(k, d)| Extension::new(ExtensionType(k), d)).collect();
            let extensions = Extensions { list, end: Some(end), rest: vec![] };
            let mut bytes = Vec::new();
            extensions.encode(&mut bytes);
            prop_assert_eq!(Extensions::parse(&bytes, BASE).unwrap(), extensions);
        }

        #[test]
        fn any_bytes_come_back(bytes: Vec<u8>) {
            if let Ok(extensions) = Extensions::parse(&bytes, BASE) {
                let mut again = Vec::new();
                extensions.encode(&mut again);
                prop_assert!(bytes.starts_with(&again));
            }
        }
    }
}
