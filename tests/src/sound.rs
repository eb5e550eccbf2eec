//! Whether an image in memory is sound but for leaked clusters.

use qcow2::io::memory::MemoryStorage;

use crate::{Run, Scratch, require::have_qemu};

/// What a check finds that is worse than a leak.
///
/// # Panics
/// When the image can't be written to a file for qemu-img.
#[must_use]
pub fn corruptions(storage: &MemoryStorage) -> Vec<String> {
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
