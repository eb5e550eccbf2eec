//! What goes to standard output: QEMU-shaped JSON and the indented text that mirrors it.
//!
//! Reports are written as they are walked, never collected: an image may name 65535
//! bitmaps of a kilobyte each.

mod escape;
mod json;
mod progress;
mod text;

use std::io::{self, Write};

pub(crate) use escape::{Escaped, escape_control};
pub(crate) use json::Json;
pub(crate) use progress::Progress;
pub(crate) use text::Text;

/// A report's tree of named values, written event by event. Keys come in the order that
/// the caller gives, which for qemu-img's objects is the order QEMU prints.
pub(crate) trait Tree {
    /// A text; invalid UTF-8 and control characters are the writer's concern.
    fn string(&mut self, key: &str, value: &[u8]) -> io::Result<()>;
    /// A number.
    fn number(&mut self, key: &str, value: i128) -> io::Result<()>;
    /// True or false.
    fn flag(&mut self, key: &str, value: bool) -> io::Result<()>;
    /// Begins an object, closed by [`Tree::end`].
    fn object(&mut self, key: &str) -> io::Result<()>;
    /// Begins a list, closed by [`Tree::end`]. Keys of its items are ignored.
    fn list(&mut self, key: &str) -> io::Result<()>;
    /// Ends the innermost object or list.
    fn end(&mut self) -> io::Result<()>;
}

/// The form a command prints its results in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For people.
    #[default]
    Human,
    /// One JSON value.
    Json,
}

/// Standard output, buffered; a closed pipe ends the program quietly (see `main`).
pub(crate) fn stdout() -> io::BufWriter<io::StdoutLock<'static>> {
    io::BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// Writes `value` and a line end to standard output and flushes it.
pub(crate) fn print(value: impl std::fmt::Display) -> io::Result<()> {
    let mut out = stdout();
    writeln!(out, "{value}")?;
    out.flush()
}

/// Writes `text` as it is to standard output and flushes it.
pub(crate) fn print_text(text: &str) -> io::Result<()> {
    let mut out = stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// `1 chunk`, `2 chunks`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {what}{s}")
}
