//! Random damage to the metadata of images of every kind: our check and that of qemu-img
//! say the same.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic in a test's helper is its message"
)]

mod support;

use support::{Qemu, check::agree, random::rounds};

#[test]
fn random_damage() {
    let Some(qemu) = Qemu::find() else { return };
    rounds(&qemu, 8, |what| {
        agree(&qemu, "t", what);
    });
}
