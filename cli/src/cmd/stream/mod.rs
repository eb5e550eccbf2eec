//! `stream`: what is in a migration stream.

mod blocks;
mod human;
mod input;
mod json;
mod show;
mod walk;

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use clap::{Args, ValueHint};

use crate::{
    args::{Context, Run},
    error::Failure,
    exit::Exit,
    output::Form,
};

pub(crate) use input::Input;

/// Show what is in a migration stream, or take the disk's data out of it
///
/// show: header, machine, sections and commands with their offsets and sizes, and every
/// dirty bitmap with what is dirty in it. Of a damaged stream everything up to the damage is
/// shown, then where it is and what is wrong. FILE may be - for standard input; of a file
/// the states of devices are listed too.
///
/// blocks: the data that QEMU up to 9.0 sent in the section "block" is written to IMAGE's
/// disk, and IMAGE's bitmaps record it. The stream is read to its end first, and nothing is
/// written unless it is whole and fits; one from a pipe is kept in a temporary file meanwhile.
/// What it has no blocks for stays as it is.
#[derive(Debug, Args)]
#[command(
    override_usage = "\
qimg stream show [--chunks] [--output human|json] FILE
       qimg stream blocks --apply IMAGE [--device NAME] FILE",
    after_long_help = "\
Examples:
  What a stream holds:
      qimg stream show vm.stream
  What would be sent, chunk by chunk:
      qimg migrate-bitmaps --emit disk.qcow2 | qimg stream show --chunks -
  The disk out of a stream of an old QEMU:
      qimg create -f qcow2 disk.qcow2 20G
      qimg stream blocks --apply disk.qcow2 vm.stream
  The dirty ranges, for a program:
      qimg stream show --output=json vm.stream

Exit code: 0 the stream is whole and every bitmap in it complete, 1 it is not, or failed."
)]
pub(crate) struct StreamArgs {
    /// Show every chunk of the bitmaps
    #[arg(long)]
    chunks: bool,

    /// The form of what is shown
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        default_value = "human",
        hide_default_value = true
    )]
    output: Form,

    /// With blocks: the image that the data is for
    #[arg(long, value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    apply: Option<OsString>,

    /// With blocks: the block device whose data is meant, if the stream has several
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// show or blocks, then the stream
    #[arg(value_name = "ACTION FILE", num_args = 0.., value_hint = ValueHint::FilePath)]
    operands: Vec<OsString>,
}

impl Run for StreamArgs {
    const NAME: &'static str = "stream";

    fn run(self, _context: Context) -> Result<Exit, Failure> {
        let hinted = |text: &str| Err(Failure::Hinted(text.into()));
        let [action, file] = self.operands.as_slice() else {
            return hinted("Expecting 'show' or 'blocks', and a stream");
        };
        let name = Some(file.as_os_str()).filter(|file| *file != "-");
        match action.as_bytes() {
            b"show" => {
                if self.apply.is_some() || self.device.is_some() {
                    return hinted("--apply and --device only go with blocks");
                }
                show::run(Input::open(name)?, self.chunks, self.output)
            }
            b"blocks" => {
                if self.chunks || self.output == Form::Json {
                    return hinted("--chunks and --output only go with show");
                }
                let Some(image) = &self.apply else {
                    return hinted("blocks expects --apply IMAGE");
                };
                blocks::run(Input::open(name)?, image, self.device.as_deref())
            }
            _ => hinted(&format!(
                "'show' or 'blocks' is expected, not '{}'",
                action.to_string_lossy()
            )),
        }
    }
}
