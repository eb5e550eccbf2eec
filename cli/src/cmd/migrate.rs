//! `migrate-bitmaps`: move dirty bitmaps from one image to another.

use std::ffi::OsString;

use clap::Args;

use crate::{
    args::{Context, Run},
    error::Failure,
    exit::Exit,
    output::Form,
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
    #[arg(long, value_enum, value_name = "FORM", default_value = "human", hide_default_value = true)]
    output: Form,

    #[arg(value_name = "SRC DST", num_args = 0..)]
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
            return Err(Failure::Hinted("Expecting source and destination image".into()));
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
            bitmaps.push(Rename { from: from.into(), to: to.into() });
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
        let _request = self.request()?;
        Err("migrate-bitmaps is not there yet".into())
    }
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
        let expected = expected.map(|(from, to)| Rename { from: from.into(), to: to.into() });
        assert_eq!(bitmaps, expected);
    }

    #[test]
    fn names_that_clash_or_are_empty_are_refused() {
        for names in [&["x", "x"][..], &["x=z", "y=z"], &["=y"], &["x="], &[""]] {
            assert!(request(names).is_err(), "{names:?}");
        }
    }
}
