//! [`CreateOptions`], and which of them go together, in qemu-img's words and order.

use crate::{
    Error, Geometry, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS, Result,
    crypt::Encryption,
    format::{
        CompressionType,
        header::{MAX_BACKING_NAME, MAX_L1_BYTES},
    },
};

/// Bytes in a sector, to which the guest's disk is rounded up.
pub(crate) const SECTOR: u64 = 512;

/// The largest disk that QEMU's block layer works with: 2^63 - 1, down to a multiple
/// of 1 GiB.
const MAX_DISK_BYTES: u64 = i64::MAX.cast_unsigned() & !((1 << 30) - 1);

/// `compat`: the version of the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// Version 2, "0.10".
    V2,
    /// Version 3, "1.1".
    #[default]
    V3,
}

/// `preallocation`: what exists from the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing of the guest's disk.
    #[default]
    Off,
    /// All tables; the data clusters have their places, which are holes.
    Metadata,
    /// Also the space of the data clusters, reserved.
    Falloc,
    /// Data clusters written with zeros.
    Full,
}

impl Preallocation {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

/// The image below the new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// Its name as it is to be stored, relative to the new image's directory.
    pub file: Vec<u8>,
    /// The name of its format, to be stored.
    pub format: Option<Vec<u8>>,
    /// Bytes of its disk: the new disk's size where no other is given.
    pub size: Option<u64>,
}

/// What a new qcow2 image is to be. The default is qemu-img's, but for the size,
/// which must be given here or by the backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the guest's disk, rounded up to a multiple of 512.
    pub size: Option<u64>,
    /// Version of the format.
    pub version: Version,
    /// Bytes in a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Bits in a refcount: 1, 2, 4, 8, 16, 32 or 64.
    pub refcount_bits: u64,
    /// How compressed clusters are compressed.
    pub compression_type: CompressionType,
    /// L2 entries with subclusters.
    pub extended_l2: bool,
    /// Allow refcount updates to be postponed.
    pub lazy_refcounts: bool,
    /// The backing file.
    pub backing: Option<Backing>,
    /// The external data file's name as it is to be stored, relative to the working
    /// directory.
    pub data_file: Option<Vec<u8>>,
    /// Keep the data file readable as a raw image. Implies preallocated metadata.
    pub data_file_raw: bool,
    /// What exists from the start.
    pub preallocation: Preallocation,
    /// Ask the file system not to copy on write.
    pub nocow: bool,
    /// How guest data is encrypted.
    pub encryption: Option<Encryption>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            size: None,
            version: Version::V3,
            cluster_size: 65536,
            refcount_bits: 16,
            compression_type: CompressionType::Zlib,
            extended_l2: false,
            lazy_refcounts: false,
            backing: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
            nocow: false,
            encryption: None,
        }
    }
}

/// Options that go together, and what follows from them.
#[derive(Debug)]
pub(crate) struct Checked<'a> {
    pub(crate) options: &'a CreateOptions,
    pub(crate) geometry: Geometry,
    /// Bytes of the guest's disk, a multiple of 512.
    pub(crate) size: u64,
    /// Whether every guest cluster gets its entry.
    pub(crate) preallocate: bool,
    /// Bytes of the LUKS header with its key slots.
    pub(crate) encryption_bytes: u64,
}

fn refused<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Refused(message.into()))
}

impl CreateOptions {
    /// Checks that the options go together, without making anything.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::Unsupported`], in qemu-img's words.
    pub fn validate(&self) -> Result<()> {
        self.check().map(|_| ())
    }

    /// # Errors
    /// [`Error::Refused`].
    pub(crate) fn check(&self) -> Result<Checked<'_>> {
        let Some(size) = self.size.or(self.backing.as_ref().and_then(|b| b.size)) else {
            return refused("Image creation needs a size parameter");
        };
        let cluster_bits = self.check_clusters()?;
        self.check_preallocation()?;
        if self.lazy_refcounts {
            self.needs_v3("Lazy refcounts only supported with compatibility level 1.1 and above")?;
        }
        let refcount_order = self.check_refcounts()?;
        self.check_data_file()?;
        if self.compression_type != CompressionType::Zlib {
            self.needs_v3(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above",
            )?;
        }
        let Some(geometry) = Geometry::new(cluster_bits, refcount_order, self.extended_l2) else {
            return refused(
                "Cluster size, refcount width and kind of L2 entries don't go together",
            );
        };
        let size = check_size(size, geometry)?;
        self.check_names()?;
        let preallocate = self.preallocation != Preallocation::Off || self.data_file_raw;
        let encryption = self.encryption.as_ref();
        let encryption_bytes = encryption.map_or(Ok(0), Encryption::region_len)?;
        Ok(Checked {
            encryption_bytes,
            options: self,
            geometry,
            size,
            preallocate,
        })
    }

    /// log2 of the cluster size.
    fn check_clusters(&self) -> Result<u32> {
        if self.extended_l2 {
            self.needs_v3(
                "Extended L2 entries are only supported with compatibility level 1.1 and above",
            )?;
        }
        let bits = self.cluster_size.trailing_zeros();
        let is_allowed = (MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&bits);
        if !self.cluster_size.is_power_of_two() || !is_allowed {
            return refused(format!(
                "Cluster size must be a power of two between {} and {}k",
                1_u64 << MIN_CLUSTER_BITS,
                1_u64 << (MAX_CLUSTER_BITS - 10),
            ));
        }
        if self.extended_l2 && bits < 14 {
            return refused(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            );
        }
        Ok(bits)
    }

    fn check_preallocation(&self) -> Result<()> {
        let has_backing = self.backing.is_some();
        if has_backing && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return refused(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            );
        }
        Ok(())
    }

    /// log2 of the refcount width.
    fn check_refcounts(&self) -> Result<u32> {
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return refused("Refcount width must be a power of two and may not exceed 64 bits");
        }
        if self.refcount_bits != 16 && self.version == Version::V2 {
            return refused(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above \
                 (use version=v3 or greater)",
            );
        }
        Ok(self.refcount_bits.trailing_zeros())
    }

    fn check_data_file(&self) -> Result<()> {
        if self.data_file_raw && self.data_file.is_none() {
            return refused("data-file-raw requires data-file");
        }
        if self.data_file_raw && self.backing.is_some() {
            return refused("Backing file and data-file-raw cannot be used at the same time");
        }
        if self.data_file.is_some() {
            self.needs_v3(
                "External data files are only supported with compatibility level 1.1 and above",
            )?;
        }
        Ok(())
    }

    /// The backing file's name may be 1023 bytes long; so may the data file's, which
    /// the spec doesn't limit, but QEMU's names do.
    fn check_names(&self) -> Result<()> {
        let limit = MAX_BACKING_NAME as usize;
        if let Some(backing) = &self.backing {
            if backing.file.is_empty() {
                return refused("The backing file's name is empty");
            }
            if backing.file.len() > limit {
                return refused(assigning(backing, "Invalid argument"));
            }
        }
        match &self.data_file {
            Some(name) if name.is_empty() => {
                refused("Could not create '': No such file or directory")
            }
            Some(name) if name.len() > limit => {
                refused(format!("The data file's name is longer than {limit} bytes"))
            }
            _ => Ok(()),
        }
    }

    fn needs_v3(&self, message: &str) -> Result<()> {
        match self.version {
            Version::V3 => Ok(()),
            Version::V2 => refused(format!("{message} (use version=v3 or greater)")),
        }
    }
}

/// QEMU's sentence for a backing file whose name doesn't fit.
pub(crate) fn assigning(backing: &Backing, reason: &str) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "Could not assign backing file '{}' with format '{}': {reason}",
        text(&backing.file),
        backing
            .format
            .as_deref()
            .map_or_else(|| "(null)".into(), text),
    )
}

fn check_size(size: u64, geometry: Geometry) -> Result<u64> {
    let rounded = size
        .checked_next_multiple_of(SECTOR)
        .filter(|s| i64::try_from(*s).is_ok());
    let Some(rounded) = rounded else {
        return refused("Could not resize image: Image size cannot be negative");
    };
    if rounded > MAX_DISK_BYTES {
        return refused(format!(
            "Could not resize image: offset({rounded}) exceeds maximum({MAX_DISK_BYTES})"
        ));
    }
    if geometry.l1_entries(rounded) > MAX_L1_BYTES / 8 {
        return refused(
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
        );
    }
    Ok(rounded)
}
