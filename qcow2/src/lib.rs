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
//!
//! Writing the guest's disk. Its bitmaps record what is written:
//!
//! ```
//! use qcow2::{OpenOptions, image::create::{CreateOptions, create}};
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("disk.qcow2");
//! let options = CreateOptions { size: Some(64 << 20), ..CreateOptions::default() };
//! create(&path, &options, true)?;
//! let mut image = OpenOptions::new().writable(true).open(&path)?;
//! let mut edit = image.edit_bitmaps()?;
//! edit.add(b"since-backup", 64 << 10, true)?;
//! edit.commit()?;
//!
//! let disk = image.into_writer()?;
//! disk.write(1 << 20, b"some data")?;
//! disk.flush()?; // now it is on stable storage
//! let image = disk.close()?; // now the bitmaps are stored, too
//!
//! let dirty = image.load_bitmap("since-backup")?;
//! assert_eq!(dirty.ranges().collect::<Vec<_>>(), [1 << 20..(1 << 20) + (64 << 10)]);
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
