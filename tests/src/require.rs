//! Finds the tools a test needs, or says why it is skipped.
//!
//! With `QIMG_REQUIRE_QEMU=1` (set by `.ci/run`) a missing tool fails the test.

use std::{
    env,
    path::{Path, PathBuf},
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
        let test = std::thread::current().name().unwrap_or("test").to_owned();
        eprintln!("SKIPPED {test}: {name} is not in $PATH");
    }
    found
}

/// Path of a program that is good to have; `None`, with a printed reason, without it.
#[must_use]
pub fn optional(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        eprintln!("SKIPPED: {name} is not in $PATH");
    }
    found
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
