//! `create`: a new, empty image.

mod backing;
pub(super) mod options;
pub(super) mod plan;

use std::{
    ffi::{OsStr, OsString},
    io::Write as _,
    os::unix::{ffi::OsStrExt as _, fs::FileTypeExt as _},
    path::Path,
};

use clap::{Args, ValueHint};
use qcow2::image::create::{create, create_raw};

use crate::{
    args::{Context, Run},
    error::Failure,
    exit::Exit,
    image::words,
    opts::{Driver, Protocol, Reference, Schema, Value, Values, asks_for_help, parse_path},
    output, size,
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

    /// The format of the new image: raw or qcow2
    #[arg(short, long, value_name = "FMT", default_value = "raw")]
    format: String,

    /// Options of the format: NAME=VALUE,... (`-o help` lists them; a comma in a value is
    /// doubled)
    #[arg(short, long, action = clap::ArgAction::Append)]
    options: Vec<String>,

    /// Base the image on FILE: what was never written is read from there
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
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

    /// The file to create, then the size of the disk
    #[arg(value_name = "FILENAME", num_args = 0.., value_hint = ValueHint::FilePath)]
    operands: Vec<OsString>,
}

/// A format that can be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Qcow2,
    Raw,
}

impl Format {
    pub(super) fn named(name: &str) -> Option<Self> {
        match Driver::named(name)? {
            Driver::Qcow2 => Some(Self::Qcow2),
            Driver::Raw | Driver::Protocol(Protocol::File) => Some(Self::Raw),
            Driver::Protocol(Protocol::HostDevice) => None,
        }
    }

    /// The options of an image called `name`: those of a device are fewer.
    pub(super) fn schema(self, name: Option<&OsStr>) -> Schema {
        let (schema, on_device) = match self {
            Self::Qcow2 => (options::QCOW2, options::QCOW2_ON_DEVICE),
            Self::Raw => (options::RAW, options::RAW_ON_DEVICE),
        };
        let is_device = |path: &Reference| {
            let kind = std::fs::metadata(&path.path).map(|there| there.file_type());
            kind.is_ok_and(|kind| kind.is_block_device())
        };
        match name.map(parse_path) {
            Some(Ok(path)) if is_device(&path) => on_device,
            _ => schema,
        }
    }
}

impl Run for CreateArgs {
    const NAME: &'static str = "create";
    const OURS: &'static [&'static str] = &["no-clobber"];

    fn run(self, context: Context) -> Result<Exit, Failure> {
        let list = self.options.join(",");
        let name = self.operands.first();
        if asks_for_help(&list) {
            return self.help(name);
        }
        let Some(name) = name else {
            return Err(Failure::Hinted("Expecting image file name".into()));
        };
        let size = self.operands.get(1).map(|text| {
            size::parse_operand("image size", &text.to_string_lossy()).map_err(Failure::Message)
        });
        let size = size.transpose()?;
        if let Some(extra) = self.operands.get(2) {
            let extra = extra.to_string_lossy();
            return Err(Failure::Hinted(format!("Unexpected argument: {extra}")));
        }
        let shown = name.to_string_lossy();
        let about = |text: String| Failure::Message(format!("{shown}: {text}"));
        let (format, file) = self.target(name).map_err(about)?;
        let values = self.values(format, &list, size, name).map_err(about)?;
        if !self.quiet {
            // The name as it is: it need not be UTF-8.
            let mut out = output::stdout();
            out.write_all(b"Formatting '")?;
            out.write_all(name.as_bytes())?;
            writeln!(out, "', fmt={} {}", self.format, values.listing())?;
            out.flush()?;
        }
        if self.no_clobber && std::fs::symlink_metadata(&file.path).is_ok() {
            return Err(about(format!(
                "There is a file '{shown}', and --no-clobber was given"
            )));
        }
        let path = Path::new(&file.path);
        let created = match format {
            Format::Qcow2 => {
                let options = plan::qcow2(&values, &context.secrets).map_err(about)?;
                create(path, &options, self.no_clobber)
            }
            Format::Raw => {
                let options = plan::raw(&values).map_err(about)?;
                create_raw(path, &options, self.no_clobber)
            }
        };
        created.map_err(|e| about(words(&e, path)))?;
        Ok(Exit::Success)
    }
}

impl CreateArgs {
    /// `-o help`
    fn help(&self, name: Option<&OsString>) -> Result<Exit, Failure> {
        let format = Format::named(&self.format)
            .ok_or_else(|| Failure::Message(format!("Unknown file format '{}'", self.format)))?;
        if let Some(name) = name {
            parse_path(name)?;
        }
        output::print_text(
            &format
                .schema(name.map(OsString::as_os_str))
                .help(&self.format, name.is_some()),
        )?;
        Ok(Exit::Success)
    }

    /// Format and file, as named.
    fn target(&self, name: &OsString) -> Result<(Format, Reference), String> {
        let format = Format::named(&self.format)
            .ok_or_else(|| format!("Unknown file format '{}'", self.format))?;
        if name.is_empty() {
            return Ok((
                format,
                Reference {
                    path: name.clone(),
                    protocol: None,
                },
            ));
        }
        Ok((format, parse_path(name)?))
    }

    /// The options, those given by letters and the defaults among them.
    fn values(
        &self,
        format: Format,
        list: &str,
        size: Option<u64>,
        name: &OsString,
    ) -> Result<Values, String> {
        let mut values = format.schema(Some(name)).parse(list)?;
        if let Some(size) = size {
            if values.get("size").is_some() {
                return Err("The image size must be specified only once".into());
            }
            values.put("size", Value::Size(size));
        }
        for (given, option, what) in [
            (&self.backing, "backing_file", "Backing file"),
            (&self.backing_format, "backing_fmt", "Backing file format"),
        ] {
            let Some(text) = given else { continue };
            if !values.accepts(option) {
                let text = format!("{what} not supported for file format '{}'", self.format);
                return Err(text);
            }
            values.put(option, Value::Text(text.clone()));
        }
        if values.text("backing_file").is_some() {
            backing::complete(&mut values, name, self.backing_unsafe)?;
        }
        // 2^64 - 1 is how QEMU says "no size", so it can't be asked for either.
        if values.number("size").is_none_or(|size| size == u64::MAX) {
            return Err("Image creation needs a size parameter".into());
        }
        if format == Format::Qcow2 {
            values.default("cluster_size", Value::Size(65536));
            values.default("extended_l2", Value::Flag(false, "off".into()));
            values.default("compression_type", Value::Text("zlib".into()));
            values.default("lazy_refcounts", Value::Flag(false, "off".into()));
            values.default("refcount_bits", Value::Number(16));
        }
        Ok(values)
    }
}
