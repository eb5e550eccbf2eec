//! Writes the seeds and findings of the fuzz targets to DIR/TARGET/, for `fuzz/run.sh`.
#![allow(
    clippy::unwrap_used,
    reason = "a tool of the tests: a panic is the message"
)]

use std::{env, fs, path::PathBuf};

use qimg_tests::fuzz::{TARGETS, findings, seeds};

fn main() {
    let dir = PathBuf::from(env::args().nth(1).unwrap());
    for (target, _) in TARGETS {
        let folder = dir.join(target);
        fs::create_dir_all(&folder).unwrap();
        for (n, (_, data)) in seeds(target)
            .into_iter()
            .chain(findings(target))
            .enumerate()
        {
            fs::write(folder.join(format!("seed-{n:03}")), data).unwrap();
        }
    }
}
