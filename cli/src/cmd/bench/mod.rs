//! `bench`: many requests to an image, and the time they take.

mod requests;
mod target;

use std::{ffi::OsString, io::Write as _, path::Path, time::Instant};

use clap::{Args, ValueHint};

use crate::{
    args::{Context, Run},
    cmd, disk,
    error::{Failure, chain},
    exit::Exit,
    getopt::Occurrence,
    output::{self, escape_control},
    progname, size,
};
use requests::{Plan, Requests};
use target::Target;

/// Measure how long an image takes for many requests
///
/// The requests are of one size and step through the disk, beginning again at its end. As
/// many as the machine has processors are worked on at the same time, but no more than
/// DEPTH.
#[derive(Debug, Args)]
#[command(
    override_usage = "qimg bench [-f FMT | --image-opts] [-c COUNT] [-d DEPTH] [-s SIZE] [-S STEP]\n            \
                      [-o OFFSET] [-t CACHE] [-i AIO] [-n] [-U]\n            \
                      [-w [--pattern BYTE] [--flush-interval N [--no-drain]]] FILENAME",
    after_long_help = "\
Examples:
  Read 75000 times 4 KiB, one after the other:
      qimg bench disk.qcow2
  Write to the image (what it held there is gone):
      qimg bench -w -c 10000 -s 64k -S 1M --pattern 0xaa scratch.qcow2

Exit code: 0 done, 1 failed."
)]
pub(crate) struct BenchArgs {
    /// Accepted for qemu-img's sake
    #[arg(short, long)]
    quiet: bool,

    /// The format of FILENAME (otherwise found out from its first bytes)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,

    /// FILENAME is a list such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,

    /// When writes are synced: writethrough and directsync after each, unsafe never, none and
    /// writeback when asked. The system's cache is always used
    #[arg(short = 't', long, value_name = "CACHE", default_value = "writeback")]
    cache: String,

    /// How many requests
    #[arg(short, long, value_name = "COUNT")]
    count: Option<String>,

    /// Bytes of each request
    #[arg(short = 's', long, value_name = "SIZE")]
    buffer_size: Option<String>,

    /// How many requests may be worked on at the same time
    #[arg(short, long, value_name = "DEPTH")]
    depth: Option<String>,

    /// Where on the disk the first one begins
    #[arg(short, long, value_name = "OFFSET")]
    offset: Option<String>,

    /// How far each one is from the one before (otherwise its size)
    #[arg(short = 'S', long, value_name = "STEP")]
    step_size: Option<String>,

    /// Accepted for qemu-img's sake: threads, native or io_uring
    #[arg(short = 'i', long, value_name = "AIO")]
    aio: Option<String>,

    /// Accepted for qemu-img's sake: as -i native
    #[arg(short, long)]
    native: bool,

    /// Write, instead of reading
    #[arg(short, long)]
    write: bool,

    /// Write this byte (otherwise 0)
    #[arg(long, value_name = "BYTE")]
    pattern: Option<String>,

    /// Sync after every N requests
    #[arg(long, value_name = "N")]
    flush_interval: Option<String>,

    /// Go on with other requests while syncing
    #[arg(long)]
    no_drain: bool,

    /// Read without locks, from an image that another process may be writing
    #[arg(short = 'U', long)]
    force_share: bool,

    /// The image
    #[arg(value_name = "FILENAME", num_args = 0.., value_hint = ValueHint::FilePath)]
    files: Vec<OsString>,
}

/// The largest number of anything.
const MOST: u64 = i32::MAX.unsigned_abs() as u64;

impl Run for BenchArgs {
    const NAME: &'static str = "bench";

    fn accept(met: &Occurrence) -> Result<(), Failure> {
        let Some(value) = &met.value else {
            return Ok(());
        };
        let text = value.to_string_lossy();
        match met.id.as_str() {
            "cache" if !cmd::is_cache_mode(&text) => Err("Invalid cache mode".into()),
            "aio" if !matches!(&*text, "threads" | "native" | "io_uring") => {
                Err(format!("Invalid aio option: {text}").into())
            }
            id => number(id, &text).map(drop).map_err(Failure::Message),
        }
    }

    fn run(mut self, _context: Context) -> Result<Exit, Failure> {
        let value = |id: &str, given: &Option<String>, otherwise: u64| {
            let number = given.as_deref().map(|text| number(id, text));
            number.unwrap_or(Ok(otherwise)).map_err(Failure::Message)
        };
        let plan = Plan {
            count: value("count", &self.count, 75000)?,
            length: value("buffer_size", &self.buffer_size, 4096)?,
            depth: value("depth", &self.depth, 64)?,
            offset: value("offset", &self.offset, 0)?,
            step: value("step_size", &self.step_size, 0)?,
            flush_interval: value("flush_interval", &self.flush_interval, 0)?,
            drain: !self.no_drain,
            sync_each: self.write && matches!(&*self.cache, "writethrough" | "directsync"),
        };
        let pattern = value("pattern", &self.pattern, 0)?;
        let file = cmd::one_file(std::mem::take(&mut self.files))?;
        if plan.flush_interval > 0 && !self.write {
            return Err("--flush-interval is only available in write tests".into());
        }
        if plan.flush_interval > 0 && plan.flush_interval < plan.depth {
            return Err("Flush interval can't be smaller than depth".into());
        }
        let target = self.open(&file)?;
        let plan = Plan {
            step: match plan.step {
                0 => plan.length,
                step => step,
            },
            ..plan
        };
        self.announce(&plan)?;
        let requests = Requests::new(plan, target.size());
        let begin = Instant::now();
        let result = match self.write {
            true => requests.write(&target, u8::try_from(pattern).unwrap_or(0)),
            false => requests.read(&target),
        };
        let seconds = begin.elapsed().as_secs_f64();
        let result = result.and_then(|()| target.close());
        result.map_err(|error| {
            // The particulars stand on a line before the one that qemu-img prints.
            progname::error(escape_control(&chain(&error)));
            let reason = disk::os_reason(&error);
            Failure::Message(format!("Failed request: {reason}"))
        })?;
        output::print(format_args!("Run completed in {seconds:.3} seconds."))?;
        Ok(Exit::Success)
    }
}

impl BenchArgs {
    fn open(&self, file: &OsString) -> Result<Target, Failure> {
        cmd::exclusive(self.format.as_deref(), self.image_opts)?;
        let mut spec = cmd::image_spec(file, self.format.as_deref(), self.image_opts)?;
        cmd::share(&mut spec, self.force_share)?;
        let refused = |text| Err(cmd::open_failure(&spec.given, text));
        if self.write && spec.force_share == Some(true) {
            return refused("force-share=on can only be used with read-only images");
        }
        let native = self.native || self.aio.as_deref() == Some("native");
        let direct = matches!(&*self.cache, "none" | "directsync");
        if native && !direct && Path::new(&spec.file.path).exists() {
            let text = "aio=native was specified, but it requires cache.direct=on, which was not \
                        specified.";
            return refused(text);
        }
        Ok(match self.write {
            true => Target::Write {
                disk: disk::open_writable(&spec)?,
                syncs: self.cache != "unsafe",
            },
            false => Target::Read(disk::open(&spec)?),
        })
    }

    fn announce(&self, plan: &Plan) -> Result<(), Failure> {
        let mut out = output::stdout();
        let what = if self.write { "write" } else { "read" };
        writeln!(
            out,
            "Sending {} {what} requests, {} bytes each, {} in parallel (starting at offset {}, \
             step size {})",
            plan.count, plan.length, plan.depth, plan.offset, plan.step
        )?;
        if plan.flush_interval > 0 {
            writeln!(out, "Sending flush every {} requests", plan.flush_interval)?;
        }
        Ok(out.flush()?)
    }
}

/// The value of an option with a number in it; 0 for other options.
///
/// # Errors
/// In qemu-img's words.
fn number(id: &str, text: &str) -> Result<u64, String> {
    match id {
        "count" => size::parse_number("request count", text, 1..=MOST),
        "depth" => size::parse_number("queue depth", text, 1..=MOST),
        "pattern" => size::parse_number("pattern byte", text, 0..=255),
        "flush_interval" => size::parse_number("flush interval", text, 0..=MOST),
        "buffer_size" => size::parse_within("buffer size", text, 1..=MOST),
        "step_size" => size::parse_within("step size", text, 0..=MOST),
        "offset" => size::parse_operand("offset", text),
        _ => Ok(0),
    }
}
