//! Which image is meant: a file name with qemu-img's prefixes, `json:{...}`, or the
//! `driver=qcow2,file.filename=x` of `--image-opts`.
//!
//! Only the command line is read here. Names out of an image's header go to the library,
//! which follows plain paths and nothing else.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use serde_json::Value;

use super::{Pair, schema::parse_flag, split};
use qcow2::image::MAX_CHAIN;

use crate::size;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// A regular file; others are refused.
    File,
    /// A block or character device.
    HostDevice,
}

/// What the bytes are taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// `qcow2`
    Qcow2,
    /// `raw`
    Raw,
    /// The file itself, with no format above it (`-f file`).
    Protocol(Protocol),
}

impl Driver {
    /// The driver called `name` by qemu-img.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "qcow2" => Some(Self::Qcow2),
            "raw" => Some(Self::Raw),
            "file" => Some(Self::Protocol(Protocol::File)),
            "host_device" => Some(Self::Protocol(Protocol::HostDevice)),
            _ => None,
        }
    }
}

/// A file, and how it is opened where that was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// The path, without a `file:` in front.
    pub(crate) path: OsString,
    /// `None`: by what the path leads to.
    pub(crate) protocol: Option<Protocol>,
}

/// What stands behind an image, where the command line says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Backing {
    /// What the header names.
    #[default]
    Header,
    /// Nothing (`"backing": null`).
    Nothing,
}

/// An image as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageSpec {
    /// The text as given: what messages about opening show.
    pub(crate) given: OsString,
    /// The format, unless it is to be probed.
    pub(crate) driver: Option<Driver>,
    /// The file.
    pub(crate) file: Reference,
    /// The data file, where it is not the one the header names.
    pub(crate) data_file: Option<Reference>,
    /// The backing image.
    pub(crate) backing: Backing,
    /// The id of the secret that opens it.
    pub(crate) key_secret: Option<String>,
    /// Those of the images behind it, the backing file's first.
    pub(crate) backing_secrets: Vec<Option<String>>,
    /// How it is encrypted, as the options have it.
    pub(crate) encrypt_format: Option<String>,
    /// An option of encryption that there isn't: refused where the image is encrypted, and
    /// looked at nowhere else.
    pub(crate) encrypt_unexpected: Option<String>,
    /// `force-share`, where given among the options.
    pub(crate) force_share: Option<bool>,
    /// It may not be written, as the options have it.
    pub(crate) read_only: bool,
    /// Warnings about the notation, to be printed before the image is opened.
    pub(crate) warnings: Vec<String>,
}

/// Why no image is meant by a text: the message, without the "Could not open" before it.
pub(crate) type SpecError = String;

impl ImageSpec {
    /// An image by its file name, with the format of `-f` if given.
    ///
    /// # Errors
    /// An unknown format or protocol, or a broken `json:`, in qemu-img's words.
    pub(crate) fn from_name(name: &OsStr, format: Option<&str>) -> Result<Self, SpecError> {
        let driver = driver_named(format)?;
        if let Some(json) = name.as_bytes().strip_prefix(b"json:") {
            let json = std::str::from_utf8(json)
                .map_err(|_| "Could not parse the JSON options: invalid UTF-8".to_owned())?;
            let value =
                parse_json(json).map_err(|e| format!("Could not parse the JSON options: {e}"))?;
            let Value::Object(members) = value else {
                return Err("Invalid JSON object given".into());
            };
            let mut options = Options::default();
            options.flatten("", members);
            if let Some(format) = format {
                options.put("driver".into(), Some(format.into()));
            }
            return options.into_spec(name);
        }
        Ok(Self::plain(name, driver, parse_path(name)?))
    }

    /// An image by the `key=value` list of `--image-opts`.
    ///
    /// # Errors
    /// An unknown driver or option, in qemu-img's words.
    pub(crate) fn from_options(list: &OsStr) -> Result<Self, SpecError> {
        let text = list
            .to_str()
            .ok_or("Invalid UTF-8 in the image specification")?;
        let mut options = Options::default();
        for (at, Pair { name, value }) in split(text).into_iter().enumerate() {
            match value {
                Some(value) => options.put(name, Some(value)),
                // The first word alone would name a device of a running machine.
                None if at == 0 => options.device = Some(name),
                None => {
                    let (on, plain) = match name.strip_prefix("no") {
                        Some(plain) => ("off", plain),
                        None => ("on", name.as_str()),
                    };
                    options.warnings.push(format!(
                        "short-form boolean option '{name}' deprecated\nPlease use {plain}={on} \
                         instead"
                    ));
                    options.put(plain.into(), Some(on.into()));
                }
            }
        }
        options.into_spec(list)
    }

    fn plain(given: &OsStr, driver: Option<Driver>, file: Reference) -> Self {
        Self {
            given: given.to_owned(),
            driver,
            file,
            data_file: None,
            backing: Backing::default(),
            key_secret: None,
            backing_secrets: Vec::new(),
            encrypt_format: None,
            encrypt_unexpected: None,
            force_share: None,
            read_only: false,
            warnings: Vec::new(),
        }
    }
}

fn driver_named(name: Option<&str>) -> Result<Option<Driver>, SpecError> {
    let unknown = |name: &str| format!("Unknown driver '{name}'");
    name.map(|name| Driver::named(name).ok_or_else(|| unknown(name)))
        .transpose()
}

/// A file name with its protocol prefix, if it has one: a colon before the first slash
/// ends a protocol's name.
pub(crate) fn parse_path(name: &OsStr) -> Result<Reference, SpecError> {
    let bytes = name.as_bytes();
    let (path, protocol) = match bytes.iter().position(|&byte| byte == b':' || byte == b'/') {
        Some(at) if bytes.get(at) == Some(&b':') => {
            let prefix = bytes.get(..at).unwrap_or_default();
            let rest = bytes.get(at + 1..).unwrap_or_default().to_vec();
            match prefix {
                // `file:` is only a way to keep a colon from being read as a protocol.
                b"file" => (OsString::from_vec(rest), None),
                b"host_device" => (OsString::from_vec(rest), Some(Protocol::HostDevice)),
                _ => {
                    let prefix = String::from_utf8_lossy(prefix);
                    return Err(format!("Unknown protocol '{prefix}'"));
                }
            }
        }
        _ => (name.to_owned(), None),
    };
    if path.is_empty() {
        return Err("The 'file' block driver requires a file name".into());
    }
    Ok(Reference { path, protocol })
}

/// Options flattened to dotted names. `None` is JSON's `null`.
#[derive(Debug, Default)]
struct Options {
    device: Option<String>,
    pairs: Vec<(String, Option<String>)>,
    warnings: Vec<String>,
}

impl Options {
    fn put(&mut self, name: String, value: Option<String>) {
        self.pairs.retain(|(known, _)| *known != name);
        self.pairs.push((name, value));
    }

    fn flatten(&mut self, prefix: &str, members: serde_json::Map<String, Value>) {
        for (name, value) in members {
            let name = format!("{prefix}{name}");
            match value {
                Value::Object(members) => self.flatten(&format!("{name}."), members),
                Value::Null => self.put(name, None),
                Value::String(text) => self.put(name, Some(text)),
                Value::Bool(flag) => self.put(name, Some(if flag { "on" } else { "off" }.into())),
                other => self.put(name, Some(other.to_string())),
            }
        }
    }

    fn take(&mut self, name: &str) -> Option<Option<String>> {
        let at = self.pairs.iter().position(|(known, _)| known == name)?;
        Some(self.pairs.remove(at).1)
    }

    fn take_text(&mut self, name: &str) -> Option<String> {
        self.take(name).flatten()
    }

    /// Whether the option called `name` is there and on. It stays in the list.
    fn flag(&self, name: &str) -> Result<bool, SpecError> {
        let given = self.pairs.iter().find(|(known, _)| known == name);
        match given {
            Some((_, Some(value))) => parse_flag(name, value),
            _ => Ok(false),
        }
    }

    fn has_below(&self, prefix: &str) -> bool {
        self.pairs.iter().any(|(name, _)| name.starts_with(prefix))
    }

    fn into_spec(mut self, given: &OsStr) -> Result<ImageSpec, SpecError> {
        if let Some(device) = self.device.take() {
            return Err(match self.pairs.is_empty() {
                true => no_device(&device),
                false => "Cannot reference an existing block device with additional options or a \
                          new filename"
                    .into(),
            });
        }
        // Of the image or of its file: either keeps it from being written.
        let read_only = self.flag("read-only")? | self.flag("file.read-only")?;
        let driver = self.take_text("driver");
        let driver = driver_named(driver.as_deref())?;
        let file = match driver {
            Some(Driver::Protocol(protocol)) => self.file("", Some(protocol))?,
            _ => {
                if let Some(device) = self.take_text("file") {
                    return Err(no_device(&device));
                }
                if !self.has_below("file.") {
                    return Err(match driver {
                        Some(_) => "A block device must be specified for \"file\"".into(),
                        None => "Must specify either driver or file".into(),
                    });
                }
                self.file("file.", None)?
            }
        };
        let mut spec = ImageSpec::plain(given, driver, file);
        spec.read_only = read_only;
        spec.force_share = self
            .take_text("force-share")
            .map(|on| parse_flag("force-share", &on))
            .transpose()?;
        if let Some(data_file) = self.take_text("data-file") {
            return Err(no_device(&data_file));
        }
        if self.has_below("data-file.") {
            spec.data_file = Some(self.file("data-file.", None)?);
        }
        match self.take("backing") {
            None => {}
            Some(None) => spec.backing = Backing::Nothing,
            Some(Some(empty)) if empty.is_empty() => {
                spec.backing = Backing::Nothing;
                let text = "Use of \"backing\": \"\" is deprecated; use \"backing\": null instead";
                self.warnings.push(text.into());
            }
            Some(Some(device)) => return Err(no_device(&device)),
        }
        if let None | Some(Driver::Qcow2) = driver {
            spec.key_secret = self.take_text("encrypt.key-secret");
            spec.encrypt_format = self.take_text("encrypt.format");
            let unexpected = self
                .pairs
                .extract_if(.., |(n, _)| n.starts_with("encrypt."));
            let names: Vec<_> = unexpected.map(|(name, _)| name).collect();
            let first = names.first().and_then(|name| name.strip_prefix("encrypt."));
            spec.encrypt_unexpected = first.map(ToOwned::to_owned);
        }
        let mut prefix = String::from("backing.");
        while self.has_below(&prefix) && spec.backing_secrets.len() < MAX_CHAIN {
            let _ = self.take(&format!("{prefix}encrypt.format"));
            let secret = self.take_text(&format!("{prefix}encrypt.key-secret"));
            spec.backing_secrets.push(secret);
            prefix.push_str("backing.");
        }
        self.check_rest(driver.unwrap_or(Driver::Qcow2))?;
        spec.warnings = self.warnings;
        Ok(spec)
    }

    /// The file whose options begin with `prefix`.
    fn file(&mut self, prefix: &str, known: Option<Protocol>) -> Result<Reference, SpecError> {
        let mut protocol = known;
        if protocol.is_none()
            && let Some(name) = self.take_text(&format!("{prefix}driver"))
        {
            match driver_named(Some(&name))? {
                Some(Driver::Protocol(named)) => protocol = Some(named),
                _ => return Err(format!("Driver '{name}' can't stand below another one")),
            }
        }
        let path = self
            .take_text(&format!("{prefix}filename"))
            .filter(|path| !path.is_empty());
        let path = path.ok_or(match protocol {
            Some(Protocol::HostDevice) => "The 'host_device' block driver requires a file name",
            _ => "The 'file' block driver requires a file name",
        })?;
        for name in FILE_OPTIONS {
            let _ = self.take(&format!("{prefix}{name}"));
        }
        let unknown = self.pairs.iter().find_map(|(name, _)| {
            let rest = name.strip_prefix(prefix).filter(|_| !prefix.is_empty())?;
            Some(format!(
                "Block protocol 'file' doesn't support the option '{rest}'"
            ))
        });
        match unknown {
            Some(text) => Err(text),
            None => Ok(Reference {
                path: path.into(),
                protocol,
            }),
        }
    }

    /// What is left must be options that mean nothing to us but are none the less valid:
    /// they tune QEMU's caches and threads.
    fn check_rest(&mut self, driver: Driver) -> Result<(), SpecError> {
        for (name, value) in &self.pairs {
            let value = value.as_deref().unwrap_or_default();
            if FLAGS.contains(&name.as_str()) {
                parse_flag(name, value)?;
                continue;
            }
            if SIZES.contains(&name.as_str()) && matches!(driver, Driver::Qcow2) {
                size::parse(value).map_err(|_| {
                    format!(
                        "Parameter '{name}' expects a non-negative number below 2^64\nOptional \
                         suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand \
                         exabytes, respectively."
                    )
                })?;
                continue;
            }
            if TEXTS.contains(&name.as_str()) {
                continue;
            }
            return Err(match driver {
                Driver::Protocol(_) => {
                    format!("Block protocol 'file' doesn't support the option '{name}'")
                }
                Driver::Qcow2 => {
                    format!("Block format 'qcow2' does not support the option '{name}'")
                }
                Driver::Raw => format!("Block format 'raw' does not support the option '{name}'"),
            });
        }
        Ok(())
    }
}

/// Options of a file that don't change what it holds.
const FILE_OPTIONS: [&str; 12] = [
    "aio",
    "aio-max-batch",
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "detect-zeroes",
    "discard",
    "drop-cache",
    "locking",
    "node-name",
    "read-only",
    "x-check-cache-dropped",
];

/// Options of a format that are on or off.
const FLAGS: [&str; 9] = [
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "discard-no-unref",
    "lazy-refcounts",
    "pass-discard-other",
    "pass-discard-request",
    "pass-discard-snapshot",
    "read-only",
];

/// Options of qcow2 that are sizes.
const SIZES: [&str; 5] = [
    "cache-clean-interval",
    "cache-size",
    "l2-cache-entry-size",
    "l2-cache-size",
    "refcount-cache-size",
];

/// Options that are texts.
const TEXTS: [&str; 5] = [
    "detect-zeroes",
    "discard",
    "node-name",
    "overlap-check",
    "overlap-check.template",
];

fn no_device(name: &str) -> String {
    format!("Cannot find device='{name}' nor node-name='{name}'")
}

/// Parses JSON with QEMU's words for what is wrong with it.
pub(crate) fn parse_json(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Err("Expecting a JSON value".into());
    }
    serde_json::from_str(text).map_err(|e| {
        if e.is_eof() {
            "JSON parse error, premature EOI".into()
        } else if e.to_string().starts_with("trailing characters") {
            "Expecting at most one JSON value".into()
        } else {
            format!("JSON parse error, {e}")
        }
    })
}

#[cfg(test)]
mod tests;
