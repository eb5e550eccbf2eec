//! `map`: every kind of image, every kind of cluster, chains, and parts of a disk.

use std::fs;

use crate::{
    images::{each_kind, patch, qemu_io},
    pair::Pair,
};

#[test]
fn every_kind_of_image() {
    let Some(mut pair) = Pair::new() else { return };
    for name in each_kind(&pair) {
        // A protocol of a backing file is not followed.
        if name == "nbd.qcow2" {
            let ours = pair.ours(&["map", name]);
            assert_eq!(ours.code, Some(1));
            let text = "Could not open 'nbd.qcow2': Could not open backing file: ";
            assert!(ours.stderr.contains(text), "{}", ours.stderr);
            continue;
        }
        pair.same_forms("map", name);
        pair.same_forms("map", &format!("-U -f qcow2 {name}"));
        pair.same_forms("map", &format!("-f raw {name}"));
        pair.same_forms("map", &format!("-f file {name}"));
    }
    pair.finish();
}

#[test]
fn every_kind_of_cluster() {
    let Some(mut pair) = Pair::new() else { return };
    let writes = [
        "write -c -P 9 512k 64k",
        "write -P 1 0 100k",
        "write -z 128k 64k",
        "write -z -u 192k 64k",
        "write -P 1 320k 64k",
        "write -z 320k 64k",
        "write -P 5 384k 64k",
        "discard 384k 64k",
        "write -P 6 1000k 1k",
    ];
    for (name, options) in [
        ("plain", "cluster_size=64k"),
        ("small", "cluster_size=512"),
        ("large", "cluster_size=2M"),
        ("zstd", "compression_type=zstd,cluster_size=4k"),
        ("extended", "extended_l2=on"),
        ("v2", "compat=0.10"),
        ("external", "data_file=external.raw"),
        (
            "external-raw",
            "data_file=external-raw.raw,data_file_raw=on",
        ),
        ("preallocated", "preallocation=metadata,cluster_size=4k"),
        ("falloc", "preallocation=falloc"),
        ("full", "preallocation=full"),
    ] {
        pair.make(&["create", "-q", "-f", "qcow2", "-o", options, name, "3M"]);
        pair.same_forms("map", name);
        // Less than a cluster, and what has its place already, can't be written compressed.
        let compressible = ["plain", "small", "zstd", "extended", "v2"].contains(&name);
        let skipped = usize::from(!compressible);
        qemu_io(&pair, name, &writes[skipped..]);
        pair.same_forms("map", name);
        let above = format!("{name}.top");
        pair.make(&[
            "create", "-q", "-f", "qcow2", "-b", name, "-F", "qcow2", &above, "5M",
        ]);
        qemu_io(&pair, &above, &["write -P 9 64k 64k", "write -z 2M 192k"]);
        pair.same_forms("map", &above);
        pair.same_forms(
            "map",
            &format!("--start-offset=100k --max-length=1M {above}"),
        );
    }
    pair.make(&["convert", "-c", "-O", "qcow2", "plain", "compressed"]);
    pair.same_forms("map", "compressed");
    pair.finish();
}

#[test]
fn parts_of_a_disk() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a", "2M"]);
    qemu_io(
        &pair,
        "a",
        &["write 0 128k", "write 256k 64k", "write -z 320k 64k"],
    );
    fs::write(pair.work().join("r"), vec![1; 70_001]).unwrap();
    for part in [
        "-s 64k",
        "-l 64k",
        "-s 64k -l 64k",
        "--start-offset=100 --max-length=1000",
        "--start-offset=1.5k --max-length=0x400",
        "--start-offset=1000k",
        "--start-offset=2M",
        "--start-offset=3M",
        "--start-offset=7E --max-length=7E",
        "--max-length=0",
        "--max-length=1E",
    ] {
        pair.same_forms("map", &format!("{part} a"));
        pair.same_forms("map", &format!("-f raw {part} r"));
    }
    pair.finish();
}

#[test]
fn other_ways_to_name_an_image() {
    let Some(mut pair) = Pair::new() else { return };
    fs::create_dir(pair.work().join("sub")).unwrap();
    for (behind, name) in [("", "base"), ("base", "top"), ("../top", "sub/low")] {
        let mut words = vec!["create", "-q", "-f", "qcow2"];
        if !behind.is_empty() {
            words.extend(["-b", behind, "-F", "qcow2"]);
        }
        words.extend([name, "1M"]);
        pair.make(&words);
    }
    qemu_io(&pair, "base", &["write 0 128k"]);
    qemu_io(&pair, "top", &["write 192k 64k"]);
    qemu_io(&pair, "sub/low", &["write 320k 64k"]);
    for name in [
        "sub/low",
        "./sub/low",
        "file:sub/low",
        "-U top",
        "--image-opts driver=qcow2,file.filename=top",
        "--image-opts driver=qcow2,file.filename=top,backing=",
        "--image-opts driver=qcow2,file.filename=top,force-share=on",
        "--image-opts driver=raw,file.filename=top",
        r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"top"}}"#,
        r#"json:{"driver":"qcow2","backing":null,"file":{"filename":"top"}}"#,
    ] {
        pair.same_forms("map", name);
    }
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
        "-f foo a",
        "-f qcow2 --image-opts a",
        "--image-opts a",
        "--start-offset=-1 a",
        "--start-offset=x a",
        "--start-offset=8E a",
        "--max-length=-5 a",
        "--max-length=x --start-offset=y a",
        "--max-length= a",
        "--output=foo a",
        "-p a",
        "--start a",
        "--object secret a",
        "-U --image-opts driver=qcow2,file.filename=a,force-share=on",
        "-U --image-opts driver=qcow2,file.filename=a,force-share=off",
    ] {
        pair.same_forms("map", words);
    }
    pair.finish();
}

#[test]
fn backing_files_that_cannot_be_opened() {
    let Some(mut pair) = Pair::new() else { return };
    fs::create_dir(pair.work().join("dir")).unwrap();
    fs::write(pair.work().join("junk"), [1; 4096]).unwrap();
    for (behind, format, name) in [
        ("missing", "qcow2", "one"),
        ("one", "qcow2", "two"),
        ("junk", "qcow2", "no-qcow2"),
        ("dir", "raw", "over-dir"),
        ("junk", "raw", "over-raw"),
        ("file:junk", "raw", "over-file"),
    ] {
        pair.make(&[
            "create", "-q", "-u", "-f", "qcow2", "-b", behind, "-F", format, name, "1M",
        ]);
        pair.same_forms("map", name);
    }
    // qemu-img never ends over these.
    for (behind, name) in [("loop", "loop.2"), ("loop.2", "loop")] {
        pair.make(&[
            "create", "-q", "-u", "-f", "qcow2", "-b", behind, "-F", "qcow2", name, "1M",
        ]);
    }
    let ours = pair.ours(&["map", "loop"]);
    assert_eq!(ours.code, Some(1));
    let text = "Backing file 'loop' creates an infinite loop.";
    assert!(ours.stderr.contains(text), "{}", ours.stderr);
    pair.finish();
}

#[test]
fn damage_ends_the_map_where_it_stands() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a", "1M"]);
    qemu_io(&pair, "a", &["write 0 384k", "write -z 512k 64k"]);
    // Entry 7 of the L2 table, behind two extents: unaligned.
    let entry = (1_u64 << 63 | 0x50200).to_be_bytes();
    patch(&pair.work(), "a", "damaged", &[(0x40000 + 7 * 8, &entry)]);
    for words in [
        &["map", "damaged"][..],
        &["map", "--output=json", "damaged"],
    ] {
        let (theirs, ours) = (pair.qemu(words), pair.ours(words));
        assert_eq!((theirs.code, ours.code), (Some(1), Some(1)));
        assert_eq!(theirs.stdout, ours.stdout);
        // Both say more on a line before, each in its words.
        let text = "qemu-img: 65536 bytes of the disk at 0x70000 can't be read: L2 table entry 7 \
                    at 0x40038: found 0x50200, which is unaligned, allowed is a multiple of \
                    0x10000";
        let lines: Vec<_> = ours.stderr.lines().collect();
        assert_eq!((lines.len(), lines[0]), (2, text));
        assert_eq!(Some(lines[1]), theirs.stderr.lines().last());
    }
    // What is before it can be told.
    pair.same_line("map --output=json --max-length=448k damaged");
    pair.finish();
}
