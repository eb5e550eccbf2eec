//! `man`: the manual pages.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::{
    args::{self, Context, Run},
    error::{Failure, os_text},
    exit::Exit,
};

/// Write the manual pages into a directory: qimg.1 and one for each command
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  qimg man ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// An existing directory; files of the same names are replaced
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    directory: PathBuf,
}

impl Run for ManArgs {
    const NAME: &'static str = "man";

    fn run(self, _context: Context) -> Result<Exit, Failure> {
        clap_mangen::generate_to(args::cli(), &self.directory).map_err(|e| {
            let reason = os_text(&e);
            Failure::Message(format!(
                "Could not write to '{}': {reason}",
                self.directory.display()
            ))
        })?;
        Ok(Exit::Success)
    }
}
