//! Images to look at: one of each kind, made by qemu-img, and damaged copies.

use std::{fs, path::Path};

use crate::pair::{Pair, find};

/// Makes an image of each kind in the working directory; returns their names.
pub(crate) fn each_kind(pair: &Pair) -> Vec<&'static str> {
    let secret = "secret,id=s0,data=abc";
    for words in [
        &["create", "-f", "raw", "raw.img", "3M"][..],
        &["create", "-f", "raw", "small.img", "1000"],
        &["create", "-f", "raw", "empty.img", "0"],
        &["create", "-f", "qcow2", "v3.qcow2", "64M"],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "compat=0.10",
            "v2.qcow2",
            "64M",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "compression_type=zstd,extended_l2=on,lazy_refcounts=on,cluster_size=128k,\
             refcount_bits=1",
            "zstd.qcow2",
            "10G",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=512,refcount_bits=64",
            "c512.qcow2",
            "10M",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=2M",
            "c2m.qcow2",
            "1T",
        ],
        &["create", "-f", "qcow2", "empty.qcow2", "0"],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=d1.raw,data_file_raw=on",
            "df1.qcow2",
            "8M",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=d2.raw",
            "df2.qcow2",
            "8M",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-b",
            "v3.qcow2",
            "-F",
            "qcow2",
            "top.qcow2",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-b",
            "top.qcow2",
            "-F",
            "qcow2",
            "top2.qcow2",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-b",
            "raw.img",
            "-F",
            "raw",
            "over-raw.qcow2",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-u",
            "-b",
            "missing",
            "-F",
            "qcow2",
            "lost.qcow2",
            "1M",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-u",
            "-b",
            "nbd:host:1",
            "-F",
            "raw",
            "nbd.qcow2",
            "1M",
        ],
        &[
            "create",
            "-f",
            "qcow2",
            "-u",
            "-b",
            "file:v3.qcow2",
            "-F",
            "qcow2",
            "file.qcow2",
            "1M",
        ],
        &["create", "-f", "qcow2", "bitmaps.qcow2", "64M"],
        &["bitmap", "--add", "bitmaps.qcow2", "b0"],
        &[
            "bitmap",
            "--add",
            "--disable",
            "-g",
            "512",
            "bitmaps.qcow2",
            "b1",
        ],
        &["bitmap", "--add", "-g", "2G", "bitmaps.qcow2", "näme é"],
        &["create", "-f", "qcow2", "snapshots.qcow2", "64M"],
        &["snapshot", "-c", "s1", "snapshots.qcow2"],
        &[
            "snapshot",
            "-c",
            "second one with a very long name here",
            "snapshots.qcow2",
        ],
        &["bitmap", "--add", "snapshots.qcow2", "b0"],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "compat=0.10",
            "v2-snapshots.qcow2",
            "64M",
        ],
        &["snapshot", "-c", "s1", "v2-snapshots.qcow2"],
        &[
            "create",
            "-f",
            "qcow2",
            "--object",
            secret,
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10",
            "-b",
            "v3.qcow2",
            "-F",
            "qcow2",
            "luks.qcow2",
        ],
    ] {
        pair.make(words);
    }
    let work = pair.work();
    fs::create_dir(work.join("sub")).unwrap();
    let absolute = work.join("v3.qcow2");
    let absolute = absolute.to_str().unwrap();
    for (backing, name) in [
        ("../v3.qcow2", "sub/relative.qcow2"),
        (absolute, "sub/absolute.qcow2"),
    ] {
        pair.make(&[
            "create", "-f", "qcow2", "-u", "-b", backing, "-F", "qcow2", name, "64M",
        ]);
    }
    // AES: the header alone says so.
    patch(
        &work,
        "v3.qcow2",
        "aes.qcow2",
        &[(32, &1_u32.to_be_bytes())],
    );
    patch(
        &work,
        "v2.qcow2",
        "v2-aes.qcow2",
        &[(32, &1_u32.to_be_bytes())],
    );
    patch(
        &work,
        "df1.qcow2",
        "df-aes.qcow2",
        &[(32, &1_u32.to_be_bytes())],
    );
    // Dirty, corrupt, both; lazy refcounts.
    patch(&work, "zstd.qcow2", "dirty.qcow2", &[(79, &[0x19])]);
    patch(&work, "v3.qcow2", "corrupt.qcow2", &[(79, &[2])]);
    patch(
        &work,
        "snapshots.qcow2",
        "dirty-corrupt.qcow2",
        &[(79, &[3]), (87, &[1])],
    );
    // Unknown features that don't matter.
    patch(
        &work,
        "v3.qcow2",
        "features.qcow2",
        &[(80, &[0xff; 15]), (95, &[0xfd])],
    );
    vec![
        "raw.img",
        "small.img",
        "empty.img",
        "v3.qcow2",
        "v2.qcow2",
        "zstd.qcow2",
        "c512.qcow2",
        "c2m.qcow2",
        "empty.qcow2",
        "df1.qcow2",
        "df2.qcow2",
        "top.qcow2",
        "top2.qcow2",
        "over-raw.qcow2",
        "lost.qcow2",
        "nbd.qcow2",
        "file.qcow2",
        "bitmaps.qcow2",
        "snapshots.qcow2",
        "v2-snapshots.qcow2",
        "luks.qcow2",
        "sub/relative.qcow2",
        "sub/absolute.qcow2",
        "aes.qcow2",
        "v2-aes.qcow2",
        "df-aes.qcow2",
        "dirty.qcow2",
        "corrupt.qcow2",
        "dirty-corrupt.qcow2",
        "features.qcow2",
    ]
}

/// Copies `from` to `to` with some bytes replaced.
pub(crate) fn patch(work: &Path, from: &str, to: &str, patches: &[(usize, &[u8])]) {
    let mut bytes = fs::read(work.join(from)).unwrap();
    for (at, patch) in patches {
        bytes[*at..*at + patch.len()].copy_from_slice(patch);
    }
    fs::write(work.join(to), bytes).unwrap();
}

/// Runs qemu-io on a qcow2 image in the working directory.
pub(crate) fn qemu_io(pair: &Pair, image: &str, commands: &[&str]) {
    let mut words = vec!["-f", "qcow2", "-d", "unmap"];
    words.extend(commands.iter().flat_map(|command| ["-c", command]));
    words.push(image);
    let output = std::process::Command::new(find("qemu-io").unwrap())
        .args(&words)
        .current_dir(pair.work())
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}
