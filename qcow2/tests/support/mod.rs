//! What the tests beside the real tools share: finding qemu-img, running it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "each test file uses its part, and a panic is its message"
)]

pub(crate) mod check;
pub(crate) mod disk;
pub(crate) mod random;
pub(crate) mod repair;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// A scratch directory to run qemu-img in; `None`, with the reason printed, where
/// there is no qemu-img. With `QIMG_REQUIRE_QEMU=1` that is a failure.
pub(crate) struct Qemu {
    dir: TempDir,
}

impl Qemu {
    /// Finds qemu-img and makes the scratch directory.
    pub(crate) fn find() -> Option<Self> {
        if let Err(error) = Command::new("qemu-img").arg("--version").output() {
            let required = std::env::var_os("QIMG_REQUIRE_QEMU").is_some_and(|v| v == "1");
            assert!(!required, "qemu-img is required and can't be run: {error}");
            eprintln!("skipped: qemu-img can't be run: {error}");
            return None;
        }
        Some(Self {
            dir: tempfile::tempdir().unwrap(),
        })
    }

    /// A path in the scratch directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The bytes of a file in the scratch directory.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Runs qemu-img there with `line`, split at spaces, whatever it answers.
    pub(crate) fn run(&self, line: &str) -> Output {
        run(
            self.dir.path(),
            "qemu-img",
            &line.split(' ').collect::<Vec<_>>(),
        )
    }

    /// As [`run`](Self::run), ended after some seconds.
    pub(crate) fn run_briefly(&self, line: &str) -> Output {
        let line = format!("20 qemu-img {line}");
        run(
            self.dir.path(),
            "timeout",
            &line.split(' ').collect::<Vec<_>>(),
        )
    }

    /// Runs qemu-img there; it must succeed.
    pub(crate) fn img(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "qemu-img {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs qemu-img in a directory below; it must succeed.
    pub(crate) fn img_in(&self, directory: &str, line: &str) -> String {
        let words = line.split(' ').collect::<Vec<_>>();
        let output = run(&self.path(directory), "qemu-img", &words);
        assert!(output.status.success(), "qemu-img {line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// As [`io`](Self::io), with discards and the words that name the image. QEMU doesn't write compressed to a cluster that
    /// is allocated: only such commands may fail.
    pub(crate) fn scribble(&self, image: &str, commands: &[&str]) {
        let mut args = vec!["-d", "unmap"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.extend(image.split(' '));
        let output = run(self.dir.path(), "qemu-io", &args);
        let said = format!("{output:?}");
        let compressed = commands.iter().filter(|c| c.starts_with("write -c"));
        let failed = said.matches("failed").count();
        let refused = said.matches("write failed: Input/output error").count();
        assert!(
            failed == refused && refused <= compressed.count(),
            "qemu-io {commands:?}: {said}"
        );
    }

    /// Runs qemu-io there on `image` with one `-c` for each of `commands`.
    pub(crate) fn io(&self, image: &str, commands: &[&str]) {
        self.io_with(&format!("-f qcow2 {image}"), commands);
    }

    /// As [`io`](Self::io), with the words that name the image.
    pub(crate) fn io_with(&self, image: &str, commands: &[&str]) {
        let mut args = Vec::new();
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.extend(image.split(' '));
        let output = run(self.dir.path(), "qemu-io", &args);
        assert!(output.status.success(), "qemu-io {commands:?}: {output:?}");
    }
}

fn run(dir: &Path, tool: &str, args: &[&str]) -> Output {
    Command::new(tool)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .args(args)
        .output()
        .unwrap()
}
