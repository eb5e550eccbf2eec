//! Whether an image in memory is sound but for leaked clusters.

use std::sync::Arc;

use qcow2::{
    OpenOptions,
    check::{CheckOptions, Severity, check},
    io::memory::MemoryStorage,
};

use crate::{Run, Scratch, require::have_qemu};

/// What our check finds that is worse than a leak.
///
/// # Panics
/// When the image can't be opened.
#[must_use]
pub fn corruptions(storage: &MemoryStorage) -> Vec<String> {
    let image = OpenOptions::new().open_storage("image", Arc::new(storage.clone()));
    let image = image.unwrap();
    let mut worse = Vec::new();
    let report = check(&image.metadata(), CheckOptions::default(), &mut |finding| {
        if finding.severity() != Severity::Leak {
            worse.push(finding.to_string());
        }
    });
    match report {
        Ok(report) => assert_eq!(report.corruptions == 0, worse.is_empty(), "{worse:?}"),
        Err(e) => worse.push(e.to_string()),
    }
    worse
}

/// What `qemu-img check` finds that is worse than a leak; nothing without qemu-img.
///
/// # Panics
/// When the image can't be written to a file.
#[must_use]
pub fn corruptions_by_qemu(storage: &MemoryStorage) -> Vec<String> {
    if !have_qemu() {
        return Vec::new();
    }
    let scratch = Scratch::new();
    let path = scratch.path("state.qcow2");
    storage.save(&path).unwrap();
    let file = serde_json::json!({ "driver": "file", "filename": path });
    let image = serde_json::json!({ "driver": "qcow2", "file": file, "backing": null });
    let run = Run::new("qemu-img", ["check", &format!("json:{image}")]);
    match run.code {
        0 | 3 => Vec::new(),
        _ => vec![run.stdout, run.stderr],
    }
}
