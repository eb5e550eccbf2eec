//! `compare`: whether two images have the same content.

use std::{
    ffi::OsString,
    io::{self, Write},
    sync::Arc,
};

use clap::{Args, ValueHint};

use qcow2::{
    compare::{CompareError, CompareOptions, Comparison, Which, compare},
    disk::Disk,
};

use crate::{
    args::{Context, Run},
    cmd, disk,
    error::{Failure, chain},
    exit::Exit,
    opts::ImageSpec,
    output::escape_control,
    progname,
};

/// Tell whether two images have the same content
///
/// Formats may differ, and sizes, if what the larger disk has beyond is zeros.
#[derive(Debug, Args)]
#[command(
    override_usage = "qimg compare [-f FMT] [-F FMT] [--image-opts] [-T CACHE] [-p] [-q] [-s] [-U]\n              \
                      FILENAME1 FILENAME2",
    after_long_help = "\
Examples:
  qimg compare disk.qcow2 copy.raw
  Sizes and allocation must be the same, too:
      qimg compare -s disk.qcow2 copy.qcow2
  In a script:
      if qimg compare -q disk.qcow2 copy.qcow2; then echo same; fi

Exit code: 0 the content is the same, 1 it differs (or a mistake in the arguments), 2 an image
can't be opened, 3 it can't be told where a part of a disk is, 4 a part can't be read."
)]
pub(crate) struct CompareArgs {
    /// The format of FILENAME1 (otherwise found out from its first bytes)
    #[arg(short = 'f', long, value_name = "FMT")]
    a_format: Option<String>,

    /// The format of FILENAME2
    #[arg(short = 'F', long, value_name = "FMT")]
    b_format: Option<String>,

    /// FILENAMEs are lists such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,

    /// Accepted for qemu-img's sake: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 'T', long, value_name = "CACHE")]
    cache: Option<String>,

    /// Show how far it is
    #[arg(short, long)]
    progress: bool,

    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,

    /// Sizes must be the same, and which parts are data, zeros or unallocated
    #[arg(short, long)]
    strict: bool,

    /// Read without locks, from images that another process may be writing
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Define a secret: secret,id=NAME,file=FILE
    #[arg(long, value_name = "OBJDEF", action = clap::ArgAction::Append)]
    object: Vec<String>,

    /// The images
    #[arg(value_name = "FILENAME", num_args = 0.., value_hint = ValueHint::FilePath)]
    files: Vec<OsString>,
}

impl Run for CompareArgs {
    const NAME: &'static str = "compare";
    const REFUSED: Exit = Exit::CannotOpen;

    fn run(self, _context: Context) -> Result<Exit, Failure> {
        let [one, two] = self.files.as_slice() else {
            return Err(Failure::Hinted("Expecting two image file names".into()));
        };
        let result = self.compare_named(one, two);
        if self.progress && !self.quiet {
            writeln!(io::stdout().lock())?;
        }
        result
    }
}

type Opened = (ImageSpec, Arc<dyn Disk>);

impl CompareArgs {
    fn compare_named(&self, one: &OsString, two: &OsString) -> Result<Exit, Failure> {
        let unopened = |failure: Failure| failure.with(Exit::CannotOpen);
        if let Some(mode) = self
            .cache
            .as_deref()
            .filter(|mode| !cmd::is_cache_mode(mode))
        {
            let text = format!("Invalid source cache option: {mode}");
            return Err(unopened(text.into()));
        }
        cmd::exclusive(self.a_format.as_deref(), self.image_opts).map_err(unopened)?;
        let open = |name: &OsString, format: Option<&str>| -> Result<Opened, Failure> {
            let mut spec = cmd::image_spec(name, format, self.image_opts)?;
            cmd::share(&mut spec, self.force_share)?;
            let disk = disk::open(&spec)?;
            Ok((spec, disk))
        };
        let one = open(one, self.a_format.as_deref()).map_err(unopened)?;
        let two = open(two, self.b_format.as_deref()).map_err(unopened)?;
        let mut shown = Shown {
            quiet: self.quiet,
            progress: self.progress && !self.quiet,
            total: one.1.size().max(two.1.size()),
            last: None,
        };
        self.compare(&one, &two, &mut shown)
    }

    fn compare(&self, one: &Opened, two: &Opened, shown: &mut Shown) -> Result<Exit, Failure> {
        let strict = self.strict;
        let (first, second) = (&*one.1, &*two.1);
        shown.progress(0)?;
        let mut printed = Ok(());
        let result = compare(first, second, CompareOptions { strict }, &mut |done| {
            if printed.is_ok() && done < shown.total {
                printed = shown.progress(done);
            }
        });
        printed?;
        let both = first.size().min(second.size());
        let beyond = match &result {
            Ok(Comparison::Same) => true,
            Ok(Comparison::Content(at)) => *at >= both,
            Err(CompareError::Extent { at, .. } | CompareError::Read { at, .. }) => *at >= both,
            Ok(_) => false,
        };
        if beyond && first.size() != second.size() {
            shown.frame(both)?;
            shown.line("Warning: Image size mismatch!")?;
        }
        let name = |which| match which {
            Which::First => one.0.given.to_string_lossy(),
            Which::Second => two.0.given.to_string_lossy(),
        };
        match result {
            Ok(Comparison::Same) => {
                shown.frame(shown.total)?;
                shown.line("Images are identical.")?;
                return Ok(Exit::Success);
            }
            Ok(Comparison::Content(at)) => {
                shown.line(&format!("Content mismatch at offset {at}!"))?;
            }
            Ok(Comparison::Status(at)) => {
                shown.line(&format!("Strict mode: Offset {at} block status mismatch!"))?;
            }
            Ok(Comparison::Size) => shown.line("Strict mode: Image size mismatch!")?,
            Err(CompareError::Extent { which, source, .. }) => {
                say_why(&source);
                let text = format!("Sector allocation test failed for {}", name(which));
                return Err(Failure::from(text).with(Exit::CannotTell));
            }
            Err(CompareError::Read { which, at, source }) => {
                say_why(&source);
                let reason = disk::os_reason(&source);
                let text = format!(
                    "Error while reading offset {at} of {}: {reason}",
                    name(which)
                );
                return Err(Failure::from(text).with(Exit::CannotRead));
            }
        }
        Ok(Exit::Failed)
    }
}

/// The particulars, on a line before the one that qemu-img prints.
fn say_why(error: &qcow2::Error) {
    progname::error(escape_control(&chain(error)));
}

/// What is printed meanwhile.
struct Shown {
    quiet: bool,
    progress: bool,
    /// Bytes that there are to be looked at.
    total: u64,
    /// Those that were looked at when it was said last.
    last: Option<u64>,
}

/// Bytes after which qemu-img says how far it is.
const STEP: u64 = 2 << 20;

impl Shown {
    fn line(&self, text: &str) -> io::Result<()> {
        match self.quiet {
            true => Ok(()),
            false => writeln!(io::stdout().lock(), "{text}"),
        }
    }

    /// How far it is, if that is a step on from when it was said last.
    fn progress(&mut self, done: u64) -> io::Result<()> {
        let done = done / STEP * STEP;
        let step = self.last.map(|last| done.saturating_sub(last));
        // A hundredth of it at least.
        match step {
            Some(step) if step == 0 || step < self.total / 100 => Ok(()),
            _ => self.frame(done),
        }
    }

    /// How far it is.
    #[allow(clippy::cast_precision_loss, reason = "it is a percentage")]
    fn frame(&mut self, done: u64) -> io::Result<()> {
        let first = self.last.replace(done).is_none();
        if !self.progress {
            return Ok(());
        }
        let percent = match (done, self.total) {
            (0, _) if first => 0.0,
            (_, 0) => 100.0,
            (done, total) => done as f64 * 100.0 / total as f64,
        };
        let mut out = io::stdout().lock();
        write!(out, "    ({percent:.2}/100%)\r")?;
        out.flush()
    }
}
