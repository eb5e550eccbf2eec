//! `--object`: secrets, read and checked as qemu-img does.

use std::{fs, sync::OnceLock};

use super::{Pair, split};

/// What `--object` defined: it is there for all images that the command opens.
static DEFINED: OnceLock<Vec<Secret>> = OnceLock::new();

/// Has [`Secret::find`] know these.
pub(crate) fn define(secrets: &[Secret]) {
    // A command's options are read once.
    let _ = DEFINED.set(secrets.to_vec());
}

/// A secret named on the command line.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret {
    /// The name by which options refer to it.
    pub(crate) id: String,
    /// Its bytes.
    pub(crate) data: Vec<u8>,
    /// It was encrypted with another secret.
    pub(crate) wrapped: bool,
}

impl Secret {
    /// The secret called `id`, as text that opens an image.
    ///
    /// # Errors
    /// The message as qemu-img words it.
    pub(crate) fn find(id: &str) -> Result<qcow2::crypt::Secret, String> {
        let list = DEFINED.get().map(Vec::as_slice).unwrap_or_default();
        Self::find_in(id, list)
    }

    /// As [`find`](Self::find), among those of `list`.
    pub(crate) fn find_in(id: &str, list: &[Self]) -> Result<qcow2::crypt::Secret, String> {
        let secret = list.iter().find(|secret| secret.id == id);
        let secret = secret.ok_or_else(|| format!("No secret with id '{id}'"))?;
        if secret.wrapped {
            return Err(format!(
                "Secret '{id}' is encrypted with another one (keyid), which is not supported"
            ));
        }
        match std::str::from_utf8(&secret.data) {
            Ok(text) if !text.contains('\0') => Ok(qcow2::crypt::Secret::new(text)),
            _ => Err(format!("Data from secret {id} is not valid UTF-8")),
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Largest secret file that is read: far beyond any key or passphrase.
const MAX_SECRET_BYTES: u64 = 1 << 20;

/// Reads the definition of an object and adds it to `secrets`.
///
/// # Errors
/// The message as qemu-img words it. Objects other than secrets are refused as unknown.
pub(crate) fn add_secret(definition: &str, secrets: &mut Vec<Secret>) -> Result<(), String> {
    let pairs = match definition.trim_start().starts_with('{') {
        true => json_pairs(definition)?,
        false => keyval_pairs(definition)?,
    };
    let get = |name: &str| {
        let found = pairs.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    };
    let kind = get("qom-type").ok_or("Parameter 'qom-type' is missing")?;
    if kind != "secret" {
        return Err(format!(
            "Parameter 'qom-type' does not accept value '{kind}'"
        ));
    }
    let id = get("id").ok_or("Parameter 'id' is missing")?;
    let known = ["qom-type", "id", "data", "file", "format", "keyid", "iv"];
    if let Some((name, _)) = pairs
        .iter()
        .find(|(name, _)| !known.contains(&name.as_str()))
    {
        return Err(format!("Parameter '{name}' is unexpected"));
    }
    if let Some(format) = get("format").filter(|format| !matches!(*format, "raw" | "base64")) {
        return Err(format!(
            "Parameter 'format' does not accept value '{format}'"
        ));
    }
    if !is_identifier(id) {
        return Err(
            "Parameter 'id' expects an identifier\nIdentifiers consist of letters, \
                    digits, '-', '.', '_', starting with a letter."
                .into(),
        );
    }
    let data = match (get("file"), get("data")) {
        (Some(_), Some(_)) => return Err("'file' and 'data' are mutually exclusive".into()),
        (None, None) => return Err("Either 'file' or 'data' must be provided".into()),
        (None, Some(data)) => data.as_bytes().to_vec(),
        (Some(file), None) => read_secret(file)?,
    };
    let data = match get("format") {
        Some("base64") => base64(&data)?,
        _ => data,
    };
    if let Some(key) = get("keyid").filter(|key| !secrets.iter().any(|known| known.id == *key)) {
        return Err(format!("No secret with id '{key}'"));
    }
    if secrets.iter().any(|secret| secret.id == id) {
        let text = "attempt to add duplicate property '";
        return Err(format!("{text}{id}' to object (type 'container')"));
    }
    secrets.push(Secret {
        id: id.to_owned(),
        data,
        wrapped: get("keyid").is_some(),
    });
    Ok(())
}

/// Decodes base64 as glib does: whole groups of four, the rest is dropped.
fn base64(text: &[u8]) -> Result<Vec<u8>, String> {
    let sextet = |byte: u8| {
        Some(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => 0,
            _ => return None,
        })
    };
    let mut out = Vec::new();
    let text: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !matches!(byte, b'\n' | b'\r'))
        .collect();
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for byte in group {
            let value = sextet(*byte).ok_or("Base64 data contains invalid characters")?;
            bits = bits << 6 | u32::from(value);
        }
        if let [.., third, fourth] = group
            && group.len() == 4
        {
            let [_, bytes @ ..] = bits.to_be_bytes();
            let filled = match (third, fourth) {
                (b'=', _) => 1,
                (_, b'=') => 2,
                _ => 3,
            };
            out.extend(bytes.iter().take(filled));
        }
    }
    Ok(out)
}

fn read_secret(file: &str) -> Result<Vec<u8>, String> {
    let fail = |e: std::io::Error| {
        let reason = crate::error::os_text(&e);
        format!("Unable to read {file}: Failed to open file \u{201c}{file}\u{201d}: {reason}")
    };
    let length = fs::metadata(file).map_err(fail)?.len();
    if length > MAX_SECRET_BYTES {
        return Err(format!(
            "Unable to read {file}: larger than {MAX_SECRET_BYTES} bytes"
        ));
    }
    fs::read(file).map_err(fail)
}

fn keyval_pairs(definition: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    for (at, Pair { name, value }) in split(definition).into_iter().enumerate() {
        match value {
            Some(value) => pairs.push((name, value)),
            // The first word alone is the type.
            None if at == 0 => pairs.push(("qom-type".to_owned(), name)),
            None => return Err(format!("Expected '=' after parameter '{name}'")),
        }
    }
    Ok(pairs)
}

fn json_pairs(definition: &str) -> Result<Vec<(String, String)>, String> {
    let value = super::image::parse_json(definition)?;
    let serde_json::Value::Object(members) = value else {
        return Err("Invalid parameter type, expected: object".into());
    };
    let text = |(name, value): (String, serde_json::Value)| match value {
        serde_json::Value::String(text) => Ok((name, text)),
        _ => Err(format!(
            "Invalid parameter type for '{name}', expected: string"
        )),
    };
    members.into_iter().map(text).collect()
}

fn is_identifier(id: &str) -> bool {
    let mut chars = id.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(definition: &str) -> Result<Secret, String> {
        let mut secrets = Vec::new();
        add_secret(definition, &mut secrets)?;
        Ok(secrets.remove(0))
    }

    #[test]
    fn a_secret_in_either_notation() {
        let expected = Secret {
            id: "x".into(),
            data: b"a,b".to_vec(),
            wrapped: false,
        };
        assert_eq!(add("secret,id=x,data=a,,b").unwrap(), expected);
        assert_eq!(
            add(r#"{"qom-type":"secret","id":"x","data":"a,b"}"#).unwrap(),
            expected
        );
        assert!(
            !format!("{expected:?}").contains("97"),
            "the bytes stay out of debug output"
        );
    }

    #[test]
    fn base64_as_glib_has_it() {
        for (text, data) in [
            ("eA==", "x"),
            ("eA==zz", "x"),
            ("eA", ""),
            ("", ""),
            ("eHl6ZQ==", "xyze"),
            ("eHk=", "xy"),
        ] {
            let definition = format!("secret,id=s,format=base64,data={text}");
            assert_eq!(add(&definition).unwrap().data, data.as_bytes(), "{text}");
        }
        let invalid = add("secret,id=s,format=base64,data=e A=").unwrap_err();
        assert_eq!(invalid, "Base64 data contains invalid characters");
    }

    #[test]
    fn a_secret_is_found_and_is_text() {
        let list = [
            add("secret,id=a,data=x").unwrap(),
            add("secret,id=b,format=base64,data=/w==").unwrap(),
        ];
        let found = Secret::find_in("a", &list).unwrap();
        assert_eq!(found, qcow2::crypt::Secret::new("x"));
        let error = |id| Secret::find_in(id, &list).unwrap_err();
        assert_eq!(error("b"), "Data from secret b is not valid UTF-8");
        assert_eq!(error("c"), "No secret with id 'c'");
    }

    #[test]
    fn mistakes_are_worded_as_by_qemu_img() {
        for (definition, message) in [
            ("", "Parameter 'qom-type' is missing"),
            ("foo", "Parameter 'qom-type' does not accept value 'foo'"),
            ("secret", "Parameter 'id' is missing"),
            ("secret,id", "Expected '=' after parameter 'id'"),
            ("secret,id=x", "Either 'file' or 'data' must be provided"),
            (
                "secret,id=x,data=y,file=z",
                "'file' and 'data' are mutually exclusive",
            ),
            ("secret,id=x,data=y,foo=z", "Parameter 'foo' is unexpected"),
            (
                "secret,id=x,data=y,format=foo",
                "Parameter 'format' does not accept value 'foo'",
            ),
            ("secret,id=x,data=y,keyid=z", "No secret with id 'z'"),
        ] {
            assert_eq!(add(definition).unwrap_err(), message, "{definition}");
        }
        assert!(
            add("secret,id=1x,data=y")
                .unwrap_err()
                .starts_with("Parameter 'id' expects")
        );
    }
}
