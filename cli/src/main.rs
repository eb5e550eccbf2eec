//! `qimg`: the command over the `qcow2` and `hbitmap` crates.

mod args;
mod cmd;
mod disk;
mod error;
mod exit;
mod getopt;
mod image;
mod opts;
mod output;
mod progname;
mod size;

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    process::ExitCode,
};

use error::Failure;
use exit::Exit;

/// What a shell reports for a program that a closed pipe ended: 128 + SIGPIPE.
const CLOSED_PIPE: u8 = 141;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    progname::set(words.next().as_deref());
    let mut command = None;
    let failure = match standard_options(&mut words) {
        Ok(First::Done) => return Exit::Success.into(),
        Ok(First::Command(name)) => match args::run(&name, words.collect()) {
            Some(Ok(exit)) => return exit.into(),
            Some(Err(failure)) => {
                command = Some(name.to_string_lossy().into_owned());
                failure
            }
            None => Failure::Hinted(format!("Command not found: {}", name.to_string_lossy())),
        },
        Err(failure) => failure,
    };
    report(&failure, command.as_deref())
}

/// What stands before the command.
enum First {
    /// `--help` or `--version`: printed.
    Done,
    /// The command's name; its words follow.
    Command(OsString),
}

/// Reads the options before the command's name, up to that name.
fn standard_options(words: &mut impl Iterator<Item = OsString>) -> Result<First, Failure> {
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            break;
        } else if let Some(long) = bytes.strip_prefix(b"--") {
            let (name, value) = match long.iter().position(|&byte| byte == b'=') {
                Some(at) => (long.get(..at).unwrap_or_default(), true),
                None => (long, false),
            };
            let shown = String::from_utf8_lossy(long);
            let option = ["help", "version", "trace"]
                .into_iter()
                .find(|option| !name.is_empty() && option.as_bytes().starts_with(name));
            match (option, value) {
                (Some("trace"), true) => {}
                (Some("trace"), false) => {
                    let missing =
                        || Failure::Option("option '--trace' requires an argument".into());
                    words.next().ok_or_else(missing)?;
                }
                (Some(option), true) => {
                    let text = format!("option '--{option}' doesn't allow an argument");
                    return Err(Failure::Option(text));
                }
                (Some("help"), false) => return help(),
                (Some(_), false) => return version(),
                (None, _) => {
                    return Err(Failure::Option(format!("unrecognized option '--{shown}'")));
                }
            }
        } else if bytes.first() == Some(&b'-') && bytes.len() > 1 {
            match bytes.get(1) {
                Some(b'h') => return help(),
                Some(b'V') => return version(),
                Some(b'T') if bytes.len() > 2 => {}
                Some(b'T') => {
                    let missing = || Failure::Option("option requires an argument -- 'T'".into());
                    words.next().ok_or_else(missing)?;
                }
                letter => {
                    let letter = letter.copied().unwrap_or_default();
                    let letter = OsStr::from_bytes(&[letter]).to_string_lossy().into_owned();
                    return Err(Failure::Option(format!("invalid option -- '{letter}'")));
                }
            }
        } else {
            return Ok(First::Command(word));
        }
    }
    match words.next() {
        Some(word) => Ok(First::Command(word)),
        None => Err(Failure::Hinted("Not enough arguments".into())),
    }
}

fn help() -> Result<First, Failure> {
    output::print(args::cli().render_long_help())?;
    Ok(First::Done)
}

fn version() -> Result<First, Failure> {
    let ours = env!("CARGO_PKG_VERSION");
    // Scripts read qemu-img's version out of this line to know what it can do.
    let line = match progname::is_qemu_img() {
        true => format!("qemu-img version {COMPATIBLE_WITH} (qimg {ours})"),
        false => format!("qimg version {ours} (compatible with qemu-img {COMPATIBLE_WITH})"),
    };
    output::print(line)?;
    Ok(First::Done)
}

/// The qemu-img whose options and output are ours.
const COMPATIBLE_WITH: &str = "10.0.2";

/// Prints why `command` (or what stands before it) failed.
fn report(failure: &Failure, command: Option<&str>) -> ExitCode {
    let command = command.map(|name| format!(" {name}")).unwrap_or_default();
    let hint = || {
        let name = progname::invoked();
        eprint_line(format_args!("Try '{name}{command} --help' for more info"));
    };
    match failure {
        Failure::Message(text) => progname::error(text),
        Failure::Hinted(text) => {
            progname::error(text);
            hint();
        }
        Failure::Option(text) => {
            eprint_line(format_args!("{}{command}: {text}", progname::invoked()));
            hint();
        }
        Failure::Unsupported(text) => {
            progname::error(text);
            return Exit::Unsupported.into();
        }
        Failure::Coded(text, exit) => {
            progname::error(text);
            return (*exit).into();
        }
        Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => {
            return ExitCode::from(CLOSED_PIPE);
        }
        Failure::Output(e) => {
            progname::error(format_args!("writing the output: {}", error::os_text(e)));
        }
    }
    Exit::Failed.into()
}

fn eprint_line(line: std::fmt::Arguments<'_>) {
    let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("{line}\n"));
}
