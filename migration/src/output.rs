//! Where a stream's bytes go: a buffer before the transport, which knows its offset.

use std::io::{self, Write};

use crate::{Error, Result};

/// Bytes that are collected before the transport gets them.
const CAPACITY: usize = 64 << 10;

/// A buffer before a transport. It counts the stream's bytes, so that faults have an
/// offset. Nothing is written when it is dropped: [`flush`](Self::flush) it.
///
/// After a failed write nobody knows what the transport took, so all further writes fail.
#[derive(Debug)]
pub struct Output<W> {
    out: W,
    buffer: Box<[u8]>,
    used: usize,
    /// Bytes that the transport has taken.
    written: u64,
    failed: bool,
}

impl<W: Write> Output<W> {
    /// An empty buffer before `out`.
    #[must_use]
    pub fn new(out: W) -> Self {
        Self {
            out,
            buffer: vec![0; CAPACITY].into_boxed_slice(),
            used: 0,
            written: 0,
            failed: false,
        }
    }

    /// Bytes of the stream so far, those in the buffer included.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.written + self.used as u64
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`Error::Write`].
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() <= CAPACITY {
            self.space(bytes.len())?.copy_from_slice(bytes);
            return Ok(());
        }
        self.drain()?;
        self.write_out(|out, _| out.write_all(bytes))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Bytes that can be put without the transport being written to.
    pub(crate) const fn room(&self) -> usize {
        CAPACITY - self.used
    }

    /// Makes room for `len` bytes, at most [`CAPACITY`].
    pub(crate) fn make_room(&mut self, len: usize) -> Result<()> {
        if len > self.room() {
            self.drain()?;
        }
        Ok(())
    }

    /// Room for `len` bytes, at most [`CAPACITY`], that the caller fills in now.
    #[inline]
    pub(crate) fn space(&mut self, len: usize) -> Result<&mut [u8]> {
        self.make_room(len)?;
        let start = self.used;
        let room = self.buffer.get_mut(start..start.saturating_add(len));
        let room = room.ok_or_else(|| Error::Refused(format!("no buffer holds {len} bytes")))?;
        self.used += len;
        Ok(room)
    }

    /// Gives the transport all that is in the buffer, and flushes it.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn flush(&mut self) -> Result<()> {
        self.drain()?;
        self.write_out(|out, _| out.flush())
    }

    /// Flushes, and gives the transport back.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn into_inner(mut self) -> Result<W> {
        self.flush()?;
        Ok(self.out)
    }

    fn drain(&mut self) -> Result<()> {
        let used = self.used;
        self.write_out(|out, buffer| {
            buffer
                .get(..used)
                .map_or(Ok(()), |bytes| out.write_all(bytes))
        })?;
        self.written += used as u64;
        self.used = 0;
        Ok(())
    }

    fn write_out(&mut self, write: impl FnOnce(&mut W, &[u8]) -> io::Result<()>) -> Result<()> {
        let done = if self.failed {
            Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "an earlier write failed",
            ))
        } else {
            write(&mut self.out, &self.buffer)
        };
        done.map_err(|source| {
            self.failed = true;
            Error::Write {
                offset: self.written,
                source,
            }
        })
    }
}

/// For content that this crate knows nothing of.
impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes).map_err(into_io)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Self::flush(self).map_err(into_io)
    }
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Write { source, .. } => source,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then fails.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let n = bytes.len().min(self.0);
            self.0 -= n;
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_arrive_in_order_whatever_their_size() {
        let mut out = Output::new(Vec::new());
        let mut want = Vec::new();
        let mut byte = 0;
        for len in [0, 1, 65535, 65536, 65537, 10, 200_000, 3] {
            byte += 1;
            let piece = vec![byte; len];
            out.put(&piece).unwrap();
            want.extend(piece);
            assert_eq!(out.offset(), want.len() as u64);
        }
        assert!(out.into_inner().unwrap() == want);
    }

    #[test]
    fn a_failed_write_stays_failed() {
        let mut out = Output::new(Full(70_000));
        out.put(&[1; 60_000]).unwrap();
        out.put(&[1; 60_000]).unwrap(); // The first piece is out.
        let error = out.flush().unwrap_err();
        assert!(
            matches!(error, Error::Write { offset: 60_000, .. }),
            "{error}"
        );
        assert!(matches!(out.flush(), Err(Error::Write { .. })));
        assert!(matches!(out.into_inner(), Err(Error::Write { .. })));
    }
}
