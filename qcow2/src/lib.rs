//! qcow2 images: on-disk structures, the guest's disk, stored dirty bitmaps, checking,
//! creation.
//!
//! ```no_run
//! use qcow2::{BackingPolicy, OpenOptions, disk::{Disk, DiskExt}};
//!
//! let image = OpenOptions::new().backing(BackingPolicy::Follow).open("disk.qcow2")?;
//! let mut boot_sector = [0; 512];
//! image.read(0, &mut boot_sector)?;
//! for extent in image.extents(0..image.size()) {
//!     let extent = extent?;
//!     println!("{:?}: {:?}", extent.range(), extent.kind);
//! }
//! # Ok::<(), qcow2::Error>(())
//! ```

pub mod addr;
pub mod bitmap;
pub mod check;
pub mod compare;
mod compress;
pub mod convert;
pub mod crypt;
pub mod disk;
mod error;
pub mod format;
mod geometry;
pub mod image;
pub mod io;
pub mod measure;
pub mod table;

pub use error::{Error, Result};
pub use geometry::{Geometry, MAX_CLUSTER_BITS, MAX_REFCOUNT_ORDER, MIN_CLUSTER_BITS};
pub use image::{BackingPolicy, DataFilePolicy, Image, OpenOptions};
