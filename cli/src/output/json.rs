//! JSON as QEMU writes it: four spaces a level, one value a line, an empty object or list
//! on two lines, everything outside printable ASCII as `\uXXXX`.

use std::io::{self, Write};

use super::Tree;

/// Writes one JSON value.
#[derive(Debug)]
pub(crate) struct Json<W> {
    out: W,
    /// For each open object or list: whether it is an object, and whether it has a member yet.
    open: Vec<Level>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    object: bool,
    empty: bool,
}

impl<W: Write> Json<W> {
    /// A writer with nothing open yet.
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            open: Vec::new(),
        }
    }

    /// The writer back, for flushing.
    pub(crate) fn into_inner(self) -> W {
        self.out
    }

    /// Writes what is buffered.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Not known.
    pub(crate) fn null(&mut self, key: &str) -> io::Result<()> {
        self.literal(key, b"null")
    }

    /// A value that is JSON already, on one line: for items of which there are millions.
    pub(crate) fn literal(&mut self, key: &str, json: &[u8]) -> io::Result<()> {
        self.before(key)?;
        self.out.write_all(json)?;
        self.after()
    }

    /// What stands before a value: the comma, the line, the key.
    fn before(&mut self, key: &str) -> io::Result<()> {
        let depth = self.open.len();
        let Some(level) = self.open.last_mut() else {
            return Ok(());
        };
        if !std::mem::replace(&mut level.empty, false) {
            self.out.write_all(b",")?;
        }
        let object = level.object;
        self.line(depth)?;
        if object {
            self.text(key.as_bytes())?;
            self.out.write_all(b": ")?;
        }
        Ok(())
    }

    fn line(&mut self, depth: usize) -> io::Result<()> {
        self.out.write_all(b"\n")?;
        for _ in 0..depth {
            self.out.write_all(b"    ")?;
        }
        Ok(())
    }

    fn after(&mut self) -> io::Result<()> {
        if self.open.is_empty() {
            self.out.write_all(b"\n")
        } else {
            Ok(())
        }
    }

    fn text(&mut self, text: &[u8]) -> io::Result<()> {
        self.out.write_all(b"\"")?;
        let mut rest = text;
        // Most texts are plain, and an image may have 64 MiB of them.
        loop {
            let plain = rest.iter().take_while(|&&byte| is_plain(byte)).count();
            let Some((run, left)) = rest.split_at_checked(plain) else {
                break;
            };
            self.out.write_all(run)?;
            rest = left;
            let Some((c, left)) = next_char(rest) else {
                break;
            };
            self.character(c.unwrap_or(char::REPLACEMENT_CHARACTER))?;
            rest = left;
        }
        self.out.write_all(b"\"")
    }

    fn character(&mut self, c: char) -> io::Result<()> {
        match c {
            '"' => self.out.write_all(b"\\\""),
            '\\' => self.out.write_all(b"\\\\"),
            '\u{8}' => self.out.write_all(b"\\b"),
            '\u{c}' => self.out.write_all(b"\\f"),
            '\n' => self.out.write_all(b"\\n"),
            '\r' => self.out.write_all(b"\\r"),
            '\t' => self.out.write_all(b"\\t"),
            ' '..='~' => write!(self.out, "{c}"),
            // Noncharacters are printed as the replacement character.
            '\u{fdd0}'..='\u{fdef}' => self.out.write_all(b"\\uFFFD"),
            c if u32::from(c) & 0xfffe == 0xfffe => self.out.write_all(b"\\uFFFD"),
            c => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    self.out.write_all(&unicode_escape(*unit))?;
                }
                Ok(())
            }
        }
    }
}

/// Bytes that stand for themselves.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// `\uXXXX`
fn unicode_escape(unit: u16) -> [u8; 6] {
    let digit = |shift: u32| {
        let digit = (unit >> shift & 0xf) as u8;
        if digit < 10 {
            b'0' + digit
        } else {
            b'A' + digit - 10
        }
    };
    [b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]
}

/// The first character of `bytes` and what follows it; `None` in place of the character
/// for a broken sequence. A broken sequence is a lead byte (of up to six bytes, as UTF-8
/// once allowed) with those continuation bytes that follow it, so that one overlong or
/// surrogate encoding is one replacement character, as in QEMU's output.
fn next_char(bytes: &[u8]) -> Option<(Option<char>, &[u8])> {
    let (&lead, rest) = bytes.split_first()?;
    let length = match lead.leading_ones() {
        0 => return Some((Some(char::from(lead)), rest)),
        length @ 2..=6 => usize::try_from(length).unwrap_or(1),
        _ => return Some((None, rest)),
    };
    let follow = rest
        .iter()
        .take(length - 1)
        .take_while(|&&byte| byte & 0xc0 == 0x80)
        .count();
    let (sequence, left) = bytes.split_at_checked(1 + follow)?;
    let c = std::str::from_utf8(sequence)
        .ok()
        .and_then(|text| text.chars().next());
    Some((c, left))
}

impl<W: Write> Tree for Json<W> {
    fn string(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        self.before(key)?;
        self.text(value)?;
        self.after()
    }

    fn number(&mut self, key: &str, value: i128) -> io::Result<()> {
        self.before(key)?;
        write!(self.out, "{value}")?;
        self.after()
    }

    fn flag(&mut self, key: &str, value: bool) -> io::Result<()> {
        self.before(key)?;
        write!(self.out, "{value}")?;
        self.after()
    }

    fn object(&mut self, key: &str) -> io::Result<()> {
        self.before(key)?;
        self.open.push(Level {
            object: true,
            empty: true,
        });
        self.out.write_all(b"{")
    }

    fn list(&mut self, key: &str) -> io::Result<()> {
        self.before(key)?;
        self.open.push(Level {
            object: false,
            empty: true,
        });
        self.out.write_all(b"[")
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(level) = self.open.pop() else {
            return Ok(());
        };
        self.line(self.open.len())?;
        self.out.write_all(if level.object { b"}" } else { b"]" })?;
        self.after()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Json<Vec<u8>>) -> io::Result<()>) -> String {
        let mut json = Json::new(Vec::new());
        write(&mut json).unwrap();
        String::from_utf8(json.into_inner()).unwrap()
    }

    fn text(bytes: &[u8]) -> String {
        written(|json| json.string("", bytes))
    }

    #[test]
    fn shape_is_qemus() {
        let shown = written(|json| {
            json.list("")?;
            json.object("")?;
            json.list("flags")?;
            json.end()?;
            json.object("data")?;
            json.end()?;
            json.number("granularity", 65536)?;
            json.flag("corrupt", false)?;
            json.end()?;
            json.string("", b"x")?;
            json.end()
        });
        let expected = "[\n    {\n        \"flags\": [\n        ],\n        \"data\": {\n        },\n        \
                        \"granularity\": 65536,\n        \"corrupt\": false\n    },\n    \"x\"\n]\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn characters_are_escaped_as_qemu_does() {
        for (bytes, shown) in [
            (
                &b"\x01\x08\t\n\x0b\x0c\r\x1f\x7f"[..],
                r"\u0001\b\t\n\u000B\f\r\u001F\u007F",
            ),
            (b"\"\\/<&'", r#"\"\\/<&'"#),
            ("é€\u{2028}😀".as_bytes(), r"\u00E9\u20AC\u2028\uD83D\uDE00"),
            (
                "\u{10ffff}\u{fffe}\u{fdd0}\u{1fffe}".as_bytes(),
                r"\uFFFD\uFFFD\uFFFD\uFFFD",
            ),
            (b"a\x80z\xff\xfe", r"a\uFFFDz\uFFFD\uFFFD"),
            (b"\xed\xa0\x80z", r"\uFFFDz"),
            (b"\xc1\x81z", r"\uFFFDz"),
            (b"\xf4\x90\x80\x80z", r"\uFFFDz"),
            (b"\xe2\x82z", r"\uFFFDz"),
            (b"\xf8\x88\x80\x80\x80z", r"\uFFFDz"),
            (b"\x80\x80\xc3", r"\uFFFD\uFFFD\uFFFD"),
            (b"\xc3\xc3\xa9", r"\uFFFD\u00E9"),
            (b"\xf0\x9f\x98z", r"\uFFFDz"),
        ] {
            assert_eq!(text(bytes), format!("\"{shown}\"\n"), "{bytes:x?}");
        }
    }
}
