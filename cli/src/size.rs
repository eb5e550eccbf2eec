//! Sizes as qemu-img reads and prints them: `1.5k` to bytes, bytes to `1.5 KiB`.

use std::{fmt, ops::RangeInclusive};

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadSize {
    /// Not a number with an optional suffix.
    Syntax,
    /// A number, but negative or past 2^64 - 1 bytes.
    Range,
}

/// Bytes of a size: decimal with an optional fraction and an optional suffix `b`, `k`,
/// `M`, `G`, `T`, `P` or `E` (either case, powers of 1024), or hexadecimal (`0x`) without
/// either. A fraction must be left with whole bytes only in so far as it has a suffix
/// larger than `b`: `0.1k` is 102, `0.5` is refused.
pub(crate) fn parse(text: &str) -> Result<u64, BadSize> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (negative, text) = match text.as_bytes().first() {
        Some(b'-') => (true, text.get(1..).unwrap_or_default()),
        Some(b'+') => (false, text.get(1..).unwrap_or_default()),
        _ => (false, text),
    };
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(BadSize::Syntax);
        }
        let bytes = u64::from_str_radix(digits, 16).map_err(|_| BadSize::Range)?;
        return if negative && bytes != 0 {
            Err(BadSize::Range)
        } else {
            Ok(bytes)
        };
    }
    let (digits, rest) = split_digits(text);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if digits.is_empty() && fraction.is_empty() {
        return Err(BadSize::Syntax);
    }
    let shift = match suffix {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(BadSize::Syntax),
    };
    let part: f64 = match fraction {
        "" => 0.0,
        _ => format!("0.{fraction}")
            .parse()
            .map_err(|_| BadSize::Syntax)?,
    };
    if shift == 0 && part != 0.0 {
        return Err(BadSize::Syntax);
    }
    if negative && (shift != 0 || !fraction.is_empty()) {
        return Err(BadSize::Syntax);
    }
    let whole: u64 = match digits {
        "" => 0,
        _ => digits.parse().map_err(|_| BadSize::Range)?,
    };
    if negative && whole != 0 {
        return Err(BadSize::Range);
    }
    let unit = 1_u64 << shift;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    // `part` is 0 to 1 and `unit` at most 2^60: the product is a small whole number.
    let extra = (part * unit as f64) as u64;
    let bytes = whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add(extra));
    bytes.ok_or(BadSize::Range)
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// [`parse`] for an option or operand that qemu-img calls `what` ("image size"); allowed
/// is 0 to 2^63 - 1.
///
/// # Errors
/// The message as qemu-img prints it.
pub(crate) fn parse_operand(what: &str, text: &str) -> Result<u64, String> {
    parse_within(what, text, 0..=i64::MAX.unsigned_abs())
}

/// [`parse_operand`] for an option that may not be given.
///
/// # Errors
/// The message as qemu-img prints it.
pub(crate) fn parse_given(what: &str, text: Option<&str>) -> Result<Option<u64>, String> {
    text.map(|text| parse_operand(what, text)).transpose()
}

/// [`parse_operand`], where other sizes are allowed.
///
/// # Errors
/// The message as qemu-img prints it.
pub(crate) fn parse_within(
    what: &str,
    text: &str,
    allowed: RangeInclusive<u64>,
) -> Result<u64, String> {
    within(what, text, parse(text), &allowed)
}

/// As [`parse_within`], for a number without a suffix, in C's notation (`0x10`, `010`).
///
/// # Errors
/// The message as qemu-img prints it.
pub(crate) fn parse_number(
    what: &str,
    text: &str,
    allowed: RangeInclusive<u64>,
) -> Result<u64, String> {
    within(what, text, c_number(text), &allowed)
}

fn within(
    what: &str,
    text: &str,
    parsed: Result<u64, BadSize>,
    allowed: &RangeInclusive<u64>,
) -> Result<u64, String> {
    match parsed {
        Ok(number) if allowed.contains(&number) => Ok(number),
        Ok(_) | Err(BadSize::Range) => Err(format!(
            "Invalid {what} specified. Must be between {} and {}.",
            allowed.start(),
            allowed.end()
        )),
        Err(BadSize::Syntax) => Err(format!("Invalid {what} specified: '{text}'.")),
    }
}

/// A whole number as C's `strtoll` with base 0 reads it.
fn c_number(text: &str) -> Result<u64, BadSize> {
    match c_digits(text)? {
        (negative, number) if !negative || number == 0 => Ok(number),
        _ => Err(BadSize::Range),
    }
}

/// A whole number in C's notation: blanks, a sign (whether it is `-`), `0x` or `0`, digits.
///
/// # Errors
/// It is no such number, or has more than 64 bits.
pub(crate) fn c_digits(text: &str) -> Result<(bool, u64), BadSize> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hex = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"));
    let (radix, digits) = match hex {
        Some(hex) => (16, hex),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(BadSize::Syntax);
    }
    let number = u64::from_str_radix(digits, radix).map_err(|_| BadSize::Range)?;
    Ok((negative, number))
}

/// Displays a number of bytes with three significant digits and a binary unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Human(pub(crate) u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        // The next unit is taken from 1000 on, so that no number has four digits.
        let mut scale = 1_u64;
        let mut units = UNITS.iter();
        let mut unit = units.next().unwrap_or(&"B");
        while self.0 / 1000 >= scale {
            let Some(next) = units.next() else { break };
            unit = next;
            scale = scale.saturating_mul(1024);
        }
        #[allow(clippy::cast_precision_loss)] // three digits are shown
        let value = self.0 as f64 / scale as f64;
        write!(f, "{} {unit}", three_digits(value))
    }
}

/// C's `%.3g` for 0 up to 1024: at most three significant digits, no trailing zeros, and
/// `1e+03` for what rounds to a thousand.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    let mut text = format!("{value:.decimals$}");
    if text == "1000" {
        return "1e+03".into();
    }
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_qemu_img_reads() {
        for (text, bytes) in [
            ("1", 1),
            ("1b", 1),
            ("1k", 1024),
            ("1M", 1 << 20),
            ("2T", 2 << 40),
            ("1e", 1 << 60),
            ("1.5k", 1536),
            (".5k", 512),
            ("1.k", 1024),
            ("0x10", 16),
            ("0xe", 14),
            ("010", 10),
            ("+5", 5),
            (" 5", 5),
            ("-0", 0),
            ("1.0", 1),
            ("1.0b", 1),
            ("0.1k", 102),
            ("0.0001k", 0),
            ("1.9999999999999999999k", 2048),
            ("7.999999E", 9_223_370_883_933_271_168),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_qemu_img_refuses() {
        for text in [
            "", "k", ".", "1Z", "1.5", "1.5b", "1e3", "1e3k", "0x10k", "0x1.8k", "0x", "-1k", "5 ",
            "5kk", "5KiB", "5 k", "nan", "inf", "1_000", "1,5", "--5", "+-5", "é",
        ] {
            assert_eq!(parse(text), Err(BadSize::Syntax), "{text}");
        }
        for text in [
            "-5",
            "16E",
            "18446744073709551616",
            "99999999999999999999999k",
        ] {
            assert_eq!(parse(text), Err(BadSize::Range), "{text}");
        }
    }

    #[test]
    fn messages_of_operands() {
        assert_eq!(
            parse_operand("image size", "8E").unwrap_err(),
            "Invalid image size specified. Must be between 0 and 9223372036854775807."
        );
        assert_eq!(
            parse_operand("granularity", "foo").unwrap_err(),
            "Invalid granularity specified: 'foo'."
        );
    }

    #[test]
    fn numbers_without_a_suffix() {
        let parse = |text| parse_number("queue depth", text, 1..=300);
        for (text, number) in [("1", 1), ("0x10", 16), ("010", 8), (" +7", 7), ("300", 300)] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in ["", "k", "1k", "1.5", "0x", "08", "1 ", "--1"] {
            let message = format!("Invalid queue depth specified: '{text}'.");
            assert_eq!(parse(text), Err(message));
        }
        for text in ["0", "-1", "-0", "301", "99999999999999999999"] {
            let message = "Invalid queue depth specified. Must be between 1 and 300.";
            assert_eq!(parse(text), Err(message.into()), "{text}");
        }
    }

    #[test]
    fn three_significant_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (200_704, "196 KiB"),
            (1_023_488, "1e+03 KiB"),
            (1_024_000, "0.977 MiB"),
            (1_047_552, "0.999 MiB"),
            (1_048_064, "1 MiB"),
            (1_053_696, "1 MiB"),
            (3_473_408, "3.31 MiB"),
            (10_240_000, "9.77 MiB"),
            (10_480_000, "9.99 MiB"),
            (10_485_000, "10 MiB"),
            (104_857_600, "100 MiB"),
            (1_047_527_424, "999 MiB"),
            (1_048_576_000, "0.977 GiB"),
            (999_999_999_999_488, "909 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Human(bytes).to_string(), text);
        }
    }
}
