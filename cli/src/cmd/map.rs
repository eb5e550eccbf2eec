//! `map`: which parts of a disk are data or zeros, and where they are.

use std::{ffi::OsString, io::Write};

use clap::{Args, ValueHint};

use qcow2::disk::{Disk, DiskExt, Extent, ExtentKind};

use crate::{
    args::{Context, Run},
    cmd, disk,
    error::{Failure, chain},
    exit::Exit,
    output::{self, Form, escape_control},
    progname, size,
};

/// Show which parts of a disk are data or zeros, and where they are
///
/// What isn't allocated in the image is looked for in the images behind it.
#[derive(Debug, Args)]
#[command(
    override_usage = "qimg map [-f FMT | --image-opts] [-s OFFSET] [-l LEN] [-U]\n          \
                      [--output human|json] FILENAME",
    after_long_help = "\
Examples:
  The parts that hold data, and which file has them:
      qimg map disk.qcow2
  Everything, for a program:
      qimg map --output=json disk.qcow2
  The first gigabyte only:
      qimg map --max-length=1G --output=json disk.qcow2

Exit code: 0 done, 1 failed."
)]
pub(crate) struct MapArgs {
    /// The format of FILENAME (otherwise found out from its first bytes)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,

    /// FILENAME is a list such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,

    /// Begin at this byte of the disk
    #[arg(short, long, value_name = "OFFSET")]
    start_offset: Option<String>,

    /// Show no more than these bytes of the disk
    #[arg(short = 'l', long, value_name = "LEN")]
    max_length: Option<String>,

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

    /// Define a secret: secret,id=NAME,file=FILE
    #[arg(long, value_name = "OBJDEF", action = clap::ArgAction::Append)]
    object: Vec<String>,

    /// The image
    #[arg(value_name = "FILENAME", num_args = 0.., value_hint = ValueHint::FilePath)]
    files: Vec<OsString>,
}

impl Run for MapArgs {
    const NAME: &'static str = "map";

    fn run(mut self, _context: Context) -> Result<Exit, Failure> {
        let start = size::parse_given("start offset", self.start_offset.as_deref())?.unwrap_or(0);
        let length = size::parse_given("max length", self.max_length.as_deref())?;
        let file = cmd::one_file(std::mem::take(&mut self.files))?;
        cmd::exclusive(self.format.as_deref(), self.image_opts)?;
        let mut spec = cmd::image_spec(&file, self.format.as_deref(), self.image_opts)?;
        cmd::share(&mut spec, self.force_share)?;
        let disk = disk::open(&spec)?;
        let end = length.map_or(u64::MAX, |length| start.saturating_add(length));
        let mut out = output::stdout();
        let printed = match self.output {
            Form::Human => human(&mut out, &*disk, start, end),
            Form::Json => json(&mut out, &*disk, start, end),
        };
        // What was told before a fault is told.
        out.flush()?;
        printed.map(|()| Exit::Success)
    }
}

/// Calls `print` with every extent of which the end is known: not with one that a part
/// follows which can't be told. Also says whether another extent follows.
fn each_extent(
    disk: &dyn Disk,
    start: u64,
    end: u64,
    mut print: impl FnMut(&Extent, bool) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut last = None;
    for extent in disk.extents_and_holes(start..end) {
        let extent = extent.map_err(|error| {
            // The particulars stand on a line before the one that qemu-img prints.
            progname::error(escape_control(&chain(&error)));
            let reason = disk::os_reason(&error);
            Failure::Message(format!("Could not read file metadata: {reason}"))
        })?;
        if let Some(last) = last.replace(extent) {
            print(&last, true)?;
        }
    }
    last.map_or(Ok(()), |last| print(&last, false))
}

fn human(out: &mut impl Write, disk: &dyn Disk, start: u64, end: u64) -> Result<(), Failure> {
    writeln!(
        out,
        "{:<16}{:<16}{:<16}File",
        "Offset", "Length", "Mapped to"
    )?;
    // The name of the file of the layer seen last.
    let mut name: Option<(u32, String)> = None;
    each_extent(disk, start, end, |extent, _| {
        if extent.kind != ExtentKind::Data {
            return Ok(());
        }
        let Some(host) = extent.host else {
            let text = "File contains external, encrypted or compressed clusters.";
            return Err(text.into());
        };
        if extent.hole {
            return Ok(());
        }
        let file = match &name {
            Some((depth, file)) if *depth == extent.depth => file,
            _ => &name.insert((extent.depth, file_name(disk, extent.depth))).1,
        };
        for number in [extent.start.get(), extent.length, host.get()] {
            match number {
                0 => write!(out, "{:<16}", 0)?,
                number => write!(out, "{number:<#16x}")?,
            }
        }
        Ok(writeln!(out, "{file}")?)
    })
}

/// The file that the extents of the layer at `depth` are in.
fn file_name(disk: &dyn Disk, depth: u32) -> String {
    let path = disk
        .layer(depth)
        .and_then(|layer| layer.file()?.path())
        .map(|path| path.to_string_lossy().into_owned());
    escape_control(&path.unwrap_or_default()).into_owned()
}

/// Bytes after which what was made is written.
const PORTION: usize = 1 << 16;

fn json(out: &mut impl Write, disk: &dyn Disk, start: u64, end: u64) -> Result<(), Failure> {
    // There may be millions: what a line takes is what the command takes.
    let mut text = b"[".to_vec();
    let told = each_extent(disk, start, end, |extent, more| {
        item(&mut text, Some(extent), start);
        if more {
            text.extend_from_slice(b",\n");
        }
        if text.len() >= PORTION {
            out.write_all(&text)?;
            text.clear();
        }
        Ok(())
    });
    if told.is_ok() {
        if start >= end.min(disk.size()) {
            // Of nothing one thing is said.
            item(&mut text, None, start);
        }
        text.extend_from_slice(b"]\n");
    }
    out.write_all(&text)?;
    told
}

/// One extent on one line; of an empty range that there is nothing.
fn item(text: &mut Vec<u8>, extent: Option<&Extent>, start: u64) {
    let mut number = itoa::Buffer::new();
    let mut put = |text: &mut Vec<u8>, key: &[u8], value: u64| {
        text.extend_from_slice(key);
        text.extend_from_slice(number.format(value).as_bytes());
    };
    let at = extent.map_or(start, |e| e.start.get());
    put(text, b"{ \"start\": ", at);
    put(text, b", \"length\": ", extent.map_or(0, |e| e.length));
    put(text, b", \"depth\": ", extent.map_or(0, |e| e.depth.into()));
    let kind = extent.map(|extent| extent.kind);
    let present = !matches!(kind, None | Some(ExtentKind::Unallocated));
    text.extend_from_slice(match present {
        true => b", \"present\": true, \"zero\": ",
        false => b", \"present\": false, \"zero\": ",
    });
    text.extend_from_slice(match extent.is_some_and(Extent::reads_as_zeros) {
        true => b"true, \"data\": ",
        false => b"false, \"data\": ",
    });
    text.extend_from_slice(match kind == Some(ExtentKind::Data) {
        true => b"true, \"compressed\": ",
        false => b"false, \"compressed\": ",
    });
    text.extend_from_slice(match extent.is_some_and(|extent| extent.compressed) {
        true => b"true",
        false => b"false",
    });
    if let Some(host) = extent.and_then(|extent| extent.host) {
        put(text, b", \"offset\": ", host.get());
    }
    text.push(b'}');
}
