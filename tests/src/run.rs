//! One finished process: exit code, standard output, standard error.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use serde_json::Value;

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
    /// When the program cannot be started.
    pub fn of(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        let output = command
            .stdin(Stdio::null())
            .env("LC_ALL", "C")
            .output()
            .unwrap_or_else(|e| panic!("{shown}: {e}"));
        Self {
            command: shown,
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            raw_stdout: output.stdout,
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
