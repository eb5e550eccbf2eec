//! Finds the tools a test needs, or says why it is skipped.
//!
//! With `QIMG_REQUIRE_QEMU=1` (set by `.ci/run`) a missing tool fails the test.

use std::{
    env,
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
};

use crate::run::Run;

/// What the interop tests need.
const QEMU: [&str; 3] = ["qemu-img", "qemu-io", "qemu-storage-daemon"];

/// The PC emulator, and the oldest version of use.
const SYSTEM: &str = "qemu-system-x86_64";
const SYSTEM_MAJOR: u32 = 10;

/// Whether QEMU's tools are here. Where they are not, prints that the test is
/// skipped; a test starts with `if !have_qemu() { return; }`.
///
/// # Panics
/// When a tool is missing and `QIMG_REQUIRE_QEMU=1`.
#[must_use]
pub fn have_qemu() -> bool {
    QEMU.iter().all(|name| tool(name).is_some())
}

/// Whether the PC emulator is here as well, of the version that our streams are tested
/// with, or later. Older ones lack the commands that the tests use.
///
/// # Panics
/// When it is missing or older and `QIMG_REQUIRE_QEMU=1`.
#[must_use]
pub fn have_qemu_system() -> bool {
    if !have_qemu() || tool(SYSTEM).is_none() {
        return false;
    }
    let said = Run::new(SYSTEM, ["--version"]).ok().stdout;
    if major(&said).is_some_and(|major| major >= SYSTEM_MAJOR) {
        return true;
    }
    let first = said.lines().next().unwrap_or_default();
    missing(&format!("QEMU {SYSTEM_MAJOR} or later is needed: {first}"));
    false
}

/// The major version in what `--version` prints: "QEMU emulator version 10.0.2 (…)".
fn major(said: &str) -> Option<u32> {
    let version = said.split("version ").nth(1)?;
    version.split('.').next()?.parse().ok()
}

/// Path of the program `name`, looked up in `$PATH`; `None`, with a printed reason,
/// where there is none.
///
/// # Panics
/// When the program is missing and `QIMG_REQUIRE_QEMU=1`.
#[must_use]
pub fn tool(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        missing(&format!("{name} is not in $PATH"));
    }
    found
}

/// Skips for want of something, or fails where that is asked for.
fn missing(what: &str) {
    let required = env::var_os("QIMG_REQUIRE_QEMU").is_some_and(|value| value == "1");
    assert!(!required, "{what}, and QIMG_REQUIRE_QEMU=1 asks for it");
    skipped(what);
}

/// Says that the running test is skipped. The test harness does not hold this back, as
/// it does `eprintln!` of a test that passes.
pub fn skipped(why: &str) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {why}");
}

fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir: PathBuf| dir.join(name))
        .find(|candidate: &PathBuf| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_others_are_not() {
        assert!(find("sh").is_some_and(|path| path.ends_with("sh")));
        assert_eq!(find("no-such-program-anywhere"), None);
    }

    #[test]
    fn the_version_is_read() {
        assert_eq!(
            major("QEMU emulator version 10.0.2 (Debian 1:10)\n"),
            Some(10)
        );
        assert_eq!(major("QEMU emulator version 7.2.18"), Some(7));
        assert_eq!(major("something else"), None);
    }
}
