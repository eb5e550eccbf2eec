//! The name the program was called by, and messages that begin with it.
//!
//! Called as `qemu-img` (through a symlink) it prints `qemu-img: ...`, otherwise
//! under whatever name it was called.

use std::{ffi::OsStr, io::Write, path::Path, sync::OnceLock};

static NAME: OnceLock<Name> = OnceLock::new();

#[derive(Debug)]
struct Name {
    invoked: String,
    short: String,
}

/// Remembers the name; `argv0` is the first word of the command line. Only the
/// first call counts.
pub(crate) fn set(argv0: Option<&OsStr>) {
    let invoked = argv0
        .map_or_else(|| "qimg".into(), OsStr::to_string_lossy)
        .into_owned();
    let short = Path::new(&invoked).file_name().map_or_else(
        || invoked.clone(),
        |name| name.to_string_lossy().into_owned(),
    );
    let _ = NAME.set(Name { invoked, short });
}

/// The name without directories: what messages begin with.
pub(crate) fn short() -> &'static str {
    NAME.get().map_or("qimg", |name| &name.short)
}

/// The name exactly as called: what option mistakes and hints are printed with,
/// as by any getopt program.
pub(crate) fn invoked() -> &'static str {
    NAME.get().map_or("qimg", |name| &name.invoked)
}

/// Whether we stand in for qemu-img.
pub(crate) fn is_qemu_img() -> bool {
    short() == "qemu-img"
}

/// Prints `name: message` to standard error. A closed standard error is no reason
/// to fail.
pub(crate) fn error(message: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{}: {message}", short());
}

/// Prints `name: warning: message` to standard error.
pub(crate) fn warning(message: impl std::fmt::Display) {
    error(format_args!("warning: {message}"));
}

/// Says that an image has bitmaps that another program has made worthless. (No line end,
/// as qemu-img prints it.)
pub(crate) fn voided_bitmaps(version: u32) {
    let name = short();
    let why = match version {
        2 => {
            "This qcow2 v2 image contains bitmaps, but they may have been modified by a program \
             without persistent bitmap support; so now they must all be considered inconsistent"
        }
        _ => {
            "a program lacking bitmap support modified this file, so all bitmaps are now \
             considered inconsistent"
        }
    };
    let _ = write!(
        std::io::stderr(),
        "{name}: warning: {why}\nSome clusters may be leaked, run '{name} check -r' on the image \
         file to fix."
    );
}
