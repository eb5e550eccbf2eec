//! `compare`: same and different content, sizes, kinds; every way to end.

use std::{fs, os::unix::fs::FileExt};

use crate::{
    images::qemu_io,
    pair::{Pair, find},
};

/// A file of `len` bytes with something at some places.
fn raw(pair: &Pair, name: &str, len: u64, places: &[(u64, usize)]) {
    let file = fs::File::create(pair.work().join(name)).unwrap();
    file.set_len(len).unwrap();
    for (at, bytes) in places {
        let noise = (0..*bytes).map(|n| (n % 251 + 1).to_le_bytes()[0]);
        file.write_all_at(&noise.collect::<Vec<_>>(), *at).unwrap();
    }
}

#[test]
fn content_that_is_the_same_or_not() {
    let Some(mut pair) = Pair::new() else { return };
    const MIB: u64 = 1 << 20;
    raw(&pair, "a", MIB, &[(0, 300_000), (600_000, 5)]);
    raw(&pair, "holes", MIB, &[]);
    raw(&pair, "late", MIB, &[(1_000_000, 1)]);
    raw(&pair, "longer", 2 * MIB, &[(0, 300_000), (600_000, 5)]);
    raw(
        &pair,
        "longer-late",
        2 * MIB,
        &[(0, 300_000), (600_000, 5), (1_500_000, 1)],
    );
    raw(
        &pair,
        "longer-early",
        2 * MIB,
        &[(0, 300_000), (600_000, 6)],
    );
    raw(&pair, "empty", 0, &[]);
    fs::write(pair.work().join("zeros"), vec![0; 1 << 20]).unwrap();
    for (name, options) in [
        ("a.qcow2", "cluster_size=64k"),
        ("a4.qcow2", "cluster_size=4k,extended_l2=off"),
        ("ax.qcow2", "extended_l2=on"),
    ] {
        pair.make(&[
            "convert", "-f", "raw", "-O", "qcow2", "-o", options, "a", name,
        ]);
    }
    pair.make(&["convert", "-f", "raw", "-c", "-O", "qcow2", "a", "ac.qcow2"]);
    pair.make_line("create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2");
    pair.make(&["create", "-q", "-f", "qcow2", "un.qcow2", "1M"]);
    let options = "preallocation=metadata";
    pair.make(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        options,
        "pre.qcow2",
        "1M",
    ]);
    let names = [
        "a",
        "holes",
        "late",
        "longer",
        "longer-late",
        "longer-early",
        "empty",
        "zeros",
        "a.qcow2",
        "a4.qcow2",
        "ax.qcow2",
        "ac.qcow2",
        "over.qcow2",
        "un.qcow2",
        "pre.qcow2",
    ];
    for (index, one) in names.iter().enumerate() {
        for two in &names[index..] {
            for options in ["", "-s", "-q"] {
                pair.same_line(&format!("compare {options} {one} {two}"));
                pair.same_line(&format!("compare {options} {two} {one}"));
            }
        }
    }
    pair.finish();
}

/// Disks of which QEMU doesn't tell all that is the same in one answer.
#[test]
fn strictly_beyond_what_is_told_at_once() {
    let Some(mut pair) = Pair::new() else { return };
    if find("qemu-io").is_none() {
        return;
    }
    let writes = [
        &[][..],
        &["write 0 40M"],
        &["write 0 36M"],
        &["write 0 40M", "write -z 34M 1M"],
        &["write -z 33M 7M"],
        &["write -c 39M 1M"],
        &["write -c 39M 1M", "write 39M 64k"],
    ];
    raw(&pair, "big", 40 << 20, &[(35 << 20, 5 << 20)]);
    let mut names = vec!["big".to_owned()];
    for (format, options, every) in [
        ("c64", "cluster_size=64k", 1),
        ("c16", "cluster_size=16k", 2),
        ("x64", "extended_l2=on", 2),
        ("over", "cluster_size=64k", 3),
        ("over16", "cluster_size=16k", 3),
    ] {
        for (index, commands) in writes.iter().enumerate().step_by(every) {
            let name = format!("{format}-{index}");
            let mut create = vec!["create", "-q", "-f", "qcow2", "-o", options];
            if format.starts_with("over") {
                create.extend(["-b", "c64-2", "-F", "qcow2"]);
            }
            pair.make(&[&create[..], &[name.as_str(), "40M"]].concat());
            qemu_io(&pair, &name, commands);
            names.push(name);
        }
    }
    for (index, one) in names.iter().enumerate() {
        for two in names.iter().skip(index % 3).step_by(3) {
            pair.same_line(&format!("compare -s {one} {two}"));
        }
    }
    pair.finish();
}

#[test]
fn how_far_it_is() {
    let Some(mut pair) = Pair::new() else { return };
    raw(&pair, "a", 9 << 20, &[(0, 9 << 20)]);
    raw(&pair, "b", 9 << 20, &[(0, 9 << 20), (5_000_000, 1)]);
    for line in [
        "compare -p a a",
        "compare -q -p a a",
        "compare -p -s a a",
        "compare -p a missing",
        "compare -p -T foo a a",
    ] {
        pair.same_line(line);
    }
    // How far it was when it ended is not the same for many threads.
    let (theirs, ours) = (
        pair.qemu(&["compare", "-p", "a", "b"]),
        pair.ours(&["compare", "-p", "a", "b"]),
    );
    let last = |text: &str| text.rsplit('\r').next().unwrap().to_owned();
    assert_eq!(
        (last(&theirs.stdout), theirs.code),
        (last(&ours.stdout), ours.code)
    );
    pair.finish();
}

#[test]
fn ways_to_name_images_and_mistakes() {
    let Some(mut pair) = Pair::new() else { return };
    raw(&pair, "a", 1 << 20, &[(0, 1 << 20)]);
    pair.make(&["convert", "-f", "raw", "-O", "qcow2", "a", "a.qcow2"]);
    for line in [
        "-f raw -F qcow2 a a.qcow2",
        "-f qcow2 a.qcow2 a",
        "--a-format=raw --b-format=raw a a.qcow2",
        "-f raw a.qcow2 a.qcow2",
        "--image-opts driver=raw,file.filename=a driver=qcow2,file.filename=a.qcow2",
        "-U a a.qcow2",
        "-T none a a.qcow2",
        "--strict --quiet a a.qcow2",
        "",
        "a",
        "a a a",
        "missing a",
        "a missing",
        "-f qcow2 a a",
        "-F qcow2 a a",
        "-f foo a a",
        "-T foo a a",
        "-T foo missing missing",
        "--image-opts -f raw a a",
        "--image-opts -F raw a a",
        "--object secret a a",
        "--format=raw a a",
        "-x a a",
    ] {
        pair.same_line(&format!("compare {line}"));
    }
    pair.finish();
}

#[test]
fn parts_that_cannot_be_told_or_read() {
    let Some(pair) = Pair::new() else { return };
    raw(&pair, "a", 1 << 20, &[(0, 1 << 20)]);
    let word = |bytes: &[u8], at: usize| {
        let word = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        usize::try_from(word & 0x00ff_ffff_ffff_fe00).unwrap()
    };
    pair.make(&["convert", "-f", "raw", "-O", "qcow2", "a", "plain"]);
    let mut bytes = fs::read(pair.work().join("plain")).unwrap();
    let l2 = word(&bytes, word(&bytes, 40));
    bytes[l2 + 3 * 8 + 6] |= 2;
    fs::write(pair.work().join("untold"), bytes).unwrap();
    pair.make(&["convert", "-f", "raw", "-c", "-O", "qcow2", "a", "packed"]);
    let mut bytes = fs::read(pair.work().join("packed")).unwrap();
    let l2 = word(&bytes, word(&bytes, 40));
    let entry = u64::from_be_bytes(bytes[l2 + 24..l2 + 32].try_into().unwrap());
    let data = usize::try_from(entry & ((1 << 54) - 1)).unwrap();
    bytes[data..data + 100].fill(0xff);
    fs::write(pair.work().join("unread"), bytes).unwrap();
    for (name, code) in [("untold", 3), ("unread", 4)] {
        for words in [["compare", "a", name], ["compare", name, "a"]] {
            let (theirs, ours) = (pair.qemu(&words), pair.ours(&words));
            assert_eq!(
                (theirs.code, ours.code),
                (Some(code), Some(code)),
                "{words:?}"
            );
            assert_eq!(theirs.stdout, ours.stdout);
            assert_eq!(theirs.stderr.lines().last(), ours.stderr.lines().last());
        }
    }
}
