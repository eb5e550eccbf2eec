//! The on-disk structures: bytes to structures with nom, and back with `encode`. No I/O.
//!
//! One file for each structure. Parts that this crate doesn't know (feature bits,
//! header extensions, trailing header fields, extra data, padding) are kept byte
//! for byte, so that `encode` after `parse` gives the bytes that were read.
//!
//! | structure | module |
//! |---|---|
//! | header, version 2 and 3 | [`header`] |
//! | feature bits and their names | [`features`] |
//! | header extensions | [`extension`] |
//! | L1 and L2 table entries | [`l1`], [`l2`] |
//! | refcount table and blocks | [`refcount`] |
//! | snapshot table | [`snapshot`] |
//! | bitmap directory, bitmap tables | [`bitmap_directory`], [`bitmap_table`] |
//! | LUKS header inside the image | [`luks`] |
//! | which format it is at all | [`probe`] |

pub mod bitmap_directory;
pub mod bitmap_table;
pub mod extension;
pub mod features;
pub mod header;
mod header_area;
pub mod l1;
pub mod l2;
pub mod luks;
mod parse;
pub mod probe;
pub mod refcount;
pub mod snapshot;

pub use bitmap_directory::{BitmapDirectory, BitmapDirectoryEntry, BitmapFlags, BitmapsExtension};
pub use bitmap_table::{BitmapCluster, BitmapTableEntry};
pub use extension::{EncryptionHeader, Extension, ExtensionType, Extensions};
pub use features::{Autoclear, Compatible, FeatureNames, Incompatible};
pub use header::{CompressionType, CryptMethod, Header};
pub use header_area::HeaderArea;
pub use l1::L1Entry;
pub use l2::{ExtendedL2Entry, L2Entry, Mapping, Subcluster, SubclusterBitmap};
pub use luks::LuksHeader;
pub use probe::ImageFormat;
pub use refcount::RefcountTableEntry;
pub use snapshot::Snapshot;
