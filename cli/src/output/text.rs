//! The same tree as indented text, as `qemu-img info` prints what is specific to a format.

use std::io::{self, Write};

use super::{Escaped, Tree};

/// Writes a tree as `key: value` lines, four spaces a level; items of lists are keyed
/// `[0]`, `[1]`, and dashes in keys become spaces.
#[derive(Debug)]
pub(crate) struct Text<W> {
    out: W,
    indent: usize,
    /// For each open object or list: the index of the next item if it is a list.
    open: Vec<Option<usize>>,
}

impl<W: Write> Text<W> {
    /// A writer whose outermost lines stand `indent` levels in.
    pub(crate) fn new(out: W, indent: usize) -> Self {
        Self {
            out,
            indent,
            open: Vec::new(),
        }
    }

    fn key(&mut self, key: &str) -> io::Result<()> {
        for _ in 0..self.indent + self.open.len() {
            self.out.write_all(b"    ")?;
        }
        if let Some(Some(index)) = self.open.last_mut() {
            write!(self.out, "[{index}]:")?;
            *index += 1;
            return Ok(());
        }
        for (at, word) in key.split('-').enumerate() {
            let space = if at > 0 { " " } else { "" };
            write!(self.out, "{space}{word}")?;
        }
        self.out.write_all(b":")
    }
}

impl<W: Write> Tree for Text<W> {
    fn string(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        self.key(key)?;
        writeln!(self.out, " {}", Escaped(value))
    }

    fn number(&mut self, key: &str, value: i128) -> io::Result<()> {
        self.key(key)?;
        writeln!(self.out, " {value}")
    }

    fn flag(&mut self, key: &str, value: bool) -> io::Result<()> {
        self.key(key)?;
        writeln!(self.out, " {value}")
    }

    fn object(&mut self, key: &str) -> io::Result<()> {
        self.key(key)?;
        self.open.push(None);
        writeln!(self.out)
    }

    fn list(&mut self, key: &str) -> io::Result<()> {
        self.key(key)?;
        self.open.push(Some(0));
        writeln!(self.out)
    }

    fn end(&mut self) -> io::Result<()> {
        self.open.pop();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_are_shown_as_qemu_img_shows_them() {
        let mut text = Text::new(Vec::new(), 1);
        let mut write = || -> io::Result<()> {
            text.string("compression-type", b"zlib")?;
            text.list("bitmaps")?;
            text.object("")?;
            text.list("flags")?;
            text.string("", b"auto")?;
            text.end()?;
            text.string("name", b"b\n0")?;
            text.number("granularity", 65536)?;
            text.end()?;
            text.object("")?;
            text.list("flags")?;
            text.end()?;
            text.end()?;
            text.end()?;
            text.flag("data-file-raw", true)
        };
        write().unwrap();
        let expected = "    compression type: zlib\n    bitmaps:\n        [0]:\n            \
                        flags:\n                [0]: auto\n            name: b\\n0\n            \
                        granularity: 65536\n        [1]:\n            flags:\n    data file raw: \
                        true\n";
        assert_eq!(String::from_utf8(text.out).unwrap(), expected);
    }
}
