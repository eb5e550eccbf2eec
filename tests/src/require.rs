//! Finds the tools a test needs, or says why it is skipped.
//!
//! With `QIMG_REQUIRE_QEMU=1` (set by `.ci/run`) a missing tool fails the test.

use std::{
    env,
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
};

/// What the interop tests need.
const QEMU: [&str; 3] = ["qemu-img", "qemu-io", "qemu-storage-daemon"];

/// Whether QEMU's tools are here. Where they are not, prints that the test is
/// skipped; a test starts with `if !have_qemu() { return; }`.
///
/// # Panics
/// When a tool is missing and `QIMG_REQUIRE_QEMU=1`.
#[must_use]
pub fn have_qemu() -> bool {
    QEMU.iter().all(|name| tool(name).is_some())
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
        let required = env::var_os("QIMG_REQUIRE_QEMU").is_some_and(|value| value == "1");
        assert!(
            !required,
            "{name} is not in $PATH and QIMG_REQUIRE_QEMU=1 asks for it"
        );
        skipped(&format!("{name} is not in $PATH"));
    }
    found
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
}
