//! Sender and receiver together: whatever happens while bitmaps are sent, no dirty bit is
//! lost.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod broken;
mod golden;
mod live;
mod model;
mod rng;
