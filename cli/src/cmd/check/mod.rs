//! `check`: every reference in an image against its refcounts.

mod report;

use std::{
    ffi::OsString,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
};

use clap::{Args, ValueHint};

use qcow2::{
    check::{CheckOptions, CheckReport, Metadata, Verdict, check},
    format::{Autoclear, ExtensionType},
};

use crate::{
    args::{Context, Run},
    cmd,
    error::Failure,
    exit::Exit,
    image::{Checkable, Content, Use},
    output::{self, Form},
    progname,
};

/// Check that an image's metadata is consistent
///
/// Counts the references to every cluster (by the tables of the disk, of snapshots and of
/// bitmaps) and compares them with the stored refcounts. Nothing is changed.
#[derive(Debug, Args)]
#[command(
    override_usage = "qimg check [-f FMT | --image-opts] [--bitmaps] [-q] [-U] [-T CACHE]\n            \
                      [--output human|json] FILENAME",
    after_long_help = "\
Examples:
  qimg check disk.qcow2
  Also tell which bitmaps can't be used:
      qimg check --bitmaps disk.qcow2
  In a script:
      qimg check --output=json disk.qcow2

Exit code: 0 no errors, 1 the check could not be made, 2 the image is corrupt, 3 clusters are
leaked (wasted space, no harm), 63 the format can't be checked."
)]
pub(crate) struct CheckArgs {
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,

    /// The format of FILENAME (otherwise found out from its first bytes)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,

    /// FILENAME is a list such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,

    /// Accepted for qemu-img's sake: none, writeback, writethrough, directsync or unsafe
    #[arg(short = 'T', long, value_name = "CACHE")]
    cache: Option<String>,

    /// Read without locks, from an image that another process may be writing
    #[arg(short = 'U', long)]
    force_share: bool,

    /// The form of the output: human or json
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        default_value = "human",
        hide_possible_values = true
    )]
    output: Form,

    /// Repair what was found: not possible yet
    #[arg(short, long, value_name = "WHAT")]
    repair: Option<String>,

    /// Define a secret: secret,id=NAME,file=FILE
    #[arg(long, value_name = "OBJDEF", action = clap::ArgAction::Append)]
    object: Vec<String>,

    /// Report bitmaps that are in use or unusable, too
    #[arg(long)]
    bitmaps: bool,

    /// The image
    #[arg(value_name = "FILENAME", num_args = 0.., value_hint = ValueHint::FilePath)]
    files: Vec<OsString>,
}

/// Values of `-T`.
const CACHE_MODES: [&str; 5] = ["none", "writeback", "writethrough", "directsync", "unsafe"];

impl Run for CheckArgs {
    const NAME: &'static str = "check";
    const OURS: &'static [&'static str] = &["bitmaps"];

    fn run(mut self, _context: Context) -> Result<Exit, Failure> {
        let file = cmd::one_file(std::mem::take(&mut self.files))?;
        if let Some(mode) = &self.cache
            && !CACHE_MODES.contains(&mode.as_str())
        {
            return Err(format!("Invalid source cache option: {mode}").into());
        }
        cmd::exclusive(self.format.as_deref(), self.image_opts)?;
        if self.repair.is_some() {
            return Err("--repair is not supported yet: nothing was checked or changed".into());
        }
        let mut spec = cmd::image_spec(&file, self.format.as_deref(), self.image_opts)?;
        cmd::share(&mut spec, self.force_share)?;
        let opened = cmd::open(&spec, Use::Check)?;
        let Content::Checkable(image) = opened.content else {
            let text = "This image format does not support checks";
            return Err(Failure::Unsupported(text.into()));
        };
        let report = self.check(&image)?;
        if !self.quiet {
            let mut out = output::stdout();
            let printed = match self.output {
                Form::Human => report::human(&mut out, &report),
                Form::Json => report::json(&mut out, &report, file.as_bytes(), self.bitmaps),
            };
            // The verdict stands even if nobody reads the report to its end.
            match printed.and_then(|()| out.flush()) {
                Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e.into()),
                _ => {}
            }
        }
        match report.verdict() {
            Verdict::Clean => Ok(Exit::Success),
            Verdict::Leaks => Ok(Exit::Leaks),
            Verdict::Corrupt => Ok(Exit::Corrupt),
            Verdict::Failed => Err("Check failed".into()),
        }
    }
}

impl CheckArgs {
    /// Checks the image; findings go to standard error as they are made.
    fn check(&self, image: &Checkable) -> Result<CheckReport, Failure> {
        let header = image.area.header();
        let extensions = image.area.extensions();
        let valid = header.autoclear_features.contains(Autoclear::BITMAPS);
        if !valid && extensions.get(ExtensionType::BITMAPS).is_some() {
            progname::voided_bitmaps(header.version);
        }
        let metadata = Metadata {
            storage: &image.file,
            header,
            extensions,
            geometry: header.geometry(),
        };
        let options = CheckOptions {
            bitmaps: self.bitmaps,
        };
        let mut errors = io::BufWriter::new(io::stderr().lock());
        let report = check(&metadata, options, &mut |finding| {
            if finding.names_the_program() {
                let _ = write!(errors, "{}: ", progname::short());
            }
            let _ = writeln!(errors, "{finding}");
        });
        let _ = errors.flush();
        drop(errors);
        report.map_err(|failed| Failure::Message(failed.to_string()))
    }
}
