//! `completions`: a script that lets a shell complete our options.

use clap::{Args, Command, builder::PossibleValuesParser};

use crate::{
    args::{self, Context, Run},
    error::Failure,
    exit::Exit,
    output,
};

/// Print a script that lets a shell complete qimg's commands and options
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  qimg completions bash > ~/.local/share/bash-completion/completions/qimg
  qimg completions zsh > ~/.zfunc/_qimg
  qimg completions fish > ~/.config/fish/completions/qimg.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Run for CompletionsArgs {
    const NAME: &'static str = "completions";

    fn run(self, _context: Context) -> Result<Exit, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut with_values(args::cli()),
            "qimg",
            &mut script,
        );
        let mut out = output::stdout();
        std::io::Write::write_all(&mut out, &script)?;
        std::io::Write::flush(&mut out)?;
        Ok(Exit::Success)
    }
}

/// The values of options that take one of a few words. The options themselves take any
/// text, and say what is wrong with it as qemu-img does.
fn with_values(mut cli: Command) -> Command {
    for (id, values) in [
        ("format", &["qcow2", "raw"][..]),
        ("backing_format", &["qcow2", "raw"]),
        ("source_format", &["qcow2", "raw"]),
        ("form", &["human", "json", "ranges", "raw", "layered"]),
    ] {
        cli = cli.mut_subcommands(|command| {
            let known = command.get_arguments().any(|arg| arg.get_id() == id);
            if !known {
                return command;
            }
            let values = PossibleValuesParser::new(values.iter().copied());
            command.mut_arg(id, |arg| arg.value_parser(values))
        });
    }
    cli
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_to_choose_from_are_offered() {
        let mut script = Vec::new();
        let shell = clap_complete::Shell::Bash;
        clap_complete::generate(shell, &mut with_values(args::cli()), "qimg", &mut script);
        let script = String::from_utf8(script).unwrap();
        for words in [
            "human json ranges raw layered",
            "\"qcow2 raw\"",
            "\"human json\"",
        ] {
            assert!(script.contains(words), "{words}: {script}");
        }
    }
}
