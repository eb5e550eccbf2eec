//! What the bytes of a file look like: the formats that can be told by their first bytes.

/// Bytes at the file's start that [`ImageFormat::probe`] looks at.
pub const PROBE_LEN: usize = 512;

/// What an image is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// qcow2, versions 2 and later.
    Qcow2,
    /// Nothing that is known: a disk as it is.
    Raw,
    /// Another format, of this name in QEMU. Read as a raw disk it would show a guest's
    /// view of nothing.
    Other(&'static str),
}

impl ImageFormat {
    /// The format of the file that begins with `head`, its first [`PROBE_LEN`] bytes.
    #[must_use]
    pub fn probe(head: &[u8]) -> Self {
        let at = |offset: usize, magic: &[u8]| {
            head.get(offset..)
                .is_some_and(|rest| rest.starts_with(magic))
        };
        if at(0, b"QFI\xfb") {
            return match head.get(4..8) {
                Some([0, 0, 0, 1]) => Self::Other("qcow"),
                Some([0, 0, 0, 0]) | None => Self::Raw,
                Some(_) => Self::Qcow2,
            };
        }
        let others: [(usize, &[u8], &str); 9] = [
            (0, b"LUKS\xba\xbe\0\x01", "luks"),
            (0, b"KDMV", "vmdk"),
            (0, b"COWD", "vmdk"),
            (0, b"conectix", "vpc"),
            (0, b"vhdxfile", "vhdx"),
            (0, b"QED\0", "qed"),
            (64, b"\x7f\x10\xda\xbe", "vdi"),
            (0, b"WithoutFreeSpace", "parallels"),
            (0, b"WithouFreSpacExt", "parallels"),
        ];
        others
            .into_iter()
            .find(|(offset, magic, _)| at(*offset, magic))
            .map_or(Self::Raw, |(_, _, name)| Self::Other(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_first_bytes() {
        let probe = |start: &[u8]| {
            let mut head = [0; PROBE_LEN];
            head[..start.len()].copy_from_slice(start);
            ImageFormat::probe(&head)
        };
        assert_eq!(probe(b"QFI\xfb\0\0\0\x03"), ImageFormat::Qcow2);
        assert_eq!(probe(b"QFI\xfb\0\0\0\x02"), ImageFormat::Qcow2);
        assert_eq!(probe(b"QFI\xfb\0\0\0\x01"), ImageFormat::Other("qcow"));
        assert_eq!(probe(b"QFI\xfb"), ImageFormat::Raw);
        assert_eq!(probe(b"KDMV"), ImageFormat::Other("vmdk"));
        assert_eq!(probe(b""), ImageFormat::Raw);
        assert_eq!(ImageFormat::probe(b""), ImageFormat::Raw);
        let mut vdi = [0; PROBE_LEN];
        vdi[64..68].copy_from_slice(b"\x7f\x10\xda\xbe");
        assert_eq!(ImageFormat::probe(&vdi), ImageFormat::Other("vdi"));
    }
}
