//! `measure`: every kind of image, every option that changes the numbers, and mistakes.

use crate::{
    images::{each_kind, qemu_io},
    pair::Pair,
};

#[test]
fn empty_disks() {
    let Some(mut pair) = Pair::new() else { return };
    let sizes = "0 1 511 512 65536 65537 1000000 1G 37G 512M 1023G 1T 5000001M 64T 1P 2P";
    let options = [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=1",
        "cluster_size=1k,refcount_bits=64",
        "cluster_size=2M",
        "cluster_size=2M,refcount_bits=64",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k,refcount_bits=32",
        "preallocation=metadata",
        "preallocation=falloc,cluster_size=8k",
        "preallocation=full",
        "data_file=x,data_file_raw=on",
        "backing_file=x,backing_fmt=raw",
    ];
    for size in sizes.split(' ') {
        pair.same_forms("measure", &format!("--size {size}"));
        for options in options {
            pair.same_line(&format!("measure -O qcow2 -o {options} --size {size}"));
        }
    }
    pair.finish();
}

#[test]
fn every_kind_of_image() {
    let Some(mut pair) = Pair::new() else { return };
    for name in each_kind(&pair) {
        // A protocol of a backing file is not followed.
        if name == "nbd.qcow2" {
            continue;
        }
        pair.same_forms("measure", name);
        pair.same_forms("measure", &format!("-O qcow2 {name}"));
        pair.same_forms("measure", &format!("-U -f raw -O qcow2 {name}"));
        for options in ["cluster_size=512", "cluster_size=2M", "compat=0.10"] {
            pair.same_line(&format!("measure -O qcow2 -o {options} {name}"));
        }
    }
    pair.finish();
}

#[test]
fn every_kind_of_content() {
    let Some(mut pair) = Pair::new() else { return };
    let writes = [
        "write -P 1 0 100k",
        "write -z 128k 64k",
        "write -z -u 192k 64k",
        "write -P 1 321k 1k",
        "write -P 5 384k 64k",
        "discard 384k 64k",
        "write -P 6 1000k 1k",
        "write -P 6 2600k 8k",
        "write -z 2602k 2k",
        "write -P 7 5631k 1k",
    ];
    for (name, options) in [
        ("plain", "cluster_size=64k"),
        ("small", "cluster_size=512"),
        ("large", "cluster_size=2M"),
        ("extended", "extended_l2=on"),
        ("v2", "compat=0.10"),
        ("external", "data_file=external.raw"),
        ("preallocated", "preallocation=metadata,cluster_size=4k"),
        ("full", "preallocation=full"),
    ] {
        // Not a whole number of clusters.
        pair.make(&["create", "-q", "-f", "qcow2", "-o", options, name, "5632k"]);
        qemu_io(&pair, name, &writes);
        let above = format!("{name}.top");
        pair.make(&[
            "create", "-q", "-f", "qcow2", "-b", name, "-F", "qcow2", &above, "9M",
        ]);
        qemu_io(&pair, &above, &["write -P 9 64k 64k", "write -z 2M 192k"]);
        pair.make(&["convert", "-O", "raw", name, "raw"]);
        pair.make(&["convert", "-c", "-O", "qcow2", name, "compressed"]);
        for name in [name, &above, "raw", "compressed"] {
            for options in [
                "cluster_size=512",
                "cluster_size=4k",
                "cluster_size=64k",
                "cluster_size=2M",
                "extended_l2=on",
                "preallocation=falloc",
                "backing_file=b",
                "backing_file=",
            ] {
                pair.same_line(&format!("measure -O qcow2 -o {options} {name}"));
            }
        }
    }
    pair.finish();
}

#[test]
fn bitmaps_and_snapshots() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a", "100M"]);
    qemu_io(&pair, "a", &["write 0 5M", "write -z 60M 1M"]);
    for (name, granularity) in [
        ("b", "512"),
        ("a-longer-name", "64k"),
        ("c", "2G"),
        ("d", "4k"),
    ] {
        pair.make(&["bitmap", "--add", "-g", granularity, "a", name]);
    }
    pair.make(&["bitmap", "--disable", "a", "c"]);
    pair.make(&["snapshot", "-c", "one", "a"]);
    qemu_io(&pair, "a", &["write 20M 7M", "discard 0 2M"]);
    pair.make(&["snapshot", "-c", "1", "a"]);
    pair.make(&["resize", "-q", "a", "200M"]);
    qemu_io(&pair, "a", &["write 150M 1M"]);
    pair.make(&["snapshot", "-c", "three", "a"]);
    pair.make(&["resize", "-q", "--shrink", "a", "22M"]);
    for target in [
        "raw",
        "qcow2",
        "qcow2 -o compat=0.10",
        "qcow2 -o cluster_size=512",
        "qcow2 -o cluster_size=2M",
    ] {
        pair.same_forms("measure", &format!("-O {target} a"));
        for which in [
            "one",
            "1",
            "2",
            "three",
            "four",
            "snapshot.id=1",
            "snapshot.name=1",
            "snapshot.id=2,snapshot.name=1",
            "snapshot.id=1,snapshot.name=1",
            "snapshot.id=",
            "snapshot.foo=1",
            "snapshot.",
            "snapshot.id",
            "snapshots",
        ] {
            pair.same_forms("measure", &format!("-O {target} -l {which} a"));
        }
    }
    pair.same_line("measure -f raw -l one a");
    pair.finish();
}

#[test]
fn mistakes_on_the_command_line() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a", "1M"]);
    for words in [
        "",
        "a a",
        "missing",
        "missing -O foo",
        "-O foo -o bar=1 a",
        "-O foo --size 1",
        "-O file --size 1",
        "-O qcow2 -o foo=1 a",
        "-O qcow2 -o help a",
        "-O qcow2 -o size=foo a",
        "-O qcow2 -o size=5T,nocow=on,lazy_refcounts a",
        "-O raw -o preallocation=foo a",
        "-O raw -o cluster_size=4k a",
        "-O qcow2 -o a=,b a",
        "-O qcow2 -o ,a a",
        "--size 1 a",
        "--size 1 -f raw",
        "--size 1 -l x",
        "--size 1 --image-opts",
        "--size 1 -U",
        "--size -1",
        "--size 8E",
        "--size 7E",
        "--size 7E -O qcow2",
        "--size 4P -O qcow2",
        "--size x",
        "--size 1 --size 2M -O qcow2",
        "--size 1 -O qcow2 -o cluster_size=3k,refcount_bits=3",
        "--size 1 -O qcow2 -o cluster_size=4M",
        "--size 1 -O qcow2 -o cluster_size=4k -o refcount_bits=3",
        "--size 1 -O qcow2 -o extended_l2=on,cluster_size=4k,compat=foo",
        "--size 1 -O qcow2 -o compat=0.10,refcount_bits=8",
        "--size 1 -O qcow2 -o compat=v3",
        "--size 1 -O qcow2 -o preallocation=foo,compat=9",
        "--size 1 -O qcow2 -o preallocation=foo",
        "--size 1 -O qcow2 -o encrypt.format=luks",
        "--size 1 -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s",
        "--object secret,id=s,data=x --size 1G -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s",
        "--object secret,id=s,data=x --size 1G -O qcow2 -o \
         encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=aes-128,cluster_size=512",
        "--object secret,id=s,data=x --size 1G -O qcow2 -o \
         encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-mode=cbc,cluster_size=512",
        "--object secret,id=s,data=x --size 1G -O qcow2 -o encrypt.format=aes,encrypt.key-secret=s",
        "-f qcow2 --image-opts driver=qcow2,file.filename=a",
        "--image-opts driver=qcow2,file.filename=a",
        "-U --image-opts driver=qcow2,file.filename=a,force-share=on",
        "-s 1",
        "-p a",
        "--output foo a",
        "--object foo a",
    ] {
        pair.same_forms("measure", words);
    }
    pair.finish();
}
