//! The command line: which commands there are, and the way from words to a command's
//! arguments. The arguments of a command stand in its file under `cmd/`.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Args, Command, CommandFactory, Parser, Subcommand};

use crate::{
    cmd::{
        bench, bitmap, check, compare, completions, convert, create, dd, info, man, map, measure,
        migrate, stream,
    },
    error::Failure,
    exit::Exit,
    getopt::{self, Occurrence, Stop, Words},
    opts::{Secret, SnapshotParam, add_secret, define},
    output, size,
};

/// Read, check and edit qcow2 images and their dirty bitmaps; qemu-img's everyday commands
///
/// Commands and options are those of qemu-img, and so are output, JSON and exit codes.
/// Called under the name `qemu-img` (through a symbolic link) it takes its place.
#[derive(Debug, Parser)]
#[command(
    name = "qimg",
    disable_version_flag = true,
    disable_help_subcommand = true,
    override_usage = "qimg [-h | -V] COMMAND [OPTIONS] [OPERANDS]",
    after_help = "`qimg COMMAND --help` describes a command, with examples.",
    after_long_help = "\
Examples:
  qimg create -f qcow2 disk.qcow2 20G
  qimg info --output=json disk.qcow2
  qimg bitmap --add disk.qcow2 backup-1
  qimg bitmap --list disk.qcow2
  qimg check --bitmaps disk.qcow2

`qimg COMMAND --help` describes a command, with more examples."
)]
pub(crate) struct Cli {
    /// Print the version and exit
    #[arg(short = 'V', long)]
    version: bool,

    /// Accepted for qemu-img's sake and ignored
    #[arg(short = 'T', long, value_name = "TRACE", hide = true)]
    trace: Option<String>,

    #[command(subcommand)]
    command: Verb,
}

/// The commands.
#[derive(Debug, Subcommand)]
enum Verb {
    Bench(bench::BenchArgs),
    Bitmap(bitmap::BitmapOptions),
    Check(check::CheckArgs),
    Compare(compare::CompareArgs),
    Completions(completions::CompletionsArgs),
    Convert(convert::ConvertArgs),
    Create(create::CreateArgs),
    Dd(dd::DdArgs),
    Info(info::InfoArgs),
    Man(man::ManArgs),
    Map(map::MapArgs),
    Measure(measure::MeasureArgs),
    MigrateBitmaps(migrate::MigrateArgs),
    Stream(stream::StreamArgs),
}

/// What a command's `run` is given beside its arguments.
#[derive(Debug, Default)]
pub(crate) struct Context {
    /// Options in the order in which they were given.
    pub(crate) options: Vec<Occurrence>,
    /// Secrets defined by `--object`.
    pub(crate) secrets: Vec<Secret>,
    /// The internal snapshot that `-l` names.
    pub(crate) snapshot: Option<SnapshotParam>,
}

/// A command: its arguments by derive, and what it does.
pub(crate) trait Run: Args {
    /// Its name on the command line.
    const NAME: &'static str;
    /// Options of ours that qemu-img doesn't have.
    const OURS: &'static [&'static str] = &[];
    /// How a run ends whose options have values that are refused.
    const REFUSED: Exit = Exit::Failed;

    /// Refuses a value of an option of this command alone, as it is met.
    ///
    /// # Errors
    /// What is wrong with it.
    fn accept(_met: &Occurrence) -> Result<(), Failure> {
        Ok(())
    }

    /// Does it.
    fn run(self, context: Context) -> Result<Exit, Failure>;
}

/// The whole program as clap sees it: for help, completions and man pages.
pub(crate) fn cli() -> Command {
    with_help(Cli::command()).mut_subcommands(with_help)
}

/// `-h` and `--help` are the same here, so they are described alike.
fn with_help(command: Command) -> Command {
    let help = Arg::new("help")
        .short('h')
        .long("help")
        .action(ArgAction::Help);
    command
        .disable_help_flag(true)
        .arg(help.help("Print this help and exit"))
}

/// Runs the command called `name`; `None` if there is none.
pub(crate) fn run(name: &OsStr, words: Vec<OsString>) -> Option<Result<Exit, Failure>> {
    Some(match name.to_str()? {
        "bench" => dispatch::<bench::BenchArgs>(words),
        "bitmap" => dispatch::<bitmap::BitmapOptions>(words),
        "check" => dispatch::<check::CheckArgs>(words),
        "compare" => dispatch::<compare::CompareArgs>(words),
        "completions" => dispatch::<completions::CompletionsArgs>(words),
        "convert" => dispatch::<convert::ConvertArgs>(words),
        "create" => dispatch::<create::CreateArgs>(words),
        "dd" => dispatch::<dd::DdArgs>(words),
        "info" => dispatch::<info::InfoArgs>(words),
        "man" => dispatch::<man::ManArgs>(words),
        "map" => dispatch::<map::MapArgs>(words),
        "measure" => dispatch::<measure::MeasureArgs>(words),
        "migrate-bitmaps" => dispatch::<migrate::MigrateArgs>(words),
        "stream" => dispatch::<stream::StreamArgs>(words),
        _ => return None,
    })
}

/// Only the command that is run is built: building all of them would cost more than
/// many a run.
fn command<C: Run>() -> Command {
    with_help(C::augment_args(
        Command::new(C::NAME).args_override_self(true),
    ))
}

fn dispatch<C: Run>(words: Vec<OsString>) -> Result<Exit, Failure> {
    let mut command = command::<C>();
    let mut context = Context::default();
    let read = getopt::read(&command, C::OURS, words, |met| {
        accept(met, &mut context).and_then(|()| C::accept(met))
    });
    let words = match read {
        Ok(words) => words,
        Err(Stop::Help) => {
            output::print(
                command
                    .bin_name(format!("qimg {}", C::NAME))
                    .render_long_help(),
            )?;
            return Ok(Exit::Success);
        }
        Err(Stop::Usage(text)) => return Err(Failure::Option(text)),
        Err(Stop::Refused(failure)) => return Err(failure.with(C::REFUSED)),
    };
    let Words { options, .. } = &words;
    context.options.clone_from(options);
    define(&context.secrets);
    let matches = command.try_get_matches_from_mut(words.plain(C::NAME));
    let mut matches = matches.map_err(|e| Failure::Hinted(clap_text(&e)))?;
    let arguments = C::from_arg_matches_mut(&mut matches);
    arguments
        .map_err(|e| Failure::Hinted(clap_text(&e)))?
        .run(context)
}

/// Values that are refused as they are met, before what stands further right is looked at.
fn accept(met: &Occurrence, context: &mut Context) -> Result<(), Failure> {
    let Some(value) = &met.value else {
        return Ok(());
    };
    let text = value.to_string_lossy();
    match met.id.as_str() {
        "object" => add_secret(&text, &mut context.secrets).map_err(Failure::Message),
        "output" if !matches!(&*text, "human" | "json") => Err(Failure::Hinted(format!(
            "--output expects 'human' or 'json' not '{text}'"
        ))),
        "repair" if !matches!(&*text, "leaks" | "all") => Err(Failure::Hinted(format!(
            "--repair (-r) expects 'leaks' or 'all' not '{text}'"
        ))),
        "granularity" | "start_offset" | "max_length" | "image_size" => {
            size::parse_operand(&met.id.replace('_', " "), &text)
                .map(drop)
                .map_err(Failure::Message)
        }
        "snapshot" => {
            context.snapshot = Some(SnapshotParam::parse(&text)?);
            Ok(())
        }
        "options" if !crate::opts::is_list(&text) => {
            Err(Failure::Message(format!("Invalid option list: {text}")))
        }
        _ => Ok(()),
    }
}

/// The first paragraph of clap's message on one line, without its "error: ".
fn clap_text(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// The arguments of a command from its words, for tests.
#[cfg(test)]
pub(crate) fn parse_for_test<C: Run>(words: Vec<OsString>) -> C {
    let mut command = command::<C>();
    let read = getopt::read(&command, C::OURS, words, |_| Ok::<(), Failure>(()));
    let plain = read.unwrap().plain(C::NAME);
    let mut matches = command.try_get_matches_from_mut(plain).unwrap();
    C::from_arg_matches_mut(&mut matches).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_sound() {
        cli().debug_assert();
    }

    #[test]
    fn every_command_can_be_run() {
        for command in cli().get_subcommands() {
            let outcome = run(
                OsStr::new(command.get_name()),
                vec!["--no-such-option".into()],
            );
            assert!(
                matches!(outcome, Some(Err(Failure::Option(_)))),
                "{}",
                command.get_name()
            );
        }
        assert!(run(OsStr::new("no-such-command"), Vec::new()).is_none());
    }
}
