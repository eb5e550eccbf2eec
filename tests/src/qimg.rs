//! The `qimg` under test.
//!
//! A test in `cli/tests/` writes `qimg_tests::qimg!()`; Cargo has then built the
//! binary of the very same sources, and tells where it is.

use std::{
    ffi::OsStr,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    run::Run,
    testdata::{BitmapTruth, ranges_of},
};

/// The [`Qimg`] of the package whose test this is.
#[macro_export]
macro_rules! qimg {
    () => {
        $crate::Qimg::at(env!("CARGO_BIN_EXE_qimg"))
    };
}

/// Runs the built binary.
#[derive(Debug, Clone)]
pub struct Qimg {
    exe: PathBuf,
}

impl Qimg {
    /// The binary at `exe`; see [`qimg!`](crate::qimg!).
    #[must_use]
    pub fn at(exe: impl Into<PathBuf>) -> Self {
        Self { exe: exe.into() }
    }

    /// A command to be filled in by the caller.
    #[must_use]
    pub fn command(&self) -> Command {
        Command::new(&self.exe)
    }

    /// Runs it with `args`.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        Run::new(&self.exe, args)
    }

    /// Runs it in `dir`, so that file names in messages are short.
    pub fn run_in<S: AsRef<OsStr>>(&self, dir: &Path, args: impl IntoIterator<Item = S>) -> Run {
        Run::of(self.command().current_dir(dir).args(args))
    }

    /// `qimg bitmap ACTIONS FILE NAME`, which must succeed.
    #[track_caller]
    pub fn bitmap(&self, actions: &[&str], image: &Path, name: &str) -> Run {
        let mut args: Vec<&OsStr> = vec!["bitmap".as_ref()];
        args.extend(actions.iter().map(OsStr::new));
        args.extend([image.as_os_str(), name.as_ref()]);
        self.run(args).ok()
    }

    /// `qimg bitmap --dump --output=json FILE NAME`, as JSON.
    #[track_caller]
    pub fn dump(&self, image: &Path, name: &str) -> Value {
        let json: [&OsStr; 5] = [
            "bitmap".as_ref(),
            "--dump".as_ref(),
            "--output=json".as_ref(),
            image.as_os_str(),
            name.as_ref(),
        ];
        self.run(json).ok().json()
    }

    /// The dirty ranges that the dump tells.
    #[track_caller]
    pub fn dirty(&self, image: &Path, name: &str) -> Vec<Range<u64>> {
        ranges_of(&self.dump(image, name)["extents"])
    }

    /// The dump in the form that the records in `testdata/` have.
    #[track_caller]
    pub fn truth(&self, image: &Path, name: &str) -> BitmapTruth {
        let dump = self.dump(image, name);
        BitmapTruth {
            name: dump["name"].as_str().unwrap().to_owned(),
            state: dump["state"].as_str().unwrap().to_owned(),
            granularity: dump["granularity"].as_u64().unwrap(),
            count: dump["dirty-count"].as_u64().unwrap() * dump["granularity"].as_u64().unwrap(),
            sha256: dump["sha256"].as_str().unwrap().to_owned(),
            ranges: ranges_of(&dump["extents"]),
        }
    }
}
