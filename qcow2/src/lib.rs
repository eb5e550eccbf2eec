//! qcow2 images: on-disk structures, stored dirty bitmaps, checking, creation.

pub mod addr;
pub mod bitmap;
pub mod check;
mod compress;
pub mod disk;
mod error;
pub mod format;
mod geometry;
pub mod image;
pub mod io;
pub mod table;

pub use error::{Error, Result};
pub use geometry::{Geometry, MAX_CLUSTER_BITS, MAX_REFCOUNT_ORDER, MIN_CLUSTER_BITS};
pub use image::{BackingPolicy, DataFilePolicy, Image, OpenOptions};
