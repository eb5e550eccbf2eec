//! The same command lines given to qemu-img and to qimg under that name: standard output,
//! standard error and exit code must be the same bytes.

// Tests say what they expect; a panic there is the message.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod bench;
mod bitmap;
mod check;
mod compare;
mod convert;
mod create;
mod dd;
mod device;
mod dirty;
mod encryption;
mod images;
mod info;
mod info_damaged;
mod locks;
mod map;
mod measure;
mod pair;
mod repair;
mod words;
