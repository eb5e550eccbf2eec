//! Where an image's bytes live: files, block devices, memory.
//!
//! - [`Storage`]: what an image needs from the thing that holds its bytes;
//! - [`FileStorage`]: regular files and block devices, opened carefully;
//! - [`NewFile`]: a file that gets its name when it is complete;
//! - [`PageBuffer`]: memory that files are read into fastest;
//! - [`lock`]: QEMU's byte locks, by which its tools and ours keep out of each
//!   other's way;
//! - [`memory`] (feature `test-util`): storage that records, fails and forgets.

mod file;
mod holder;
pub mod lock;
#[cfg(any(test, feature = "test-util"))]
pub mod memory;
mod new_file;
mod open_file;
mod page_buffer;
mod storage;

pub use file::FileStorage;
pub use lock::{LockMode, Locking, writer_present};
pub use new_file::NewFile;
pub use open_file::{Access, reason};
pub use page_buffer::PageBuffer;
pub use storage::{FileId, Storage};
