//! The options of `create` turned into what is to be made, checked in qemu-img's order
//! and refused in its words.

use crate::opts::{Secret, Value, Values};

/// A qcow2 image to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Qcow2Plan {
    /// Bytes of the guest's disk.
    pub(crate) size: u64,
    /// 2 or 3.
    pub(crate) version: u32,
    /// log2 of the cluster size.
    pub(crate) cluster_bits: u32,
    /// log2 of the refcount width.
    pub(crate) refcount_order: u32,
    /// Whether L2 entries have subclusters.
    pub(crate) extended_l2: bool,
    /// Whether compressed clusters will be zstd rather than zlib.
    pub(crate) zstd: bool,
    /// Whether refcounts may be written late.
    pub(crate) lazy_refcounts: bool,
    /// Whether L2 tables and refcounts for the whole disk are made at once.
    pub(crate) preallocate_metadata: bool,
    /// Name and format of the backing image, as they go into the header.
    pub(crate) backing: Option<(String, Option<String>)>,
    /// Name of the data file, as it goes into the header.
    pub(crate) data_file: Option<String>,
    /// Whether the data file must stay a valid raw image.
    pub(crate) data_file_raw: bool,
}

/// Longest backing file name that the format allows.
const MAX_BACKING_NAME: usize = 1023;

/// Largest L1 table that QEMU makes: 32 MiB.
const MAX_L1_BYTES: u64 = 32 << 20;

/// Formats that QEMU knows to stand behind an image.
const BACKING_FORMATS: [&str; 42] = [
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

impl Qcow2Plan {
    /// Checks `values`, which must hold a size and the defaults.
    ///
    /// # Errors
    /// What doesn't fit, in qemu-img's words.
    pub(crate) fn new(values: &Values, secrets: &[Secret]) -> Result<Self, String> {
        const NEWER: &str =
            "only supported with compatibility level 1.1 and above (use version=v3 or greater)";
        let version = match values.text("compat") {
            None | Some("1.1" | "v3") => 3,
            Some("0.10" | "v2") => 2,
            Some(other) => return Err(refused("version", other)),
        };
        let backing_format = values.text("backing_fmt");
        if let Some(format) = backing_format.filter(|format| !BACKING_FORMATS.contains(format)) {
            return Err(refused("backing-fmt", format));
        }
        let encryption = encryption(values)?;
        let preallocation = values.text("preallocation").unwrap_or("off");
        if !matches!(preallocation, "off" | "metadata" | "falloc" | "full") {
            return Err(refused("preallocation", preallocation));
        }
        let zstd = match values.text("compression_type") {
            None | Some("zlib") => false,
            Some("zstd") => true,
            Some(other) => return Err(refused("compression-type", other)),
        };
        let extended_l2 = values.flag("extended_l2");
        if extended_l2 && version < 3 {
            return Err(format!("Extended L2 entries are {NEWER}"));
        }
        let cluster_size = values.number("cluster_size").unwrap_or(65536);
        if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
            return Err("Cluster size must be a power of two between 512 and 2048k".into());
        }
        if extended_l2 && cluster_size < 16384 {
            return Err(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"
                    .into(),
            );
        }
        let backing_name = values.text("backing_file");
        if backing_name.is_some() && preallocation != "off" && !extended_l2 {
            return Err(
                "Backing file and preallocation can only be used at the same time if \
                        extended_l2 is on"
                    .into(),
            );
        }
        if backing_format.is_some() && backing_name.is_none() {
            return Err("Backing format cannot be used without backing file".into());
        }
        let lazy_refcounts = values.flag("lazy_refcounts");
        if lazy_refcounts && version < 3 {
            return Err(format!("Lazy refcounts {NEWER}"));
        }
        let refcount_bits = values.number("refcount_bits").unwrap_or(16);
        if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
            return Err("Refcount width must be a power of two and may not exceed 64 bits".into());
        }
        if refcount_bits != 16 && version < 3 {
            return Err(
                "Different refcount widths than 16 bits require compatibility level 1.1 \
                        or above (use version=v3 or greater)"
                    .into(),
            );
        }
        let data_file = values.text("data_file");
        if data_file.is_some() && version < 3 {
            return Err(format!("External data files are {NEWER}"));
        }
        let data_file_raw = values.flag("data_file_raw");
        if data_file_raw && backing_name.is_some() {
            return Err("Backing file and data-file-raw cannot be used at the same time".into());
        }
        if data_file_raw && data_file.is_none() {
            return Err("data-file-raw requires data-file".into());
        }
        if zstd && version < 3 {
            return Err(format!("Non-zlib compression type is {NEWER}"));
        }
        let plan = Self {
            size: size(values, cluster_size, extended_l2)?,
            version,
            cluster_bits: cluster_size.ilog2(),
            refcount_order: refcount_bits.ilog2(),
            extended_l2,
            zstd,
            lazy_refcounts,
            preallocate_metadata: preallocation == "metadata",
            backing: backing_name.map(|name| (name.into(), backing_format.map(Into::into))),
            data_file: data_file.map(Into::into),
            data_file_raw,
        };
        if let Some((name, format)) = &plan.backing
            && name.len() > MAX_BACKING_NAME
        {
            return Err(unassignable(name, format.as_deref(), "Invalid argument"));
        }
        if encryption {
            return Err(key_secret(values, secrets));
        }
        if matches!(preallocation, "falloc" | "full") {
            return Err(format!("Unsupported preallocation mode: {preallocation}"));
        }
        Ok(plan)
    }
}

/// The message for a backing file whose name can't be put into the header.
pub(crate) fn unassignable(name: &str, format: Option<&str>, reason: &str) -> String {
    let format = format.unwrap_or("(null)");
    format!("Could not assign backing file '{name}' with format '{format}': {reason}")
}

fn refused(parameter: &str, value: &str) -> String {
    format!("Parameter '{parameter}' does not accept value '{value}'")
}

/// The disk's size, if tables for it can be made.
fn size(values: &Values, cluster_size: u64, extended_l2: bool) -> Result<u64, String> {
    let size = values.number("size").unwrap_or_default();
    // Disks are whole sectors; rounding up must not pass 2^63.
    let size = match size.checked_next_multiple_of(512) {
        Some(size) if i64::try_from(size).is_ok() => size,
        _ => return Err("Could not resize image: Image size cannot be negative".into()),
    };
    // The largest offset that QEMU's block layer works with, a multiple of 1 GiB.
    const MAX_OFFSET: u64 = i64::MAX.cast_unsigned() & !((1 << 30) - 1);
    if size > MAX_OFFSET {
        return Err(format!(
            "Could not resize image: offset({size}) exceeds maximum({MAX_OFFSET})"
        ));
    }
    let entry_size = if extended_l2 { 16 } else { 8 };
    let l2_coverage = cluster_size / entry_size * cluster_size;
    if size.div_ceil(l2_coverage) * 8 > MAX_L1_BYTES {
        return Err(
            "The image size is too large for file format 'qcow2' (try using a larger \
                    cluster size)"
                .into(),
        );
    }
    Ok(size)
}

/// Whether encryption is asked for, by either of its two options.
fn encryption(values: &Values) -> Result<bool, String> {
    match (values.text("encrypt.format"), values.get("encryption")) {
        (Some(_), Some(Value::Flag(true, _))) => {
            Err("'encrypt.format' and its alias 'encryption' can't be used at the same time".into())
        }
        (Some("aes" | "luks"), _) => Ok(true),
        (Some(other), _) => Err(refused("format", other)),
        (None, _) => Ok(values.flag("encryption")),
    }
}

/// Why an encrypted image is not made.
fn key_secret(values: &Values, secrets: &[Secret]) -> String {
    match values.text("encrypt.key-secret") {
        None => "Parameter 'encrypt.key-secret' is required for cipher".into(),
        Some(id) if secrets.iter().any(|secret| secret.id == id) => {
            "Creating encrypted images is not supported".into()
        }
        Some(id) => format!("No secret with id '{id}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::create::options::QCOW2;

    fn plan(list: &str) -> Result<Qcow2Plan, String> {
        let mut values = QCOW2.parse(list).unwrap();
        values.default("size", Value::Size(1 << 20));
        Qcow2Plan::new(&values, &[])
    }

    #[test]
    fn defaults_are_a_version_3_image_with_64k_clusters() {
        let plan = plan("size=1").unwrap();
        assert_eq!(
            (plan.version, plan.cluster_bits, plan.refcount_order),
            (3, 16, 4)
        );
        assert_eq!(plan.size, 512, "disks are whole sectors");
    }

    #[test]
    fn the_first_mistake_in_qemu_imgs_order_is_named() {
        for (list, message) in [
            (
                "compat=9,cluster_size=1000",
                "Parameter 'version' does not accept value '9'",
            ),
            (
                "refcount_bits=3,cluster_size=1000",
                "Cluster size must be a power of two between 512 and 2048k",
            ),
            (
                "compat=0.10,extended_l2=on,cluster_size=4k",
                "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ),
            (
                "refcount_bits=128,size=64P",
                "Refcount width must be a power of two and may not exceed 64 bits",
            ),
            ("data_file_raw=on", "data-file-raw requires data-file"),
            (
                "encrypt.format=luks,encryption=on",
                "'encrypt.format' and its alias 'encryption' can't be used at the same time",
            ),
            (
                "encryption=on",
                "Parameter 'encrypt.key-secret' is required for cipher",
            ),
        ] {
            assert_eq!(plan(list).unwrap_err(), message, "{list}");
        }
    }
}
