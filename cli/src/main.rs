//! `qimg`: the command over the `qcow2` and `hbitmap` crates.

fn main() {}
