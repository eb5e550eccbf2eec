//! [`Layout`]: what stands where in a new image.
//!
//! ```text
//! cluster 0   1 … R            1+R … R+B         …          …          …
//! ┌────────┬────────────────┬─────────────────┬──────────┬───────────┬───────────────┐
//! │ header │ refcount table │ refcount blocks │ L1 table │ L2 tables │ data clusters │
//! └────────┴────────────────┴─────────────────┴──────────┴───────────┴───────────────┘
//!                                                        └ with preallocation ┘
//! ```
//!
//! The LUKS header of an encrypted image stands behind the L1 table.

use super::options::{Checked, assigning};
use crate::{
    Error, Geometry, Result,
    addr::HostOffset,
    crypt::Encryption,
    format::{
        Autoclear, Compatible, CryptMethod, ExtensionType, Extensions, FeatureNames, Header,
        Incompatible,
        header::{MAX_REFCOUNT_TABLE_BYTES, V2_LEN, V3_LEN},
    },
    image::create::options::Version,
};

/// First offset that doesn't fit an L2 entry (bits 9 to 55).
const OFFSET_LIMIT: u64 = 1 << 56;
/// QEMU leaves the feature names out of images with clusters up to this.
const NAMELESS_CLUSTER: u64 = 4096;

/// Counts are clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) geometry: Geometry,
    pub(crate) refcount_table_clusters: u64,
    pub(crate) refcount_blocks: u64,
    /// Entries of the L1 table.
    pub(crate) l1_entries: u64,
    pub(crate) l1_clusters: u64,
    /// The LUKS header with its key slots, behind the L1 table.
    pub(crate) encryption_clusters: u64,
    pub(crate) l2_tables: u64,
    /// Clusters of the guest's disk that are mapped.
    pub(crate) mapped: u64,
    /// They are in the external data file, at the guest's offsets.
    pub(crate) in_data_file: bool,
    /// Bytes of the external data file, at least; 0 without one.
    pub(crate) data_file_bytes: u64,
}

impl Layout {
    /// The layout of an image without data: everything is mapped, or nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] if the image would be larger than the format or the system
    /// allows.
    pub(crate) fn new(checked: &Checked<'_>) -> Result<Self> {
        match checked.preallocate {
            true => Self::full(checked),
            false => Self::with(checked, 0, 0),
        }
    }

    /// The layout of an image in which all of the disk is mapped.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn full(checked: &Checked<'_>) -> Result<Self> {
        let geometry = checked.geometry;
        let l2_tables = geometry.l1_entries(checked.size);
        Self::with(checked, l2_tables, geometry.clusters_for(checked.size))
    }

    /// The layout of an image with so many L2 tables, and so many clusters of the disk
    /// that have a place.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn with(checked: &Checked<'_>, l2_tables: u64, mapped: u64) -> Result<Self> {
        let geometry = checked.geometry;
        let l1_entries = geometry.l1_entries(checked.size);
        let guest_clusters = geometry.clusters_for(checked.size);
        let mapped_bytes = guest_clusters.saturating_mul(geometry.cluster_size());
        let mut layout = Self {
            geometry,
            refcount_table_clusters: 1,
            refcount_blocks: 1,
            l1_entries,
            l1_clusters: geometry.clusters_for(l1_entries * 8),
            encryption_clusters: geometry.clusters_for(checked.encryption_bytes),
            l2_tables,
            mapped,
            in_data_file: checked.options.data_file.is_some(),
            data_file_bytes: match checked.preallocate {
                _ if checked.options.data_file.is_none() => 0,
                true => mapped_bytes,
                false => checked.size,
            },
        };
        layout.fit_refcounts()?;
        let end = layout.clusters().checked_mul(geometry.cluster_size());
        let largest = end.unwrap_or(u64::MAX).max(layout.data_file_bytes);
        if largest > OFFSET_LIMIT {
            return Err(Error::Refused(
                "Could not resize image: File too large".into(),
            ));
        }
        Ok(layout)
    }

    /// Finds the least tables that count all clusters, themselves included.
    fn fit_refcounts(&mut self) -> Result<()> {
        loop {
            let blocks = self
                .clusters()
                .div_ceil(self.geometry.refcount_block_entries());
            let table = self.geometry.clusters_for(blocks.saturating_mul(8));
            if table.saturating_mul(self.geometry.cluster_size()) > MAX_REFCOUNT_TABLE_BYTES {
                return Err(Error::Refused(
                    "Could not resize image: File too large".into(),
                ));
            }
            // Both only grow, and what they add shrinks by a factor each time.
            if blocks <= self.refcount_blocks && table <= self.refcount_table_clusters {
                return Ok(());
            }
            self.refcount_blocks = blocks.max(self.refcount_blocks);
            self.refcount_table_clusters = table.max(self.refcount_table_clusters);
        }
    }

    /// The clusters in front of the data clusters.
    pub(crate) fn metadata(&self) -> u64 {
        self.l2_tables_at() + self.l2_tables
    }

    /// All clusters of the image file.
    pub(crate) fn clusters(&self) -> u64 {
        let data = if self.in_data_file { 0 } else { self.mapped };
        self.metadata().saturating_add(data)
    }

    pub(crate) fn refcount_blocks_at(&self) -> u64 {
        1 + self.refcount_table_clusters
    }

    pub(crate) fn l1_table_at(&self) -> u64 {
        self.refcount_blocks_at() + self.refcount_blocks
    }

    pub(crate) fn encryption_at(&self) -> u64 {
        self.l1_table_at() + self.l1_clusters
    }

    pub(crate) fn l2_tables_at(&self) -> u64 {
        self.encryption_at() + self.encryption_clusters
    }

    /// The byte at which a cluster starts; [`new`](Self::new) saw to it that it exists.
    pub(crate) fn byte(&self, cluster: u64) -> u64 {
        cluster.saturating_mul(self.geometry.cluster_size())
    }

    /// Where the L1 table starts; 0 without one.
    pub(crate) fn l1_offset(&self) -> u64 {
        if self.l1_entries == 0 {
            0
        } else {
            self.byte(self.l1_table_at())
        }
    }

    /// Where the first mapped guest cluster is, in the image or in the data file.
    pub(crate) fn first_data_offset(&self) -> u64 {
        if self.in_data_file {
            0
        } else {
            self.byte(self.metadata())
        }
    }

    /// Bytes of the image file. Without preallocation it ends with the L1 table's last
    /// entry, as qemu-img's do.
    pub(crate) fn file_bytes(&self) -> u64 {
        if self.mapped == 0 && self.l1_entries > 0 && self.encryption_clusters == 0 {
            return self.l1_offset() + self.l1_entries * 8;
        }
        self.byte(self.clusters())
    }

    /// The first cluster: header, extensions, name of the backing file, zeros.
    ///
    /// # Errors
    /// As [`TablePlaces::first_cluster`].
    pub(crate) fn first_cluster(&self, checked: &Checked<'_>) -> Result<Vec<u8>> {
        let places = TablePlaces {
            l1_entries: self.l1_entries,
            l1_offset: self.l1_offset(),
            refcount_table_offset: self.byte(1),
            refcount_table_clusters: self.refcount_table_clusters,
            encryption_offset: self.byte(self.encryption_at()),
        };
        places.first_cluster(checked)
    }
}

/// Where the tables are that the header names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TablePlaces {
    pub(crate) l1_entries: u64,
    /// 0 without a table.
    pub(crate) l1_offset: u64,
    pub(crate) refcount_table_offset: u64,
    pub(crate) refcount_table_clusters: u64,
    /// Where the LUKS header is, if there is one.
    pub(crate) encryption_offset: u64,
}

impl TablePlaces {
    /// The first cluster: header, extensions, name of the backing file, zeros.
    ///
    /// # Errors
    /// [`Error::Refused`] if that is more than a cluster.
    pub(crate) fn first_cluster(&self, checked: &Checked<'_>) -> Result<Vec<u8>> {
        let too_much = || {
            let reason = "No space left on device";
            Error::Refused(match &checked.options.backing {
                Some(backing) => assigning(backing, reason),
                None => format!("Could not write the header: {reason}"),
            })
        };
        let mut header = self.header(checked)?;
        let extensions = extensions(checked, self.encryption_offset);
        let backing = checked.options.backing.as_ref().map(|b| b.file.as_slice());
        if let Some(name) = backing {
            let at = header.header_length as usize + extensions.encoded_len();
            header.backing_file_offset = at as u64;
            header.backing_file_size = u32::try_from(name.len()).map_err(|_| too_much())?;
            header.backing_file = Some(name.to_vec());
        }
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        extensions.encode(&mut bytes);
        bytes.extend(backing.unwrap_or_default());
        let cluster = usize::try_from(checked.geometry.cluster_size()).map_err(|_| too_much())?;
        if bytes.len() > cluster {
            return Err(too_much());
        }
        header.validate()?;
        bytes.resize(cluster, 0);
        Ok(bytes)
    }

    fn header(&self, checked: &Checked<'_>) -> Result<Header> {
        let options = checked.options;
        let small = |n: u64| {
            u32::try_from(n).map_err(|_| Error::Refused("The image's tables are too large".into()))
        };
        let mut incompatible = Incompatible::default();
        for (is_set, feature) in [
            (options.data_file.is_some(), Incompatible::DATA_FILE),
            (
                options.compression_type.raw() != 0,
                Incompatible::COMPRESSION_TYPE,
            ),
            (options.extended_l2, Incompatible::EXTENDED_L2),
        ] {
            if is_set {
                incompatible = incompatible.with(feature);
            }
        }
        let lazy = if options.lazy_refcounts {
            Compatible::LAZY_REFCOUNTS
        } else {
            Compatible(0)
        };
        let raw = if options.data_file_raw {
            Autoclear::DATA_FILE_RAW
        } else {
            Autoclear(0)
        };
        let is_v2 = options.version == Version::V2;
        Ok(Header {
            version: if is_v2 { 2 } else { 3 },
            backing_file_offset: 0,
            backing_file_size: 0,
            backing_file: None,
            cluster_bits: checked.geometry.cluster_bits(),
            size: checked.size,
            crypt_method: options
                .encryption
                .as_ref()
                .map_or(CryptMethod::None, Encryption::method),
            l1_size: small(self.l1_entries)?,
            l1_table_offset: HostOffset(self.l1_offset),
            refcount_table_offset: HostOffset(self.refcount_table_offset),
            refcount_table_clusters: small(self.refcount_table_clusters)?,
            nb_snapshots: 0,
            snapshots_offset: HostOffset(0),
            incompatible_features: incompatible,
            compatible_features: lazy,
            autoclear_features: raw,
            refcount_order: checked.geometry.refcount_order(),
            header_length: if is_v2 { V2_LEN } else { V3_LEN },
            compression_type: options.compression_type,
            // The padding behind the compression type.
            unknown_fields: if is_v2 { Vec::new() } else { vec![0; 7] },
        })
    }
}

/// The header extensions, in QEMU's order.
fn extensions(checked: &Checked<'_>, encryption_offset: u64) -> Extensions {
    let options = checked.options;
    let mut extensions = Extensions {
        end: Some(0),
        ..Extensions::default()
    };
    if let Some(format) = options.backing.as_ref().and_then(|b| b.format.as_ref()) {
        extensions.set(ExtensionType::BACKING_FORMAT, format.clone());
    }
    if let Some(name) = &options.data_file {
        extensions.set(ExtensionType::DATA_FILE, name.clone());
    }
    if checked.encryption_bytes > 0 {
        let numbers = [encryption_offset, checked.encryption_bytes];
        let data = numbers.map(u64::to_be_bytes).concat();
        extensions.set(ExtensionType::ENCRYPTION, data);
    }
    if options.version == Version::V3 && checked.geometry.cluster_size() > NAMELESS_CLUSTER {
        let mut names = Vec::new();
        FeatureNames::known().encode(&mut names);
        extensions.set(ExtensionType::FEATURE_NAMES, names);
    }
    extensions
}
