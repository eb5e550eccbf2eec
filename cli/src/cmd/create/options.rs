//! The `-o` options of each format that can be created.

use crate::opts::{Item, Kind, Schema};

const fn item(name: &'static str, kind: Kind, help: &'static str) -> Item {
    Item { name, kind, help }
}

const SIZE: Item = item("size", Kind::Size, "Virtual disk size");
const NOCOW: Item = item(
    "nocow",
    Kind::Flag,
    "Turn off copy-on-write (valid only on btrfs)",
);
const EXTENT_SIZE_HINT: Item = item(
    "extent_size_hint",
    Kind::Size,
    "Extent size hint for the image file, 0 to disable",
);

/// Options of qcow2, in the order of "Formatting".
pub(crate) const QCOW2: Schema = Schema {
    format: &[
        item(
            "encryption",
            Kind::Flag,
            "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
        ),
        item(
            "encrypt.format",
            Kind::Text,
            "Encrypt the image, format choices: 'aes', 'luks'",
        ),
        item(
            "encrypt.key-secret",
            Kind::Text,
            "ID of secret providing qcow AES key or LUKS passphrase",
        ),
        item(
            "encrypt.cipher-alg",
            Kind::Text,
            "Name of encryption cipher algorithm",
        ),
        item(
            "encrypt.cipher-mode",
            Kind::Text,
            "Name of encryption cipher mode",
        ),
        item(
            "encrypt.ivgen-alg",
            Kind::Text,
            "Name of IV generator algorithm",
        ),
        item(
            "encrypt.ivgen-hash-alg",
            Kind::Text,
            "Name of IV generator hash algorithm",
        ),
        item(
            "encrypt.hash-alg",
            Kind::Text,
            "Name of encryption hash algorithm",
        ),
        item(
            "encrypt.iter-time",
            Kind::Number,
            "Time to spend in PBKDF in milliseconds",
        ),
        item("cluster_size", Kind::Size, "qcow2 cluster size"),
        item("extended_l2", Kind::Flag, "Extended L2 tables"),
        item(
            "preallocation",
            Kind::Text,
            "Preallocation mode (allowed values: off, metadata, falloc, full)",
        ),
        item(
            "compression_type",
            Kind::Text,
            "Compression method used for image cluster compression",
        ),
        SIZE,
        item(
            "compat",
            Kind::Text,
            "Compatibility level (v2 [0.10] or v3 [1.1])",
        ),
        item("backing_file", Kind::Text, "File name of a base image"),
        item("backing_fmt", Kind::Text, "Image format of the base image"),
        item(
            "data_file",
            Kind::Text,
            "File name of an external data file",
        ),
        item(
            "data_file_raw",
            Kind::Flag,
            "The external data file must stay valid as a raw image",
        ),
        item("lazy_refcounts", Kind::Flag, "Postpone refcount updates"),
        item(
            "refcount_bits",
            Kind::Number,
            "Width of a reference count entry in bits",
        ),
    ],
    file: &[NOCOW, EXTENT_SIZE_HINT],
};

/// Those of qcow2 on a block device.
pub(crate) const QCOW2_ON_DEVICE: Schema = Schema {
    format: QCOW2.format,
    file: &[],
};

/// Those of raw on a block device.
pub(crate) const RAW_ON_DEVICE: Schema = Schema {
    format: RAW.format,
    file: &[item(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off)",
    )],
};

/// Options of raw, in the order of "Formatting".
pub(crate) const RAW: Schema = Schema {
    format: &[SIZE],
    file: &[
        NOCOW,
        item(
            "preallocation",
            Kind::Text,
            "Preallocation mode (allowed values: off, falloc, full)",
        ),
        EXTENT_SIZE_HINT,
    ],
};
