//! `qimg migrate-bitmaps --emit` and `--apply` with a real `qemu-system-x86_64` at the
//! other end, and with the streams in `testdata/stream/`.
//!
//! Without QEMU 10 these tests say that they are skipped; with `QIMG_REQUIRE_QEMU=1` they
//! fail instead.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests: a panic is the message"
)]

mod captures;
mod disks;
mod from_qemu;
mod into_qemu;
mod names;
mod refused;
mod sizes;
