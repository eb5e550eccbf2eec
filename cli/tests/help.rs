//! What the program says about itself: help, version, completions, manual pages; and how
//! it ends.

// Tests say what they expect; a panic there is the message.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs, io,
    os::unix::{fs::symlink, process::CommandExt},
    process::{Command, Output},
};

const COMMANDS: [&str; 14] = [
    "bench",
    "bitmap",
    "check",
    "compare",
    "completions",
    "convert",
    "create",
    "dd",
    "info",
    "man",
    "map",
    "measure",
    "migrate-bitmaps",
    "stream",
];

fn qimg(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qimg"));
    command
        .arg0("qimg")
        .args(words)
        .env_remove("POSIXLY_CORRECT")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn help_of_the_program() {
    let help = qimg(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert_eq!(text(&help.stderr), "");
    insta::assert_snapshot!(text(&help.stdout));
    for command in COMMANDS {
        assert!(text(&help.stdout).contains(command), "{command}");
    }
    assert_eq!(qimg(&["-h"]).stdout, help.stdout, "one help, short or long");
}

#[test]
fn help_of_each_command() {
    for command in COMMANDS {
        let help = qimg(&[command, "--help"]);
        assert_eq!(help.status.code(), Some(0), "{command}");
        assert_eq!(text(&help.stderr), "", "{command}");
        insta::assert_snapshot!(format!("help_{command}"), text(&help.stdout));
        assert_eq!(qimg(&[command, "-h"]).stdout, help.stdout, "{command}");
        assert!(text(&help.stdout).contains("Example"), "{command}");
    }
}

#[test]
fn version_under_either_name() {
    let ours = env!("CARGO_PKG_VERSION");
    let version = qimg(&["--version"]);
    let expected = format!("qimg version {ours} (compatible with qemu-img 10.0.2)\n");
    assert_eq!(text(&version.stdout), expected);
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("qemu-img");
    symlink(env!("CARGO_BIN_EXE_qimg"), &link).unwrap();
    let version = Command::new(&link).arg("-V").output().unwrap();
    assert_eq!(
        text(&version.stdout),
        format!("qemu-img version 10.0.2 (qimg {ours})\n")
    );
    let wrong = Command::new(&link)
        .args(["info", "--foo"])
        .output()
        .unwrap();
    let link = link.display();
    let expected = format!(
        "{link} info: unrecognized option '--foo'\nTry '{link} info --help' for more info\n"
    );
    assert_eq!(text(&wrong.stderr), expected);
    assert_eq!(wrong.status.code(), Some(1));
}

#[test]
fn completions_for_each_shell_know_the_options() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = qimg(&["completions", shell]);
        assert_eq!(script.status.code(), Some(0), "{shell}");
        for word in ["migrate-bitmaps", "granularity", "no-clobber"] {
            assert!(text(&script.stdout).contains(word), "{shell}: {word}");
        }
    }
    let unknown = qimg(&["completions", "tcsh"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr).contains("tcsh"),
        "{}",
        text(&unknown.stderr)
    );
}

#[test]
fn a_manual_page_for_each_command() {
    let dir = tempfile::tempdir().unwrap();
    let made = qimg(&["man", dir.path().to_str().unwrap()]);
    assert_eq!((made.status.code(), text(&made.stderr)), (Some(0), ""));
    let page = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(page("qimg.1").contains("migrate\\-bitmaps"));
    for command in COMMANDS {
        let page = page(&format!("qimg-{command}.1"));
        assert!(
            page.contains(".SH NAME") && page.contains(".SH OPTIONS"),
            "{command}"
        );
    }
    assert!(page("qimg-bitmap.1").contains("granularity"));
    let nowhere = qimg(&["man", "/no/such/directory"]);
    assert_eq!(nowhere.status.code(), Some(1));
    let expected = "qimg: Could not write to '/no/such/directory': No such file or directory\n";
    assert_eq!(text(&nowhere.stderr), expected);
}

#[test]
fn mistakes_end_with_1_which_is_never_a_verdict() {
    for words in [
        &["check"][..],
        &["check", "--no-such-option", "x"],
        &["check", "-x"],
        &["check", "--output=x", "y"],
        &["check", "--repair"],
        &["completions"],
        &["no-such-command"],
        &[],
    ] {
        let output = qimg(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert_eq!(text(&output.stdout), "", "{words:?}");
        assert!(text(&output.stderr).starts_with("qimg"), "{words:?}");
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_qimg"))
        .args(["completions", "bash"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(
        output.status.code(),
        Some(141),
        "as if SIGPIPE had ended it"
    );
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_qimg"))
        .arg0("qimg")
        .arg("--version")
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "qimg: writing the output: No space left on device\n"
    );
}
