//! The image header, versions 2 and 3.
//!
//! ```text
//!   0  magic "QFI\xfb"              48  refcount_table_offset
//!   4  version                      56  refcount_table_clusters
//!   8  backing_file_offset          60  nb_snapshots
//!  16  backing_file_size            64  snapshots_offset
//!  20  cluster_bits                 --- version 2 ends here, at 72
//!  24  size                         72  incompatible_features
//!  32  crypt_method                 80  compatible_features
//!  36  l1_size                      88  autoclear_features
//!  40  l1_table_offset              96  refcount_order
//!                                  100  header_length
//!                                  104  compression_type, then padding and
//!                                       fields unknown here up to header_length
//! ```
//! Two steps: the raw fields as stored (private here), then [`Header`], whose
//! fields have been checked against the spec and against QEMU's limits.

mod limits;

use nom::{
    Parser,
    bytes::complete::{tag, take},
    error::context,
    number::complete::{be_u32, be_u64},
};

use super::{
    features::{Autoclear, Compatible, FeatureName, FeatureNames, Incompatible},
    parse::{Bad, Parse, field_error, run},
};

pub use limits::{MAX_BACKING_NAME, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS};
use limits::{check_cluster_bits, check_version, fault};

use crate::{Error, Geometry, Result, addr::HostOffset};

/// The four bytes every image begins with.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of a version 2 header.
pub const V2_LEN: u32 = 72;
/// Bytes of the shortest version 3 header: up to and with `header_length`.
pub const V3_MIN_LEN: u32 = 104;
/// Bytes of the header that this crate writes: with `compression_type` and its padding.
pub const V3_LEN: u32 = 112;
/// How guest data is encrypted: `crypt_method`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CryptMethod {
    /// 0: not at all.
    #[default]
    None,
    /// 1: the old AES-CBC, obsolete.
    Aes,
    /// 2: LUKS, whose header the encryption header extension points to.
    Luks,
}

impl CryptMethod {
    fn from_raw(raw: u32) -> Result<Self, Bad> {
        match raw {
            0 => Ok(Self::None),
            1 => Ok(Self::Aes),
            2 => Ok(Self::Luks),
            other => Err(Bad::new(other, "0 (none), 1 (AES) or 2 (LUKS)")),
        }
    }

    /// The number stored in the header.
    #[must_use]
    pub const fn raw(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Aes => 1,
            Self::Luks => 2,
        }
    }
}

/// How compressed clusters are compressed: `compression_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressionType {
    /// 0: deflate without a zlib header, called "zlib" in QEMU.
    #[default]
    Zlib,
    /// 1: zstd.
    Zstd,
}

impl CompressionType {
    fn from_raw(raw: u8) -> Result<Self, Bad> {
        match raw {
            0 => Ok(Self::Zlib),
            1 => Ok(Self::Zstd),
            other => Err(Bad::new(other, "0 (deflate) or 1 (zstd)")),
        }
    }

    /// The number stored in the header.
    #[must_use]
    pub const fn raw(self) -> u8 {
        match self {
            Self::Zlib => 0,
            Self::Zstd => 1,
        }
    }

    /// QEMU's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// A checked header. For version 2 the fields that it lacks have the values that
/// the spec gives them: no features, `refcount_order` 4, `header_length` 72, deflate.
///
/// Fields can be changed and the header encoded again; [`validate`](Self::validate)
/// runs the checks of [`parse`](Self::parse) once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Where in the first cluster the backing file name is; 0 without a backing file.
    pub backing_file_offset: u64,
    /// Bytes of the backing file name; undefined without a backing file, and kept.
    pub backing_file_size: u32,
    /// The backing file name: bytes of the image, to be escaped before printing.
    pub backing_file: Option<Vec<u8>>,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Virtual disk size in bytes.
    pub size: u64,
    /// Encryption of guest data.
    pub crypt_method: CryptMethod,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Where the active L1 table starts.
    pub l1_table_offset: HostOffset,
    /// Where the refcount table starts.
    pub refcount_table_offset: HostOffset,
    /// Clusters of the refcount table. QEMU opens an image without any for checking only.
    pub refcount_table_clusters: u32,
    /// Entries of the snapshot table.
    pub nb_snapshots: u32,
    /// Where the snapshot table starts.
    pub snapshots_offset: HostOffset,
    /// Features that forbid opening when unknown; unknown ones are kept here,
    /// see [`unsupported_features`](Self::unsupported_features).
    pub incompatible_features: Incompatible,
    /// Features that may be ignored.
    pub compatible_features: Compatible,
    /// Features that a writer who doesn't know them clears.
    pub autoclear_features: Autoclear,
    /// log2 of the refcount width in bits.
    pub refcount_order: u32,
    /// Bytes of the header; extensions start there.
    pub header_length: u32,
    /// Compression of compressed clusters.
    pub compression_type: CompressionType,
    /// What stands behind `compression_type` up to `header_length`: padding and
    /// fields that this crate doesn't know.
    pub unknown_fields: Vec<u8>,
}

/// The fields as they are stored.
struct Raw<'a> {
    version: u32,
    backing_file_offset: u64,
    backing_file_size: u32,
    cluster_bits: u32,
    size: u64,
    crypt_method: u32,
    l1_size: u32,
    l1_table_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    nb_snapshots: u32,
    snapshots_offset: u64,
    v3: V3<'a>,
}

/// The fields that version 2 lacks.
struct V3<'a> {
    incompatible_features: u64,
    compatible_features: u64,
    autoclear_features: u64,
    refcount_order: u32,
    header_length: u32,
    /// From byte 104 to `header_length`.
    additional: &'a [u8],
}

fn raw(input: &[u8]) -> Parse<'_, Raw<'_>> {
    let (rest, _) = context("magic", tag(&MAGIC[..])).parse(input)?;
    let (rest, version) = context("version", be_u32).parse(rest)?;
    let (rest, backing_file_offset) = context("backing_file_offset", be_u64).parse(rest)?;
    let (rest, backing_file_size) = context("backing_file_size", be_u32).parse(rest)?;
    let (rest, cluster_bits) = context("cluster_bits", be_u32).parse(rest)?;
    let (rest, size) = context("size", be_u64).parse(rest)?;
    let (rest, crypt_method) = context("crypt_method", be_u32).parse(rest)?;
    let (rest, l1_size) = context("l1_size", be_u32).parse(rest)?;
    let (rest, l1_table_offset) = context("l1_table_offset", be_u64).parse(rest)?;
    let (rest, refcount_table_offset) = context("refcount_table_offset", be_u64).parse(rest)?;
    let (rest, refcount_table_clusters) = context("refcount_table_clusters", be_u32).parse(rest)?;
    let (rest, nb_snapshots) = context("nb_snapshots", be_u32).parse(rest)?;
    let (rest, snapshots_offset) = context("snapshots_offset", be_u64).parse(rest)?;
    let (rest, v3) = if version >= 3 {
        v3(rest)?
    } else {
        let v3 = V3 {
            incompatible_features: 0,
            compatible_features: 0,
            autoclear_features: 0,
            refcount_order: 4,
            header_length: V2_LEN,
            additional: &[],
        };
        (rest, v3)
    };
    let raw = Raw {
        version,
        backing_file_offset,
        backing_file_size,
        cluster_bits,
        size,
        crypt_method,
        l1_size,
        l1_table_offset,
        refcount_table_offset,
        refcount_table_clusters,
        nb_snapshots,
        snapshots_offset,
        v3,
    };
    Ok((rest, raw))
}

fn v3(input: &[u8]) -> Parse<'_, V3<'_>> {
    let (rest, incompatible_features) = context("incompatible_features", be_u64).parse(input)?;
    let (rest, compatible_features) = context("compatible_features", be_u64).parse(rest)?;
    let (rest, autoclear_features) = context("autoclear_features", be_u64).parse(rest)?;
    let (rest, refcount_order) = context("refcount_order", be_u32).parse(rest)?;
    let (rest, header_length) = context("header_length", be_u32).parse(rest)?;
    // A length beyond the bytes that are there is refused with the other fields.
    let additional = rest
        .len()
        .min(header_length.saturating_sub(V3_MIN_LEN) as usize);
    let (rest, additional) = context("additional fields", take(additional)).parse(rest)?;
    let v3 = V3 {
        incompatible_features,
        compatible_features,
        autoclear_features,
        refcount_order,
        header_length,
        additional,
    };
    Ok((rest, v3))
}

impl Header {
    /// The cluster size that the header at the beginning of the file states, so
    /// that a caller knows how much to read for [`parse`](Self::parse). `start`
    /// needs 24 bytes.
    ///
    /// # Errors
    /// [`Error::NotQcow2`] without the magic, [`Error::Unsupported`] for a version
    /// other than 2 and 3, [`Error::Header`] for a cluster size out of bounds.
    pub fn probe_cluster_size(start: &[u8]) -> Result<u64> {
        if !start.starts_with(&MAGIC) {
            return Err(Error::NotQcow2);
        }
        let fields = |input| {
            let (rest, _) = context("magic", take(4_usize)).parse(input)?;
            let (rest, version) = context("version", be_u32).parse(rest)?;
            let (rest, _) = context("backing_file", take(12_usize)).parse(rest)?;
            let (rest, cluster_bits) = context("cluster_bits", be_u32).parse(rest)?;
            Ok((rest, (version, cluster_bits)))
        };
        let (_, (version, cluster_bits)) = run("header", HostOffset(0), start, fields)?;
        check_version(version)?;
        check_cluster_bits(cluster_bits)?;
        Ok(1 << cluster_bits)
    }

    /// The header out of the file's first bytes. `start` is the first cluster, or
    /// at least the part of it that has header and backing file name.
    ///
    /// Unknown incompatible features are no error here: their names are in the
    /// header extensions, see [`unsupported_features`](Self::unsupported_features).
    ///
    /// # Errors
    /// [`Error::NotQcow2`] without the magic, [`Error::Unsupported`] for a version
    /// other than 2 and 3, [`Error::Header`] where a field breaks the spec or a limit,
    /// [`Error::Corrupt`] where the bytes end too early.
    pub fn parse(start: &[u8]) -> Result<Self> {
        let header = Self::parse_for_check(start)?;
        header.validate()?;
        Ok(header)
    }

    /// As [`parse`](Self::parse), for a consistency check: a missing refcount table
    /// and an impossible place of the snapshot table are let through, to be findings
    /// of the check (`nb_snapshots` and `snapshots_offset` may be anything).
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub fn parse_for_check(start: &[u8]) -> Result<Self> {
        if !start.starts_with(&MAGIC) {
            return Err(Error::NotQcow2);
        }
        // The version first: of an unknown one no other field can be trusted.
        let version = |input| context("version", (take(4_usize), be_u32)).parse(input);
        let (_, (_, version)) = run("header", HostOffset(0), start, version)?;
        check_version(version)?;
        let (_, raw) = run("header", HostOffset(0), start, raw)?;
        let mut header = Self::from_raw(&raw)?;
        header.validate_for_check()?;
        if header.backing_file_offset != 0 {
            header.backing_file = Some(header.backing_name(start)?);
        }
        Ok(header)
    }

    fn backing_name(&self, start: &[u8]) -> Result<Vec<u8>> {
        let name = usize::try_from(self.backing_file_offset)
            .ok()
            .and_then(|at| start.get(at..)?.get(..self.backing_file_size as usize));
        let Some(name) = name else {
            let found = format!("the end at {:#x}", start.len());
            let bad = Bad::new(found, format!("{} bytes", self.backing_file_size));
            let (base, at) = (HostOffset(0), self.backing_file_offset);
            return Err(field_error("header", "backing file name", base, at, bad));
        };
        Ok(name.to_vec())
    }

    fn from_raw(raw: &Raw<'_>) -> Result<Self> {
        let crypt_method = CryptMethod::from_raw(raw.crypt_method).map_err(|bad| {
            let message = format!("Unsupported encryption method {}", raw.crypt_method);
            fault(message, "crypt_method", 32, bad)
        })?;
        let (compression_type, unknown_fields) = match raw.v3.additional {
            [] => (CompressionType::Zlib, Vec::new()),
            [kind, unknown @ ..] => {
                let kind = CompressionType::from_raw(*kind).map_err(|bad| {
                    let message = format!("qcow2: unknown compression type: {kind}");
                    fault(message, "compression_type", 104, bad)
                })?;
                (kind, unknown.to_vec())
            }
        };
        let header = Self {
            version: raw.version,
            backing_file_offset: raw.backing_file_offset,
            backing_file_size: raw.backing_file_size,
            backing_file: None,
            cluster_bits: raw.cluster_bits,
            size: raw.size,
            crypt_method,
            l1_size: raw.l1_size,
            l1_table_offset: HostOffset(raw.l1_table_offset),
            refcount_table_offset: HostOffset(raw.refcount_table_offset),
            refcount_table_clusters: raw.refcount_table_clusters,
            nb_snapshots: raw.nb_snapshots,
            snapshots_offset: HostOffset(raw.snapshots_offset),
            incompatible_features: Incompatible(raw.v3.incompatible_features),
            compatible_features: Compatible(raw.v3.compatible_features),
            autoclear_features: Autoclear(raw.v3.autoclear_features),
            refcount_order: raw.v3.refcount_order,
            header_length: raw.v3.header_length,
            compression_type,
            unknown_fields,
        };
        Ok(header)
    }

    /// The shapes of this image's tables. For a header changed to values that no
    /// image can have (see [`validate`](Self::validate)) it is that of the nearest
    /// one that can.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let extended = self
            .incompatible_features
            .contains(Incompatible::EXTENDED_L2);
        Geometry::clamped(self.cluster_bits, self.refcount_order, extended)
    }

    /// Whether guest clusters are in an external data file.
    #[must_use]
    pub const fn has_data_file(&self) -> bool {
        self.incompatible_features.contains(Incompatible::DATA_FILE)
    }

    /// The incompatible features that this crate doesn't know, by the name that
    /// `names` gives them, else `"Unknown incompatible feature: 20"` with the bits
    /// left over in hex, as QEMU prints them. Empty if the image can be opened.
    #[must_use]
    pub fn unsupported_features(&self, names: &FeatureNames) -> Vec<String> {
        let mut list = Vec::new();
        let mut nameless = Incompatible(0);
        for bit in self.incompatible_features.unknown().bits() {
            match names.find(FeatureName::INCOMPATIBLE, bit) {
                Some(name) => list.push(String::from_utf8_lossy(name).into_owned()),
                None => nameless.0 |= 1 << bit,
            }
        }
        if !nameless.is_empty() {
            list.push(format!("Unknown incompatible feature: {:x}", nameless.0));
        }
        list
    }

    /// Appends the header's `header_length` bytes; not the backing file name, which
    /// stands behind the extensions.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(MAGIC);
        out.extend(self.version.to_be_bytes());
        out.extend(self.backing_file_offset.to_be_bytes());
        out.extend(self.backing_file_size.to_be_bytes());
        out.extend(self.cluster_bits.to_be_bytes());
        out.extend(self.size.to_be_bytes());
        out.extend(self.crypt_method.raw().to_be_bytes());
        out.extend(self.l1_size.to_be_bytes());
        out.extend(self.l1_table_offset.get().to_be_bytes());
        out.extend(self.refcount_table_offset.get().to_be_bytes());
        out.extend(self.refcount_table_clusters.to_be_bytes());
        out.extend(self.nb_snapshots.to_be_bytes());
        out.extend(self.snapshots_offset.get().to_be_bytes());
        if self.version < 3 {
            return;
        }
        out.extend(self.incompatible_features.0.to_be_bytes());
        out.extend(self.compatible_features.0.to_be_bytes());
        out.extend(self.autoclear_features.0.to_be_bytes());
        out.extend(self.refcount_order.to_be_bytes());
        out.extend(self.header_length.to_be_bytes());
        if self.header_length > V3_MIN_LEN {
            out.push(self.compression_type.raw());
            out.extend(&self.unknown_fields);
        }
    }
}

#[cfg(test)]
mod tests;
