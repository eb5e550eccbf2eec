//! The same command lines given to qemu-img and to qimg under that name: standard output,
//! standard error and exit code must be the same bytes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // tests

mod check;
mod create;
mod images;
mod info;
mod pair;
mod words;
