//! Hierarchical dirty bitmaps.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod bitmap;
mod chunk;
mod crc;
mod digest;
mod error;
mod granularity;
mod iter;
mod linear;
mod tree;

pub use bitmap::{HBitmap, MAX_LEN};
pub use chunk::Chunk;
pub use error::{Error, LayeredProblem, Result};
pub use granularity::Granularity;
pub use iter::Ranges;
