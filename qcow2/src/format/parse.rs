//! What the parsers of this folder share: [`Parse`], the error [`Located`] that
//! remembers field and place, and [`run`], which turns it into [`crate::Error`].

use nom::{
    IResult, Parser,
    error::{ContextError, ErrorKind, FromExternalError, ParseError},
};

use crate::{Error, Result, addr::HostOffset};

/// What a parser of this folder returns: the rest of the input and the value.
pub(crate) type Parse<'a, T> = IResult<&'a [u8], T, Located<'a>>;

/// Where a parser stopped (`rest`, the input from the offending field on), the
/// innermost field's name and, where a value was refused, what was wrong with it.
#[derive(Debug)]
pub(crate) struct Located<'a> {
    rest: &'a [u8],
    field: Option<&'static str>,
    bad: Option<Bad>,
}

/// A field's value that isn't allowed; for `map_res` and for checks after parsing.
#[derive(Debug)]
pub(crate) struct Bad {
    /// What was found, as it should be printed.
    pub(crate) found: String,
    /// What is allowed there.
    pub(crate) allowed: String,
}

impl Bad {
    /// `found` as it should be printed and what is `allowed`.
    pub(crate) fn new(found: impl ToString, allowed: impl Into<String>) -> Self {
        Self {
            found: found.to_string(),
            allowed: allowed.into(),
        }
    }
}

impl<'a> ParseError<&'a [u8]> for Located<'a> {
    fn from_error_kind(rest: &'a [u8], _: ErrorKind) -> Self {
        Self {
            rest,
            field: None,
            bad: None,
        }
    }

    fn append(_: &'a [u8], _: ErrorKind, innermost: Self) -> Self {
        innermost
    }
}

impl<'a> ContextError<&'a [u8]> for Located<'a> {
    fn add_context(rest: &'a [u8], field: &'static str, inner: Self) -> Self {
        if inner.field.is_some() {
            inner
        } else {
            Self {
                rest,
                field: Some(field),
                ..inner
            }
        }
    }
}

impl<'a> FromExternalError<&'a [u8], Bad> for Located<'a> {
    fn from_external_error(rest: &'a [u8], _: ErrorKind, bad: Bad) -> Self {
        Self {
            rest,
            field: None,
            bad: Some(bad),
        }
    }
}

/// Runs `parser` over `input`, the bytes of `structure` that stand at `base` in
/// the image file; returns what is left over, and the value.
///
/// # Errors
/// [`Error::Corrupt`] naming structure, field and the field's offset.
pub(crate) fn run<'a, T>(
    structure: &str,
    base: HostOffset,
    input: &'a [u8],
    mut parser: impl Parser<&'a [u8], Output = T, Error = Located<'a>>,
) -> Result<(&'a [u8], T)> {
    parser.parse(input).map_err(|error| match error {
        nom::Err::Error(located) | nom::Err::Failure(located) => {
            let at = input.len().saturating_sub(located.rest.len()) as u64;
            let bad = located.bad.unwrap_or_else(|| {
                Bad::new(
                    format!("the end after {} bytes", located.rest.len()),
                    "the whole of this field",
                )
            });
            field_error(structure, located.field.unwrap_or("value"), base, at, bad)
        }
        // Only streaming parsers say this, and none is used here.
        nom::Err::Incomplete(_) => {
            Error::corrupt(structure, base, "too few bytes", "a complete structure")
        }
    })
}

/// The error for `field`, which stands `at` bytes into `structure` at `base`.
pub(crate) fn field_error(
    structure: &str,
    field: &str,
    base: HostOffset,
    at: u64,
    bad: Bad,
) -> Error {
    let offset = HostOffset(base.get().saturating_add(at));
    Error::corrupt(
        format!("{structure}, field {field}"),
        offset,
        bad.found,
        bad.allowed,
    )
}

/// Reads the big-endian words of a table (L1, L2, refcount or bitmap table). A
/// last incomplete word is left out: tables are read in whole entries.
pub(crate) fn words(table: &[u8]) -> impl ExactSizeIterator<Item = u64> + '_ {
    let (words, _) = table.as_chunks::<8>();
    words.iter().map(|word| u64::from_be_bytes(*word))
}

#[cfg(test)]
mod tests {
    use nom::{
        combinator::map_res,
        error::context,
        number::complete::{be_u8, be_u16},
    };

    use super::*;

    fn even(value: u8) -> Result<u8, Bad> {
        if value.is_multiple_of(2) {
            Ok(value)
        } else {
            Err(Bad::new(value, "an even number"))
        }
    }

    fn pair(input: &[u8]) -> Parse<'_, (u16, u8)> {
        let (rest, first) = context("first", be_u16).parse(input)?;
        let (rest, second) = context("second", map_res(be_u8, even)).parse(rest)?;
        Ok((rest, (first, second)))
    }

    #[test]
    fn refused_value_is_named_with_its_offset() {
        let error = run("pair", HostOffset(0x1000), &[0, 1, 3], pair).unwrap_err();
        assert_eq!(
            error.to_string(),
            "pair, field second at 0x1002: found 3, allowed is an even number"
        );
    }

    #[test]
    fn end_of_input_is_named_with_its_offset() {
        let error = run("pair", HostOffset(0), &[9], pair).unwrap_err();
        assert_eq!(
            error.to_string(),
            "pair, field first at 0x0: found the end after 1 bytes, allowed is the whole of this field"
        );
        assert_eq!(
            run("pair", HostOffset(0), &[0, 1, 2, 9], pair).unwrap(),
            (&[9][..], (1, 2))
        );
    }
}
