//! `check`: every reference in an image against its refcounts.

mod findings;
mod report;

use std::{
    ffi::OsString,
    fmt::Display,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
};

use clap::{Args, ValueHint};

use qcow2::{
    check::{
        CheckFailed, CheckOptions, Fixed, Metadata, Repair, RepairEvent, RepairReport, Verdict,
        check, repair,
    },
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
/// bitmaps) and compares them with the stored refcounts. Nothing is changed without -r.
///
/// A repair writes in an order that an interruption can't turn into damage, and gives up no
/// data: entries that can't be followed stay as they are, and while there are any, clusters
/// that seem leaked are not freed, as they may be what such an entry meant.
#[derive(Debug, Args)]
#[command(
    override_usage = "qimg check [-f FMT | --image-opts] [-r leaks|all | --findings] [--bitmaps]\n            \
                      [-q] [-U] [-T CACHE] [--output human|json] FILENAME",
    after_long_help = "\
Examples:
  qimg check disk.qcow2
  Also tell which bitmaps can't be used:
      qimg check --bitmaps disk.qcow2
  In a script:
      qimg check --output=json disk.qcow2
  Give back space that was lost to a crash:
      qimg check -r leaks disk.qcow2
  See what a repair would mend, then mend it:
      qimg check --findings disk.qcow2
      qimg check -r all disk.qcow2

Exit code: 0 no errors, 1 the check or repair could not be made, 2 the image is corrupt, 3
clusters are leaked (wasted space, no harm), 63 the format can't be checked. After a repair it
tells how the image is now."
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

    /// Repair leaks (refcounts that are too high) or all that is found
    #[arg(short, long, value_name = "WHAT")]
    repair: Option<String>,

    /// Print every finding as JSON, and which kind of -r would mend it; change nothing
    #[arg(long)]
    findings: bool,

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

impl Run for CheckArgs {
    const NAME: &'static str = "check";
    const OURS: &'static [&'static str] = &["bitmaps", "findings"];

    fn run(mut self, _context: Context) -> Result<Exit, Failure> {
        let file = cmd::one_file(std::mem::take(&mut self.files))?;
        if let Some(mode) = &self.cache
            && !cmd::is_cache_mode(mode)
        {
            return Err(format!("Invalid source cache option: {mode}").into());
        }
        cmd::exclusive(self.format.as_deref(), self.image_opts)?;
        let repair = match self.repair.as_deref() {
            None => None,
            Some("leaks") => Some(Repair::Leaks),
            Some(_) => Some(Repair::All),
        };
        if repair.is_some() && self.findings {
            let text = "--findings and --repair (-r) are mutually exclusive: it changes nothing";
            return Err(text.into());
        }
        let mut spec = cmd::image_spec(&file, self.format.as_deref(), self.image_opts)?;
        cmd::share(&mut spec, self.force_share)?;
        let what_for = match repair {
            Some(_) if spec.force_share == Some(true) => {
                let text = "force-share=on can only be used with read-only images";
                return Err(cmd::open_failure(&spec.given, text));
            }
            Some(_) => Use::Repair,
            None => Use::Check,
        };
        let opened = cmd::open(&spec, what_for)?;
        let Content::Checkable(mut image) = opened.content else {
            let text = "This image format does not support checks";
            return Err(Failure::Unsupported(text.into()));
        };
        warn_of_void_bitmaps(&image);
        let options = CheckOptions {
            bitmaps: self.bitmaps,
        };
        let outcome = match repair {
            None if self.findings => findings::print(&image, options, file.as_bytes())?,
            None => check_only(&image, options)?,
            Some(what) => self.repair(&mut image, what, options)?,
        };
        if !self.quiet && !self.findings {
            let mut out = output::stdout();
            let printed = match self.output {
                Form::Human => report::human(&mut out, &outcome.report),
                Form::Json => report::json(&mut out, &outcome, file.as_bytes(), self.bitmaps),
            };
            // The verdict stands even if nobody reads the report to its end.
            unless_closed(printed.and_then(|()| out.flush()))?;
        }
        match outcome.report.verdict() {
            Verdict::Clean => Ok(Exit::Success),
            Verdict::Leaks => Ok(Exit::Leaks),
            Verdict::Corrupt => Ok(Exit::Corrupt),
            Verdict::Failed => Err("Check failed".into()),
        }
    }
}

impl CheckArgs {
    /// Checks and repairs the image; what is found goes to standard error as it is made.
    fn repair(
        &self,
        image: &mut Checkable,
        what: Repair,
        options: CheckOptions,
    ) -> Result<RepairReport, Failure> {
        let mut errors = io::BufWriter::new(io::stderr().lock());
        let mut announced = Ok(());
        let outcome = repair(
            &image.file,
            &mut image.area,
            what,
            options,
            &mut |event| match event {
                RepairEvent::DoubleCheck(fixed) => {
                    let _ = errors.flush();
                    if !self.quiet && self.output == Form::Human {
                        announced = announce(fixed);
                    }
                }
                event => line(&mut errors, event.names_the_program(), &event),
            },
        );
        let _ = errors.flush();
        drop(errors);
        unless_closed(announced)?;
        outcome.map_err(failed)
    }
}

fn warn_of_void_bitmaps(image: &Checkable) {
    let header = image.area.header();
    let valid = header.autoclear_features.contains(Autoclear::BITMAPS);
    let extensions = image.area.extensions();
    if !valid && extensions.get(ExtensionType::BITMAPS).is_some() {
        progname::voided_bitmaps(header.version);
    }
}

fn metadata(image: &Checkable) -> Metadata<'_> {
    Metadata {
        storage: &image.file,
        header: image.area.header(),
        extensions: image.area.extensions(),
        geometry: image.area.header().geometry(),
    }
}

/// Checks the image; findings go to standard error as they are made.
fn check_only(image: &Checkable, options: CheckOptions) -> Result<RepairReport, Failure> {
    let mut errors = io::BufWriter::new(io::stderr().lock());
    let report = check(&metadata(image), options, &mut |finding| {
        line(&mut errors, finding.names_the_program(), finding);
    });
    let _ = errors.flush();
    drop(errors);
    Ok(RepairReport {
        report: report.map_err(failed)?,
        fixed: Fixed::default(),
    })
}

/// A line on standard error. That nobody reads it is no reason to stop.
fn line(errors: &mut impl Write, names_the_program: bool, text: &dyn Display) {
    if names_the_program {
        let _ = write!(errors, "{}: ", progname::short());
    }
    let _ = writeln!(errors, "{text}");
}

/// What qemu-img says between the repair and the second check.
fn announce(fixed: Fixed) -> io::Result<()> {
    let mut out = output::stdout();
    report::fixed(&mut out, fixed)?;
    out.flush()
}

fn failed(failed: CheckFailed) -> Failure {
    Failure::Message(failed.to_string())
}

/// A reader who has seen enough is no error.
fn unless_closed(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}
