//! The command and a real QEMU, both ways, on the same images.
//!
//! Without QEMU's tools these tests say that they are skipped; with
//! `QIMG_REQUIRE_QEMU=1` they fail instead.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests: a panic is the message"
)]

mod damaged;
mod differential;
mod forms;
mod from_compare;
mod kill;
mod layouts;
mod locks;
mod migrate;
mod read_qemu;
mod write_for_qemu;
mod zeroes;
