//! One finished process: exit code, standard output, standard error.

use std::{
    ffi::OsStr,
    io::Read,
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// How long any process may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a process left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The program and its arguments, for messages.
    pub command: String,
    /// Exit code; -1 when a signal ended the process.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Standard output as bytes, for output that is not text.
    pub raw_stdout: Vec<u8>,
}

impl Run {
    /// Runs `program` with `args` and no standard input.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn new<S: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Self::of(&mut command)
    }

    /// Runs a prepared command with no standard input.
    ///
    /// # Panics
    /// When the program cannot be started, or does not end in time.
    pub fn of(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("LC_ALL", "C")
            .spawn()
            .unwrap_or_else(|e| panic!("{shown}: {e}"));
        let stdout = read_aside(child.stdout.take().unwrap());
        let stderr = read_aside(child.stderr.take().unwrap());
        let deadline = Instant::now() + PATIENCE;
        let read = |side: Receiver<Vec<u8>>| {
            let left = deadline.saturating_duration_since(Instant::now());
            side.recv_timeout(left).ok()
        };
        // Both outputs end when the process does, unless it left children behind.
        let (Some(raw_stdout), Some(stderr)) = (read(stdout), read(stderr)) else {
            let _ = child.kill();
            panic!("{shown} did not end in {PATIENCE:?}");
        };
        let status = child.wait().unwrap();
        Self {
            command: shown,
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&raw_stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            raw_stdout,
        }
    }

    /// This run, which must have ended with 0.
    ///
    /// # Panics
    /// When it did not; everything the process said is in the message.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.code(0)
    }

    /// This run, which must have ended with `code`.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "{}\n-- stdout --\n{}\n-- stderr --\n{}",
            self.command, self.stdout, self.stderr
        );
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{}: {e}\n{}", self.command, self.stdout))
    }
}

/// Reads to the end in a thread of its own.
fn read_aside(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if from.read_to_end(&mut bytes).is_ok() {
            let _ = sender.send(bytes);
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_both_outputs_are_kept() {
        let run = Run::new("sh", ["-c", "echo out; echo err >&2; exit 3"]).code(3);
        assert_eq!(
            (run.stdout.as_str(), run.stderr.as_str()),
            ("out\n", "err\n")
        );
    }

    #[test]
    fn a_killed_process_has_code_minus_one() {
        Run::new("sh", ["-c", "kill -9 $$"]).code(-1);
    }
}
