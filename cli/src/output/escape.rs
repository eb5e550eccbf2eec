//! Names out of an image made fit to print.

use std::{borrow::Cow, fmt};

/// Displays bytes for people: valid UTF-8 as it is, control characters (also the C1 set
/// and the bidirectional overrides, with which a name can pose as another line) as `\n`,
/// `\x1b` or `\u{202e}`, other bytes as `\xff`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Escaped<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            // Runs of harmless characters are written as one.
            let mut rest = chunk.valid();
            while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_harmful(*c)) {
                let (run, left) = rest.split_at_checked(at).unwrap_or((rest, ""));
                f.write_str(run)?;
                match c {
                    '\n' => f.write_str("\\n")?,
                    '\r' => f.write_str("\\r")?,
                    '\t' => f.write_str("\\t")?,
                    c if c.is_ascii() => write_byte(f, c as u8)?,
                    c => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                }
                rest = left.get(c.len_utf8()..).unwrap_or_default();
            }
            f.write_str(rest)?;
            for byte in chunk.invalid() {
                write_byte(f, *byte)?;
            }
        }
        Ok(())
    }
}

/// `\x1b`. Written by hand: a table of snapshots may have 16 million of them.
fn write_byte(f: &mut fmt::Formatter<'_>, byte: u8) -> fmt::Result {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let digit = |value: u8| DIGITS.get(usize::from(value)).copied().unwrap_or('0');
    f.write_str("\\x")?;
    fmt::Write::write_char(f, digit(byte >> 4))?;
    fmt::Write::write_char(f, digit(byte & 0xf))
}

/// Whether `c` does something other than stand there.
fn is_harmful(c: char) -> bool {
    c.is_control() || is_override(c)
}

fn is_override(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` with [`Escaped`] applied; borrows where nothing changes.
pub(crate) fn escape_control(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_harmful) {
        Cow::Owned(Escaped(text.as_bytes()).to_string())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_move_the_cursor_or_fake_a_line() {
        let name = b"a\nb\x1b[31m\x7f\xff\xe2\x80\xae\xc2\x9b \xc3\xa9\\";
        let shown = Escaped(name).to_string();
        assert_eq!(shown, "a\\nb\\x1b[31m\\x7f\\xff\\u{202e}\\u{9b} é\\");
    }

    #[test]
    fn plain_text_is_left_alone() {
        assert!(matches!(escape_control("näme €"), Cow::Borrowed("näme €")));
    }
}
