//! New images of all forms.

use std::fs;

use super::{MIB, assert_same, content, ours, raw};
use crate::pair::Pair;

#[test]
fn every_form_holds_the_same_disk() {
    let Some(pair) = Pair::new() else { return };
    let bytes = content(5 * MIB + 3 * 512);
    raw(&pair, "a", &bytes);
    for options in [
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=64",
        "cluster_size=64k,lazy_refcounts=on",
        "cluster_size=2M,refcount_bits=1",
        "compat=v2",
        "extended_l2=on,cluster_size=16k",
        "extended_l2=on,cluster_size=128k,refcount_bits=2",
        "preallocation=metadata",
        "preallocation=falloc,cluster_size=4k",
        "preallocation=full",
        "extended_l2=on,preallocation=metadata",
        "data_file=d.raw",
        "data_file=d.raw,data_file_raw=on",
    ] {
        ours(&pair, &format!("convert -f raw -O qcow2 -o {options} a t"));
        assert_same(&pair, "a", "t", options);
        ours(&pair, "convert -f qcow2 -O raw t t.raw");
        assert!(
            fs::read(pair.work().join("t.raw")).unwrap() == bytes,
            "{options}"
        );
        if options.contains("raw=on") {
            assert!(fs::read(pair.work().join("d.raw")).unwrap() == bytes);
        }
        let plain = !options.contains("data_file") && !options.contains("preallocation");
        for kind in ["zlib", "zstd"].into_iter().filter(|_| plain) {
            if options == "compat=v2" && kind == "zstd" {
                continue;
            }
            let options = format!("{options},compression_type={kind}");
            ours(
                &pair,
                &format!("convert -c -f raw -O qcow2 -o {options} a c"),
            );
            assert_same(&pair, "a", "c", &options);
            // Theirs, read by us.
            pair.make(&[
                "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, "a", "q",
            ]);
            ours(&pair, "convert -O qcow2 q t");
            assert_same(&pair, "a", "t", &options);
        }
    }
}

#[test]
fn sparseness_sizes_and_several_sources() {
    let Some(pair) = Pair::new() else { return };
    let bytes = content(3 * MIB + 512);
    raw(&pair, "a", &bytes);
    for size in ["0", "512", "1536", "64k", "16M"] {
        ours(&pair, &format!("convert -S {size} -f raw a t"));
        assert!(fs::read(pair.work().join("t")).unwrap() == bytes, "{size}");
        ours(&pair, &format!("convert -S {size} -f raw -O qcow2 a t"));
        assert_same(&pair, "a", "t", size);
    }
    for len in [0, 1, 511, 512, 65536, 65537] {
        raw(&pair, "odd", &bytes[..len]);
        ours(&pair, "convert -f raw -O qcow2 odd t");
        assert_same(&pair, "odd", "t", &len.to_string());
        ours(&pair, "convert -O raw t t.raw");
        assert_eq!(
            fs::metadata(pair.work().join("t.raw")).unwrap().len(),
            len.next_multiple_of(512) as u64
        );
    }
    raw(&pair, "three", &[&bytes[..], &bytes, &bytes].concat());
    ours(&pair, "convert -f raw -O qcow2 a a a t");
    assert_same(&pair, "three", "t", "three sources");
}
