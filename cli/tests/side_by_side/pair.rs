//! Runs both programs and collects what differs.

use std::{
    env,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What a run left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Both programs, a directory to run them in, and the differences so far.
pub(crate) struct Pair {
    dir: tempfile::TempDir,
    qemu_img: PathBuf,
    differences: String,
    runs: usize,
}

impl Pair {
    /// `None`, with a printed reason, where there is no qemu-img.
    pub(crate) fn new() -> Option<Self> {
        let Some(qemu_img) = find("qemu-img") else {
            let required = env::var_os("QIMG_REQUIRE_QEMU").is_some_and(|value| value == "1");
            assert!(
                !required,
                "qemu-img is not in $PATH and QIMG_REQUIRE_QEMU=1 asks for it"
            );
            eprintln!("SKIPPED: qemu-img is not in $PATH");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_qimg"), dir.path().join("bin/qemu-img")).unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        Some(Self {
            dir,
            qemu_img,
            differences: String::new(),
            runs: 0,
        })
    }

    /// The directory that commands run in.
    pub(crate) fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Runs the real qemu-img, which must succeed.
    pub(crate) fn make(&self, words: &[&str]) {
        let made = self.qemu(words);
        assert_eq!(made.code, Some(0), "qemu-img {words:?}: {}", made.stderr);
    }

    /// [`Pair::make`], for a command line in which spaces separate the words.
    pub(crate) fn make_line(&self, line: &str) {
        self.make(&line.split_whitespace().collect::<Vec<_>>());
    }

    /// Runs the real qemu-img.
    pub(crate) fn qemu(&self, words: &[impl AsRef<OsStr>]) -> Outcome {
        run(&self.qemu_img, &self.work(), words)
    }

    /// Runs qimg under the name of qemu-img.
    pub(crate) fn ours(&self, words: &[impl AsRef<OsStr>]) -> Outcome {
        run(&self.dir.path().join("bin/qemu-img"), &self.work(), words)
    }

    /// Runs both and notes a difference.
    pub(crate) fn same(&mut self, words: &[impl AsRef<OsStr>]) {
        let (theirs, ours) = (self.qemu(words), self.ours(words));
        self.note(words, &theirs, &ours);
    }

    /// [`Pair::same`], for a command line in which spaces separate the words.
    pub(crate) fn same_line(&mut self, line: &str) {
        self.same(&line.split_whitespace().collect::<Vec<_>>());
    }

    /// [`Pair::same_line`] of a verb that prints text and JSON, in both forms.
    pub(crate) fn same_forms(&mut self, verb: &str, words: &str) {
        self.same_line(&format!("{verb} {words}"));
        self.same_line(&format!("{verb} --output=json {words}"));
    }

    /// Notes a difference between two outcomes.
    pub(crate) fn note(&mut self, words: &[impl AsRef<OsStr>], theirs: &Outcome, ours: &Outcome) {
        self.runs += 1;
        if theirs == ours {
            return;
        }
        let words: Vec<_> = words
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect();
        let mut text = format!("$ qemu-img {}\n", words.join(" "));
        for (what, theirs, ours) in [
            ("stdout", &theirs.stdout, &ours.stdout),
            ("stderr", &theirs.stderr, &ours.stderr),
            (
                "code",
                &format!("{:?}", theirs.code),
                &format!("{:?}", ours.code),
            ),
        ] {
            if theirs != ours {
                let _ = write!(text, "  {what}:\n{}", difference(theirs, ours));
            }
        }
        self.differences.push_str(&text);
    }

    /// Fails if anything differed.
    pub(crate) fn finish(self) {
        assert!(self.runs > 0, "nothing was compared");
        let count = self
            .differences
            .lines()
            .filter(|line| line.starts_with("$ "))
            .count();
        assert!(
            self.differences.is_empty(),
            "{count} of {} command lines differ (- qemu-img, + qimg):\n{}",
            self.runs,
            self.differences
        );
    }
}

/// Lines of a difference that are printed.
const SHOWN_LINES: usize = 4;

/// The lines that differ, those of qemu-img first.
fn difference(theirs: &str, ours: &str) -> String {
    let mut text = String::new();
    let (theirs, ours): (Vec<_>, Vec<_>) = (theirs.lines().collect(), ours.lines().collect());
    let head = theirs.iter().zip(&ours).take_while(|(a, b)| a == b).count();
    let tail = theirs[head..].iter().rev().zip(ours[head..].iter().rev());
    let tail = tail.take_while(|(a, b)| a == b).count();
    let shown = |text: &mut String, sign: char, lines: &[&str]| {
        for line in lines.iter().take(SHOWN_LINES) {
            let _ = writeln!(text, "    {sign} {line:?}");
        }
        if lines.len() > SHOWN_LINES {
            let _ = writeln!(text, "    {sign} ... {} lines", lines.len());
        }
    };
    shown(&mut text, '-', &theirs[head..theirs.len() - tail]);
    shown(&mut text, '+', &ours[head..ours.len() - tail]);
    text
}

fn run(program: &Path, dir: &Path, words: &[impl AsRef<OsStr>]) -> Outcome {
    use std::os::unix::process::CommandExt;
    let output = Command::new(program)
        .arg0("qemu-img")
        .args(words)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .env("TZ", "Europe/Berlin")
        .env_remove("POSIXLY_CORRECT")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}
