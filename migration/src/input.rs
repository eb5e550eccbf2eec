//! Where a stream's bytes come from: a buffer behind the transport, which counts them.

use std::{
    borrow::Cow,
    io::{ErrorKind, Read},
};

use crate::{Error, Result, error::invalid};

/// Bytes that are asked of the transport at once.
const CAPACITY: usize = 64 << 10;

/// A buffered reader that lends what it has, and says where in the stream it is.
#[derive(Debug)]
pub(crate) struct Input<R> {
    inner: R,
    buffer: Vec<u8>,
    /// What of the buffer is still to be taken.
    start: usize,
    end: usize,
    /// Bytes of the stream that were taken.
    offset: u64,
}

impl<R: Read> Input<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            buffer: vec![0; CAPACITY],
            start: 0,
            end: 0,
            offset: 0,
        }
    }

    /// Bytes of the stream that were taken.
    pub(crate) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that are in the buffer.
    const fn ready(&self) -> usize {
        self.end - self.start
    }

    /// Whether `len` more bytes are there; reads what it needs to tell, and takes nothing.
    /// The buffer grows to `len`, which is therefore never a number out of the stream.
    pub(crate) fn has(&mut self, len: usize) -> Result<bool> {
        if self.ready() >= len {
            return Ok(true);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.ready());
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        let most = len.max(CAPACITY);
        while self.ready() < len {
            let Some(room) = self.buffer.get_mut(self.end..most) else {
                return Ok(false);
            };
            let space = room.len();
            match self.inner.read(room) {
                Ok(0) => return Ok(false),
                Ok(got) => self.end += got.min(space),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Read {
                        offset: self.offset + self.ready() as u64,
                        source,
                    });
                }
            }
        }
        Ok(true)
    }

    /// Takes `len` bytes of what is called `what` if the stream ends within.
    pub(crate) fn take(&mut self, len: usize, what: &'static str) -> Result<&[u8]> {
        if !self.has(len)? {
            return Err(self.truncated(what));
        }
        self.start += len;
        self.offset += len as u64;
        Ok(self.last(len))
    }

    /// The `len` bytes that were taken last, at once.
    pub(crate) fn last(&self, len: usize) -> &[u8] {
        let start = self.start.saturating_sub(len);
        self.buffer.get(start..self.start).unwrap_or_default()
    }

    /// The next byte, left where it is; `None` at the end of the stream.
    pub(crate) fn peek(&mut self) -> Result<Option<u8>> {
        Ok(if self.has(1)? {
            self.buffer.get(self.start).copied()
        } else {
            None
        })
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        Ok(bytes.first_chunk().copied().unwrap_or([0; N]))
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8> {
        let [byte] = self.array(what)?;
        Ok(byte)
    }

    pub(crate) fn be16(&mut self, what: &'static str) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn be32(&mut self, what: &'static str) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn be64(&mut self, what: &'static str) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    /// Takes a length byte and so many bytes; how many.
    pub(crate) fn counted(&mut self, what: &'static str) -> Result<usize> {
        let len = usize::from(self.u8(what)?);
        self.take(len, what)?;
        Ok(len)
    }

    /// Takes a name: a length byte that isn't 0, and UTF-8 without a NUL.
    pub(crate) fn name(&mut self, what: &'static str) -> Result<&str> {
        let offset = self.offset;
        let len = self.counted(what)?;
        let bytes = self.last(len);
        match str::from_utf8(bytes) {
            Ok(name) if !name.is_empty() && !name.contains('\0') => Ok(name),
            _ => Err(invalid(
                offset,
                what,
                format_args!("\"{}\"", bytes.escape_ascii()),
                "1 to 255 bytes of UTF-8 without a NUL",
            )),
        }
    }

    /// Takes `len` bytes that nobody wants.
    pub(crate) fn skip(&mut self, mut len: u64, what: &'static str) -> Result<()> {
        while len > 0 {
            if self.peek()?.is_none() {
                return Err(self.truncated(what));
            }
            let ready = (self.ready() as u64).min(len);
            len -= ready;
            self.start += usize::try_from(ready).unwrap_or_default();
            self.offset += ready;
        }
        Ok(())
    }

    /// Takes all that is in the buffer, which is nothing only at the end of the stream.
    pub(crate) fn block(&mut self) -> Result<&[u8]> {
        self.peek()?;
        let ready = self.ready();
        self.start = self.end;
        self.offset += ready as u64;
        Ok(self.last(ready))
    }

    /// The stream ends within `structure`.
    pub(crate) fn truncated(&self, structure: impl Into<Cow<'static, str>>) -> Error {
        Error::Truncated {
            offset: self.offset + self.ready() as u64,
            structure: structure.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Gives a few bytes at a time, is interrupted between, and fails at the end.
    struct Drip(Vec<u8>, bool);

    impl Read for Drip {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(ErrorKind::Interrupted.into());
            }
            if self.0.is_empty() {
                return Err(ErrorKind::ConnectionReset.into());
            }
            let n = buf.len().min(self.0.len()).min(7);
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0.drain(..n);
            Ok(n)
        }
    }

    #[test]
    fn pieces_of_any_size_come_in_order() {
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let mut input = Input::new(bytes.as_slice());
        let mut at = 0;
        for len in [1, 8, 65_536, 0, 100_000, 65_535, 3] {
            assert_eq!(input.take(len, "x").unwrap(), &bytes[at..at + len]);
            at += len;
            assert_eq!(input.offset(), at as u64);
        }
        input.skip(50_000, "x").unwrap();
        at += 50_000;
        assert_eq!(input.peek().unwrap(), Some(bytes[at]));
        let mut rest = Vec::new();
        loop {
            let block = input.block().unwrap();
            if block.is_empty() {
                break;
            }
            rest.extend_from_slice(block);
        }
        assert_eq!(rest, bytes[at..]);
        assert_eq!(input.offset(), 300_000);
        assert_eq!(input.peek().unwrap(), None);
    }

    #[test]
    fn the_end_and_faults_have_an_offset() {
        let mut input = Input::new(&[1, 2, 3, 4, 5][..]);
        assert_eq!(input.be16("x").unwrap(), 0x102);
        let error = input.be64("a number").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the stream ends at offset 0x5, within a number"
        );
        // Nothing was taken.
        assert_eq!(input.offset(), 2);
        assert!(matches!(
            input.skip(4, "x"),
            Err(Error::Truncated { offset: 5, .. })
        ));

        let mut input = Input::new(Drip(vec![9; 20], false));
        assert_eq!(input.take(20, "x").unwrap(), [9; 20]);
        assert!(matches!(input.u8("x"), Err(Error::Read { offset: 20, .. })));
    }

    #[test]
    fn names_are_text() {
        let mut input = Input::new(&b"\x02ab\x00\x03a\x00b\x02\xc3\xa4\x01\xc3"[..]);
        assert_eq!(input.name("n").unwrap(), "ab");
        for (offset, found) in [(3, "\"\""), (4, "\"a\\x00b\"")] {
            match input.name("n") {
                Err(Error::Invalid {
                    offset: o,
                    found: f,
                    ..
                }) => assert_eq!((o, f.as_str()), (offset, found)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(input.name("n").unwrap(), "ä");
        assert!(matches!(input.name("n"), Err(Error::Invalid { .. })));
    }
}
