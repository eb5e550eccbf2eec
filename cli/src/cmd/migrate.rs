//! `migrate-bitmaps`: move dirty bitmaps from one image to another.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
};

use clap::{Args, ValueHint};
use qcow2::{
    Image,
    bitmap::{self, BitmapError, CopiedBitmap, CopyRequest},
};

use crate::{
    args::{Context, Run},
    cmd::{self, bitmap::hex},
    error::{Failure, chain},
    exit::Exit,
    image::Use,
    output::{self, Form, Json, Tree, escape_control},
    progname,
    size::Human,
};

/// Move dirty bitmaps from one image to another of the same disk size
///
/// Every persistent bitmap of SRC, or those named with --bitmap, is written to DST with its
/// granularity, its recording state and its bits, and read back to be compared. DST is
/// switched to the new bitmaps in one step: all of them are there or none. Nothing is
/// written if a bitmap is inconsistent, has a name that DST already uses, or if the disks
/// differ in size.
#[derive(Debug, Args)]
#[command(
    override_usage = "qimg migrate-bitmaps [--bitmap NAME[=NEWNAME]]... [--remove-source] \
                      [--force]\n            [--output human|json] SRC DST",
    after_long_help = "\
Examples:
  All bitmaps, after a disk was copied with `qemu-img convert`:
      qimg migrate-bitmaps old.qcow2 new.qcow2
  One, under another name, and remove it from where it was:
      qimg migrate-bitmaps --bitmap backup-1=monday --remove-source old.qcow2 new.qcow2

Exit code: 0 done, 1 failed."
)]
pub(crate) struct MigrateArgs {
    /// Move only this bitmap (may be repeated), under NEWNAME if given
    #[arg(long, value_name = "NAME[=NEWNAME]", action = clap::ArgAction::Append)]
    bitmap: Vec<String>,

    /// Remove the bitmaps from SRC once DST is safe on disk
    #[arg(long)]
    remove_source: bool,

    /// Replace bitmaps of the same names in DST
    #[arg(long)]
    force: bool,

    /// The form of the report
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        default_value = "human",
        hide_default_value = true
    )]
    output: Form,

    /// The image that has the bitmaps, then the one that gets them
    #[arg(value_name = "FILENAME", num_args = 0.., value_hint = ValueHint::FilePath)]
    operands: Vec<OsString>,
}

/// A bitmap to move: its name in the source and in the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rename {
    /// In the source.
    pub(crate) from: String,
    /// In the destination.
    pub(crate) to: String,
}

/// What the command line asks for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The image that has the bitmaps.
    pub(crate) source: OsString,
    /// The image that gets them.
    pub(crate) destination: OsString,
    /// Which; empty for all.
    pub(crate) bitmaps: Vec<Rename>,
    /// `--remove-source`
    pub(crate) remove_source: bool,
    /// `--force`
    pub(crate) force: bool,
    /// The form of the report.
    pub(crate) form: Form,
}

impl MigrateArgs {
    fn request(self) -> Result<Request, Failure> {
        let [source, destination] = self.operands.as_slice() else {
            return Err(Failure::Hinted(
                "Expecting source and destination image".into(),
            ));
        };
        let mut bitmaps: Vec<Rename> = Vec::new();
        for text in &self.bitmap {
            // A name may hold `=`: only the first one separates.
            let (from, to) = text.split_once('=').unwrap_or((text, text));
            if from.is_empty() || to.is_empty() {
                return Err(Failure::Hinted(format!(
                    "--bitmap expects NAME or NAME=NEWNAME not '{text}'"
                )));
            }
            if bitmaps.iter().any(|known| known.from == from) {
                return Err(format!("Bitmap '{from}' is named twice").into());
            }
            if bitmaps.iter().any(|known| known.to == to) {
                return Err(format!("Two bitmaps can't both be called '{to}'").into());
            }
            bitmaps.push(Rename {
                from: from.into(),
                to: to.into(),
            });
        }
        Ok(Request {
            source: source.clone(),
            destination: destination.clone(),
            bitmaps,
            remove_source: self.remove_source,
            force: self.force,
            form: self.output,
        })
    }
}

impl Run for MigrateArgs {
    const NAME: &'static str = "migrate-bitmaps";

    fn run(self, _context: Context) -> Result<Exit, Failure> {
        let request = self.request()?;
        let text = |e: qcow2::Error| Failure::Message(chain(&e));
        let source_use = if request.remove_source {
            Use::Edit
        } else {
            Use::Read
        };
        let source = open_qcow2(&request.source, source_use)?;
        refuse_same_file(&request.source, &request.destination)?;
        let target = open_qcow2(&request.destination, Use::Edit)?;
        let Some(mut source) = source else {
            return Err(no_bitmaps(&request.source, "has no bitmaps"));
        };
        let Some(mut target) = target else {
            return Err(no_bitmaps(&request.destination, "can't hold bitmaps"));
        };
        let bitmaps = match request.bitmaps.as_slice() {
            [] => bitmap::all_bitmaps(&source).map_err(text)?,
            named => named.iter().map(Rename::request).collect(),
        };
        if target.bitmaps().is_ok_and(|bitmaps| bitmaps.is_voided()) {
            progname::warning(format_args!(
                "'{}' was written by a program that doesn't keep bitmaps: those that it has are \
                 void and go away",
                request.destination.to_string_lossy()
            ));
        }
        let moved = bitmap::copy_bitmaps(&source, &mut target, &bitmaps, request.force);
        let moved = moved.map_err(|e| refusal(&request, &e))?;
        if request.remove_source {
            let mut edit = source.edit_bitmaps().map_err(text)?;
            for bitmap in &bitmaps {
                edit.remove(&bitmap.name).map_err(text)?;
            }
            edit.commit().map_err(text)?;
        }
        match request.form {
            Form::Human => human(&request, &moved)?,
            Form::Json => json(&request, &moved)?,
        }
        Ok(Exit::Success)
    }
}

impl Rename {
    fn request(&self) -> CopyRequest {
        CopyRequest {
            name: self.from.clone().into(),
            new_name: self.to.clone().into(),
        }
    }
}

/// Opens one of the two; `None` if it is no qcow2 image.
fn open_qcow2(name: &OsStr, what_for: Use) -> Result<Option<Image>, Failure> {
    let spec = cmd::image_spec(name, None, false)?;
    Ok(cmd::open(&spec, what_for)?.into_qcow2())
}

/// Why nothing was written, with the image that stands in the way.
fn refusal(request: &Request, error: &qcow2::Error) -> Failure {
    let source = request.source.to_string_lossy();
    let target = request.destination.to_string_lossy();
    let qcow2::Error::Bitmap(fault) = error else {
        return Failure::Message(chain(error));
    };
    let words = fault.to_string();
    let text = match fault {
        BitmapError::DifferentSizes { target: to, origin } => format!(
            "The disks differ in size: '{source}' has {origin} bytes, '{target}' {to}; a bitmap \
             only fits a disk of the same size"
        ),
        BitmapError::Exists { .. } => format!("'{target}': {words} (--force replaces it)"),
        BitmapError::Inconsistent { .. } if request.bitmaps.is_empty() => {
            format!("'{source}': {words}; --bitmap NAME moves the others")
        }
        BitmapError::NotFound { .. }
        | BitmapError::Inconsistent { .. }
        | BitmapError::Unusable { .. } => format!("'{source}': {words}"),
        _ => format!("'{target}': {words}"),
    };
    Failure::Message(text)
}

fn no_bitmaps(name: &OsStr, what: &str) -> Failure {
    let shown = name.to_string_lossy();
    Failure::Message(format!(
        "'{shown}' is a raw image and {what}: a qcow2 image is needed"
    ))
}

/// Two names of one file would only be told apart by the lock.
fn refuse_same_file(source: &OsStr, destination: &OsStr) -> Result<(), Failure> {
    let identity = |name: &OsStr| std::fs::metadata(name).ok().map(|m| (m.dev(), m.ino()));
    match (identity(source), identity(destination)) {
        (Some(a), Some(b)) if a == b => {
            Err("SRC and DST are the same image: nothing to move".into())
        }
        _ => Ok(()),
    }
}

fn human(request: &Request, moved: &[CopiedBitmap]) -> io::Result<()> {
    let mut out = output::stdout();
    let verb = if request.remove_source {
        "moved"
    } else {
        "copied"
    };
    if moved.is_empty() {
        writeln!(out, "no bitmaps {verb}: the source has none")?;
    }
    for bitmap in moved {
        let names = &bitmap.request;
        let name = String::from_utf8_lossy(&names.name);
        write!(out, "{verb} {}", escape_control(&name))?;
        if names.name != names.new_name {
            write!(
                out,
                " as {}",
                escape_control(&String::from_utf8_lossy(&names.new_name))
            )?;
        }
        let (bytes, count) = (bitmap.dirty_bytes, bitmap.dirty_count);
        let granularity = Human(bitmap.granularity);
        let state = if bitmap.recording {
            "recording"
        } else {
            "disabled"
        };
        writeln!(
            out,
            ": {state}, {} ({bytes} bytes) dirty in {count} granules of {granularity}",
            Human(bytes)
        )?;
        writeln!(out, "  source sha256 {}", hex(&bitmap.source_sha256))?;
        writeln!(out, "  target sha256 {}", hex(&bitmap.target_sha256))?;
    }
    out.flush()
}

fn json(request: &Request, moved: &[CopiedBitmap]) -> io::Result<()> {
    let mut json = Json::new(output::stdout());
    json.object("")?;
    json.string("source", request.source.as_bytes())?;
    json.string("target", request.destination.as_bytes())?;
    json.flag("source-removed", request.remove_source)?;
    json.list("bitmaps")?;
    for bitmap in moved {
        json.object("")?;
        json.string("name", &bitmap.request.name)?;
        json.string("new-name", &bitmap.request.new_name)?;
        json.number("granularity", bitmap.granularity.into())?;
        let state = if bitmap.recording {
            "recording"
        } else {
            "disabled"
        };
        json.string("state", state.as_bytes())?;
        json.number("dirty-count", bitmap.dirty_count.into())?;
        json.number("dirty-bytes", bitmap.dirty_bytes.into())?;
        json.string("source-sha256", hex(&bitmap.source_sha256).as_bytes())?;
        json.string("target-sha256", hex(&bitmap.target_sha256).as_bytes())?;
        json.end()?;
    }
    json.end()?;
    json.end()?;
    json.into_inner().flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bitmaps: &[&str]) -> Result<Request, Failure> {
        MigrateArgs {
            bitmap: bitmaps.iter().map(|&text| text.to_owned()).collect(),
            remove_source: false,
            force: false,
            output: Form::Human,
            operands: vec!["a".into(), "b".into()],
        }
        .request()
    }

    #[test]
    fn a_bitmap_may_get_another_name() {
        let bitmaps = request(&["x", "y=z=1"]).unwrap().bitmaps;
        let expected = [("x", "x"), ("y", "z=1")];
        let expected = expected.map(|(from, to)| Rename {
            from: from.into(),
            to: to.into(),
        });
        assert_eq!(bitmaps, expected);
    }

    #[test]
    fn a_refusal_names_the_image() {
        let name = || "x".to_owned();
        let said = |bitmaps: &[&str], fault: BitmapError| match refusal(
            &request(bitmaps).unwrap(),
            &fault.into(),
        ) {
            Failure::Message(text) => text,
            other => panic!("{other:?}"),
        };
        let sizes = BitmapError::DifferentSizes {
            target: 1,
            origin: 2,
        };
        assert_eq!(
            said(&[], sizes),
            "The disks differ in size: 'a' has 2 bytes, 'b' 1; a bitmap only fits a disk of the \
             same size"
        );
        let exists = BitmapError::Exists { name: name() };
        assert!(said(&[], exists).ends_with("(--force replaces it)"));
        assert!(said(&["x"], BitmapError::NotFound { name: name() }).starts_with("'a': "));
        assert!(said(&[], BitmapError::Version2).starts_with("'b': "));
        let crashed = BitmapError::Inconsistent { name: name() };
        assert!(said(&[], crashed.clone()).contains("--bitmap"));
        assert!(!said(&["x"], crashed).contains("--bitmap"));
    }

    #[test]
    fn names_that_clash_or_are_empty_are_refused() {
        for names in [&["x", "x"][..], &["x=z", "y=z"], &["=y"], &["x="], &[""]] {
            assert!(request(names).is_err(), "{names:?}");
        }
    }
}
