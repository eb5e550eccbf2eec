//! `qemu-io`: guest writes by a QEMU that keeps the image's bitmaps up to date.

use std::{ffi::OsStr, path::Path};

use crate::run::Run;

/// Runs the `commands` (`write 0 64k`, `discard 1M 1M`, …) on a qcow2 image, one after
/// the other in one process. Stored bitmaps that are recording take note.
///
/// # Panics
/// When one of them fails.
#[track_caller]
pub fn qemu_io(image: &Path, commands: &[&str]) -> Run {
    let mut args: Vec<&OsStr> = ["-f", "qcow2", "-d", "unmap"].map(OsStr::new).to_vec();
    for command in commands {
        args.extend([OsStr::new("-c"), OsStr::new(command)]);
    }
    args.push(image.as_os_str());
    let run = Run::new("qemu-io", args).ok();
    // qemu-io reports a failed command in its output and still ends with 0.
    assert!(
        !run.stdout.contains("failed") && !run.stderr.contains("failed"),
        "{run:?}"
    );
    run
}
