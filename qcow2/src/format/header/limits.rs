//! The checks of a header: what the spec demands, and QEMU's limits, in QEMU's words.

use super::{CompressionType, Header, V2_LEN, V3_MIN_LEN};
use crate::{
    Error, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS, Result,
    addr::HostOffset,
    format::{
        features::Incompatible,
        parse::{Bad, field_error},
    },
};

/// The largest L1 table in bytes (QEMU's limit, quoted by the spec under `size`).
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// The largest refcount table in bytes (QEMU's limit, quoted by the spec).
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// The most snapshots (QEMU's limit).
pub const MAX_SNAPSHOTS: u32 = 65536;
/// The longest backing file name in bytes (spec, `backing_file_size`).
pub const MAX_BACKING_NAME: u32 = 1023;
/// The largest offset of a table: QEMU's offsets are signed 64-bit numbers.
const MAX_OFFSET: u64 = i64::MAX as u64;

impl Header {
    /// Checks every field against the spec and QEMU's limits.
    ///
    /// # Errors
    /// [`Error::Header`] for the first field that is wrong, [`Error::Unsupported`]
    /// for the version.
    pub fn validate(&self) -> Result<()> {
        self.validate_for_check()?;
        if self.refcount_table_clusters == 0 {
            let message = "Image does not contain a reference count table";
            return Err(fault(
                message,
                "refcount_table_clusters",
                56,
                Bad::new(0, "at least 1"),
            ));
        }
        self.check_snapshot_table()
    }

    pub(super) fn validate_for_check(&self) -> Result<()> {
        check_version(self.version)?;
        check_cluster_bits(self.cluster_bits)?;
        let cluster_size = 1_u64 << self.cluster_bits;
        self.check_length(cluster_size)?;
        self.check_backing_place()?;
        self.check_compression()?;
        if self.refcount_order > crate::MAX_REFCOUNT_ORDER {
            let message = "Reference count entry width too large; may not exceed 64 bits";
            let bad = Bad::new(self.refcount_order, "0 to 6");
            return Err(fault(message, "refcount_order", 96, bad));
        }
        let extended = self
            .incompatible_features
            .contains(Incompatible::EXTENDED_L2);
        if extended && self.cluster_bits < 14 {
            let message =
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes";
            let bad = Bad::new(self.cluster_bits, "14 to 21 with extended L2 entries");
            return Err(fault(message, "cluster_bits", 20, bad));
        }
        self.check_tables(cluster_size)
    }

    fn check_compression(&self) -> Result<()> {
        let typed = self
            .incompatible_features
            .contains(Incompatible::COMPRESSION_TYPE);
        let (message, allowed) = match (typed, self.compression_type) {
            (true, CompressionType::Zlib) => (
                "must not be set",
                "not 0, as the compression type bit is set",
            ),
            (false, CompressionType::Zstd) => {
                ("must be set", "0, as the compression type bit is clear")
            }
            (true, CompressionType::Zstd) | (false, CompressionType::Zlib) => return Ok(()),
        };
        let message = format!("qcow2: Compression type incompatible feature bit {message}");
        let bad = Bad::new(self.compression_type.raw(), allowed);
        Err(fault(message, "compression_type", 104, bad))
    }

    fn check_length(&self, cluster_size: u64) -> Result<()> {
        let length = self.header_length;
        let stored = V3_MIN_LEN as usize + self.additional_len();
        let (message, allowed) = if self.version == 2 {
            if length == V2_LEN {
                return Ok(());
            }
            ("qcow2 header length invalid", "72 in version 2".to_owned())
        } else if length < V3_MIN_LEN {
            ("qcow2 header too short", "at least 104".to_owned())
        } else if u64::from(length) > cluster_size {
            (
                "qcow2 header exceeds cluster size",
                format!("at most {cluster_size}"),
            )
        } else if stored != length as usize {
            (
                "qcow2 header length invalid",
                format!("{stored}, what the fields take"),
            )
        } else {
            return Ok(());
        };
        Err(fault(
            message,
            "header_length",
            100,
            Bad::new(length, allowed),
        ))
    }

    /// Bytes from 104 on: none, or the compression type and what follows it.
    fn additional_len(&self) -> usize {
        if self.header_length > V3_MIN_LEN {
            1 + self.unknown_fields.len()
        } else {
            0
        }
    }

    fn check_backing_place(&self) -> Result<()> {
        if self.backing_file_offset == 0 {
            return Ok(());
        }
        if self.backing_file_size > MAX_BACKING_NAME {
            let bad = Bad::new(self.backing_file_size, "at most 1023 bytes");
            return Err(fault(
                "Backing file name too long",
                "backing_file_size",
                16,
                bad,
            ));
        }
        check_cluster_bits(self.cluster_bits)?;
        let cluster_size = 1_u64 << self.cluster_bits;
        let end = self
            .backing_file_offset
            .checked_add(u64::from(self.backing_file_size));
        if self.backing_file_offset > cluster_size {
            let found = format!("{:#x}", self.backing_file_offset);
            let bad = Bad::new(found, format!("at most {cluster_size}"));
            return Err(fault(
                "Invalid backing file offset",
                "backing_file_offset",
                8,
                bad,
            ));
        }
        if self.backing_file_offset < u64::from(self.header_length)
            || end.is_none_or(|end| end > cluster_size)
        {
            let bad = Bad::new(
                format!("{:#x}", self.backing_file_offset),
                format!("the name between {} and {cluster_size}", self.header_length),
            );
            return Err(fault(
                "Backing file name too long",
                "backing_file_offset",
                8,
                bad,
            ));
        }
        Ok(())
    }

    fn check_tables(&self, cluster_size: u64) -> Result<()> {
        let table_bytes = u64::from(self.refcount_table_clusters) * cluster_size;
        if table_bytes > MAX_REFCOUNT_TABLE_BYTES {
            let allowed = format!("at most {}", MAX_REFCOUNT_TABLE_BYTES / cluster_size);
            let bad = Bad::new(self.refcount_table_clusters, allowed);
            let message = "Reference count table too large";
            return Err(fault(message, "refcount_table_clusters", 56, bad));
        }
        if let Some(bad) = misplaced(self.refcount_table_offset, table_bytes, cluster_size) {
            let message = "Reference count table offset invalid";
            return Err(fault(message, "refcount_table_offset", 48, bad));
        }
        let l1_bytes = u64::from(self.l1_size) * 8;
        let needed = self.geometry().l1_entries(self.size);
        let message = if l1_bytes > MAX_L1_BYTES {
            Some("Active L1 table too large")
        } else if needed > i32::MAX as u64 {
            Some("Image is too big")
        } else if u64::from(self.l1_size) < needed {
            Some("L1 table is too small")
        } else {
            None
        };
        if let Some(message) = message {
            let allowed = format!("{needed} (for the disk's size) to {}", MAX_L1_BYTES / 8);
            return Err(fault(
                message,
                "l1_size",
                36,
                Bad::new(self.l1_size, allowed),
            ));
        }
        if let Some(bad) = misplaced(self.l1_table_offset, l1_bytes, cluster_size) {
            return Err(fault(
                "Active L1 table offset invalid",
                "l1_table_offset",
                40,
                bad,
            ));
        }
        Ok(())
    }

    /// Checks number and place of the snapshot table.
    ///
    /// # Errors
    /// [`Error::Header`].
    pub fn check_snapshot_table(&self) -> Result<()> {
        if self.nb_snapshots > MAX_SNAPSHOTS {
            let bad = Bad::new(self.nb_snapshots, "at most 65536");
            return Err(fault("Snapshot table too large", "nb_snapshots", 60, bad));
        }
        // An entry is 40 bytes at least; its true length is known only when read.
        let least = u64::from(self.nb_snapshots) * 40;
        let cluster_size = self.geometry().cluster_size();
        if let Some(bad) = misplaced(self.snapshots_offset, least, cluster_size) {
            return Err(fault(
                "Snapshot table offset invalid",
                "snapshots_offset",
                64,
                bad,
            ));
        }
        Ok(())
    }
}

/// `message` is what QEMU says to the same fault.
pub(super) fn fault(message: impl Into<String>, field: &str, at: u64, bad: Bad) -> Error {
    let source = Box::new(field_error("header", field, HostOffset(0), at, bad));
    Error::Header {
        message: message.into(),
        source,
    }
}

pub(super) fn check_version(version: u32) -> Result<()> {
    if matches!(version, 2 | 3) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "Unsupported qcow2 version {version}"
    )))
}

pub(super) fn check_cluster_bits(bits: u32) -> Result<()> {
    if (MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&bits) {
        return Ok(());
    }
    let message = format!("Unsupported cluster size: 2^{bits}");
    Err(fault(
        message,
        "cluster_bits",
        20,
        Bad::new(bits, "9 to 21"),
    ))
}

/// What is wrong with the place of a table of `bytes` bytes, which starts at a
/// cluster boundary and ends below 2^63, even when it is empty.
fn misplaced(offset: HostOffset, bytes: u64, cluster_size: u64) -> Option<Bad> {
    let fits = offset
        .get()
        .checked_add(bytes)
        .is_some_and(|end| end <= MAX_OFFSET);
    if fits && offset.get().is_multiple_of(cluster_size) {
        return None;
    }
    let allowed = format!("a multiple of {cluster_size} below 2^63");
    Some(Bad::new(format!("{:#x}", offset.get()), allowed))
}
