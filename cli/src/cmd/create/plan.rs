//! The options of `create` as the library takes them. What each may be is checked here,
//! in qemu-img's order and words; what goes together is the library's business.

use std::time::Duration;

use qcow2::{
    crypt::{Encryption, LuksOptions},
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
    if encryption == Some("luks") {
        check_luks_values(values)?;
    }
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
    let mut options = CreateOptions {
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
        encryption: None,
    };
    let Some(format) = encryption else {
        return Ok(options);
    };
    options.validate().map_err(|e| e.to_string())?;
    let Some(id) = values.text("encrypt.key-secret") else {
        return Err("Parameter 'encrypt.key-secret' is required for cipher".into());
    };
    let secret = Secret::find_in(id, secrets)?;
    options.encryption = Some(match format {
        "luks" => Encryption::Luks(luks(values, secret)),
        _ => Encryption::Aes(secret),
    });
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

/// The format of encryption, by either of its two options.
fn encryption(values: &Values) -> Result<Option<&str>, String> {
    match (values.text("encrypt.format"), values.get("encryption")) {
        (Some(_), Some(Value::Flag(true, _))) => {
            Err("'encrypt.format' and its alias 'encryption' can't be used at the same time".into())
        }
        (Some(format @ ("aes" | "luks")), _) => Ok(Some(format)),
        (Some(other), _) => Err(refused("format", other)),
        (None, _) => Ok(values.flag("encryption").then_some("aes")),
    }
}

/// The names that QEMU knows; what of them isn't offered is the library's business.
fn check_luks_values(values: &Values) -> Result<(), String> {
    let hashes = [
        "md5",
        "sha1",
        "sha224",
        "sha256",
        "sha384",
        "sha512",
        "ripemd160",
        "sm3",
    ];
    let ciphers = [
        "aes-128",
        "aes-192",
        "aes-256",
        "des",
        "3des",
        "cast5-128",
        "serpent-128",
        "serpent-192",
        "serpent-256",
        "twofish-128",
        "twofish-192",
        "twofish-256",
        "sm4",
    ];
    for (name, known) in [
        ("cipher-alg", &ciphers[..]),
        ("cipher-mode", &["ecb", "cbc", "xts", "ctr"]),
        ("ivgen-alg", &["plain", "plain64", "essiv"]),
        ("ivgen-hash-alg", &hashes),
        ("hash-alg", &hashes),
    ] {
        let value = values.text(&format!("encrypt.{name}"));
        if let Some(value) = value.filter(|value| !known.contains(value)) {
            return Err(refused(name, value));
        }
    }
    Ok(())
}

fn luks(values: &Values, secret: qcow2::crypt::Secret) -> LuksOptions {
    let mut options = LuksOptions::new(secret);
    for (name, field) in [
        ("cipher-alg", &mut options.cipher_alg),
        ("cipher-mode", &mut options.cipher_mode),
        ("ivgen-alg", &mut options.ivgen_alg),
        ("hash-alg", &mut options.hash_alg),
    ] {
        if let Some(value) = values.text(&format!("encrypt.{name}")) {
            value.clone_into(field);
        }
    }
    options.ivgen_hash_alg = values.text("encrypt.ivgen-hash-alg").map(Into::into);
    if let Some(time) = values.number("encrypt.iter-time") {
        options.iter_time = Duration::from_millis(time);
    }
    options
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
