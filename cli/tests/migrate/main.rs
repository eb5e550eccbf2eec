//! `qimg migrate-bitmaps --emit` and `--apply`, and `qimg stream`, without a QEMU: what one
//! writes the other takes, and what is refused leaves the image as it was.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests: a panic is the message"
)]

mod blocks;
mod cut;
mod names;
mod partial;
mod refusals;
mod round_trip;
mod show;
mod support;
