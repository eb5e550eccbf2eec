//! A running `qemu-system-x86_64` with block nodes: the source or the destination of a
//! migration.
//!
//! Nothing but the disks matters: `-machine none` has no CPU and no RAM, a `pc` or `q35`
//! gets 1 MiB, the first disk on IDE, and a firmware that stops at once.

use std::{
    fs::{self, File},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use crate::{
    qmp::{LiveBitmap, Qmp},
    scratch::Scratch,
};

/// How long a start, a migration or an end may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a state is asked for.
const PULSE: Duration = Duration::from_millis(10);

/// More than any bitmap needs: a migration ends as soon as it can.
const PLENTY: u64 = 1 << 40;

/// How to start a [`QemuSystem`]; see [`QemuSystem::machine`].
#[derive(Debug, Clone)]
pub struct Start {
    machine: String,
    nodes: Vec<(String, PathBuf)>,
    more: Vec<String>,
}

impl Start {
    /// Opens a qcow2 image as the block node `name`.
    #[must_use]
    pub fn node(mut self, name: &str, image: &Path) -> Self {
        self.nodes.push((name.to_owned(), image.to_owned()));
        self
    }

    /// More arguments, such as `-incoming` and its URI.
    #[must_use]
    pub fn args(mut self, more: &[&str]) -> Self {
        self.more.extend(more.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Starts QEMU, with the machine paused.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(self) -> QemuSystem {
        let scratch = Scratch::new();
        let socket = scratch.path("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let messages = scratch.path("messages");
        let output = File::create(&messages).unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-display", "none", "-S", "-machine"])
            .arg(&self.machine)
            .arg("-chardev")
            .arg(format!("socket,id=q,path={}", socket.display()))
            .args(["-mon", "chardev=q,mode=control"]);
        for (name, image) in &self.nodes {
            let node = json!({
                "driver": "qcow2", "node-name": name,
                "file": { "driver": "file", "filename": image },
            });
            command.arg("-blockdev").arg(node.to_string());
        }
        if self.machine != "none" {
            let firmware = scratch.path("firmware");
            fs::write(&firmware, halting_firmware()).unwrap();
            command.args(["-accel", "tcg", "-m", "1M", "-bios"]);
            command.arg(firmware);
            if let Some((first, _)) = self.nodes.first() {
                let disk = format!("ide-hd,drive={first},bus=ide.0,share-rw=on");
                command.args(["-device", &disk]);
            }
        }
        let mut child = command
            .args(&self.more)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|e| panic!("qemu-system-x86_64: {e}"));
        let Some(monitor) = accept(&listener, &mut child) else {
            let said = fs::read_to_string(&messages).unwrap_or_default();
            let _ = child.kill();
            panic!("{command:?} does not connect: {said}");
        };
        monitor.set_nonblocking(false).unwrap();
        let qmp = Qmp::new("qemu-system-x86_64", monitor.try_clone().unwrap(), monitor);
        QemuSystem {
            child,
            qmp,
            messages,
            nodes: self.nodes.into_iter().map(|(name, _)| name).collect(),
            _scratch: scratch,
        }
    }
}

/// The monitor's connection; `None` when QEMU ended first or takes too long.
fn accept(listener: &UnixListener, child: &mut Child) -> Option<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok((monitor, _)) = listener.accept() {
            return Some(monitor);
        }
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        thread::sleep(PULSE);
    }
    None
}

/// A PC's firmware of two instructions, `cli` and `hlt`, and the jump to them at the
/// address where a CPU starts.
fn halting_firmware() -> Vec<u8> {
    let mut image = vec![0; 65536];
    image[..2].copy_from_slice(&[0xfa, 0xf4]);
    image[0xfff0..0xfff5].copy_from_slice(&[0xea, 0, 0, 0, 0xf0]);
    image
}

/// The process; it is killed when this value goes away before [`quit`](Self::quit).
#[derive(Debug)]
pub struct QemuSystem {
    child: Child,
    qmp: Qmp,
    messages: PathBuf,
    nodes: Vec<String>,
    _scratch: Scratch,
}

impl QemuSystem {
    /// A QEMU of the machine type `machine`, to be given nodes and started.
    #[must_use]
    pub fn machine(machine: &str) -> Start {
        Start {
            machine: machine.to_owned(),
            nodes: Vec::new(),
            more: Vec::new(),
        }
    }

    /// The monitor.
    pub fn monitor(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// A QMP command that must succeed; what it returned.
    #[track_caller]
    pub fn qmp(&mut self, command: &str, arguments: Value) -> Value {
        match self.qmp.try_qmp(command, arguments) {
            Ok(value) => value,
            Err(message) => panic!("{command}: {message}\n{}", self.messages()),
        }
    }

    /// What QEMU has printed so far, without the words of `qemu-io` commands.
    #[must_use]
    pub fn messages(&self) -> String {
        let all = fs::read_to_string(&self.messages).unwrap_or_default();
        let own = |line: &&str| !line.starts_with("wrote ") && !line.contains(" ops; ");
        all.lines()
            .filter(own)
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Lets the machine run.
    #[track_caller]
    pub fn cont(&mut self) {
        self.qmp("cont", json!({}));
    }

    /// A guest's write, by QEMU's own `qemu-io` command on the node.
    #[track_caller]
    pub fn write(&mut self, node: &str, offset: u64, length: u64) {
        let line = format!("qemu-io {node} \"write -z {offset} {length}\"");
        let said = self.qmp("human-monitor-command", json!({ "command-line": line }));
        let said = said.as_str().unwrap();
        assert!(said.trim().is_empty(), "{line}: {said}");
    }

    /// Adds a bitmap that records, or does not; `persistent` says whether it is stored.
    #[track_caller]
    pub fn add_bitmap(
        &mut self,
        node: &str,
        name: &str,
        granularity: u64,
        enabled: bool,
        persistent: bool,
    ) {
        self.qmp(
            "block-dirty-bitmap-add",
            json!({
                "node": node, "name": name, "granularity": granularity,
                "persistent": persistent, "disabled": !enabled,
            }),
        );
    }

    /// What QEMU and an NBD client of ours see of the named bitmaps of a node, by name.
    #[track_caller]
    pub fn bitmaps(&mut self, node: &str) -> Vec<LiveBitmap> {
        self.qmp.bitmaps(node, true)
    }

    // -- source

    /// Switches capabilities on, `dirty-bitmaps` among them.
    #[track_caller]
    pub fn capabilities(&mut self, more: &[&str]) {
        let mut all = vec![json!({ "capability": "dirty-bitmaps", "state": true })];
        all.extend(
            more.iter()
                .map(|name| json!({ "capability": name, "state": true })),
        );
        self.qmp("migrate-set-capabilities", json!({ "capabilities": all }));
    }

    /// Sets the aliases of nodes and bitmaps: QEMU's `block-bitmap-mapping`.
    #[track_caller]
    pub fn mapping(&mut self, mapping: Value) {
        let parameters = json!({ "block-bitmap-mapping": mapping });
        self.qmp("migrate-set-parameters", parameters);
    }

    /// Migrates into a file and waits for the end. A QEMU with nothing to send writes
    /// one empty PART after the other: a limit of bandwidth keeps the stream short.
    #[track_caller]
    pub fn migrate_to_file(&mut self, file: &Path) {
        self.begin_migration(&format!("file:{}", file.display()), PLENTY);
        let ended = self.wait_migrated();
        assert_eq!(ended, Ok(()), "{}", self.messages());
    }

    /// Starts a migration that goes on until `bandwidth`, in bytes per second, is
    /// believed to be enough for the rest: with 1, until [`let_it_end`](Self::let_it_end).
    #[track_caller]
    pub fn begin_migration(&mut self, uri: &str, bandwidth: u64) {
        self.qmp(
            "migrate-set-parameters",
            json!({ "max-bandwidth": 10, "avail-switchover-bandwidth": bandwidth }),
        );
        self.qmp("migrate", json!({ "uri": uri }));
    }

    /// Waits until a migration that was begun is under way, its bitmaps busy.
    ///
    /// # Panics
    /// When it takes too long.
    #[track_caller]
    pub fn wait_under_way(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.qmp("query-migrate", json!({}));
            match status["status"].as_str().unwrap_or("none") {
                "none" | "setup" => {}
                _ => return,
            }
            assert!(Instant::now() < deadline, "{}", self.messages());
            thread::sleep(PULSE);
        }
    }

    /// Lets a running migration end.
    #[track_caller]
    pub fn let_it_end(&mut self) {
        let parameters = json!({ "avail-switchover-bandwidth": PLENTY });
        self.qmp("migrate-set-parameters", parameters);
    }

    /// Switches a running migration over to postcopy.
    #[track_caller]
    pub fn start_postcopy(&mut self) {
        self.qmp("migrate-start-postcopy", json!({}));
    }

    // -- destination

    /// Takes a migration in from `uri`; it was started with `-incoming defer`. Does not
    /// wait.
    #[track_caller]
    pub fn incoming(&mut self, uri: &str) {
        let mut arguments = Map::new();
        arguments.insert("uri".to_owned(), json!(uri));
        // Or a stream that is refused would end the process, and its words with it.
        arguments.insert("exit-on-error".to_owned(), json!(false));
        self.qmp("migrate-incoming", Value::Object(arguments));
    }

    /// Takes a migration in from a file and waits for the end.
    ///
    /// # Errors
    /// QEMU's own words.
    #[track_caller]
    pub fn load(&mut self, stream: &Path) -> Result<(), String> {
        self.incoming(&format!("file:{}", stream.display()));
        self.wait_migrated()
    }

    /// Waits until a migration, in or out, has ended.
    ///
    /// # Errors
    /// QEMU's own words; also when the process ended.
    ///
    /// # Panics
    /// When it takes too long.
    #[track_caller]
    pub fn wait_migrated(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let info = self
                .qmp
                .try_qmp("query-migrate", json!({}))
                .map_err(|e| format!("{e}: {}", self.messages()))?;
            match info["status"].as_str().unwrap_or("none") {
                "completed" => return Ok(()),
                state @ ("failed" | "cancelled") => {
                    let why = info["error-desc"].as_str().unwrap_or(state);
                    return Err(format!("{why}\n{}", self.messages()));
                }
                state => assert!(
                    Instant::now() < deadline,
                    "the migration is still {state}: {}",
                    self.messages()
                ),
            }
            thread::sleep(PULSE);
        }
    }

    /// Takes the nodes out of the inactive state that an incoming migration leaves them
    /// in while the machine is paused: without this, or `cont`, QEMU neither exports
    /// them nor stores what it received.
    #[track_caller]
    pub fn activate(&mut self) {
        for node in self.nodes.clone() {
            let arguments = json!({ "node-name": node, "active": true });
            self.qmp("blockdev-set-active", arguments);
        }
    }

    /// Ends QEMU in an orderly way, which stores the bitmaps; what it printed.
    ///
    /// # Panics
    /// When it ends with an error.
    #[track_caller]
    pub fn quit(mut self) -> String {
        self.qmp("quit", json!({}));
        let status = self.child.wait().unwrap();
        let said = self.messages();
        assert!(
            status.success(),
            "qemu-system-x86_64 ended with {status}: {said}"
        );
        said
    }
}

impl Drop for QemuSystem {
    fn drop(&mut self) {
        // Both fail when the process has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
