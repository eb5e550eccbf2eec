//! QMP, the monitor of every QEMU program: commands, and what it tells of bitmaps.

use std::{
    fmt,
    io::{BufRead, BufReader, Read, Write},
    ops::Range,
    path::PathBuf,
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{nbd::Nbd, scratch::Scratch, testdata::BitmapTruth};

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A monitor.
pub struct Qmp {
    /// Whose it is, for messages.
    program: &'static str,
    to: Box<dyn Write + Send>,
    replies: Receiver<Value>,
    scratch: Scratch,
    exports: u32,
}

/// A bitmap of a running QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveBitmap {
    /// What the records in `testdata/` say as well.
    pub truth: BitmapTruth,
    /// Whether it is stored in the image.
    pub persistent: bool,
    /// Whether some operation owns it.
    pub busy: bool,
}

impl fmt::Debug for Qmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qmp")
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

impl Qmp {
    /// Takes over both directions of a monitor of `program` and greets it.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn new(
        program: &'static str,
        from: impl Read + Send + 'static,
        to: impl Write + Send + 'static,
    ) -> Self {
        let (sender, replies) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let parsed = serde_json::from_str(&line);
                if parsed.is_ok_and(|value: Value| sender.send(value).is_err()) {
                    break;
                }
            }
        });
        let mut qmp = Self {
            program,
            to: Box::new(to),
            replies,
            scratch: Scratch::new(),
            exports: 0,
        };
        qmp.qmp("qmp_capabilities", json!({}));
        qmp
    }

    /// A command that must succeed; what it returned.
    ///
    /// # Panics
    /// When QEMU answers with an error or not at all.
    #[track_caller]
    pub fn qmp(&mut self, command: &str, arguments: Value) -> Value {
        match self.try_qmp(command, arguments) {
            Ok(value) => value,
            Err(message) => panic!("{command}: {message}"),
        }
    }

    /// A command; its error as text. A QEMU that is gone is an error as well.
    ///
    /// # Errors
    /// QEMU's own description.
    ///
    /// # Panics
    /// When QEMU is there and does not answer.
    pub fn try_qmp(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let message = json!({ "execute": command, "arguments": arguments });
        // In one piece: QEMU acts on the last brace, and may be gone before a newline
        // that comes after.
        self.to
            .write_all(format!("{message}\n").as_bytes())
            .map_err(|e| format!("{} is gone: {e}", self.program))?;
        loop {
            let reply = match self.replies.recv_timeout(PATIENCE) {
                Ok(reply) => reply,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(format!("{} went away", self.program));
                }
                Err(e) => panic!("{command}: no answer from {}: {e}", self.program),
            };
            if let Some(value) = reply.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = reply.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().to_owned());
            }
        }
    }

    /// QEMU's digest of a bitmap's bits.
    #[track_caller]
    pub fn sha256(&mut self, node: &str, name: &str) -> String {
        let reply = self.qmp(
            "x-debug-block-dirty-bitmap-sha256",
            json!({ "node": node, "name": name }),
        );
        reply["sha256"].as_str().unwrap().to_owned()
    }

    /// Exports a node with these bitmaps; the socket and the export's name.
    #[track_caller]
    pub fn export(&mut self, node: &str, bitmaps: &[&str], writable: bool) -> (PathBuf, String) {
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
                "type": "nbd", "id": name, "node-name": node, "name": name,
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

    /// Dirty ranges of a bitmap as an NBD client sees them. QEMU exports a recording
    /// bitmap of a writable node only for writing.
    #[track_caller]
    pub fn dirty(&mut self, node: &str, name: &str, writable: bool) -> Vec<Range<u64>> {
        let (socket, export) = self.export(node, &[name], writable);
        let context = format!("qemu:dirty-bitmap:{name}");
        let ranges = Nbd::connect(&socket, &export, &[&context]).dirty(name);
        self.unexport(&export);
        ranges
    }

    /// Everything QEMU knows about the named bitmaps of `node`, by name. The digest and
    /// the ranges of an inconsistent bitmap are empty, and so are the ranges of a busy
    /// one, which QEMU does not export.
    #[track_caller]
    pub fn bitmaps(&mut self, node: &str, writable: bool) -> Vec<LiveBitmap> {
        let nodes = self.qmp("query-named-block-nodes", json!({ "flat": true }));
        let nodes = nodes.as_array().unwrap();
        let Some(found) = nodes.iter().find(|n| n["node-name"] == node) else {
            panic!("no node {node}");
        };
        let listed = found["dirty-bitmaps"].as_array().cloned();
        let mut out: Vec<LiveBitmap> = Vec::new();
        for bitmap in listed.unwrap_or_default() {
            let Some(name) = bitmap["name"].as_str().map(str::to_owned) else {
                continue;
            };
            let flag = |key: &str| bitmap[key].as_bool().unwrap_or(false);
            let sha256 = match flag("inconsistent") {
                true => String::new(),
                false => self.sha256(node, &name),
            };
            let ranges = match flag("inconsistent") || flag("busy") {
                true => Vec::new(),
                false => self.dirty(node, &name, writable),
            };
            let state = match (flag("inconsistent"), flag("recording")) {
                (true, _) => "inconsistent",
                (false, true) => "recording",
                (false, false) => "disabled",
            };
            out.push(LiveBitmap {
                persistent: flag("persistent"),
                busy: flag("busy"),
                truth: BitmapTruth {
                    state: state.to_owned(),
                    granularity: bitmap["granularity"].as_u64().unwrap(),
                    count: bitmap["count"].as_u64().unwrap(),
                    name,
                    sha256,
                    ranges,
                },
            });
        }
        out.sort_by(|a, b| a.truth.name.cmp(&b.truth.name));
        out
    }
}
