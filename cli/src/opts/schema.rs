//! Options of a format for `create -o`: their names, types, help, and their values checked.

use std::fmt::Write as _;

use super::{Pair, split};
use crate::size::{self, BadSize};

/// The type of an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// `on`/`off`, `yes`/`no`, `true`/`false`, `y`/`n`.
    Flag,
    /// Bytes with a suffix.
    Size,
    /// A whole number, C notation (`0x10`, `010`).
    Number,
}

/// One option that a format, or the file beneath it, takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its type.
    pub(crate) kind: Kind,
    /// What `-o help` says.
    pub(crate) help: &'static str,
}

/// The options of a format, in the order in which "Formatting" lists them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schema {
    /// Options of the format itself.
    pub(crate) format: &'static [Item],
    /// Options of the file beneath, which `-o help` shows once a file is named.
    pub(crate) file: &'static [Item],
}

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// As given.
    Text(String),
    /// What it means, and how it was written.
    Flag(bool, String),
    /// Bytes.
    Size(u64),
    /// A number.
    Number(u64),
}

/// The options given for a format. The last of several for one name counts.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    schema: Schema,
    given: Vec<(&'static str, Value)>,
}

impl Schema {
    fn items(self) -> impl Iterator<Item = &'static Item> {
        self.format
            .iter()
            .chain(self.file.iter().filter(move |file| {
                // An option of both levels is one option; the format's wording stands.
                !self.format.iter().any(|item| item.name == file.name)
            }))
    }

    fn find(self, name: &str) -> Option<&'static Item> {
        self.items().find(|item| item.name == name)
    }

    /// The text of `-o help`: for the format alone, or (`with_file`) with what the file
    /// beneath takes as well.
    pub(crate) fn help(self, format: &str, with_file: bool) -> String {
        let mut items: Vec<&Item> = if with_file {
            self.items().collect()
        } else {
            self.format.iter().collect()
        };
        items.sort_by_key(|item| item.name);
        let mut text = match with_file {
            true => "Supported options:\n".to_owned(),
            false => format!("Supported {format} options:\n"),
        };
        for Item { name, kind, help } in items {
            let kind = match kind {
                Kind::Text => "str",
                Kind::Flag => "bool (on/off)",
                Kind::Size => "size",
                Kind::Number => "num",
            };
            let left = format!("{name}=<{kind}>");
            let _ = writeln!(text, "  {left:<22} - {help}");
        }
        if !with_file {
            text.push_str(
                "\nThe protocol level may support further options.\n\
                 Specify the target filename to include those options.\n",
            );
        }
        text
    }

    /// Reads a list of options; later ones replace earlier ones.
    ///
    /// # Errors
    /// The message as qemu-img words it, without the file's name in front.
    pub(crate) fn parse(self, list: &str) -> Result<Values, String> {
        let mut values = Values {
            schema: self,
            given: Vec::new(),
        };
        for Pair { name, value } in split(list) {
            let (name, value) = match value {
                Some(value) => (name, value),
                // A bare word is a flag: `lazy_refcounts`, `nolazy_refcounts`.
                None => match name.strip_prefix("no") {
                    Some(name) => (name.to_owned(), "off".to_owned()),
                    None => (name, "on".to_owned()),
                },
            };
            values.set(&name, &value)?;
        }
        Ok(values)
    }
}

impl Values {
    /// Sets an option from its text.
    ///
    /// # Errors
    /// The message as qemu-img words it.
    pub(crate) fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        let Some(item) = self.schema.find(name) else {
            return Err(format!("Invalid parameter '{name}'"));
        };
        let value = match item.kind {
            Kind::Text => Value::Text(text.to_owned()),
            Kind::Flag => Value::Flag(parse_flag(name, text)?, text.to_owned()),
            Kind::Size => Value::Size(parse_size(name, text)?),
            Kind::Number => Value::Number(parse_number(name, text)?),
        };
        self.put(item.name, value);
        Ok(())
    }

    /// Sets an option to a value of its type, replacing an earlier one.
    pub(crate) fn put(&mut self, name: &'static str, value: Value) {
        self.given.retain(|(given, _)| *given != name);
        self.given.push((name, value));
    }

    /// [`Values::put`], unless it was given.
    pub(crate) fn default(&mut self, name: &'static str, value: Value) {
        if self.get(name).is_none() {
            self.put(name, value);
        }
    }

    /// The option's value, if given.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.given
            .iter()
            .find(|(given, _)| *given == name)
            .map(|(_, value)| value)
    }

    /// A text option.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// An on/off option; off unless given.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Value::Flag(true, _)))
    }

    /// A size or number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(Value::Size(number) | Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// Whether the format has such an option.
    pub(crate) fn accepts(&self, name: &str) -> bool {
        self.schema.find(name).is_some()
    }

    /// What "Formatting" prints: `name=value` in the schema's order, commas doubled.
    pub(crate) fn listing(&self) -> String {
        let mut text = String::new();
        for item in self.schema.items() {
            let Some(value) = self.get(item.name) else {
                continue;
            };
            let space = if text.is_empty() { "" } else { " " };
            let _ = match value {
                Value::Text(value) | Value::Flag(_, value) => {
                    write!(text, "{space}{}={}", item.name, value.replace(',', ",,"))
                }
                // Printed as a signed number.
                Value::Size(number) | Value::Number(number) => {
                    write!(text, "{space}{}={}", item.name, number.cast_signed())
                }
            };
        }
        text
    }
}

/// Reads an on/off value.
pub(crate) fn parse_flag(name: &str, text: &str) -> Result<bool, String> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
    }
}

fn parse_size(name: &str, text: &str) -> Result<u64, String> {
    size::parse(text).map_err(|bad| match bad {
        BadSize::Range => format!("Value '{text}' is out of range for parameter '{name}'"),
        BadSize::Syntax => format!(
            "Parameter '{name}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively."
        ),
    })
}

/// Reads a number as C's `strtoull` with base 0 does: blanks, a sign (which wraps), `0x`, `0`.
fn parse_number(name: &str, text: &str) -> Result<u64, String> {
    match size::c_digits(text) {
        Ok((true, number)) => Ok(number.wrapping_neg()),
        Ok((false, number)) => Ok(number),
        Err(BadSize::Syntax) => Err(format!("Parameter '{name}' expects a number")),
        Err(BadSize::Range) => Err(format!(
            "Value '{text}' is too large for parameter '{name}'"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: Schema = Schema {
        format: &[
            Item {
                name: "cluster_size",
                kind: Kind::Size,
                help: "bytes",
            },
            Item {
                name: "lazy",
                kind: Kind::Flag,
                help: "later",
            },
            Item {
                name: "data_file",
                kind: Kind::Text,
                help: "name",
            },
            Item {
                name: "bits",
                kind: Kind::Number,
                help: "width",
            },
        ],
        file: &[Item {
            name: "nocow",
            kind: Kind::Flag,
            help: "btrfs",
        }],
    };

    #[test]
    fn listing_follows_the_schema_and_keeps_how_flags_were_written() {
        let values = SCHEMA.parse("bits=010,nocow=yes,data_file=x,,y,nolazy,cluster_size=64k");
        let expected = "cluster_size=65536 lazy=off data_file=x,,y bits=8 nocow=yes";
        assert_eq!(values.unwrap().listing(), expected);
        let values = SCHEMA.parse("bits=-1,lazy,bits=0x10,lazy=n").unwrap();
        assert_eq!(values.listing(), "lazy=n bits=16");
        assert!(!values.flag("lazy"));
        assert_eq!(SCHEMA.parse("bits=-1").unwrap().listing(), "bits=-1");
    }

    #[test]
    fn mistakes_are_worded_as_by_qemu_img() {
        let refused = |list: &str| SCHEMA.parse(list).unwrap_err();
        assert_eq!(refused("foo"), "Invalid parameter 'foo'");
        assert_eq!(refused("no"), "Invalid parameter ''");
        assert_eq!(refused("nocow"), "Invalid parameter 'cow'");
        assert_eq!(refused("=x"), "Invalid parameter ''");
        assert_eq!(refused("lazy=1"), "Parameter 'lazy' expects 'on' or 'off'");
        assert_eq!(refused("bits=16k"), "Parameter 'bits' expects a number");
        assert_eq!(refused("bits=09"), "Parameter 'bits' expects a number");
        assert_eq!(
            refused("bits=18446744073709551616"),
            "Value '18446744073709551616' is too large for parameter 'bits'"
        );
        assert_eq!(
            refused("cluster_size=16E"),
            "Value '16E' is out of range for parameter 'cluster_size'"
        );
        assert!(
            refused("cluster_size=foo").starts_with("Parameter 'cluster_size' expects a non-neg")
        );
    }

    #[test]
    fn help_is_sorted_and_aligned() {
        let help = SCHEMA.help("test", true);
        let expected = "Supported options:\n  bits=<num>             - width\n  \
                        cluster_size=<size>    - bytes\n  data_file=<str>        - name\n  \
                        lazy=<bool (on/off)>   - later\n  nocow=<bool (on/off)>  - btrfs\n";
        assert_eq!(help, expected);
    }
}
