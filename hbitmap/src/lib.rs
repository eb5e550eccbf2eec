//! Hierarchical dirty bitmaps: which parts of a disk changed, at a cost that follows what
//! changed and not the size of the disk.
//!
//! ```
//! use hbitmap::{Granularity, HBitmap};
//!
//! let mut dirty = HBitmap::new(16 << 40, Granularity::from_bytes(65536)?)?; // 16 TiB
//! dirty.set(1 << 40..(1 << 40) + 1); // rounds outwards
//! dirty.set(5 << 40..6 << 40);
//! assert_eq!(dirty.count(), 1 + (1 << 24));
//! let ranges: Vec<_> = dirty.ranges().collect();
//! assert_eq!(ranges, [1 << 40..(1 << 40) + 65536, 5 << 40..6 << 40]);
//! assert_eq!(dirty.to_layered().len(), 126);
//! assert!(dirty.memory() < 4096);
//! # Ok::<(), hbitmap::Error>(())
//! ```
//!
//! # The ladder of levels
//! Bit *i* of a node says something of child *i* on the next level: `any`, that it has a
//! dirty granule; `full`, that it has no clean one. A child that is empty or full is these
//! two bits and nothing else. At the bottom are pages of 32768 granules, 4 KiB when dense;
//! of sparse ones only the words that aren't zero are kept.
//!
//! ```text
//!  level 3   any  ....................1.1.   one node: 2^33 granules (512 TiB at 64 KiB)
//!            full ....................1...
//!                                     | |
//!                    full: all dirty -' |
//!  level 2   any  ...1................1.1.   64 nodes: 2^27 granules each
//!            full ........................
//!                    |                | |
//!  level 1   any  ..11....  ..........  .1   4096 nodes: 2^21 granules each
//!            full ...1....  ..........  ..
//!                   |                    |
//!  level 0   page 0000 0000 8000 0000  page  2^18 pages: 2^15 granules each
//! ```
//!
//! A disk gets as many levels as it needs, up to 8 above the pages for 8 EiB at a
//! granularity of 1 byte.
//!
//! # What is here
//! - [`HBitmap`]: the bitmap. Its *linear form* ([`HBitmap::write_linear`]) is what qcow2
//!   clusters and QEMU's migration stream carry; its [`layered`] form is our own compact
//!   one. [`HBitmap::sha256`] is the digest that QEMU prints.
//! - [`MetaBitmap`]: which chunks of a bitmap changed since they were last sent.
//! - [`DirtyBitmap`]: a name, an [`HBitmap`], and the life cycle that QEMU gives it.
//! - [`SharedTracker`]: many threads mark ranges dirty, one reads them.
//!
//! # Promises
//! Setting rounds outwards and resetting inwards: no operation ever loses a dirty byte.
//! Nothing here panics, and memory is taken for what an input holds, never for a number in it. There is no `unsafe` code,
//! and no I/O but through the `Read` and `Write` that are passed in. Without the feature
//! `std` (on by default) only `alloc` is needed; what takes `Read` and `Write` is missing
//! then, CRC-32C is computed without the processor's instruction, and large bitmaps don't
//! lie in huge pages.
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod bitmap;
mod chunk;
mod crc;
mod digest;
mod dirty;
mod error;
mod granularity;
mod iter;
pub mod layered;
mod linear;
mod meta;
mod shared;
mod tree;

pub use bitmap::{HBitmap, MAX_LEN};
pub use chunk::Chunk;
pub use dirty::{DirtyBitmap, State};
pub use error::{Error, LayeredProblem, Result};
pub use granularity::Granularity;
pub use iter::Ranges;
pub use layered::Limits;
pub use linear::LinearChunks;
pub use meta::MetaBitmap;
pub use shared::SharedTracker;
