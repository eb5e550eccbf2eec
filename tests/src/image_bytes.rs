//! An image file as bytes, with its big-endian fields, to look at and to damage.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

/// Type number of the bitmaps header extension.
pub const EXT_BITMAPS: u32 = 0x2385_2875;

/// A whole image in memory.
#[derive(Debug, Clone)]
pub struct ImageBytes {
    path: PathBuf,
    /// The bytes; [`save`](Self::save) writes them back.
    pub bytes: Vec<u8>,
}

impl ImageBytes {
    /// Reads the file.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self {
            path: path.to_owned(),
            bytes,
        }
    }

    /// Writes the bytes back to the file they came from.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn save(&self) {
        fs::write(&self.path, &self.bytes).unwrap();
    }

    /// 16-bit field at byte `at`.
    #[must_use]
    pub fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.bytes[at..at + 2].try_into().unwrap())
    }

    /// 32-bit field at byte `at`.
    #[must_use]
    pub fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    /// 64-bit field at byte `at`.
    #[must_use]
    pub fn be64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    /// Overwrites the bytes at `at`.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// `autoclear_features` of the header.
    #[must_use]
    pub fn autoclear(&self) -> u64 {
        self.be64(88)
    }

    /// Where the header extension `magic` has its data, if there is one.
    #[must_use]
    pub fn extension(&self, magic: u32) -> Option<Range<usize>> {
        let mut at = if self.be32(4) < 3 {
            72
        } else {
            self.be32(100) as usize
        };
        loop {
            let (kind, len) = (self.be32(at), self.be32(at + 4) as usize);
            if kind == 0 {
                return None;
            }
            if kind == magic {
                return Some(at + 8..at + 8 + len);
            }
            at += 8 + len.next_multiple_of(8);
        }
    }

    /// Where each entry of the bitmap directory lies, with its name.
    #[must_use]
    pub fn directory(&self) -> Vec<(String, Range<usize>)> {
        let Some(ext) = self.extension(EXT_BITMAPS) else {
            return Vec::new();
        };
        let mut at = self.be64(ext.start + 16) as usize;
        (0..self.be32(ext.start))
            .map(|_| {
                let name_len = usize::from(self.be16(at + 18));
                let name = at + 24 + self.be32(at + 20) as usize;
                let end = (name + name_len).next_multiple_of(8);
                let text = String::from_utf8_lossy(&self.bytes[name..name + name_len]).into_owned();
                let entry = at..end;
                at = end;
                (text, entry)
            })
            .collect()
    }

    /// Flags of the bitmap `name`: bit 0 in use, bit 1 auto, bit 2 extra data compatible.
    ///
    /// # Panics
    /// When there is no such bitmap.
    #[must_use]
    pub fn bitmap_flags(&self, name: &str) -> u32 {
        let entries = self.directory();
        let (_, at) = entries.iter().find(|(n, _)| n == name).unwrap();
        self.be32(at.start + 12)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata;

    #[test]
    fn extension_and_directory_of_a_real_image_are_found() {
        let image = ImageBytes::load(&testdata::qcow2("three-bitmaps.qcow2"));
        assert_eq!(image.autoclear() & 1, 1);
        let names: Vec<_> = image
            .directory()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["daily", "weekly", "frozen"]);
        assert_eq!(image.bitmap_flags("daily"), 2);
        assert_eq!(image.bitmap_flags("frozen"), 0);
    }
}
