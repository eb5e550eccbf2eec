//! `measure`: how large the file of a new image must be.

use std::{ffi::OsString, io::Write as _};

use clap::{Args, ValueHint};

use qcow2::{
    Error, Geometry,
    measure::{Measure, Measurement},
};

use crate::{
    args::{Context, Run},
    cmd::{self, create::options},
    disk::{self, Source},
    error::{Failure, chain},
    exit::Exit,
    opts::{Driver, Secret, Values},
    output::{self, Form, Json, Tree, escape_control},
    progname, size,
};

/// Tell how large the file of a new image must be
///
/// The image may be empty or a copy of FILENAME. Nothing is written.
#[derive(Debug, Args)]
#[command(
    override_usage = "qimg measure [-f FMT | --image-opts] [-O FMT] [-o OPTIONS] [-l SNAPSHOT] [-U]\n              \
                      [--output human|json] (--size SIZE | FILENAME)",
    after_long_help = "\
The first number is what the disk needs as it is now, the second what it needs when all of it
was written. Bitmaps of FILENAME come on top, if they are to be copied.

Examples:
  How much room a copy takes:
      qimg measure -O qcow2 disk.raw
  An empty disk with other clusters:
      qimg measure -O qcow2 -o cluster_size=2M --size 10T
  As a snapshot has the disk:
      qimg measure -O qcow2 -l before-upgrade disk.qcow2

Exit code: 0 done, 1 failed."
)]
pub(crate) struct MeasureArgs {
    /// The format of the new image: raw or qcow2
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw")]
    target_format: String,

    /// Options of the new image's format: NAME=VALUE,... (as of `qimg create`)
    #[arg(short, long, action = clap::ArgAction::Append)]
    options: Vec<String>,

    /// Measure an empty disk of this size
    #[arg(long = "size", value_name = "SIZE")]
    image_size: Option<String>,

    /// The format of FILENAME (otherwise found out from its first bytes)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,

    /// FILENAME is a list such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,

    /// The disk as this snapshot has it: an ID or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,

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

    /// The image that is to be copied
    #[arg(value_name = "FILENAME", num_args = 0.., value_hint = ValueHint::FilePath)]
    files: Vec<OsString>,
}

impl Run for MeasureArgs {
    const NAME: &'static str = "measure";

    fn run(self, context: Context) -> Result<Exit, Failure> {
        let size = size::parse_given("image size", self.image_size.as_deref())?;
        let snapshot = context.snapshot;
        if self.files.len() > 1 {
            return Err("At most one filename argument is allowed.".into());
        }
        let Some(file) = self.files.first() else {
            if self.image_opts || self.format.is_some() || snapshot.is_some() {
                return Err("--image-opts, -f, and -l require a filename argument.".into());
            }
            let Some(size) = size else {
                return Err(one_of_two());
            };
            let measure = self.target(&context.secrets)?;
            let measured = measure.size(size).map_err(|e| failed(&e))?;
            self.print(measured, None)?;
            return Ok(Exit::Success);
        };
        if size.is_some() {
            return Err("--size N cannot be used together with a filename.".into());
        }
        cmd::exclusive(self.format.as_deref(), self.image_opts)?;
        let mut spec = cmd::image_spec(file, self.format.as_deref(), self.image_opts)?;
        cmd::share(&mut spec, self.force_share)?;
        let source = disk::open_source(&spec)?;
        // As qemu-img does, a snapshot's disk is taken to be as large as the image's is now.
        let size = source.disk().size();
        let disk = match &snapshot {
            None => source.disk(),
            Some(which) => source.snapshot(which)?,
        };
        let measure = self.target(&context.secrets)?;
        let measured = measure.disk_cut(&*disk, size).map_err(|e| failed(&e))?;
        let bitmaps = match &source {
            Source::Qcow2(image) if image.header().version > 2 && self.keeps_bitmaps() => {
                Some(measure.bitmaps(image).map_err(|e| failed(&e))?)
            }
            _ => None,
        };
        self.print(measured, bitmaps)?;
        Ok(Exit::Success)
    }
}

fn one_of_two() -> Failure {
    "Either --size N or one filename must be specified.".into()
}

/// What the library found, in qemu-img's words.
fn failed(error: &Error) -> Failure {
    match error {
        Error::Refused(text) => text.as_str().into(),
        other => {
            // The particulars stand on a line before the one that qemu-img prints.
            progname::error(escape_control(&chain(other)));
            format!("Unable to get block status: {}", disk::os_reason(other)).into()
        }
    }
}

impl MeasureArgs {
    /// The options of the new image.
    fn values(&self) -> Result<Values, Failure> {
        let name = &self.target_format;
        let schema = match Driver::named(name) {
            Some(Driver::Qcow2) => options::QCOW2,
            Some(Driver::Raw) => options::RAW,
            Some(Driver::Protocol(_)) => {
                let text = format!("Block driver '{name}' does not support size measurement");
                return Err(text.into());
            }
            None => return Err(format!("Unknown file format '{name}'").into()),
        };
        schema.parse(&self.options.join(",")).map_err(|text| {
            progname::error(text);
            format!("Invalid options for file format '{name}'").into()
        })
    }

    /// The new image. Options that don't change its size are not looked at.
    fn target(&self, secrets: &[Secret]) -> Result<Measure, Failure> {
        let values = self.values()?;
        if Driver::named(&self.target_format) == Some(Driver::Raw) {
            return Ok(Measure::Raw);
        }
        let cluster_size = values.number("cluster_size").unwrap_or(65536);
        let extended_l2 = values.flag("extended_l2");
        let cluster_bits = cluster_size.trailing_zeros();
        if !cluster_size.is_power_of_two() || !(9..=21).contains(&cluster_bits) {
            return Err("Cluster size must be a power of two between 512 and 2048k".into());
        }
        if extended_l2 && cluster_bits < 14 {
            let text = "Extended L2 entries are only supported with cluster sizes of at least \
                        16384 bytes";
            return Err(text.into());
        }
        let is_v2 = match values.text("compat") {
            None | Some("1.1") => false,
            Some("0.10") => true,
            Some(other) => return Err(format!("Invalid compatibility level: '{other}'").into()),
        };
        let refcount_bits = values.number("refcount_bits").unwrap_or(16);
        if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
            let text = "Refcount width must be a power of two and may not exceed 64 bits";
            return Err(text.into());
        }
        if is_v2 && refcount_bits != 16 {
            let text = "Different refcount widths than 16 bits require compatibility level 1.1 or \
                        above (use compat=1.1 or greater)";
            return Err(text.into());
        }
        let preallocated = match values.text("preallocation") {
            None | Some("off" | "metadata") => false,
            Some("falloc" | "full") => true,
            Some(other) => return Err(format!("invalid parameter value: {other}").into()),
        };
        let luks_header = match values.text("encrypt.format") {
            Some("luks") => luks_header(&values, secrets)?,
            _ => 0,
        };
        let order = refcount_bits.trailing_zeros();
        let geometry = Geometry::new(cluster_bits, order, extended_l2);
        Ok(Measure::Qcow2 {
            geometry: geometry.ok_or("These options don't go together")?,
            luks_header,
            preallocated,
            backing: values.text("backing_file").is_some(),
        })
    }

    /// Images of version 2 can't hold bitmaps.
    fn keeps_bitmaps(&self) -> bool {
        let values = self.values();
        Driver::named(&self.target_format) == Some(Driver::Qcow2)
            && values.is_ok_and(|values| values.text("compat") != Some("0.10"))
    }

    fn print(&self, measured: Measurement, bitmaps: Option<u64>) -> Result<(), Failure> {
        let mut out = output::stdout();
        match self.output {
            Form::Human => {
                writeln!(out, "required size: {}", measured.required)?;
                writeln!(out, "fully allocated size: {}", measured.fully_allocated)?;
                if let Some(bitmaps) = bitmaps {
                    writeln!(out, "bitmaps size: {bitmaps}")?;
                }
            }
            Form::Json => {
                let mut json = Json::new(&mut out);
                json.object("")?;
                if let Some(bitmaps) = bitmaps {
                    json.number("bitmaps", bitmaps.into())?;
                }
                json.number("required", measured.required.into())?;
                json.number("fully-allocated", measured.fully_allocated.into())?;
                json.end()?;
            }
        }
        Ok(out.flush()?)
    }
}

/// Bytes of the LUKS header before the payload: a sector for the header itself, filled up
/// to 4096, and eight key slots of 4000 stripes of the master key, each filled up likewise.
fn luks_header(values: &Values, secrets: &[Secret]) -> Result<u64, Failure> {
    match values.text("encrypt.key-secret") {
        None => return Err("Parameter 'encrypt.key-secret' is required for cipher".into()),
        Some(id) if secrets.iter().any(|secret| secret.id == id) => {}
        Some(id) => return Err(format!("No secret with id '{id}'").into()),
    }
    let key_bytes = match values.text("encrypt.cipher-alg") {
        None | Some("aes-256" | "serpent-256" | "twofish-256") => 32,
        Some("aes-192" | "serpent-192" | "twofish-192") => 24,
        Some("aes-128" | "serpent-128" | "twofish-128" | "cast5-128") => 16,
        Some(other) => {
            let text = format!("Parameter 'cipher-alg' does not accept value '{other}'");
            return Err(text.into());
        }
    };
    let keys = match values.text("encrypt.cipher-mode") {
        None | Some("xts") => 2,
        Some("cbc" | "ctr" | "ecb") => 1,
        Some(other) => {
            let text = format!("Parameter 'cipher-mode' does not accept value '{other}'");
            return Err(text.into());
        }
    };
    let slot = (key_bytes * keys * 4000_u64).next_multiple_of(4096);
    Ok(4096 + 8 * slot)
}
