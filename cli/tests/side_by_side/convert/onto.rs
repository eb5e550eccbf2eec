//! Onto a backing file, onto what is there; snapshots.

use std::{fs, process::Command};

use super::{MIB, assert_same, content, ours, raw};
use crate::pair::{Pair, find};

#[test]
fn overlays_snapshots_and_bitmaps() {
    let Some(pair) = Pair::new() else { return };
    let Some(qemu_io) = find("qemu-io") else {
        return;
    };
    let write = |image: &str, commands: &[&str]| {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let done = Command::new(&qemu_io)
            .current_dir(pair.work())
            .args(commands)
            .arg(image)
            .output()
            .unwrap();
        assert!(done.status.success());
    };
    let bytes = content(4 * MIB);
    raw(&pair, "base", &bytes);
    pair.make(&[
        "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top", "5M",
    ]);
    write(
        "top",
        &[
            "write -P 3 100k 300k",
            "write -z 1M 1M",
            "write -P 9 3000k 7k",
            "discard 2M 64k",
            "write -z 4M 64k",
        ],
    );
    for options in [
        "cluster_size=4k",
        "cluster_size=512",
        "cluster_size=2M",
        "compat=v2",
        "extended_l2=on",
    ] {
        for compress in ["", "-c"] {
            ours(
                &pair,
                &format!("convert {compress} -O qcow2 -o {options} -B base -F raw top t"),
            );
            assert_same(&pair, "top", "t", options);
        }
    }
    let small = fs::metadata(pair.work().join("t")).unwrap().len();
    assert!(
        small < 2 * MIB as u64,
        "what is in the base was copied: {small}"
    );
    ours(&pair, "convert -O qcow2 top t");
    assert_same(&pair, "top", "t", "flat");

    // Onto what is there.
    for (name, format) in [("there", "raw"), ("there.qcow2", "qcow2")] {
        pair.make(&["create", "-q", "-f", format, name, "6M"]);
        write(name, &["write -P 1 0 6M"]);
        ours(&pair, &format!("convert -n -O {format} top {name}"));
        let read = pair.qemu(&["convert", "-f", format, "-O", "raw", name, "read"]);
        assert_eq!(read.code, Some(0));
        let mut all = fs::read(pair.work().join("read")).unwrap();
        assert!(all.split_off(5 * MIB) == vec![1; MIB]);
        raw(&pair, "read", &all);
        assert_eq!(pair.qemu(&["compare", "read", "top"]).code, Some(0));
    }

    pair.make(&["convert", "-f", "raw", "-O", "qcow2", "base", "s"]);
    pair.make(&["snapshot", "-c", "before", "s"]);
    write("s", &["write -P 7 0 4M"]);
    ours(&pair, "convert -l before -O qcow2 s t");
    assert_same(&pair, "base", "t", "snapshot");
    // Of two only the first is taken as it was.
    let both = ["-l", "snapshot.name=before", "-O", "raw", "s", "s"];
    ours(&pair, &format!("convert {} t", both.join(" ")));
    pair.make(&[&["convert"], both.as_slice(), &["u"]].concat());
    let disks = ["t", "u"].map(|name| fs::read(pair.work().join(name)).unwrap());
    assert!(disks[0] == disks[1]);

    pair.make(&["bitmap", "--add", "s", "one"]);
    pair.make(&["bitmap", "--add", "--disable", "-g", "4k", "s", "two"]);
    write("s", &["write -P 8 1M 70k"]);
    ours(&pair, "convert --bitmaps -O qcow2 s t");
    assert_same(&pair, "s", "t", "bitmaps");
    let list = |name: &str| pair.ours(&["bitmap", "--list", name]).stdout;
    assert!(!list("s").is_empty());
    assert_eq!(list("s"), list("t"));
}
