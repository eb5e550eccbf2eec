//! Compressed into an image that is there.

use std::fs;

use super::{MIB, assert_same, content, ours, raw};
use crate::{
    images::qemu_io,
    pair::{Outcome, Pair, find},
};

/// What qemu-img prints of an image, and how many clusters are compressed.
fn check(pair: &Pair, image: &str) -> Outcome {
    let check = pair.qemu(&["check", "--output=json", image]);
    assert_eq!(check.code, Some(0), "{}{}", check.stdout, check.stderr);
    check
}

fn compressed_clusters(pair: &Pair, image: &str) -> u64 {
    let check = check(pair, image).stdout;
    let json: serde_json::Value = serde_json::from_str(&check).unwrap();
    json["compressed-clusters"].as_u64().unwrap_or(0)
}

#[test]
fn where_qemu_img_can_the_image_is_the_same() {
    let Some(pair) = Pair::new() else { return };
    if find("qemu-io").is_none() {
        return;
    }
    let bytes = content(5 * MIB + 3 * 512);
    raw(&pair, "a", &bytes);
    for options in [
        "cluster_size=4k",
        "cluster_size=4k,compression_type=zstd",
        "cluster_size=64k",
        "cluster_size=64k,compression_type=zstd",
        "cluster_size=2M",
        "cluster_size=2M,compression_type=zstd",
        "extended_l2=on",
        "compat=v2",
        "lazy_refcounts=on,refcount_bits=1",
    ] {
        for (before, flag) in [
            ("", ""),
            ("", "--target-is-zero"),
            ("write -z 0 5244416", ""),
        ] {
            for name in ["theirs", "ours"] {
                let size = bytes.len().to_string();
                pair.make(&["create", "-q", "-f", "qcow2", "-o", options, name, &size]);
                if !before.is_empty() {
                    qemu_io(&pair, name, &[before]);
                }
                if options != "compat=v2" {
                    pair.make(&["bitmap", "--add", "-g", "64k", name, "b"]);
                }
            }
            let line = format!("convert -c -n {flag} -f raw -O qcow2 a");
            let words: Vec<_> = line.split_whitespace().chain(["theirs"]).collect();
            pair.make(&words);
            ours(&pair, &format!("{line} ours"));
            assert_same(&pair, "a", "ours", options);
            let compressed = compressed_clusters(&pair, "ours");
            assert_eq!(
                compressed,
                compressed_clusters(&pair, "theirs"),
                "{options}"
            );
            assert!(compressed > 0, "{options}");
            let map = |name: &str| pair.qemu(&["map", "--output=json", name]).stdout;
            if !flag.is_empty() || !before.is_empty() {
                assert_eq!(map("ours"), map("theirs"), "{options} {flag}");
            }
            if options != "compat=v2" {
                let dump = |name: &str| {
                    let words = ["bitmap", "--dump", "--output=ranges", name, "b"];
                    pair.ours(&words).stdout
                };
                assert!(dump("ours").contains(' '));
                assert_eq!(dump("ours"), dump("theirs"), "{options} {flag}");
            }
        }
    }
}

/// Where qemu-img gives up, because a cluster is there.
#[test]
fn clusters_that_are_there_are_replaced() {
    let Some(pair) = Pair::new() else { return };
    if find("qemu-io").is_none() {
        return;
    }
    let bytes = content(4 * MIB + 512);
    raw(&pair, "a", &bytes);
    raw(&pair, "old", &vec![0xee; 6 * MIB]);
    raw(&pair, "base", &vec![0x77; 5 * MIB]);
    let after = [&bytes[..], &vec![0xee; 6 * MIB - bytes.len()]].concat();
    raw(&pair, "after", &after);
    for options in [
        "cluster_size=4k",
        "cluster_size=64k,compression_type=zstd",
        "cluster_size=2M",
        "cluster_size=512,refcount_bits=2",
        "extended_l2=on",
        "compat=v2",
        "preallocation=metadata",
    ] {
        for over in [&[][..], &["-b", "base", "-F", "raw"]] {
            if options.starts_with("preallocation") && !over.is_empty() {
                continue;
            }
            let create = ["create", "-q", "-f", "qcow2", "-o", options];
            pair.make(&[&create[..], over, &["t", "6M"]].concat());
            qemu_io(&pair, "t", &["write -P 0xee 0 6M"]);
            pair.make(&["snapshot", "-c", "before", "t"]);
            qemu_io(&pair, "t", &["write -P 0xee 0 1M"]);
            let has_bitmap = !options.starts_with("compat");
            if has_bitmap {
                pair.make(&["bitmap", "--add", "-g", "64k", "t", "b"]);
                pair.make(&["bitmap", "--add", "--disable", "-g", "64k", "t", "off"]);
            }
            let words = ["convert", "-c", "-n", "-f", "raw", "-O", "qcow2", "a", "t"];
            let theirs = pair.qemu(&words);
            assert_eq!(theirs.code, Some(1), "{options}: {theirs:?}");
            // With what it wrote to them before it gave up.
            if has_bitmap {
                pair.make(&["bitmap", "--clear", "t", "b"]);
            }
            ours(&pair, &words.join(" "));
            assert_same(&pair, "after", "t", options);
            assert!(compressed_clusters(&pair, "t") > 0, "{options}");
            let dirty = |name: &str| pair.ours(&["bitmap", "--dump", "t", name]).stdout;
            if has_bitmap {
                assert!(dirty("off").contains("dirty: 0 B"), "{}", dirty("off"));
                assert!(dirty("b").contains("4259840"), "{}", dirty("b"));
            }
            // The snapshot has what it had.
            ours(&pair, "convert -l before -O raw t read");
            assert!(fs::read(pair.work().join("read")).unwrap() == vec![0xee; 6 * MIB]);
            // And once more, over what is compressed now.
            ours(&pair, "convert -c -n -f raw -O qcow2 old t");
            assert_same(&pair, "old", "t", options);
        }
    }
}

#[test]
fn over_a_base_what_the_source_holds_is_compressed() {
    let Some(pair) = Pair::new() else { return };
    if find("qemu-io").is_none() {
        return;
    }
    raw(&pair, "base", &content(4 * MIB));
    let create = ["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw"];
    let make = |name: &str| pair.make(&[&create[..], &[name, "5M"]].concat());
    make("top");
    qemu_io(
        &pair,
        "top",
        &[
            "write -P 3 100k 300k",
            "write -z 1M 1M",
            "write -P 9 3000k 7k",
            "write -P 4 4900k 100k",
        ],
    );
    make("theirs");
    make("ours");
    let line = "convert -c -n -B base -F raw -O qcow2 top";
    let words: Vec<_> = line.split_whitespace().chain(["theirs"]).collect();
    pair.make(&words);
    ours(&pair, &format!("{line} ours"));
    assert_same(&pair, "top", "ours", "over a base");
    assert_eq!(
        compressed_clusters(&pair, "ours"),
        compressed_clusters(&pair, "theirs")
    );
    // A second time, which is where qemu-img gives up.
    ours(&pair, &format!("{line} ours"));
    assert_same(&pair, "top", "ours", "over a base");
    // All of it.
    ours(&pair, "convert -c -n -O qcow2 top ours");
    assert_same(&pair, "top", "ours", "over a base");
}

/// qemu-img writes compressed clusters into it that aren't encrypted.
#[test]
fn nothing_is_compressed_into_an_encrypted_image() {
    let Some(pair) = Pair::new() else { return };
    raw(&pair, "a", &content(MIB));
    let secret = ["--object", "secret,id=s,data=abc"];
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let create = ["create", "-q", "-f", "qcow2", "-o", options, "t", "1M"];
    pair.make(&[&create[..1], &secret, &create[1..]].concat());
    let before = fs::read(pair.work().join("t")).unwrap();
    let target = "driver=qcow2,file.filename=t,encrypt.key-secret=s";
    let convert = ["convert", "-c", "-n", "-f", "raw", "--target-image-opts"];
    let refused = pair.ours(&[&convert[..], &secret, &["a", target]].concat());
    assert_eq!(refused.code, Some(1));
    assert_eq!(
        refused.stderr,
        "qemu-img: Compression and encryption not supported at the same time\n"
    );
    assert!(fs::read(pair.work().join("t")).unwrap() == before);
}
