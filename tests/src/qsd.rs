//! A running `qemu-storage-daemon`, driven over QMP: the nearest thing to a VM that
//! holds an image, keeps its bitmaps and serves them over NBD.

use std::{
    io::{BufRead, BufReader, Write},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{nbd::Nbd, scratch::Scratch, testdata::BitmapTruth};

/// How long one QMP command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon; it is killed when this value goes away before [`quit`](Qsd::quit).
#[derive(Debug)]
pub struct Qsd {
    child: Child,
    stdin: ChildStdin,
    replies: Receiver<Value>,
    scratch: Scratch,
    exports: u32,
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
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, replies) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let parsed = serde_json::from_str(&line);
                if parsed.is_ok_and(|value: Value| sender.send(value).is_err()) {
                    break;
                }
            }
        });
        let stdin = child.stdin.take().unwrap();
        let mut qsd = Self {
            child,
            stdin,
            replies,
            scratch: Scratch::new(),
            exports: 0,
            writable: false,
        };
        qsd.qmp("qmp_capabilities", json!({}));
        qsd
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
        match self.try_qmp(command, arguments) {
            Ok(value) => value,
            Err(message) => panic!("{command}: {message}"),
        }
    }

    /// A QMP command; its error as text.
    ///
    /// # Errors
    /// The daemon's own description.
    ///
    /// # Panics
    /// When the daemon does not answer.
    pub fn try_qmp(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let message = json!({ "execute": command, "arguments": arguments });
        // In one piece: the daemon acts on the last brace, and may be gone before a
        // newline that comes after.
        if let Err(e) = self.stdin.write_all(format!("{message}\n").as_bytes()) {
            let status = self.child.try_wait();
            panic!("{command}: qemu-storage-daemon is gone ({status:?}): {e}");
        }
        loop {
            let reply = self.next_message(command);
            if let Some(value) = reply.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = reply.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().to_owned());
            }
        }
    }

    fn next_message(&mut self, what: &str) -> Value {
        self.replies
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|e| panic!("{what}: no answer from qemu-storage-daemon: {e}"))
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
        let reply = self.qmp(
            "x-debug-block-dirty-bitmap-sha256",
            json!({ "node": "n", "name": name }),
        );
        reply["sha256"].as_str().unwrap().to_owned()
    }

    /// Exports the node `n` with these bitmaps; the socket and the export's name.
    #[track_caller]
    pub fn export(&mut self, bitmaps: &[&str], writable: bool) -> (PathBuf, String) {
        let socket = self.scratch.path("nbd.sock");
        if self.exports == 0 {
            let address = json!({ "type": "unix", "data": { "path": socket } });
            self.qmp("nbd-server-start", json!({ "addr": address }));
        }
        self.exports += 1;
        let name = format!("e{}", self.exports);
        self.qmp(
            "block-export-add",
            json!({
                "type": "nbd", "id": name, "node-name": "n", "name": name,
                "bitmaps": bitmaps, "writable": writable,
            }),
        );
        (socket, name)
    }

    /// Takes an export down again and waits until it is gone.
    #[track_caller]
    pub fn unexport(&mut self, export: &str) {
        self.qmp("block-export-del", json!({ "id": export, "mode": "hard" }));
        while self
            .qmp("query-block-exports", json!({}))
            .as_array()
            .is_some_and(|all| all.iter().any(|e| e["id"] == export))
        {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Dirty ranges of the bitmap as an NBD client sees them.
    #[track_caller]
    pub fn dirty(&mut self, name: &str) -> Vec<Range<u64>> {
        // QEMU exports a recording bitmap of a writable node only for writing.
        let (socket, export) = self.export(&[name], self.writable);
        let context = format!("qemu:dirty-bitmap:{name}");
        let ranges = Nbd::connect(&socket, &export, &[&context]).dirty(name);
        self.unexport(&export);
        ranges
    }

    /// Everything QEMU knows about the persistent bitmaps of the node `n`, by name.
    /// The digest and the ranges of an inconsistent bitmap are empty.
    #[track_caller]
    pub fn truth(&mut self) -> Vec<BitmapTruth> {
        let nodes = self.qmp("query-named-block-nodes", json!({ "flat": true }));
        let nodes = nodes.as_array().unwrap();
        let node = nodes.iter().find(|node| node["node-name"] == "n").unwrap();
        let listed = node["dirty-bitmaps"].as_array().cloned();
        let mut out: Vec<BitmapTruth> = Vec::new();
        for bitmap in listed.unwrap_or_default() {
            let name = bitmap["name"].as_str().unwrap().to_owned();
            let flag = |key: &str| bitmap[key].as_bool().unwrap_or(false);
            let inconsistent = flag("inconsistent");
            let (sha256, ranges) = match inconsistent {
                true => (String::new(), Vec::new()),
                false => (self.sha256(&name), self.dirty(&name)),
            };
            let state = match (inconsistent, flag("recording")) {
                (true, _) => "inconsistent",
                (false, true) => "recording",
                (false, false) => "disabled",
            };
            out.push(BitmapTruth {
                state: state.to_owned(),
                granularity: bitmap["granularity"].as_u64().unwrap(),
                count: bitmap["count"].as_u64().unwrap(),
                name,
                sha256,
                ranges,
            });
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        out
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
