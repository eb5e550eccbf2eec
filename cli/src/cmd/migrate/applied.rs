//! What became of each bitmap of a stream.

use std::{
    ffi::OsStr,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    sync::Arc,
};

use hbitmap::State;
use migration::{Loss, Lost, Received};

use super::{names::Plan, report::Facts, request::Apply, store::New};
use crate::{
    output::{self, Form, Json, Tree, escape_control},
    progname,
};

/// Losses that are told on standard error one by one.
const TOLD: usize = 20;

/// A bitmap that is to be stored.
#[derive(Debug)]
pub(super) struct Arrived {
    /// Its names in the stream: the node's and its own.
    pub(super) alias: Alias,
    /// What is stored.
    pub(super) new: New,
    /// What was read back.
    pub(super) stored: Option<Facts>,
}

/// What a bitmap is called in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    node: String,
    bitmap: String,
}

/// A bitmap of the stream that isn't stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Left {
    alias: Alias,
    why: Why,
}

/// Why it isn't.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// The command line leaves it out.
    LeftOut,
    /// The stream calls it transient.
    Transient,
    /// It is named on the command line, and the stream doesn't have it.
    Missing,
    /// It can't be had.
    Lost(String),
}

impl Why {
    const fn word(&self) -> &'static str {
        match self {
            Self::LeftOut => "left-out",
            Self::Transient => "transient",
            Self::Missing => "missing",
            Self::Lost(_) => "lost",
        }
    }
}

/// The bitmaps of a stream, sorted.
#[derive(Debug)]
pub(super) struct Sorted {
    /// For each image of the plan, what is to be stored in it, oldest first.
    pub(super) parts: Vec<Vec<Arrived>>,
    left: Vec<Left>,
}

impl Sorted {
    /// Sorts them.
    pub(super) fn new(plan: &Plan, complete: Vec<Received>, lost: &[Lost]) -> Self {
        let mut sorted = Self {
            parts: plan.images.iter().map(|_| Vec::new()).collect(),
            left: Vec::new(),
        };
        sorted.missing(plan, &complete, lost);
        for lost in lost {
            sorted.lost(plan, lost);
        }
        // A stream has the newest first, an image's directory the oldest.
        for received in complete.into_iter().rev() {
            sorted.arrived(plan, received);
        }
        sorted
    }

    /// Bitmaps that the command line names and the stream doesn't have.
    fn missing(&mut self, plan: &Plan, complete: &[Received], lost: &[Lost]) {
        for (node, name) in &plan.picked {
            let arrived = complete
                .iter()
                .any(|b| b.node == *node && b.bitmap.name() == name);
            let lost = lost.iter().any(|b| {
                b.node.as_deref() == Some(node) && b.bitmap.as_deref() == Some(name.as_str())
            });
            if !arrived && !lost {
                let wire = plan.map.outgoing(node, name);
                let (node, bitmap) = match wire {
                    Some(wire) => (wire.node, wire.bitmap),
                    None => (node.clone(), name.clone()),
                };
                let alias = Alias { node, bitmap };
                let why = Why::Missing;
                self.left.push(Left { alias, why });
            }
        }
    }

    fn lost(&mut self, plan: &Plan, lost: &Lost) {
        let alias = Alias {
            node: lost.node_alias.clone(),
            bitmap: lost.bitmap_alias.clone(),
        };
        match &lost.reason {
            Loss::UnknownNode | Loss::UnknownBitmap if plan.leaves_out(&alias) => {
                let why = Why::LeftOut;
                self.left.push(Left { alias, why });
            }
            Loss::UnknownNode => {
                let what = "no image is this node: give one as NODE=FILE, or leave the node out \
                            with --bitmap or --map";
                self.lose(alias, what.into());
            }
            reason @ Loss::NameTaken { .. } => {
                self.lose(alias, format!("{reason} (--force replaces it)"));
            }
            reason => {
                let offset = lost.offset;
                self.lose(
                    alias,
                    format!("{reason} (offset {offset:#x} of the stream)"),
                );
            }
        }
    }

    fn arrived(&mut self, plan: &Plan, received: Received) {
        let alias = Alias {
            node: received.node_alias,
            bitmap: received.bitmap_alias,
        };
        if !received.persistent {
            let why = Why::Transient;
            self.left.push(Left { alias, why });
            return;
        }
        let place = plan
            .images
            .iter()
            .position(|image| image.node == received.node);
        let Some(part) = place.and_then(|place| self.parts.get_mut(place)) else {
            return;
        };
        let bitmap = received.bitmap;
        part.push(Arrived {
            alias,
            new: New {
                name: bitmap.name().as_bytes().to_vec(),
                recording: bitmap.state() == State::Recording,
                bits: Arc::new(bitmap.into_bits()),
            },
            stored: None,
        });
    }

    /// Notes that a bitmap can't be had.
    pub(super) fn lose(&mut self, alias: Alias, why: String) {
        let why = Why::Lost(why);
        self.left.push(Left { alias, why });
    }

    /// Bitmaps that are wanted and can't be had.
    pub(super) fn losses(&self) -> usize {
        let lost = |left: &&Left| matches!(left.why, Why::Lost(_) | Why::Missing);
        self.left.iter().filter(lost).count()
    }

    /// Says on standard error what isn't stored, and why.
    pub(super) fn warn(&self) {
        let mut told = 0;
        for Left { alias, why } in &self.left {
            told += 1;
            if told > TOLD {
                let more = self.left.len() - TOLD;
                progname::error(format_args!("and {more} more bitmaps that are not stored"));
                return;
            }
            let name = alias.shown();
            match why {
                Why::LeftOut => {
                    progname::warning(format_args!("bitmap '{name}' of the stream is left out"));
                }
                Why::Transient => progname::warning(format_args!(
                    "bitmap '{name}' is transient and not stored (--persistent=on stores it)"
                )),
                Why::Missing => {
                    progname::error(format_args!("bitmap '{name}' is not in the stream"));
                }
                Why::Lost(why) => {
                    let why = escape_control(why);
                    progname::error(format_args!("bitmap '{name}' is lost: {why}"));
                }
            }
        }
    }
}

impl Plan {
    /// Whether the command line leaves this bitmap of a stream out on purpose: it says what
    /// goes, and this isn't in it.
    fn leaves_out(&self, alias: &Alias) -> bool {
        self.selective && self.map.incoming(&alias.node, &alias.bitmap).is_err()
    }
}

impl Alias {
    fn shown(&self) -> String {
        let text = format!("{}/{}", self.node, self.bitmap);
        escape_control(&text).into_owned()
    }
}

/// What is told of a stream that was applied.
#[derive(Debug)]
pub(super) struct Told<'a> {
    /// The command line.
    pub(super) request: &'a Apply,
    /// The images.
    pub(super) plan: &'a Plan,
    /// The bitmaps.
    pub(super) sorted: &'a Sorted,
    /// The machine type in the stream.
    pub(super) machine: Option<&'a str>,
    /// What is wrong with the stream as a whole.
    pub(super) fault: Option<&'a str>,
}

impl Told<'_> {
    /// Prints it.
    pub(super) fn print(&self) -> io::Result<()> {
        match self.request.form {
            Form::Human => self.human(),
            Form::Json => self.json(),
        }
    }

    fn human(&self) -> io::Result<()> {
        let mut out = output::stdout();
        let mut count = 0;
        for (image, part) in self.plan.images.iter().zip(&self.sorted.parts) {
            let file = image.file.to_string_lossy();
            for bitmap in part {
                let Some(facts) = &bitmap.stored else {
                    continue;
                };
                let name = String::from_utf8_lossy(&bitmap.new.name);
                write!(
                    out,
                    "stored {} in {} as {}",
                    bitmap.alias.shown(),
                    escape_control(&file),
                    escape_control(&name)
                )?;
                facts.human(&mut out)?;
                facts.human_digest("sha256", &mut out)?;
                count += 1;
            }
        }
        if count == 0 {
            writeln!(out, "no bitmaps stored")?;
        }
        out.flush()
    }

    fn json(&self) -> io::Result<()> {
        let stream = self.request.from.as_deref().unwrap_or(OsStr::new("-"));
        let mut json = Json::new(output::stdout());
        json.object("")?;
        json.string("stream", stream.as_bytes())?;
        match self.machine {
            Some(machine) => json.string("machine", machine.as_bytes())?,
            None => json.null("machine")?,
        }
        match self.fault {
            Some(fault) => json.string("error", fault.as_bytes())?,
            None => json.null("error")?,
        }
        json.list("images")?;
        for (image, part) in self.plan.images.iter().zip(&self.sorted.parts) {
            json.object("")?;
            json.string("filename", image.file.as_bytes())?;
            json.string("node", image.node.as_bytes())?;
            json.list("bitmaps")?;
            for bitmap in part {
                let Some(facts) = &bitmap.stored else {
                    continue;
                };
                json.object("")?;
                json.string("name", &bitmap.new.name)?;
                bitmap.alias.json(&mut json)?;
                facts.json(&mut json)?;
                facts.json_digest("sha256", &mut json)?;
                json.end()?;
            }
            json.end()?;
            json.end()?;
        }
        json.end()?;
        json.list("not-stored")?;
        for Left { alias, why } in &self.sorted.left {
            json.object("")?;
            alias.json(&mut json)?;
            json.string("reason", why.word().as_bytes())?;
            match why {
                Why::Lost(text) => json.string("message", text.as_bytes())?,
                Why::LeftOut | Why::Transient | Why::Missing => json.null("message")?,
            }
            json.end()?;
        }
        json.end()?;
        json.end()?;
        json.into_inner().flush()
    }
}

impl Alias {
    fn json<W: Write>(&self, json: &mut Json<W>) -> io::Result<()> {
        json.string("node-alias", self.node.as_bytes())?;
        json.string("alias", self.bitmap.as_bytes())
    }
}
