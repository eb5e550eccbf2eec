//! `bitmap`: edit, list and dump the dirty bitmaps stored in an image.

mod digest;
mod dump;
mod edit;
mod from_compare;
mod list;
mod zeroes;

pub(crate) use digest::{Digests, NO_DIGEST};
pub(crate) use dump::{extents, hex};

use std::ffi::OsString;

use clap::{Args, ValueHint};

use crate::{
    args::{Context, Run},
    error::Failure,
    exit::Exit,
    opts::Secret,
    size,
};

/// Edit, list and dump the dirty bitmaps stored in an image
///
/// A dirty bitmap records which parts of the disk were written since it was added or
/// cleared: what an incremental backup has to copy. Actions are carried out in the order in
/// which they are given, all of them or none: if one fails, the image stays as it was.
#[derive(Debug, Args)]
#[command(
    override_usage = "\
qimg bitmap (--add | --remove | --clear | --enable | --disable | --merge SOURCE |
            --from-compare OLD)... [-g SIZE] [-b FILE] [-F FMT] [-f FMT | --image-opts]
            FILENAME BITMAP
       qimg bitmap --list [--output human|json] [-U] [-f FMT | --image-opts] FILENAME
       qimg bitmap --dump [--output human|json|ranges|raw|layered] [--with-zeroes] [-U]
            [-f FMT | --image-opts] FILENAME BITMAP",
    after_long_help = "\
Examples:
  Start recording writes in a new bitmap:
      qimg bitmap --add disk.qcow2 backup-1
  A finer one that doesn't record yet, filled with what another one holds:
      qimg bitmap --add --disable -g 4k --merge backup-1 disk.qcow2 fine
  Take over the dirty regions of a bitmap in another image:
      qimg bitmap --merge backup-1 -b overlay.qcow2 -F qcow2 base.qcow2 backup-1
  What has changed since a copy was made, where no bitmap recorded it:
      qimg bitmap --from-compare copy.raw -F raw disk.qcow2 backup-1
  Which bitmaps are there, and how much is dirty:
      qimg bitmap --list disk.qcow2
  The dirty ranges, for a backup program:
      qimg bitmap --dump --output=json disk.qcow2 backup-1
  The same, and which of them are zeros and needn't be copied:
      qimg bitmap --dump --with-zeroes --output=json disk.qcow2 backup-1

Exit code: 0 done, 1 failed."
)]
pub(crate) struct BitmapOptions {
    /// Create BITMAP; it records future writes unless --disable follows
    #[arg(long)]
    add: bool,

    /// Remove BITMAP
    #[arg(long)]
    remove: bool,

    /// Make BITMAP all clean
    #[arg(long)]
    clear: bool,

    /// Let BITMAP record future writes
    #[arg(long)]
    enable: bool,

    /// Let BITMAP stop recording
    #[arg(long)]
    disable: bool,

    /// Make dirty in BITMAP what is dirty in the bitmap SOURCE (of FILENAME, or of -b FILE)
    #[arg(long, value_name = "SOURCE")]
    merge: Vec<String>,

    /// Create BITMAP, dirty where the disk of FILENAME isn't that of the image OLD, or goes
    /// beyond its end; it records future writes unless --disable follows
    #[arg(long, value_name = "OLD", value_hint = ValueHint::FilePath)]
    from_compare: Vec<OsString>,

    /// The format of FILENAME (otherwise found out from its first bytes)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,

    /// FILENAME is a list such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,

    /// Define a secret: secret,id=NAME,file=FILE
    #[arg(long, value_name = "OBJDEF", action = clap::ArgAction::Append)]
    object: Vec<String>,

    /// The image that holds the SOURCE of --merge
    #[arg(short = 'b', long, value_name = "FILE")]
    source_file: Option<OsString>,

    /// The format of -b FILE, or of OLD
    #[arg(short = 'F', long, value_name = "FMT")]
    source_format: Option<String>,

    /// Bytes of the disk that one bit of a new bitmap stands for: a power of two from 512 to 2G
    /// [default: 64k, or the cluster size where that is smaller]
    #[arg(short, long, value_name = "SIZE")]
    granularity: Option<String>,

    /// Print a table of all bitmaps: name, state, granularity, dirty bytes
    #[arg(long)]
    list: bool,

    /// Print what is dirty in BITMAP
    #[arg(long)]
    dump: bool,

    /// With --dump: say of each dirty range whether the guest reads zeros there, and cut the
    /// ranges accordingly
    #[arg(long)]
    with_zeroes: bool,

    /// The form in which --list (human, json) or --dump prints
    #[arg(long = "output", value_name = "FORM", id = "form")]
    output: Option<String>,

    /// Read without locks, from an image that another process may be writing
    #[arg(short = 'U', long)]
    force_share: bool,

    /// The image, then the bitmap's name (none for --list)
    #[arg(value_name = "FILENAME", num_args = 0.., value_hint = ValueHint::FilePath)]
    operands: Vec<OsString>,
}

/// One action on the bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// `--add`
    Add,
    /// `--remove`
    Remove,
    /// `--clear`
    Clear,
    /// `--enable`
    Enable,
    /// `--disable`
    Disable,
    /// `--merge SOURCE`
    Merge(String),
    /// `--from-compare OLD`
    FromCompare(OsString),
}

impl Action {
    /// The word in "Operation WORD on bitmap NAME failed".
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => "merge",
            Self::FromCompare(_) => "from-compare",
        }
    }
}

/// The form of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DumpForm {
    /// A summary and a table of ranges.
    Human,
    /// One object with the ranges.
    Json,
    /// `offset length` a line.
    Ranges,
    /// The bits as an image stores them.
    Raw,
    /// The portable form.
    Layered,
}

/// Where an image is and how to open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The operand: a file name or, with `image_opts`, a list of options.
    pub(crate) file: OsString,
    /// `-f`
    pub(crate) format: Option<String>,
    /// `--image-opts`
    pub(crate) image_opts: bool,
    /// `-U`
    pub(crate) force_share: bool,
    /// Secrets that its options may refer to.
    pub(crate) secrets: Vec<Secret>,
}

/// What the command line asks of `bitmap`, its combinations checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Actions, in order.
    Edit(BitmapArgs),
    /// `--list`
    List {
        /// The image.
        target: Target,
        /// Whether as JSON.
        json: bool,
    },
    /// `--dump`
    Dump {
        /// The image.
        target: Target,
        /// The bitmap.
        bitmap: String,
        /// The form.
        form: DumpForm,
        /// `--with-zeroes`
        with_zeroes: bool,
    },
}

/// Actions on one bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BitmapArgs {
    /// The image.
    pub(crate) target: Target,
    /// The bitmap's name.
    pub(crate) bitmap: String,
    /// What to do with it, in order; at least one.
    pub(crate) actions: Vec<Action>,
    /// `-g`, in bytes; `None` or 0 for the default.
    pub(crate) granularity: Option<u64>,
    /// `-b`: the image that the sources of merges are in.
    pub(crate) source_file: Option<OsString>,
    /// `-F`, of `-b` or of what is compared with.
    pub(crate) source_format: Option<String>,
}

const ZEROES_ONLY_DUMPED: &str = "--with-zeroes only goes with --dump";

impl BitmapOptions {
    /// Checks what may stand together.
    ///
    /// # Errors
    /// In qemu-img's words and order.
    fn request(self, context: Context) -> Result<Request, Failure> {
        let actions = actions(&context);
        if self.list || self.dump {
            return self.reading(&actions, context);
        }
        if actions.is_empty() {
            let text = "Need at least one of --add, --remove, --clear, --enable, --disable, or \
                        --merge";
            return Err(text.into());
        }
        let compares = |action: &Action| matches!(action, Action::FromCompare(_));
        let compares = actions.iter().any(compares);
        if self.granularity.is_some() && !actions.contains(&Action::Add) && !compares {
            return Err("granularity only supported with --add".into());
        }
        if self.source_format.is_some() && self.source_file.is_none() && !compares {
            return Err("-F only supported with -b".into());
        }
        if self.source_format.is_some() && self.source_file.is_some() && compares {
            let text = "-F is for -b FILE or for the OLD of --from-compare, not for both";
            return Err(Failure::Hinted(text.into()));
        }
        let merges = actions
            .iter()
            .any(|action| matches!(action, Action::Merge(_)));
        if self.source_file.is_some() && !merges {
            return Err("Merge bitmap source file only supported with --merge".into());
        }
        if self.form_given() || self.force_share {
            return Err(Failure::Hinted(
                "--output and -U only go with --list or --dump".into(),
            ));
        }
        if self.with_zeroes {
            return Err(Failure::Hinted(ZEROES_ONLY_DUMPED.into()));
        }
        let [file, bitmap] = self.operands.as_slice() else {
            return Err("Expecting filename and bitmap name".into());
        };
        super::exclusive(self.format.as_deref(), self.image_opts)?;
        let granularity = match &self.granularity {
            Some(text) => Some(size::parse_operand("granularity", text)?),
            None => None,
        };
        Ok(Request::Edit(BitmapArgs {
            bitmap: name(bitmap)?,
            target: self.target(file.clone(), context),
            actions,
            granularity,
            source_file: self.source_file,
            source_format: self.source_format,
        }))
    }

    fn form_given(&self) -> bool {
        self.output.is_some()
    }

    /// `--list` or `--dump`, which go with nothing that edits.
    fn reading(self, actions: &[Action], context: Context) -> Result<Request, Failure> {
        let hinted = |text: &str| Err(Failure::Hinted(text.into()));
        if self.list && self.dump {
            return hinted("--list and --dump are mutually exclusive");
        }
        if !actions.is_empty() || self.granularity.is_some() || self.source_file.is_some() {
            return hinted("--list and --dump only read: they can't go with an action");
        }
        super::exclusive(self.format.as_deref(), self.image_opts)?;
        let form = self.output.as_deref().unwrap_or("human");
        let form = match form {
            "human" => DumpForm::Human,
            "json" => DumpForm::Json,
            "ranges" if self.dump => DumpForm::Ranges,
            "raw" if self.dump => DumpForm::Raw,
            "layered" if self.dump => DumpForm::Layered,
            other if self.dump => {
                let text = "--output expects 'human', 'json', 'ranges', 'raw' or 'layered' not";
                return hinted(&format!("{text} '{other}'"));
            }
            other => return hinted(&format!("--output expects 'human' or 'json' not '{other}'")),
        };
        if self.with_zeroes && self.list {
            return hinted(ZEROES_ONLY_DUMPED);
        }
        if self.with_zeroes && matches!(form, DumpForm::Raw | DumpForm::Layered) {
            return hinted(
                "--with-zeroes goes with --output human, json or ranges: bits have no room for it",
            );
        }
        match (self.list, self.operands.as_slice()) {
            (true, [file]) => Ok(Request::List {
                target: self.target(file.clone(), context),
                json: form == DumpForm::Json,
            }),
            (true, _) => hinted("Expecting one image file name"),
            (false, [file, bitmap]) => Ok(Request::Dump {
                bitmap: name(bitmap)?,
                target: self.target(file.clone(), context),
                form,
                with_zeroes: self.with_zeroes,
            }),
            (false, _) => hinted("Expecting filename and bitmap name"),
        }
    }

    fn target(&self, file: OsString, context: Context) -> Target {
        Target {
            file,
            format: self.format.clone(),
            image_opts: self.image_opts,
            force_share: self.force_share,
            secrets: context.secrets,
        }
    }
}

/// A bitmap's name, which the format keeps as UTF-8.
fn name(operand: &OsString) -> Result<String, Failure> {
    let text = operand
        .to_str()
        .ok_or("A bitmap's name must be valid UTF-8")?;
    Ok(text.to_owned())
}

/// The actions in the order of the command line.
fn actions(context: &Context) -> Vec<Action> {
    let action = |met: &crate::getopt::Occurrence| match met.id.as_str() {
        "add" => Some(Action::Add),
        "remove" => Some(Action::Remove),
        "clear" => Some(Action::Clear),
        "enable" => Some(Action::Enable),
        "disable" => Some(Action::Disable),
        "merge" => {
            let source = met
                .value
                .as_ref()
                .map(|value| value.to_string_lossy().into_owned());
            Some(Action::Merge(source.unwrap_or_default()))
        }
        "from_compare" => Some(Action::FromCompare(met.value.clone().unwrap_or_default())),
        _ => None,
    };
    context.options.iter().filter_map(action).collect()
}

impl Run for BitmapOptions {
    const NAME: &'static str = "bitmap";
    const OURS: &'static [&'static str] = &[
        "list",
        "dump",
        "output",
        "force-share",
        "format",
        "with-zeroes",
        "from-compare",
    ];

    fn run(self, context: Context) -> Result<Exit, Failure> {
        match self.request(context)? {
            Request::Edit(args) => edit::run(&args),
            Request::List { target, json } => list::run(&target, json),
            Request::Dump {
                target,
                bitmap,
                form,
                with_zeroes,
            } => dump::run(&target, &bitmap, form, with_zeroes),
        }
    }
}
