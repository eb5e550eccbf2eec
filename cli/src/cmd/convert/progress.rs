//! `-p`: how far it is, as qemu-img prints it.

use std::io::{self, Write as _};

use super::end_line;

/// What is printed meanwhile.
#[derive(Debug)]
pub(super) struct Shown {
    on: bool,
    begun: bool,
    total: u64,
    last: u64,
}

impl Shown {
    pub(super) fn new(on: bool) -> Self {
        Self {
            on,
            begun: false,
            total: 0,
            last: 0,
        }
    }

    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.begun = true;
        self.frame(0.0)
    }

    pub(super) fn total(&mut self, bytes: u64) {
        self.total = bytes;
    }

    /// So many bytes are done.
    #[allow(clippy::cast_precision_loss, reason = "it is a percentage")]
    pub(super) fn at(&mut self, done: u64) -> io::Result<()> {
        // A hundredth of it at least.
        if done < self.total && done.saturating_sub(self.last) > self.total / 100 {
            self.last = done;
            self.frame(done as f64 * 100.0 / self.total as f64)?;
        }
        Ok(())
    }

    pub(super) fn end(&mut self, done: bool) -> io::Result<()> {
        if !self.on || !self.begun {
            return Ok(());
        }
        if done {
            self.frame(100.0)?;
            self.frame(100.0)?;
        }
        end_line()
    }

    fn frame(&self, percent: f64) -> io::Result<()> {
        if !self.on {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        write!(out, "    ({percent:.2}/100%)\r")?;
        out.flush()
    }
}
