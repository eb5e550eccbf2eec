//! The options of `create` as the library takes them. What each may be is checked here,
//! in qemu-img's order and words; what goes together is the library's business.

use qcow2::{
    format::CompressionType,
    image::create::{Backing, CreateOptions, Preallocation, RawOptions, Version},
};

use crate::opts::{Secret, Value, Values};

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

/// A qcow2 image out of `values`, which hold a size and the defaults.
///
/// # Errors
/// A value that an option doesn't take, in qemu-img's words.
pub(in crate::cmd) fn qcow2(values: &Values, secrets: &[Secret]) -> Result<CreateOptions, String> {
    let version = match values.text("compat") {
        None | Some("1.1" | "v3") => Version::V3,
        Some("0.10" | "v2") => Version::V2,
        Some(other) => return Err(refused("version", other)),
    };
    let backing_format = values.text("backing_fmt");
    if let Some(format) = backing_format.filter(|format| !BACKING_FORMATS.contains(format)) {
        return Err(refused("backing-fmt", format));
    }
    let encryption = encryption(values)?;
    let preallocation = match values.text("preallocation") {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => return Err(refused("preallocation", other)),
    };
    let compression_type = match values.text("compression_type") {
        None | Some("zlib") => CompressionType::Zlib,
        Some("zstd") => CompressionType::Zstd,
        Some(other) => return Err(refused("compression-type", other)),
    };
    let backing_file = values.text("backing_file");
    if backing_format.is_some() && backing_file.is_none() {
        return Err("Backing format cannot be used without backing file".into());
    }
    let defaults = CreateOptions::default();
    let options = CreateOptions {
        size: values.number("size"),
        version,
        cluster_size: values
            .number("cluster_size")
            .unwrap_or(defaults.cluster_size),
        refcount_bits: values
            .number("refcount_bits")
            .unwrap_or(defaults.refcount_bits),
        compression_type,
        extended_l2: values.flag("extended_l2"),
        lazy_refcounts: values.flag("lazy_refcounts"),
        backing: backing_file.map(|file| Backing {
            file: file.into(),
            format: backing_format.map(Into::into),
            size: None,
        }),
        data_file: values.text("data_file").map(Into::into),
        data_file_raw: values.flag("data_file_raw"),
        preallocation,
        nocow: values.flag("nocow"),
    };
    if encryption {
        options.validate().map_err(|e| e.to_string())?;
        return Err(key_secret(values, secrets));
    }
    Ok(options)
}

/// A raw image out of `values`.
///
/// # Errors
/// As by `qcow2()` above.
pub(in crate::cmd) fn raw(values: &Values) -> Result<RawOptions, String> {
    let preallocation = match values.text("preallocation") {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(other) => return Err(format!("invalid parameter value: {other}")),
    };
    Ok(RawOptions {
        size: values.number("size"),
        preallocation,
        nocow: values.flag("nocow"),
        backing: None,
    })
}

fn refused(parameter: &str, value: &str) -> String {
    format!("Parameter '{parameter}' does not accept value '{value}'")
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

    fn plan(list: &str) -> Result<CreateOptions, String> {
        qcow2(&QCOW2.parse(list).unwrap(), &[])
    }

    #[test]
    fn options_arrive() {
        let plan = plan(
            "size=1M,compat=v2,cluster_size=4k,refcount_bits=0x10,lazy_refcounts,data_file=a,,b,\
             preallocation=metadata,backing_file=base,backing_fmt=raw",
        );
        let expected = CreateOptions {
            size: Some(1 << 20),
            version: Version::V2,
            cluster_size: 4096,
            lazy_refcounts: true,
            backing: Some(Backing {
                file: b"base".to_vec(),
                format: Some(b"raw".to_vec()),
                size: None,
            }),
            data_file: Some(b"a,b".to_vec()),
            preallocation: Preallocation::Metadata,
            ..CreateOptions::default()
        };
        assert_eq!(plan.unwrap(), expected);
    }

    #[test]
    fn the_first_mistake_in_qemu_imgs_order_is_named() {
        for (list, message) in [
            (
                "compression_type=foo,compat=9",
                "Parameter 'version' does not accept value '9'",
            ),
            (
                "backing_fmt=foo,preallocation=foo",
                "Parameter 'backing-fmt' does not accept value 'foo'",
            ),
            (
                "encrypt.format=luks,encryption=on",
                "'encrypt.format' and its alias 'encryption' can't be used at the same time",
            ),
            (
                "size=1M,encryption=on",
                "Parameter 'encrypt.key-secret' is required for cipher",
            ),
        ] {
            assert_eq!(plan(list).unwrap_err(), message, "{list}");
        }
    }
}
