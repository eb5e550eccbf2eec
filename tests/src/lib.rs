//! Helpers shared by the tests that need several crates or a real QEMU.
//!
//! Each file wraps one tool in a few typed calls:
//!
//! | file | what it drives |
//! |---|---|
//! | [`require`] | finds a tool, or skips the test with a printed reason |
//! | [`scratch`] | a directory that goes away with the test |
//! | [`mod@qimg`] | the `qimg` under test |
//! | [`qemu_img`], [`qemu_io`] | QEMU's tools, one process per call |
//! | [`qmp`] | the monitor of a running QEMU: commands, and what it tells of bitmaps |
//! | [`qsd`] | a running `qemu-storage-daemon` |
//! | [`qemu_system`] | a running `qemu-system-x86_64`, source or destination of a migration |
//! | [`nbd`] | an NBD client that asks for dirty-bitmap contexts |
//! | [`image_bytes`] | big-endian fields of an image file, to damage them |
//! | [`sound`] | whether an image has leaked clusters at most |
//! | [`testdata`] | the images in `testdata/` and what is known about them |
//!
//! Tests of the command itself live in `cli/tests/` and borrow this crate, because
//! Cargo tells the path of the built binary only to tests of the same package.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests: a panic is the message"
)]

pub mod fuzz;
pub mod image_bytes;
pub mod nbd;
pub mod qemu_img;
pub mod qemu_io;
pub mod qemu_system;
pub mod qimg;
pub mod qmp;
pub mod qsd;
pub mod require;
pub mod run;
pub mod scratch;
pub mod sound;
pub mod testdata;

pub use image_bytes::ImageBytes;
pub use nbd::Nbd;
pub use qemu_system::QemuSystem;
pub use qimg::Qimg;
pub use qsd::Qsd;
pub use run::Run;
pub use scratch::Scratch;
