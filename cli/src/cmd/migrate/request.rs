//! What the command line asks of `migrate-bitmaps`: which options go together, what the
//! words with `=` mean.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
};

use migration::well_formed_node_alias;

use super::{MigrateArgs, OnOff};
use crate::{error::Failure, output::Form};

/// The three things that the command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// SRC DST
    Direct(Direct),
    /// `--emit`
    Emit(Emit),
    /// `--apply`
    Apply(Apply),
}

/// From one image into another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Direct {
    /// The image that has the bitmaps.
    pub(super) source: OsString,
    /// The image that gets them.
    pub(super) destination: OsString,
    /// Which; empty for all.
    pub(super) bitmaps: Vec<Rename>,
    /// `--remove-source`
    pub(super) remove_source: bool,
    /// `--force`
    pub(super) force: bool,
    /// The form of the report.
    pub(super) form: Form,
}

/// Images into a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Emit {
    /// The images, and what they and their bitmaps are called.
    pub(super) names: Names,
    /// `-o`; `None` for standard output.
    pub(super) to: Option<OsString>,
    /// `--compact`
    pub(super) compact: bool,
    /// `--machine`
    pub(super) machine: Option<String>,
    /// The form of the report.
    pub(super) form: Form,
}

/// A stream into images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Apply {
    /// The images, and what they and their bitmaps are called.
    pub(super) names: Names,
    /// `-i`; `None` for standard input.
    pub(super) from: Option<OsString>,
    /// `--force`
    pub(super) force: bool,
    /// `--partial`
    pub(super) partial: bool,
    /// The form of the report.
    pub(super) form: Form,
}

/// Images on one side, a stream on the other: what things are called here and there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// The images.
    pub(super) images: Vec<Operand>,
    /// `--bitmap`
    pub(super) bitmaps: Vec<Pick>,
    /// `--node-alias`: the node, if it was given, and its alias.
    pub(super) aliases: Vec<(Option<String>, String)>,
    /// `--map`
    pub(super) map: Option<OsString>,
    /// `--persistent`
    pub(super) persistent: Option<bool>,
}

/// An image as named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operand {
    /// The name of its node, from `NODE=FILE`.
    pub(super) node: Option<String>,
    /// The file.
    pub(super) file: OsString,
}

/// A value of `--bitmap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    /// What stands before the first `=`.
    pub(super) name: String,
    /// What follows it.
    pub(super) other: Option<String>,
}

/// A bitmap to move: its name in the source and in the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rename {
    /// In the source.
    pub(super) from: String,
    /// In the destination.
    pub(super) to: String,
}

impl Operand {
    /// What stands before the first `=` is the node's name if it can be one: a path with a
    /// `/` can't, so that `./a=b.qcow2` names a file.
    pub(super) fn new(word: &OsStr) -> Self {
        let bytes = word.as_bytes();
        let equals = bytes.iter().position(|&byte| byte == b'=');
        let parts = equals.and_then(|at| bytes.split_at_checked(at));
        let node = parts.and_then(|(node, _)| std::str::from_utf8(node).ok());
        match (node, parts) {
            (Some(node), Some((_, rest))) if well_formed_node_alias(node) => Self {
                node: Some(node.into()),
                file: OsStr::from_bytes(rest.get(1..).unwrap_or_default()).into(),
            },
            _ => Self {
                node: None,
                file: word.into(),
            },
        }
    }
}

impl MigrateArgs {
    /// Checks what may stand together.
    ///
    /// # Errors
    /// What can't.
    pub(super) fn request(self) -> Result<Request, Failure> {
        self.refuse_foreign_options()?;
        if self.emit && self.apply {
            return hinted("--emit and --apply are mutually exclusive");
        }
        let bitmaps = picks(&self.bitmap)?;
        if !self.emit && !self.apply {
            let [source, destination] = self.operands.as_slice() else {
                return hinted("Expecting source and destination image");
            };
            return Ok(Request::Direct(Direct {
                source: source.clone(),
                destination: destination.clone(),
                bitmaps: renames(bitmaps)?,
                remove_source: self.remove_source,
                force: self.force,
                form: self.output,
            }));
        }
        if self.operands.is_empty() {
            return hinted("Expecting one or more images");
        }
        if self.map.is_some() && !(bitmaps.is_empty() && self.node_alias.is_empty()) {
            return hinted("--map says what --node-alias and --bitmap say: give either");
        }
        let names = Names {
            images: self
                .operands
                .iter()
                .map(|word| Operand::new(word))
                .collect(),
            bitmaps,
            aliases: self.node_alias.iter().map(|text| alias(text)).collect(),
            map: self.map,
            persistent: self.persistent.map(|value| value == OnOff::On),
        };
        let not_standard = |file: Option<OsString>| file.filter(|file| file != "-");
        Ok(if self.emit {
            Request::Emit(Emit {
                names,
                to: not_standard(self.to),
                compact: self.compact,
                machine: self.machine,
                form: self.output,
            })
        } else {
            Request::Apply(Apply {
                names,
                from: not_standard(self.from),
                force: self.force,
                partial: self.partial,
                form: self.output,
            })
        })
    }

    /// Options that mean nothing here are refused: whoever gives one expects something.
    fn refuse_foreign_options(&self) -> Result<(), Failure> {
        let stream = self.emit || self.apply;
        let needs_stream = "only goes with --emit or --apply";
        let refused = [
            (
                self.remove_source && stream,
                "--remove-source",
                "only goes with SRC DST",
            ),
            (self.force && self.emit, "--force", "doesn't go with --emit"),
            (
                self.to.is_some() && !self.emit,
                "-o",
                "only goes with --emit",
            ),
            (
                self.compact && !self.emit,
                "--compact",
                "only goes with --emit",
            ),
            (
                self.machine.is_some() && !self.emit,
                "--machine",
                "only goes with --emit",
            ),
            (
                self.from.is_some() && !self.apply,
                "-i",
                "only goes with --apply",
            ),
            (
                self.partial && !self.apply,
                "--partial",
                "only goes with --apply",
            ),
            (
                self.persistent.is_some() && !stream,
                "--persistent",
                needs_stream,
            ),
            (self.map.is_some() && !stream, "--map", needs_stream),
            (
                !self.node_alias.is_empty() && !stream,
                "--node-alias",
                needs_stream,
            ),
        ];
        match refused.iter().find(|(refuse, ..)| *refuse) {
            Some((_, option, why)) => hinted(&format!("{option} {why}")),
            None => Ok(()),
        }
    }
}

fn hinted<T>(text: &str) -> Result<T, Failure> {
    Err(Failure::Hinted(text.into()))
}

/// The values of `--bitmap`.
fn picks(words: &[String]) -> Result<Vec<Pick>, Failure> {
    let mut bitmaps: Vec<Pick> = Vec::new();
    for text in words {
        // A name may hold `=`: only the first one separates.
        let (name, other) = match text.split_once('=') {
            Some((name, other)) => (name, Some(other)),
            None => (text.as_str(), None),
        };
        if name.is_empty() || other == Some("") {
            return hinted(&format!(
                "--bitmap expects NAME or NAME=NEWNAME not '{text}'"
            ));
        }
        if bitmaps.iter().any(|known| known.name == name) {
            return Err(format!("Bitmap '{name}' is named twice").into());
        }
        bitmaps.push(Pick {
            name: name.into(),
            other: other.map(Into::into),
        });
    }
    Ok(bitmaps)
}

/// What they mean where bitmaps go from image to image.
fn renames(picks: Vec<Pick>) -> Result<Vec<Rename>, Failure> {
    let mut bitmaps: Vec<Rename> = Vec::new();
    for pick in picks {
        let to = pick.other.unwrap_or_else(|| pick.name.clone());
        if bitmaps.iter().any(|known| known.to == to) {
            return Err(format!("Two bitmaps can't both be called '{to}'").into());
        }
        bitmaps.push(Rename {
            from: pick.name,
            to,
        });
    }
    Ok(bitmaps)
}

/// A value of `--node-alias`.
fn alias(text: &str) -> (Option<String>, String) {
    match text.split_once('=') {
        Some((node, alias)) => (Some(node.into()), alias.into()),
        None => (None, text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::parse_for_test;

    fn request(line: &str) -> Result<Request, String> {
        let words = line.split_whitespace().map(OsString::from).collect();
        let arguments: MigrateArgs = parse_for_test(words);
        arguments.request().map_err(|failure| match failure {
            Failure::Message(text) | Failure::Hinted(text) => text,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_bitmap_may_get_another_name() {
        let Request::Direct(direct) = request("--bitmap x --bitmap y=z=1 a b").unwrap() else {
            panic!();
        };
        let expected = [("x", "x"), ("y", "z=1")];
        let expected = expected.map(|(from, to)| Rename {
            from: from.into(),
            to: to.into(),
        });
        assert_eq!(direct.bitmaps, expected);
    }

    #[test]
    fn names_that_clash_or_are_empty_are_refused() {
        for names in [
            "--bitmap x --bitmap x",
            "--bitmap x=z --bitmap y=z",
            "--bitmap =y",
            "--bitmap x=",
            "--bitmap=",
        ] {
            assert!(request(&format!("{names} a b")).is_err(), "{names}");
        }
        // In the stream the nodes tell them apart.
        assert!(request("--emit --bitmap m/x=z --bitmap n/x=z m=a n=b").is_ok());
    }

    #[test]
    fn a_node_stands_before_the_first_equals_if_it_can_be_one() {
        for (word, node, file) in [
            ("n0=a.qcow2", Some("n0"), "a.qcow2"),
            ("n0=x=y", Some("n0"), "x=y"),
            ("n0=", Some("n0"), ""),
            ("./a=b.qcow2", None, "./a=b.qcow2"),
            ("/d/a=b", None, "/d/a=b"),
            ("0a=b", None, "0a=b"),
            ("=b", None, "=b"),
            ("a.qcow2", None, "a.qcow2"),
        ] {
            let operand = Operand::new(OsStr::new(word));
            assert_eq!(operand.node.as_deref(), node, "{word}");
            assert_eq!(operand.file, file, "{word}");
        }
        let bytes = OsStr::from_bytes(b"n\xff=a");
        assert_eq!(Operand::new(bytes).file, bytes);
    }

    #[test]
    fn options_of_one_form_are_refused_with_another() {
        for (line, said) in [
            ("--emit --apply a", "mutually exclusive"),
            (
                "--emit --remove-source a",
                "--remove-source only goes with SRC DST",
            ),
            ("--emit --force a", "--force doesn't go with --emit"),
            ("--emit -i x a", "-i only goes with --apply"),
            ("--emit --partial a", "--partial only goes with --apply"),
            ("--apply -o x a", "-o only goes with --emit"),
            ("--apply --compact a", "--compact only goes with --emit"),
            ("--apply --machine pc a", "--machine only goes with --emit"),
            (
                "--persistent on a b",
                "--persistent only goes with --emit or --apply",
            ),
            ("--map x a b", "--map only goes"),
            ("--node-alias x a b", "--node-alias only goes"),
            ("--emit --map x --bitmap y a", "give either"),
            ("--apply --map x --node-alias y a", "give either"),
            ("--emit", "one or more images"),
            ("a", "source and destination"),
            ("a b c", "source and destination"),
        ] {
            let error = request(line).unwrap_err();
            assert!(error.contains(said), "{line}: {error}");
        }
    }

    #[test]
    fn a_dash_is_standard_input_or_output() {
        let Request::Emit(emit) = request("--emit -o - --persistent=off a").unwrap() else {
            panic!();
        };
        assert_eq!((emit.to, emit.names.persistent), (None, Some(false)));
        let Request::Apply(apply) =
            request("--apply -i - --node-alias a=b --node-alias c x").unwrap()
        else {
            panic!();
        };
        assert_eq!(apply.from, None);
        let aliases = [(Some("a".into()), "b".into()), (None, "c".into())];
        assert_eq!(apply.names.aliases, aliases);
    }
}
