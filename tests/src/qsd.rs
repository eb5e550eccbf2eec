//! A running `qemu-storage-daemon`, driven over QMP: the nearest thing to a VM that
//! holds an image, keeps its bitmaps and serves them over NBD.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{qmp::Qmp, testdata::BitmapTruth};

/// The daemon; it is killed when this value goes away before [`quit`](Qsd::quit).
#[derive(Debug)]
pub struct Qsd {
    child: Child,
    qmp: Qmp,
    /// Whether the node `n` was opened read-write.
    writable: bool,
}

impl Qsd {
    /// Starts the daemon with no image.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "starting a process is no default"
    )]
    pub fn new() -> Self {
        Self::in_dir(Path::new("."))
    }

    /// Starts the daemon in `dir`: that is where QEMU looks for an external data file
    /// that an image names without a path.
    fn in_dir(dir: &Path) -> Self {
        let mut child = Command::new("qemu-storage-daemon")
            .current_dir(dir)
            .args(["--chardev", "stdio,id=m", "--monitor", "m"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-storage-daemon");
        let stdout = child.stdout.take().unwrap();
        let stdin = child.stdin.take().unwrap();
        Self {
            child,
            qmp: Qmp::new("qemu-storage-daemon", stdout, stdin),
            writable: false,
        }
    }

    /// Starts the daemon and opens `image` read-write as the node `n`.
    #[must_use]
    pub fn open(image: &Path) -> Self {
        let mut qsd = Self::in_dir(image.parent().unwrap());
        qsd.add_node("n", image, false);
        qsd
    }

    /// Starts the daemon and opens `image` read-only as the node `n`.
    #[must_use]
    pub fn open_read_only(image: &Path) -> Self {
        let mut qsd = Self::in_dir(image.parent().unwrap());
        qsd.add_node("n", image, true);
        qsd
    }

    /// `blockdev-add` of a qcow2 image.
    #[track_caller]
    pub fn add_node(&mut self, node: &str, image: &Path, read_only: bool) {
        if node == "n" {
            self.writable = !read_only;
        }
        self.qmp(
            "blockdev-add",
            json!({
                "driver": "qcow2", "node-name": node, "read-only": read_only, "discard": "unmap",
                "file": { "driver": "file", "filename": image },
            }),
        );
    }

    /// `blockdev-del`: closes the image, which stores its bitmaps.
    #[track_caller]
    pub fn del_node(&mut self, node: &str) {
        self.qmp("blockdev-del", json!({ "node-name": node }));
    }

    /// A QMP command that must succeed; what it returned.
    ///
    /// # Panics
    /// When the daemon answers with an error or not at all.
    #[track_caller]
    pub fn qmp(&mut self, command: &str, arguments: Value) -> Value {
        self.qmp.qmp(command, arguments)
    }

    /// A QMP command; its error as text.
    ///
    /// # Errors
    /// The daemon's own description.
    ///
    /// # Panics
    /// When the daemon does not answer.
    pub fn try_qmp(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        self.qmp.try_qmp(command, arguments)
    }

    /// A bitmap command (`block-dirty-bitmap-enable` and its kin) on the node `n`.
    #[track_caller]
    pub fn bitmap(&mut self, command: &str, name: &str) {
        let command = format!("block-dirty-bitmap-{command}");
        self.qmp(&command, json!({ "node": "n", "name": name }));
    }

    /// Adds a persistent bitmap to the node `n`.
    #[track_caller]
    pub fn add_bitmap(&mut self, name: &str, granularity: u64, disabled: bool) {
        self.qmp(
            "block-dirty-bitmap-add",
            json!({
                "node": "n", "name": name, "granularity": granularity,
                "persistent": true, "disabled": disabled,
            }),
        );
    }

    /// Merges bitmaps of the node `n` into its bitmap `target`.
    #[track_caller]
    pub fn merge(&mut self, target: &str, sources: &[&str]) {
        let arguments = json!({ "node": "n", "target": target, "bitmaps": sources });
        self.qmp("block-dirty-bitmap-merge", arguments);
    }

    /// QEMU's digest of the bitmap's bits.
    #[track_caller]
    pub fn sha256(&mut self, name: &str) -> String {
        self.qmp.sha256("n", name)
    }

    /// Exports the node `n` with these bitmaps; the socket and the export's name.
    #[track_caller]
    pub fn export(&mut self, bitmaps: &[&str], writable: bool) -> (PathBuf, String) {
        self.qmp.export("n", bitmaps, writable)
    }

    /// Takes an export down again and waits until it is gone.
    #[track_caller]
    pub fn unexport(&mut self, export: &str) {
        self.qmp.unexport(export);
    }

    /// Dirty ranges of the bitmap as an NBD client sees them.
    #[track_caller]
    pub fn dirty(&mut self, name: &str) -> Vec<Range<u64>> {
        self.qmp.dirty("n", name, self.writable)
    }

    /// Everything QEMU knows about the persistent bitmaps of the node `n`, by name.
    /// The digest and the ranges of an inconsistent bitmap are empty.
    #[track_caller]
    pub fn truth(&mut self) -> Vec<BitmapTruth> {
        let live = self.qmp.bitmaps("n", self.writable);
        live.into_iter().map(|bitmap| bitmap.truth).collect()
    }

    /// Ends the daemon in an orderly way; bitmaps are stored.
    ///
    /// # Panics
    /// When it ends with an error.
    #[track_caller]
    pub fn quit(mut self) {
        self.qmp("quit", json!({}));
        let status = self.child.wait().unwrap();
        assert!(status.success(), "qemu-storage-daemon ended with {status}");
    }

    /// Kills the daemon as a crash of the host would; its bitmaps stay in use.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Process id of the daemon.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Qsd {
    fn drop(&mut self) {
        // Both fail when the process has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
