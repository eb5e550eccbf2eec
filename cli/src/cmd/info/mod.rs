//! `info`: what an image is, without reading more of it than its metadata.

mod directory;
mod facts;
mod gather;
mod human;
mod json;

use std::{collections::HashSet, ffi::OsString, io::Write, iter};

use clap::{Args, ValueHint};

use crate::{
    args::{Context, Run},
    cmd,
    error::Failure,
    exit::Exit,
    image::{self, Use},
    opts::{Backing, ImageSpec},
    output::{self, Form, Json, Tree},
};
use facts::Facts;

/// Longest chain that is followed.
const MAX_CHAIN: usize = 200;

/// Show what an image is: format, sizes, features, snapshots, bitmaps
///
/// No file but the image itself is opened, unless --backing-chain is given.
#[derive(Debug, Args)]
#[command(
    override_usage = "qimg info [-f FMT | --image-opts] [-b] [-U] [--output human|json] FILENAME",
    after_long_help = "\
Examples:
  qimg info disk.qcow2
  Sizes and features for a program:
      qimg info --output=json disk.qcow2
  An image that a virtual machine is using right now:
      qimg info -U disk.qcow2
  With everything it is based on:
      qimg info --backing-chain overlay.qcow2

Exit code: 0 done, 1 failed."
)]
pub(crate) struct InfoArgs {
    /// The format of FILENAME (otherwise found out from its first bytes)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,

    /// FILENAME is a list such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,

    /// Show the images that FILENAME is based on, too
    #[arg(short, long)]
    backing_chain: bool,

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

impl Run for InfoArgs {
    const NAME: &'static str = "info";

    fn run(mut self, _context: Context) -> Result<Exit, Failure> {
        let file = cmd::one_file(std::mem::take(&mut self.files))?;
        cmd::exclusive(self.format.as_deref(), self.image_opts)?;
        let mut spec = cmd::image_spec(&file, self.format.as_deref(), self.image_opts)?;
        cmd::share(&mut spec, self.force_share)?;
        let mut out = output::stdout();
        if !self.backing_chain {
            self.print(&mut out, iter::once(Ok(facts(&spec)?)))?;
        } else {
            // Nothing is printed unless the whole chain can be read; but it isn't kept, for
            // an image may have tens of megabytes to tell.
            let chain = chain(spec)?;
            self.print(&mut out, chain.iter().map(facts))?;
        }
        out.flush()?;
        Ok(Exit::Success)
    }
}

impl InfoArgs {
    fn print(
        &self,
        out: &mut impl Write,
        images: impl Iterator<Item = Result<Facts, Failure>>,
    ) -> Result<(), Failure> {
        match self.output {
            Form::Human => {
                for (at, facts) in images.enumerate() {
                    let facts = facts?;
                    if at > 0 {
                        writeln!(out)?;
                    }
                    human::image(out, &facts)?;
                }
            }
            Form::Json => {
                let mut json = Json::new(out);
                if self.backing_chain {
                    json.list("")?;
                }
                for facts in images {
                    json::image(&mut json, &facts?)?;
                }
                if self.backing_chain {
                    json.end()?;
                }
            }
        }
        Ok(())
    }
}

/// Everything about one image.
fn facts(spec: &ImageSpec) -> Result<Facts, Failure> {
    let opened = cmd::open(spec, Use::Info)?;
    gather::facts(spec, opened).map_err(|message| cmd::open_failure(&spec.given, message))
}

/// The image and those behind it, each looked at once.
fn chain(first: ImageSpec) -> Result<Vec<ImageSpec>, Failure> {
    let mut chain = Vec::new();
    let mut seen = HashSet::new();
    let mut next = Some(first);
    while let Some(spec) = next.take() {
        if !seen.insert(spec.file.path.clone()) {
            let name = spec.file.path.to_string_lossy();
            let text = format!("Backing file '{name}' creates an infinite loop.");
            return Err(Failure::Message(text));
        }
        if chain.len() == MAX_CHAIN {
            let text = format!("The backing chain is longer than {MAX_CHAIN} images");
            return Err(Failure::Message(text));
        }
        let facts = facts(&spec)?;
        if spec.backing == Backing::Header {
            let full = facts.backing.as_ref().map(|backing| backing.full.clone());
            next = gather::next_in_chain(&facts).map_err(|message| {
                cmd::open_failure(image::os_str(&full.unwrap_or_default()), message)
            })?;
            if let Some(next) = &mut next {
                next.force_share = spec.force_share;
            }
        }
        chain.push(spec);
    }
    Ok(chain)
}
