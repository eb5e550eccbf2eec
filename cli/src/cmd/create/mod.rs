//! `create`: a new, empty image.

mod options;

use std::ffi::OsString;

use clap::Args;

use crate::{
    args::{Context, Run},
    error::Failure,
    exit::Exit,
};

/// Create a new image
///
/// An existing file is replaced; --no-clobber leaves it alone.
#[derive(Debug, Args)]
#[command(
    override_usage = "qimg create [-f FMT] [-o OPTIONS] [-b FILE [-F FMT]] [-u] [-q] \
                      [--no-clobber]\n            FILENAME [SIZE]",
    after_long_help = "\
SIZE is a number of bytes, or one with a suffix: k, M, G, T, P, E (powers of 1024). It may be
left out if there is a backing image, whose size is then taken.

Examples:
  qimg create -f qcow2 disk.qcow2 20G
  An overlay that keeps base.qcow2 unchanged:
      qimg create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
  Larger clusters, subclusters, zstd:
      qimg create -f qcow2 -o cluster_size=128k,extended_l2=on,compression_type=zstd d.qcow2 1T
  Which options a format takes:
      qimg create -f qcow2 -o help

Exit code: 0 done, 1 failed."
)]
pub(crate) struct CreateArgs {
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,

    /// Define a secret: secret,id=NAME,file=FILE
    #[arg(long, value_name = "OBJDEF", action = clap::ArgAction::Append)]
    object: Vec<String>,

    /// The format of the new image
    #[arg(short, long, value_name = "FMT", default_value = "raw")]
    format: String,

    /// Options of the format: NAME=VALUE,... (`-o help` lists them; a comma in a value is
    /// doubled)
    #[arg(short, long, action = clap::ArgAction::Append)]
    options: Vec<String>,

    /// Base the image on FILE: what was never written is read from there
    #[arg(short, long, value_name = "FILE")]
    backing: Option<String>,

    /// The format of -b FILE
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,

    /// Don't open the backing file: it may not exist yet
    #[arg(short = 'u', long)]
    backing_unsafe: bool,

    /// Fail if FILENAME exists
    #[arg(long)]
    no_clobber: bool,

    #[arg(value_name = "FILENAME [SIZE]", num_args = 0..)]
    operands: Vec<OsString>,
}

impl Run for CreateArgs {
    const NAME: &'static str = "create";
    const OURS: &'static [&'static str] = &["no-clobber"];

    fn run(self, _context: Context) -> Result<Exit, Failure> {
        let _ = (options::QCOW2, options::RAW);
        Err("create: not there yet".into())
    }
}
