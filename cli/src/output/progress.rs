//! How far long work has come, on a terminal: bytes, rate, and time left where that can be
//! told. Standard error only.

use std::{
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that is done before people look for signs of it shows none.
const PATIENCE: Duration = Duration::from_millis(500);

/// A bar that goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
    shown: bool,
}

impl Progress {
    /// For work of so many bytes, if that is known.
    pub(crate) fn new(total: Option<u64>) -> Self {
        let template = match total {
            Some(_) => "{wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
            None => "{spinner} {bytes}, {bytes_per_sec}",
        };
        let style = ProgressStyle::with_template(template);
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        Self {
            bar: bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())),
            start: Instant::now(),
            shown: false,
        }
    }

    /// None at all, for work that prints on the terminal as it goes.
    pub(crate) fn none() -> Self {
        Self {
            bar: ProgressBar::hidden(),
            start: Instant::now(),
            shown: true,
        }
    }

    /// So many bytes are done.
    pub(crate) fn at(&mut self, done: u64) {
        self.show();
        self.bar.set_position(done);
    }

    fn advance(&mut self, bytes: usize) {
        self.show();
        self.bar.inc(bytes as u64);
    }

    fn show(&mut self) {
        if !self.shown && self.start.elapsed() > PATIENCE {
            self.shown = true;
            // Draws nothing where standard error is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// Counts what is written.
    pub(crate) const fn writer<W>(self, inner: W) -> Counted<W> {
        Counted {
            inner,
            progress: self,
        }
    }

    /// Counts what is read.
    pub(crate) const fn reader<R>(self, inner: R) -> Counted<R> {
        Counted {
            inner,
            progress: self,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A reader or writer whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    inner: T,
    progress: Progress,
}

impl<T> Counted<T> {
    /// What it was made of; the bar goes.
    pub(crate) fn into_inner(self) -> T {
        self.inner
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.progress.advance(bytes);
        Ok(bytes)
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.progress.advance(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
