//! [`PageBuffer`]: memory to read a file's data into.

use std::ops::{Deref, DerefMut};

/// Bytes in a page, at whose beginning the system's cache has what it copies.
const PAGE: usize = 4096;

/// Memory that begins at a page, to read larger parts of files into.
///
/// What an allocator hands out for large buffers begins 16 bytes behind a page. A copy out
/// of the system's cache to there takes three times as long as to a page: each load seems
/// to depend on the store just before it, as the last 12 bits of their addresses are
/// nearly the same.
#[derive(Debug, Default)]
pub struct PageBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl PageBuffer {
    /// `len` bytes of zeros.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let mut buffer = Self::default();
        buffer.resize(len);
        buffer
    }

    /// Makes it `len` bytes long. What it holds then is zeros or what it held before, in
    /// any order: it is there to be read into.
    pub fn resize(&mut self, len: usize) {
        let room = len.saturating_add(PAGE);
        if self.bytes.len() < room {
            // Nothing of the old content is copied.
            self.bytes = Vec::new();
            self.bytes = vec![0; room];
            // The address stays as long as the vector isn't touched.
            self.start = self.bytes.as_ptr().align_offset(PAGE).min(PAGE);
        }
        self.len = len;
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let end = self.start.saturating_add(self.len);
        self.bytes.get(self.start..end).unwrap_or_default()
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let end = self.start.saturating_add(self.len);
        self.bytes.get_mut(self.start..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_at_a_page_whatever_its_length() {
        let mut buffer = PageBuffer::new(10);
        assert_eq!(*buffer, [0; 10]);
        for len in [1, 4096, 262_144, 100, 1 << 20, 0] {
            buffer.resize(len);
            buffer.fill(7);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&byte| byte == 7));
            assert_eq!(buffer.as_ptr().align_offset(PAGE), 0);
        }
    }
}
