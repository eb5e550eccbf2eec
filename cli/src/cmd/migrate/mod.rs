//! `migrate-bitmaps`: dirty bitmaps from one image to another, directly or as the stream
//! in which QEMU migrates them.

mod applied;
mod apply;
mod direct;
mod emit;
mod images;
mod incoming;
mod names;
mod report;
mod request;
mod sink;
mod store;
mod transfer;

use std::ffi::OsString;

use clap::{Args, ValueEnum, ValueHint};

use crate::{
    args::{Context, Run},
    error::Failure,
    exit::Exit,
    output::Form,
};

use request::Request;

/// Move dirty bitmaps between images, directly or as a migration stream
///
/// SRC DST: every persistent bitmap of SRC, or those named with --bitmap, is written to DST
/// with its granularity, its recording state and its bits, and read back to be compared. The
/// disks must be of the same size.
///
/// --emit: the bitmaps of the images are written as a migration stream, which qimg --apply
/// and QEMU (-incoming) load. --apply: the bitmaps of such a stream, or of a whole virtual
/// machine's, are stored in the images. NODE is what the image's node is called in the
/// stream; without NODE= it is called after the file, "disk" for disk.qcow2.
///
/// An image is switched to its new bitmaps in one step: all of them are there or none.
/// Nothing is written if a bitmap is inconsistent, has a name that is taken, or doesn't fit
/// the disk, or if the stream is damaged.
#[derive(Debug, Args)]
#[command(
    override_usage = "\
qimg migrate-bitmaps [--bitmap NAME[=NEWNAME]]... [--remove-source] [--force]
            [--output human|json] SRC DST
       qimg migrate-bitmaps --emit [-o FILE] [--bitmap [NODE/]NAME[=ALIAS]]...
            [--node-alias [NODE=]ALIAS]... [--map FILE] [--persistent on|off]
            [--compact] [--machine NAME] [--output human|json] [NODE=]SRC...
       qimg migrate-bitmaps --apply [-i FILE] [--bitmap [NODE/]NAME[=ALIAS]]...
            [--node-alias [NODE=]ALIAS]... [--map FILE] [--persistent on|off]
            [--force] [--partial] [--output human|json] [NODE=]DST...",
    after_long_help = "\
Examples:
  All bitmaps, after a disk was copied with `qemu-img convert`:
      qimg migrate-bitmaps old.qcow2 new.qcow2
  One, under another name, and remove it from where it was:
      qimg migrate-bitmaps --bitmap backup-1=monday --remove-source old.qcow2 new.qcow2
  To another machine:
      qimg migrate-bitmaps --emit a.qcow2 | ssh host qimg migrate-bitmaps --apply b.qcow2
  Two disks, into a file for `qemu-system-x86_64 -incoming file:vm.stream`:
      qimg migrate-bitmaps --emit -o vm.stream drive0=a.qcow2 drive1=b.qcow2
  The bitmaps of a virtual machine that was migrated to a file:
      qimg migrate-bitmaps --apply -i vm.stream drive0=a.qcow2 drive1=b.qcow2

Exit code: 0 done, 1 failed, or with --partial some bitmaps were not stored."
)]
pub(crate) struct MigrateArgs {
    /// Move only this bitmap (may be repeated), under NEWNAME if given. With --emit and
    /// --apply NAME is in the image, ALIAS in the stream; with several images NODE/ comes
    /// first
    #[arg(long, value_name = "NAME[=NEWNAME]", action = clap::ArgAction::Append)]
    bitmap: Vec<String>,

    /// Replace bitmaps of the same names in DST (one that is inconsistent is replaced anyway)
    #[arg(long)]
    force: bool,

    /// The form of the report
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        default_value = "human",
        hide_default_value = true
    )]
    output: Form,

    /// Remove the bitmaps from SRC once DST is safe on disk
    #[arg(long, help_heading = "Options of SRC DST")]
    remove_source: bool,

    /// Write the images' bitmaps as a migration stream
    #[arg(long, help_heading = "Options of --emit and --apply")]
    emit: bool,

    /// Store the bitmaps of a migration stream in the images
    #[arg(long, help_heading = "Options of --emit and --apply")]
    apply: bool,

    /// What the node is called in the stream, if not NODE (may be repeated); with one image
    /// NODE= may be left out
    #[arg(
        long,
        value_name = "NODE=ALIAS",
        action = clap::ArgAction::Append,
        help_heading = "Options of --emit and --apply"
    )]
    node_alias: Vec<String>,

    /// Names and aliases of nodes and bitmaps, in the JSON of QEMU's block-bitmap-mapping:
    /// [{"node-name": …, "alias": …, "bitmaps": [{"name": …, "alias": …,
    /// "transform": {"persistent": true}}]}]; what isn't listed is left out
    #[arg(
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        help_heading = "Options of --emit and --apply"
    )]
    map: Option<OsString>,

    /// Whether the bitmaps are to be stored where they arrive, whatever image or stream
    /// says. A transient one is stored only with --persistent=on
    #[arg(
        long,
        value_enum,
        value_name = "on|off",
        hide_possible_values = true,
        help_heading = "Options of --emit and --apply"
    )]
    persistent: Option<OnOff>,

    /// Write the stream to FILE instead of standard output
    #[arg(
        short = 'o',
        long = "to",
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        help_heading = "Options of --emit"
    )]
    to: Option<OsString>,

    /// Write the smallest stream that QEMU loads, rather than what QEMU would write
    #[arg(long, help_heading = "Options of --emit")]
    compact: bool,

    /// The machine type in the stream: QEMU loads it if that of the machine begins so
    /// [default: empty, which any machine loads]
    #[arg(long, value_name = "NAME", help_heading = "Options of --emit")]
    machine: Option<String>,

    /// Read the stream from FILE instead of standard input
    #[arg(
        short = 'i',
        long = "from",
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        help_heading = "Options of --apply"
    )]
    from: Option<OsString>,

    /// Store the bitmaps that are complete though others, or the end of the stream, are
    /// lost or don't fit. If it is the end, only a node that is named right is taken
    #[arg(long, help_heading = "Options of --apply")]
    partial: bool,

    /// SRC and DST; or the images that have or get the bitmaps, in the stream's order
    #[arg(value_name = "FILENAME", num_args = 0.., value_hint = ValueHint::FilePath)]
    operands: Vec<OsString>,
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnOff {
    /// Yes.
    On,
    /// No.
    Off,
}

impl Run for MigrateArgs {
    const NAME: &'static str = "migrate-bitmaps";

    fn run(self, _context: Context) -> Result<Exit, Failure> {
        match self.request()? {
            Request::Direct(request) => direct::run(&request),
            Request::Emit(request) => emit::run(&request),
            Request::Apply(request) => apply::run(&request),
        }
    }
}
