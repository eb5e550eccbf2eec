//! Option words as GNU `getopt_long` reads them, over the options that clap defines.
//!
//! qemu-img is a getopt program, and scripts lean on what that means: options may
//! follow file names, short ones may be joined (`-Uf qcow2`, `-fraw`), long ones may
//! be cut short (`--out json`), the last of a repeated option counts, and mistakes are
//! named in a fixed wording. clap's own grammar differs in each of these, so words are
//! read here first and handed to clap in one plain form that it cannot misread.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use clap::{ArgAction, Command};

/// An option as it was met, in the order of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Occurrence {
    /// clap's id of the argument.
    pub(crate) id: String,
    /// Its value, for options that take one.
    pub(crate) value: Option<OsString>,
}

/// A command line, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Words {
    /// Options in their order.
    pub(crate) options: Vec<Occurrence>,
    /// What is not an option.
    pub(crate) operands: Vec<OsString>,
    plain: Vec<OsString>,
}

impl Words {
    /// The same words in the form in which clap takes them literally: `--long=value`
    /// for each option, then `--`, then the operands.
    pub(crate) fn plain(self, command: &str) -> Vec<OsString> {
        let mut words = vec![command.into()];
        words.extend(self.plain);
        words.push("--".into());
        words.extend(self.operands);
        words
    }
}

/// Why the words can't be read on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop<E> {
    /// `-h` or `--help` was met before any mistake.
    Help,
    /// A mistake, in getopt's wording, without the program's name.
    Usage(String),
    /// `accept` refused an option.
    Refused(E),
}

/// One option of a command, as getopt sees it.
struct Opt {
    id: String,
    short: Option<char>,
    long: String,
    takes_value: bool,
    /// Ours, not qemu-img's: must not make one of its abbreviations ambiguous.
    ours: bool,
}

/// Reads `words` by the options of `command`. Each option is shown to `accept` as it is
/// met, so that a wrong value is reported before a mistake further right; long options
/// named in `ours` can't be cut short where the same letters begin another one.
pub(crate) fn read<E>(
    command: &Command,
    ours: &[&str],
    words: impl IntoIterator<Item = OsString>,
    mut accept: impl FnMut(&Occurrence) -> Result<(), E>,
) -> Result<Words, Stop<E>> {
    let options = options(command, ours);
    let permute = std::env::var_os("POSIXLY_CORRECT").is_none();
    let mut read = Words::default();
    let mut words = words.into_iter();
    let mut take = |read: &mut Words, opt: &Opt, value: Option<OsString>| {
        if opt.id == "help" {
            return Err(Stop::Help);
        }
        let met = Occurrence {
            id: opt.id.clone(),
            value,
        };
        accept(&met).map_err(Stop::Refused)?;
        let mut word = OsString::from(format!("--{}", opt.long));
        if let Some(value) = &met.value {
            word.push("=");
            word.push(value);
        }
        read.plain.push(word);
        read.options.push(met);
        Ok(())
    };
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            read.operands.extend(words);
            break;
        } else if let Some(long) = bytes.strip_prefix(b"--") {
            let (name, mut value) = split_at_equals(long);
            let opt = find_long(&options, name, long).map_err(Stop::Usage)?;
            if opt.takes_value && value.is_none() {
                value = words.next();
                if value.is_none() {
                    let text = format!("option '--{}' requires an argument", opt.long);
                    return Err(Stop::Usage(text));
                }
            } else if !opt.takes_value && value.is_some() {
                let text = format!("option '--{}' doesn't allow an argument", opt.long);
                return Err(Stop::Usage(text));
            }
            take(&mut read, opt, value)?;
        } else if bytes.first() == Some(&b'-') && bytes.len() > 1 {
            for (at, &letter) in bytes.iter().enumerate().skip(1) {
                let Some(opt) = find_short(&options, letter) else {
                    let letter = OsString::from_vec(vec![letter]);
                    let text = format!("invalid option -- '{}'", letter.to_string_lossy());
                    return Err(Stop::Usage(text));
                };
                if !opt.takes_value {
                    take(&mut read, opt, None)?;
                    continue;
                }
                let joined = bytes.get(at + 1..).filter(|rest| !rest.is_empty());
                let value = match joined {
                    Some(rest) => OsStr::from_bytes(rest).to_owned(),
                    None => words.next().ok_or_else(|| {
                        let letter = char::from(letter);
                        Stop::Usage(format!("option requires an argument -- '{letter}'"))
                    })?,
                };
                take(&mut read, opt, Some(value))?;
                break;
            }
        } else {
            read.operands.push(word);
            if !permute {
                read.operands.extend(words);
                break;
            }
        }
    }
    Ok(read)
}

fn options(command: &Command, ours: &[&str]) -> Vec<Opt> {
    let defined = command.get_arguments().filter_map(|arg| {
        let long = arg.get_long()?;
        Some(Opt {
            id: arg.get_id().as_str().into(),
            short: arg.get_short(),
            long: long.into(),
            takes_value: matches!(arg.get_action(), ArgAction::Set | ArgAction::Append),
            ours: ours.contains(&long),
        })
    });
    defined.collect()
}

fn split_at_equals(word: &[u8]) -> (&[u8], Option<OsString>) {
    let mut parts = word.splitn(2, |&byte| byte == b'=');
    let name = parts.next().unwrap_or_default();
    (
        name,
        parts
            .next()
            .map(|value| OsStr::from_bytes(value).to_owned()),
    )
}

fn find_short(options: &[Opt], letter: u8) -> Option<&Opt> {
    options
        .iter()
        .find(|opt| opt.short == Some(char::from(letter)))
}

/// The option called `name`, or the only one that begins so. `word` is what the message
/// shows: the name with its `=value`.
fn find_long<'a>(options: &'a [Opt], name: &[u8], word: &[u8]) -> Result<&'a Opt, String> {
    if let Some(exact) = options.iter().find(|opt| opt.long.as_bytes() == name) {
        return Ok(exact);
    }
    let begin_so = |ours: bool| -> Vec<&Opt> {
        let matching = options
            .iter()
            .filter(|opt| opt.long.as_bytes().starts_with(name));
        matching.filter(|opt| opt.ours == ours).collect()
    };
    let mut matching = begin_so(false);
    if matching.is_empty() {
        matching = begin_so(true);
    }
    let shown = String::from_utf8_lossy(word);
    match matching.as_slice() {
        [] => Err(format!("unrecognized option '--{shown}'")),
        [only] => Ok(only),
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|opt| format!("'--{}'", opt.long))
                .collect();
            Err(format!(
                "option '--{shown}' is ambiguous; possibilities: {}",
                names.join(" ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn command() -> Command {
        Command::new("info")
            .arg(Arg::new("format").short('f').long("format"))
            .arg(
                Arg::new("share")
                    .short('U')
                    .long("force-share")
                    .action(ArgAction::SetTrue),
            )
            .arg(Arg::new("output").long("output"))
            .arg(Arg::new("object").long("object").action(ArgAction::Append))
            .arg(Arg::new("outline").long("outline"))
            .arg(
                Arg::new("help")
                    .short('h')
                    .long("help")
                    .action(ArgAction::Help),
            )
    }

    fn words(line: &str) -> Result<Words, Stop<String>> {
        let words = line.split_whitespace().map(OsString::from);
        read(&command(), &["outline"], words, |met| {
            if met.id == "output" && met.value.as_deref() == Some(OsStr::new("bad")) {
                return Err("bad output".to_owned());
            }
            Ok(())
        })
    }

    fn usage(line: &str) -> String {
        match words(line) {
            Err(Stop::Usage(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn options_may_follow_operands_and_be_joined_or_cut_short() {
        let read = words("a.qcow2 -Uf qcow2 --out=json -- -x").unwrap();
        assert_eq!(read.operands, ["a.qcow2", "-x"]);
        let plain = read.plain("info");
        let expected = [
            "info",
            "--force-share",
            "--format=qcow2",
            "--output=json",
            "--",
            "a.qcow2",
            "-x",
        ];
        assert_eq!(plain, expected);
        assert_eq!(
            words("-fraw").unwrap().options[0].value.as_deref(),
            Some(OsStr::new("raw"))
        );
        assert_eq!(words("-").unwrap().operands, ["-"]);
    }

    #[test]
    fn mistakes_have_getopts_wording() {
        assert_eq!(usage("--foo=1"), "unrecognized option '--foo=1'");
        assert_eq!(usage("-Ux"), "invalid option -- 'x'");
        assert_eq!(usage("-f"), "option requires an argument -- 'f'");
        assert_eq!(usage("--format"), "option '--format' requires an argument");
        assert_eq!(
            usage("--force-s=1"),
            "option '--force-share' doesn't allow an argument"
        );
        assert_eq!(
            usage("--o=json"),
            "option '--o=json' is ambiguous; possibilities: '--output' '--object'"
        );
    }

    #[test]
    fn help_counts_unless_a_mistake_comes_first() {
        assert_eq!(words("a --help -x"), Err(Stop::Help));
        assert_eq!(words("-hx"), Err(Stop::Help));
        assert_eq!(usage("-x -h"), "invalid option -- 'x'");
    }

    #[test]
    fn a_refused_value_is_reported_before_a_mistake_further_right() {
        assert_eq!(
            words("--output bad -x"),
            Err(Stop::Refused("bad output".into()))
        );
        assert_eq!(usage("-x --output bad"), "invalid option -- 'x'");
    }

    #[test]
    fn our_options_leave_qemu_imgs_abbreviations_alone() {
        assert_eq!(words("--out=json").unwrap().options[0].id, "output");
        assert_eq!(words("--outl=json").unwrap().options[0].id, "outline");
    }
}
