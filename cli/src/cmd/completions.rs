//! `completions`: a script that lets a shell complete our options.

use clap::Args;

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
        clap_complete::generate(self.shell, &mut args::cli(), "qimg", &mut script);
        let mut out = output::stdout();
        std::io::Write::write_all(&mut out, &script)?;
        std::io::Write::flush(&mut out)?;
        Ok(Exit::Success)
    }
}
