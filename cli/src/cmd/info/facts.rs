//! What `info` tells about an image, gathered before anything is printed.

use qcow2::{Image, addr::HostOffset};

/// An image.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The name to show for it: the path.
    pub(crate) filename: Vec<u8>,
    /// `qcow2`, `raw`, `file`, ...
    pub(crate) format: &'static str,
    /// Bytes of the guest's disk.
    pub(crate) virtual_size: u64,
    /// Bytes that the file takes up.
    pub(crate) actual_size: u64,
    /// Whether its clusters are encrypted.
    pub(crate) encrypted: bool,
    /// Bytes in a cluster.
    pub(crate) cluster_size: Option<u64>,
    /// Whether refcounts may be out of date.
    pub(crate) dirty: bool,
    /// What it is based on.
    pub(crate) backing: Option<BackingName>,
    /// Its internal snapshots.
    pub(crate) snapshots: Vec<Snapshot>,
    /// What only qcow2 has.
    pub(crate) qcow2: Option<Qcow2Facts>,
    /// The file that holds it; `None` where the image is that file itself.
    pub(crate) file: Option<FileFacts>,
}

/// The name of a backing image, as the header has it.
#[derive(Debug)]
pub(crate) struct BackingName {
    /// As stored.
    pub(crate) name: Vec<u8>,
    /// Seen from here: relative names count from the image's directory.
    pub(crate) full: Vec<u8>,
    /// Its format, where the header has it.
    pub(crate) format: Option<Vec<u8>>,
}

/// The file below a format.
#[derive(Debug)]
pub(crate) struct FileFacts {
    /// The path.
    pub(crate) filename: Vec<u8>,
    /// `file` or `host_device`.
    pub(crate) protocol: &'static str,
    /// Bytes in it, in whole sectors of 512.
    pub(crate) length: u64,
    /// Bytes that it takes up.
    pub(crate) actual_size: u64,
}

/// An internal snapshot.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Its id, a number as text.
    pub(crate) id: Vec<u8>,
    /// Its name.
    pub(crate) name: Vec<u8>,
    /// Bytes of the machine's state.
    pub(crate) vm_state_size: u64,
    /// When it was taken: seconds since 1970 and nanoseconds.
    pub(crate) date: (u32, u32),
    /// Nanoseconds that the machine had run.
    pub(crate) vm_clock_nsec: u64,
    /// Instructions that it had run, where recorded.
    pub(crate) icount: Option<u64>,
}

/// What only qcow2 has.
#[derive(Debug)]
pub(crate) struct Qcow2Facts {
    /// 2 or 3. The fields that version 2 doesn't know are not shown for it.
    pub(crate) version: u32,
    /// `zlib` or `zstd`.
    pub(crate) compression_type: &'static str,
    /// Whether refcounts may be written late.
    pub(crate) lazy_refcounts: bool,
    /// Bits in a refcount.
    pub(crate) refcount_bits: u32,
    /// Whether metadata was found corrupt.
    pub(crate) corrupt: bool,
    /// Whether L2 entries have subclusters.
    pub(crate) extended_l2: bool,
    /// The name of an external data file, where the header has one (used or not).
    pub(crate) data_file: Option<Vec<u8>>,
    /// Whether the data file must stay a valid raw image, where one is used.
    pub(crate) data_file_raw: Option<bool>,
    /// How it is encrypted.
    pub(crate) encryption: Option<Encryption>,
    /// The image: its bitmaps are read as they are printed.
    pub(crate) image: Box<Image>,
}

/// How an image is encrypted.
#[derive(Debug)]
pub(crate) enum Encryption {
    /// The old AES-CBC scheme.
    Aes,
    /// LUKS version 1.
    Luks(Luks),
}

/// A LUKS header.
#[derive(Debug)]
pub(crate) struct Luks {
    /// `plain64`, ...
    pub(crate) ivgen_alg: String,
    /// The hash of `essiv`.
    pub(crate) ivgen_hash_alg: Option<String>,
    /// `sha256`, ...
    pub(crate) hash_alg: String,
    /// `aes-256`, ...
    pub(crate) cipher_alg: String,
    /// `xts`, ...
    pub(crate) cipher_mode: String,
    /// The volume's UUID.
    pub(crate) uuid: Vec<u8>,
    /// Where the data begins.
    pub(crate) payload_offset: u64,
    /// Rounds of the master key's digest.
    pub(crate) master_key_iters: u32,
    /// The key slots.
    pub(crate) slots: Vec<Slot>,
}

/// A key slot.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Rounds and stripes, where the slot is in use.
    pub(crate) active: Option<(u32, u32)>,
    /// Where its key is.
    pub(crate) key_offset: HostOffset,
}
