//! Where an image's bytes live: files, block devices, memory.

mod storage;

pub use storage::Storage;
