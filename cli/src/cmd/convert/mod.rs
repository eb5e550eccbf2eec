//! `convert`: a copy of an image, in another form.

mod bitmaps;
mod plan;
mod progress;
mod request;
mod source;
mod target;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    ops::Range,
};

use clap::{Args, ValueHint};
use qcow2::{
    convert::{ConvertError, Event, Target, convert, stream, stream_raw},
    disk::Disk,
    image::create::CreateOptions,
};

use crate::{
    args::{Context, Run},
    cmd::{self, create::Format},
    disk,
    error::{Failure, chain},
    exit::Exit,
    getopt::Occurrence,
    opts::{asks_for_help, parse_path},
    output::{self, escape_control},
    progname,
};
use progress::Shown;
use request::Request;
use source::Sources;

/// Copy an image into another form
///
/// Several sources are one disk, one behind the other. The target gets its name when it is
/// complete: until then a file of that name stays as it was. `-` is standard output.
#[derive(Debug, Default, Args)]
#[command(
    override_usage = "qimg convert [-f FMT] [-O FMT] [-o OPTIONS] [-c] [-n] [-B FILE -F FMT] [-S SIZE]\n              \
                      [-l SNAPSHOT] [-p] [-q] [--bitmaps] FILENAME [FILENAME...] TARGET",
    after_long_help = "\
Examples:
  qimg convert -O qcow2 disk.raw disk.qcow2
  Compressed:
      qimg convert -c -O qcow2 -o compression_type=zstd disk.qcow2 small.qcow2
  With the dirty bitmaps:
      qimg convert --bitmaps -O qcow2 disk.qcow2 copy.qcow2
  An overlay onto another copy of its base:
      qimg convert -O qcow2 -B base.qcow2 -F qcow2 overlay.qcow2 copy.qcow2
  To a pipe, from the front to the back (what was never written is left out):
      qimg convert -O qcow2 disk.raw - | ssh host 'cat > disk.qcow2'
  Onto a device:
      qimg convert -n -O raw disk.qcow2 /dev/vg/disk

Exit code: 0 done, 1 failed."
)]
pub(crate) struct ConvertArgs {
    /// The format of the sources (otherwise found out from their first bytes)
    #[arg(short = 'f', long, value_name = "FMT")]
    source_format: Option<String>,

    /// FILENAMEs are lists such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,

    /// The same
    #[arg(long, hide = true)]
    source_image_opts: bool,

    /// The disk as this snapshot has it: an ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long = "source-snapshot", value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// Accepted for qemu-img's sake: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 'T', long, value_name = "CACHE")]
    source_cache: Option<String>,

    /// The format of the target: raw (the default) or qcow2
    #[arg(short = 'O', long, value_name = "FMT")]
    target_format: Option<String>,

    /// TARGET is a list such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    target_image_opts: bool,

    /// Options of the target's format: NAME=VALUE,... (as of `qimg create`)
    #[arg(short = 'o', long = "target-options", value_name = "OPTIONS", action = clap::ArgAction::Append)]
    options: Vec<String>,

    /// Compress the target's clusters
    #[arg(short, long)]
    compress: bool,

    /// `unsafe`: don't wait until the target is on stable storage; others are accepted for
    /// qemu-img's sake
    #[arg(short = 't', long, value_name = "CACHE")]
    target_cache: Option<String>,

    /// Base the target on FILE, and copy only what the source itself holds
    #[arg(short = 'B', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    backing: Option<String>,

    /// The format of -B FILE
    #[arg(short = 'F', long, value_name = "FMT")]
    backing_format: Option<String>,

    /// Write into TARGET, which is there
    #[arg(short = 'n', long)]
    no_create: bool,

    /// TARGET, with -n, reads as zeros
    #[arg(long)]
    target_is_zero: bool,

    /// Leave out zeros of at least so many bytes in a row (4k); 0: store everything
    #[arg(short = 'S', long, value_name = "SIZE")]
    sparse_size: Option<String>,

    /// Copy the dirty bitmaps, too
    #[arg(long)]
    bitmaps: bool,

    /// With --bitmaps, leave out those that are inconsistent
    #[arg(long)]
    skip_broken_bitmaps: bool,

    /// Read without locks, from images that another process may be writing
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Copy so many bytes a second at most
    #[arg(short, long, value_name = "RATE")]
    rate: Option<String>,

    /// Accepted for qemu-img's sake: all cores are used
    #[arg(short = 'm', long, value_name = "NUM")]
    parallel: Option<String>,

    /// Accepted for qemu-img's sake
    #[arg(short = 'C', long)]
    copy_range_offloading: bool,

    /// Take what can't be read for zeros
    #[arg(long)]
    salvage: bool,

    /// Accepted for qemu-img's sake: writes are always out of order
    #[arg(short = 'W', long)]
    oob_writes: bool,

    /// Show how far it is
    #[arg(short, long)]
    progress: bool,

    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,

    /// Define a secret: secret,id=NAME,file=FILE
    #[arg(long, value_name = "OBJDEF", action = clap::ArgAction::Append)]
    object: Vec<String>,

    /// The sources, and last the target
    #[arg(value_name = "FILENAME", num_args = 0.., value_hint = ValueHint::FilePath)]
    files: Vec<OsString>,
}

impl Run for ConvertArgs {
    const NAME: &'static str = "convert";

    fn accept(met: &Occurrence) -> Result<(), Failure> {
        request::accept(met)
    }

    fn run(self, context: Context) -> Result<Exit, Failure> {
        let request = Request::new(&self)?;
        let list = self.options.join(",");
        let (target, sources) = match self.files.as_slice() {
            [sources @ .., target] if !sources.is_empty() => (Some(target), sources),
            _ => (None, &[][..]),
        };
        if asks_for_help(&list) {
            return self.help(target);
        }
        let Some(target) = target else {
            return Err("Must specify image file name".into());
        };
        self.check_source_cache()?;
        let to_pipe = !self.no_create && target::is_pipe(target);
        let mut shown = Shown::new(self.progress && !self.quiet && !to_pipe);
        let result = self.convert(&request, sources, target, &context, &mut shown);
        shown.end(result.is_ok())?;
        result
    }
}

impl ConvertArgs {
    /// Those of `dd`.
    pub(crate) fn for_dd(
        source_format: Option<String>,
        image_opts: bool,
        target_format: Option<String>,
        force_share: bool,
        files: [OsString; 2],
    ) -> Self {
        Self {
            source_format,
            image_opts,
            target_format,
            force_share,
            files: files.into(),
            ..Self::default()
        }
    }

    /// `-o help`
    fn help(&self, target: Option<&OsString>) -> Result<Exit, Failure> {
        let name = self.target_format.as_deref().unwrap_or("raw");
        let format = Format::named(name);
        let format = format.ok_or_else(|| format!("Unknown file format '{name}'"))?;
        if let Some(target) = target {
            parse_path(target)?;
        }
        output::print_text(
            &format
                .schema(target.map(OsString::as_os_str))
                .help(name, target.is_some()),
        )?;
        Ok(Exit::Success)
    }

    fn check_source_cache(&self) -> Result<(), Failure> {
        match self.source_cache.as_deref() {
            Some(mode) if !cmd::is_cache_mode(mode) => {
                Err(format!("Invalid source cache option: {mode}").into())
            }
            _ => Ok(()),
        }
    }

    fn convert(
        &self,
        request: &Request,
        files: &[OsString],
        target: &OsString,
        context: &Context,
        shown: &mut Shown,
    ) -> Result<Exit, Failure> {
        shown.begin()?;
        let sources = Sources::open(self, files, context.snapshot.as_ref())?;
        let plan = plan::Plan::new(self, &sources, target, context)?;
        let opened = plan.open()?;
        self.fill(request, &sources, opened, shown)
    }

    /// Copies the sources into the target.
    fn fill(
        &self,
        request: &Request,
        sources: &Sources,
        opened: target::Opened,
        shown: &mut Shown,
    ) -> Result<Exit, Failure> {
        shown.total(sources.disk().size());
        let source = sources.disk();
        if let target::Opened::Pipe(options) = &opened {
            send(&*source, options.as_deref())?;
            return Ok(Exit::Success);
        }
        let quiet = self.quiet;
        let copy = |into: Target<'_>| {
            let mut printed = Ok(());
            let copied = convert(&*source, into, request.options, &mut |event| match event {
                Event::Progress(at) if printed.is_ok() => printed = shown.at(at),
                Event::Progress(_) => {}
                Event::Salvaged { at, error } if !quiet => {
                    let reason = disk::os_reason(error);
                    progname::warning(format_args!("error while reading offset {at}: {reason}"));
                }
                Event::Salvaged { .. } => {}
            });
            copied.map_err(|error| words(&error))?;
            printed.map_err(Failure::from)
        };
        let written = opened.fill(copy, request.durable)?;
        let written = match self.bitmaps {
            true => bitmaps::copy(sources, written, self.skip_broken_bitmaps)?,
            false => written,
        };
        written.finish(request.durable)?;
        if !self.bitmaps && !self.quiet && !progname::is_qemu_img() {
            bitmaps::tell_of_those_left(sources);
        }
        Ok(Exit::Success)
    }
}

/// What `dd` does: the part of the source that `range` tells by its size, and whether all
/// that is left out is there.
///
/// # Errors
/// In qemu-img's words.
pub(crate) fn copy_part(
    args: &ConvertArgs,
    context: &Context,
    range: impl Fn(u64) -> (Range<u64>, bool),
) -> Result<Exit, Failure> {
    let request = Request::new(args)?;
    let [input, output] = args.files.as_slice() else {
        return Err("Must specify both input and output files".into());
    };
    if let Some(name) = args.target_format.as_deref()
        && Format::named(name).is_none()
    {
        return Err("Unknown file format".into());
    }
    let mut sources = Sources::open(args, std::slice::from_ref(input), None)?;
    let (range, is_there) = range(sources.disk().size());
    sources.take_part(range);
    let mut plan = plan::Plan::new(args, &sources, output, context)?;
    plan.doing = "creating output image".into();
    let opened = plan.open()?;
    if !is_there {
        let name = input.to_string_lossy();
        progname::error(format_args!("{name}: cannot skip to specified offset"));
    }
    args.fill(&request, &sources, opened, &mut Shown::new(false))
}

/// Writes the disk to standard output, as an image or as it is.
fn send(source: &dyn Disk, options: Option<&CreateOptions>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let sent = match options {
        Some(options) => stream(source, options, &mut out, &mut |_| {}),
        None => stream_raw(source, &mut out, &mut |_| {}),
    };
    sent.map_err(|error| match error {
        ConvertError::Write {
            source: qcow2::Error::Io { source, .. },
            ..
        } => Failure::Output(source),
        ConvertError::Write { source, .. } => Failure::Message(chain(&source)),
        other => words(&other),
    })
}

/// qemu-img's line, and on one before it the particulars.
fn words(error: &ConvertError) -> Failure {
    let (line, source) = match error {
        ConvertError::Status { at, source } => (
            format!("error while reading block status at offset {at}"),
            source,
        ),
        ConvertError::Read { at, source } => (format!("error while reading at byte {at}"), source),
        ConvertError::Write { at, source } => (format!("error while writing at byte {at}"), source),
        other => return Failure::Message(other.to_string()),
    };
    let reason = disk::os_reason(source);
    let says_all = match source {
        qcow2::Error::Io { .. } | qcow2::Error::NoSpace { .. } => true,
        qcow2::Error::Unsupported(_) => progname::is_qemu_img(),
        _ => false,
    };
    if !says_all {
        progname::error(escape_control(&chain(source)));
    }
    Failure::Message(format!("{line}: {reason}"))
}

/// Ends the line of progress.
fn end_line() -> io::Result<()> {
    writeln!(io::stdout().lock())
}
