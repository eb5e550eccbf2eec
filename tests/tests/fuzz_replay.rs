//! Every seed and every finding of the fuzz targets, on stable. A body panics where
//! something does not hold.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests: a panic is the message"
)]

use std::time::{Duration, Instant};

use qimg_tests::fuzz::{TARGETS, findings, seeds};

fn replay(target: &str) {
    let (_, body) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    for (name, data) in seeds(target).into_iter().chain(findings(target)) {
        // The name of a panicking input stands above the panic.
        println!("{target}: {name}");
        let start = Instant::now();
        body(&data);
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{name} took long"
        );
        // And cut short, in a few places.
        for cut in [1, 2, 3, 5, 9].map(|n| data.len() * n / 10) {
            body(&data[..cut]);
        }
    }
}

#[test]
fn header() {
    replay("header");
}

#[test]
fn directory_and_tables() {
    replay("directory_and_tables");
}

#[test]
fn layered() {
    replay("layered");
}

#[test]
fn image() {
    replay("image");
}

#[test]
fn disk() {
    replay("disk");
}

#[test]
fn written() {
    replay("written");
}

#[test]
fn encrypted() {
    replay("encrypted");
}

#[test]
fn stream() {
    replay("stream");
}

#[test]
fn apply() {
    replay("apply");
}
