//! [`HeaderArea`]: the first cluster, which holds the header, its extensions and the
//! backing file's name. What isn't changed is written back byte for byte.

use super::{
    extension::{ExtensionType, Extensions},
    header::{CryptMethod, Header},
};
use crate::{Error, Result, addr::HostOffset, format::BitmapsExtension, io::Storage};

/// The header and what shares the first cluster with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderArea {
    /// The cluster as it was read or last laid out.
    raw: Vec<u8>,
    header: Header,
    extensions: Extensions,
    /// Where the extensions end, their end mark included.
    extensions_end: usize,
}

impl HeaderArea {
    /// Reads the first cluster of `storage` and parses it.
    ///
    /// # Errors
    /// I/O errors; what [`Header::parse`] and [`Extensions::parse`] say.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        Self::read_as(storage, Header::parse)
    }

    /// As [`read`](Self::read), with the laxer [`Header::parse_for_check`].
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_for_check(storage: &dyn Storage) -> Result<Self> {
        Self::read_as(storage, Header::parse_for_check)
    }

    fn read_as(storage: &dyn Storage, parse: fn(&[u8]) -> Result<Header>) -> Result<Self> {
        let size = storage
            .size()
            .map_err(Error::io("asking for the size of the image"))?;
        // Small enough to be refused for what it lacks, not for what zeros would say.
        let mut start = vec![0; usize::try_from(size.min(112)).unwrap_or(0)];
        storage
            .read_padded(0, &mut start)
            .map_err(Error::io("reading the header"))?;
        if start.len() < 112 {
            parse(&start)?;
        }
        let cluster = Header::probe_cluster_size(&start)?;
        let mut raw = vec![0; usize::try_from(cluster).unwrap_or(0)];
        storage
            .read_padded(0, &mut raw)
            .map_err(Error::io("reading the header cluster"))?;
        let header = parse(&raw)?;
        Self::with_header(raw, header)
    }

    /// Parses a whole first cluster.
    ///
    /// # Errors
    /// What [`Header::parse`] and [`Extensions::parse`] say.
    pub fn from_cluster(raw: Vec<u8>) -> Result<Self> {
        let header = Header::parse(&raw)?;
        Self::with_header(raw, header)
    }

    fn with_header(raw: Vec<u8>, header: Header) -> Result<Self> {
        let start = usize::try_from(header.header_length).unwrap_or(usize::MAX);
        let end = match usize::try_from(header.backing_file_offset) {
            Ok(offset) if offset != 0 => offset.min(raw.len()),
            _ => raw.len(),
        };
        let area = raw.get(start..end).unwrap_or_default();
        let extensions = Extensions::parse(area, HostOffset(start as u64)).map_err(|e| {
            // QEMU's words for the only fault there can be.
            Error::Header {
                message: "Header extension too large".into(),
                source: Box::new(e),
            }
        })?;
        let used = extensions.encoded_len() - extensions.rest.len();
        Ok(Self {
            header,
            extensions,
            extensions_end: start.saturating_add(used),
            raw,
        })
    }

    /// The area of a new image: `header` with `extensions`. The name of the backing
    /// file that the header has is given its place.
    ///
    /// # Errors
    /// [`Error::Refused`] if they don't fit into the first cluster.
    pub fn new(header: Header, extensions: Extensions) -> Result<Self> {
        let cluster = usize::try_from(header.geometry().cluster_size()).unwrap_or(0);
        let mut area = Self {
            raw: vec![0; cluster],
            header,
            extensions,
            extensions_end: 0,
        };
        area.header.backing_file_offset = 0;
        area.lay_out()?;
        Ok(area)
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The header, to be changed. Its length and the backing file's name are not
    /// changed through this.
    pub fn header_mut(&mut self) -> &mut Header {
        &mut self.header
    }

    /// The extensions.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// # Errors
    /// [`Error::Unsupported`] if the image has an incompatible feature that this
    /// crate doesn't know, with the names that the image gives it.
    pub fn check_features(&self) -> Result<()> {
        let unknown = self
            .header
            .unsupported_features(&self.extensions.feature_names());
        if unknown.is_empty() {
            return Ok(());
        }
        let names = unknown.join(", ");
        Err(Error::Unsupported(format!(
            "Unsupported qcow2 feature(s): {names}"
        )))
    }

    /// # Errors
    /// [`Error::Unsupported`] if extension and encryption method don't fit together.
    pub fn check_encryption(&self) -> Result<()> {
        let luks = self.header.crypt_method == CryptMethod::Luks;
        let message = match (
            luks,
            self.extensions.get(ExtensionType::ENCRYPTION).is_some(),
        ) {
            (true, false) => "Missing CRYPTO header for crypt method 2",
            (false, true) => "CRYPTO header extension only expected with LUKS encryption method",
            _ => return Ok(()),
        };
        Err(Error::Unsupported(message.into()))
    }

    /// # Errors
    /// [`Error::Unsupported`] if the backing format's name is longer than any format's
    /// (QEMU's limit of 15 bytes).
    pub fn check_backing_format(&self) -> Result<()> {
        match self.extensions.backing_format().map(<[u8]>::len) {
            Some(len) if len > 15 => Err(Error::Unsupported(format!(
                "ERROR: ext_backing_format: len={len} too large (>=16)"
            ))),
            _ => Ok(()),
        }
    }

    /// Replaces the bitmaps extension where it stands, adds one behind the others, or
    /// removes it.
    ///
    /// # Errors
    /// [`Error::Refused`] if the first cluster has no room for it. (The feature name
    /// table, which only serves people, gives way before that.)
    pub fn set_bitmaps_extension(&mut self, bitmaps: Option<BitmapsExtension>) -> Result<()> {
        let mut next = self.clone();
        match bitmaps {
            Some(bitmaps) => {
                let mut data = Vec::with_capacity(BitmapsExtension::LEN);
                bitmaps.encode(&mut data);
                next.extensions.set(ExtensionType::BITMAPS, data);
            }
            None => {
                next.extensions.remove(ExtensionType::BITMAPS);
            }
        }
        let mut slim = next.clone();
        if next.lay_out().is_err() {
            slim.extensions.remove(ExtensionType::FEATURE_NAMES);
            slim.lay_out()?;
            next = slim;
        }
        *self = next;
        Ok(())
    }

    /// Puts extensions and backing file name into the cluster. A name that has to
    /// move goes where neither it nor an extension was, if there is room, so that the
    /// old header stays whole until the new one is written.
    fn lay_out(&mut self) -> Result<()> {
        let start = usize::try_from(self.header.header_length).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        self.extensions.complete();
        self.extensions.encode(&mut bytes);
        let name = self.header.backing_file.clone().unwrap_or_default();
        let old_name = usize::try_from(self.header.backing_file_offset).unwrap_or(0);
        let mut end = start.saturating_add(bytes.len());
        let fits = |at: usize| {
            at.checked_add(name.len())
                .is_some_and(|end| end <= self.raw.len())
        };
        let name_at = if name.is_empty() {
            0
        } else if old_name != 0 && end <= old_name {
            old_name
        } else {
            let clear = old_name
                .saturating_add(name.len())
                .next_multiple_of(8)
                .max(end);
            if fits(clear) { clear } else { end }
        };
        if end > self.raw.len() && name.is_empty() {
            // The end of the cluster ends the list as well as a mark does.
            self.extensions.end = None;
            bytes.truncate(bytes.len().saturating_sub(8));
            end = start.saturating_add(bytes.len());
        }
        if end > self.raw.len() || !fits(name_at) {
            return Err(Error::Refused(format!(
                "no room in the header cluster of {} bytes for another extension",
                self.raw.len()
            )));
        }
        if old_name != 0 && name_at != old_name {
            self.fill(old_name, &vec![0; name.len()]);
        }
        bytes.resize(self.extensions_end.max(end).saturating_sub(start), 0);
        self.fill(start, &bytes);
        self.fill(name_at, &name);
        self.extensions_end = end;
        self.header.backing_file_offset = name_at as u64;
        if !name.is_empty() {
            self.header.backing_file_size = u32::try_from(name.len()).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    fn fill(&mut self, at: usize, bytes: &[u8]) {
        let end = at.saturating_add(bytes.len()).min(self.raw.len());
        if let Some(place) = self.raw.get_mut(at..end) {
            place.copy_from_slice(bytes.get(..place.len()).unwrap_or_default());
        }
    }

    /// The whole first cluster.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(112);
        self.header.encode(&mut header);
        let mut cluster = self.raw.clone();
        if let Some(place) = cluster.get_mut(..header.len()) {
            place.copy_from_slice(&header);
        }
        cluster
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Extension, FeatureNames, Incompatible};

    fn bitmaps(offset: u64) -> BitmapsExtension {
        let directory_offset = HostOffset(offset);
        BitmapsExtension {
            nb_bitmaps: 1,
            reserved: 0,
            directory_size: 32,
            directory_offset,
        }
    }

    /// A version 3 header of 112 bytes for an empty disk.
    fn header(cluster_bits: u8, name: Option<&[u8]>) -> Header {
        let mut bytes = vec![0; 512];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = cluster_bits;
        bytes[59] = 1;
        bytes[99] = 4;
        bytes[103] = 112;
        let mut header = Header::parse(&bytes).unwrap();
        header.backing_file = name.map(<[u8]>::to_vec);
        header
    }

    fn area(cluster_bits: u8, list: Vec<Extension>, name: Option<&[u8]>) -> HeaderArea {
        let extensions = Extensions {
            list,
            end: Some(0),
            rest: Vec::new(),
        };
        HeaderArea::new(header(cluster_bits, name), extensions).unwrap()
    }

    fn feature_names() -> Extension {
        let mut table = Vec::new();
        FeatureNames::known().encode(&mut table);
        Extension::new(ExtensionType::FEATURE_NAMES, table)
    }

    fn unknown() -> Extension {
        Extension {
            kind: ExtensionType(77),
            data: vec![1],
            padding: vec![8; 7],
        }
    }

    #[test]
    fn padding_that_the_list_lacked_at_its_end_is_there_before_another_extension() {
        let mut bytes = Vec::new();
        header(12, None).encode(&mut bytes);
        let name_at = bytes.len() + 8 + 13;
        bytes.extend(ExtensionType::DATA_FILE.0.to_be_bytes());
        bytes.extend([0, 0, 0, 13]);
        bytes.extend(b"some-data.rawbase.raw");
        bytes[15] = u8::try_from(name_at).unwrap();
        bytes[19] = 8;
        bytes.resize(4096, 0);
        let mut area = HeaderArea::from_cluster(bytes).unwrap();
        for extension in [None, Some(bitmaps(0x10000))] {
            area.set_bitmaps_extension(extension).unwrap();
            let again = HeaderArea::from_cluster(area.encode()).unwrap();
            assert_eq!(again.extensions().bitmaps().unwrap(), extension);
            let data_file = again.extensions().data_file();
            assert_eq!(data_file, Some(&b"some-data.raw"[..]));
            let name = again.header().backing_file.as_deref();
            assert_eq!(name, Some(&b"base.raw"[..]));
        }
    }

    #[test]
    fn reading_and_encoding_gives_the_same_bytes() {
        let format = Extension::new(ExtensionType::BACKING_FORMAT, b"raw".to_vec());
        let list = vec![format, unknown(), feature_names()];
        let mut bytes = area(12, list, Some(b"base.raw")).encode();
        bytes[4000] = 0xee; // beyond everything that the spec talks about
        bytes[110] = 0xdd; // a header field of the future
        let again = HeaderArea::from_cluster(bytes.clone()).unwrap();
        assert_eq!(again.encode(), bytes);
        assert_eq!(
            again.header().backing_file.as_deref(),
            Some(&b"base.raw"[..])
        );
        assert_eq!(again.extensions().backing_format(), Some(&b"raw"[..]));
    }

    #[test]
    fn an_added_extension_leaves_the_others_and_the_backing_name_intact() {
        let mut before = area(12, vec![unknown()], Some(b"base.raw"));
        let old = before.header().backing_file_offset;
        before
            .set_bitmaps_extension(Some(bitmaps(0x50000)))
            .unwrap();
        let after = HeaderArea::from_cluster(before.encode()).unwrap();
        assert_eq!(after.extensions().list[0], unknown());
        assert_eq!(
            after.extensions().bitmaps().unwrap(),
            Some(bitmaps(0x50000))
        );
        assert_eq!(
            after.header().backing_file.as_deref(),
            Some(&b"base.raw"[..])
        );
        // The name moved to where nothing of the old header was.
        assert!(after.header().backing_file_offset >= old + 8);
    }

    #[test]
    fn replacing_changes_the_extension_alone_and_removing_takes_it_away() {
        let mut first = area(16, Vec::new(), None);
        let empty = first.encode();
        first.set_bitmaps_extension(Some(bitmaps(0x50000))).unwrap();
        let mut second = first.clone();
        second
            .set_bitmaps_extension(Some(bitmaps(0x60000)))
            .unwrap();
        let (a, b) = (first.encode(), second.encode());
        let differing: Vec<_> = (0..a.len()).filter(|i| a[*i] != b[*i]).collect();
        assert_eq!(differing, [112 + 8 + 16 + 5]);
        second.set_bitmaps_extension(None).unwrap();
        assert_eq!(second.encode(), empty);
    }

    #[test]
    fn the_feature_names_give_way_where_there_is_no_room() {
        let mut small = area(9, vec![feature_names()], None);
        small.set_bitmaps_extension(Some(bitmaps(0x600))).unwrap();
        assert!(
            small
                .extensions()
                .get(ExtensionType::FEATURE_NAMES)
                .is_none()
        );
        assert_eq!(small.extensions().bitmaps().unwrap(), Some(bitmaps(0x600)));
        let full = Extension::new(ExtensionType(77), vec![1; 380]);
        let mut small = area(9, vec![full], None);
        let before = small.clone();
        assert!(small.set_bitmaps_extension(Some(bitmaps(0x600))).is_err());
        assert_eq!(small.encode(), before.encode());
    }

    #[test]
    fn a_header_of_odd_length_keeps_its_bytes() {
        for length in [104_u8, 105, 111, 113, 200] {
            let mut bytes = area(12, vec![unknown()], Some(b"base.raw")).encode();
            let tail = bytes[112..400].to_vec();
            bytes[105..400].fill(0);
            bytes[103] = length;
            let start = usize::from(length);
            bytes[start..start + tail.len()].copy_from_slice(&tail);
            let moved = u64::from_be_bytes(bytes[8..16].try_into().unwrap()) + start as u64 - 112;
            bytes[8..16].copy_from_slice(&moved.to_be_bytes());
            let mut odd = HeaderArea::from_cluster(bytes.clone()).unwrap();
            assert_eq!(odd.encode(), bytes, "{length}");
            odd.set_bitmaps_extension(Some(bitmaps(0x50000))).unwrap();
            let again = HeaderArea::from_cluster(odd.encode()).unwrap();
            assert_eq!(again.extensions().list[0], unknown(), "{length}");
            assert_eq!(
                again.extensions().bitmaps().unwrap(),
                Some(bitmaps(0x50000))
            );
            assert_eq!(
                again.header().backing_file.as_deref(),
                Some(&b"base.raw"[..])
            );
        }
    }

    #[test]
    fn unknown_features_are_refused() {
        let mut area = area(12, vec![feature_names()], None);
        area.check_features().unwrap();
        area.header_mut().incompatible_features = Incompatible(0x40);
        let text = area.check_features().unwrap_err().to_string();
        assert_eq!(
            text,
            "Unsupported qcow2 feature(s): Unknown incompatible feature: 40"
        );
    }
}
