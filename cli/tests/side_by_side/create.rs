//! `create`: what is printed, what is refused, and that qemu-img reads what was made.

use std::fs;

use crate::pair::Pair;

/// A fresh directory entry for each run: both programs create the same name.
fn same(pair: &mut Pair, words: &[&str]) {
    let clean = |pair: &Pair| {
        for name in ["a", "data", "new"] {
            let _ = fs::remove_file(pair.work().join(name));
        }
    };
    clean(pair);
    let theirs = pair.qemu(words);
    let info_words = ["info", "--output=json", "a"];
    let their_info = pair.qemu(&info_words);
    clean(pair);
    let ours = pair.ours(words);
    let our_info = pair.qemu(&info_words);
    pair.note(words, &theirs, &ours);
    if theirs == ours && ours.code == Some(0) {
        // Sizes of the file may differ; what qemu-img says about the image may not.
        let specific = |text: &str| -> Vec<String> {
            let lines = text.lines().skip_while(|line| !line.starts_with("    ],"));
            lines
                .filter(|line| !line.contains("actual-size"))
                .map(Into::into)
                .collect()
        };
        let (theirs, ours) = (specific(&their_info.stdout), specific(&our_info.stdout));
        assert_eq!(theirs, ours, "{words:?}");
    }
}

fn base(pair: &Pair) {
    pair.make(&["create", "-q", "-f", "qcow2", "base.qcow2", "64M"]);
    pair.make(&["create", "-q", "-f", "raw", "base.raw", "3M"]);
    pair.make(&["create", "-q", "-f", "raw", "odd.raw", "1000"]);
}

#[test]
fn operands_and_sizes() {
    let Some(mut pair) = Pair::new() else { return };
    for words in [
        &["create"][..],
        &["create", "a"],
        &["create", "a", "b"],
        &["create", "a", "1", "2"],
        &["create", "-q", "a", "1M"],
        &["create", "-f", "raw", "a", "1M"],
        &["create", "-f", "foo", "a", "1M"],
        &["create", "-f", "foo", "x:y", "foo"],
        &["create", "-f", "foo", "x:y", "1M"],
        &["create", "-f", "qcow2", "x:y", "1M"],
        &["create", "-f", "qcow2", "json:{}", "1M"],
        &["create", "-f", "qcow2", "file:a", "1M"],
        &["create", "-f", "qcow2", "", "1M"],
        &["create", "-f", "qcow2", "no/dir/a", "1M"],
        &["create", "-f", "qcow2", ".", "1M"],
        &["create", "-f", "raw", "no/dir/a", "1M"],
        &["create", "-f", "raw", ".", "1M"],
        &["create", "-f", "file", "a", "1M"],
        &["create", "-f", "raw", "a", "0"],
        &["create", "-f", "raw", "a", "511"],
        &["create", "-f", "raw", "a", "7E"],
        &["create", "-f", "raw", "-o", "size=8E", "a"],
        &["create", "-f", "raw", "-o", "size=9223372036854775807", "a"],
    ] {
        same(&mut pair, words);
    }
    for size in [
        "1",
        "1b",
        "1k",
        "1K",
        "1m",
        "1g",
        "1t",
        "1P",
        "1E",
        "7E",
        "8E",
        "16E",
        "1Z",
        "1.5",
        "1.5k",
        "0.5",
        ".5k",
        "1.k",
        "1e3",
        "0x10",
        "0x10k",
        "0x",
        "010",
        "+5",
        "-5",
        "-1k",
        "",
        " 5",
        "5 ",
        "5kk",
        "5KiB",
        "1.9999999999999999999k",
        "9223372036854775807",
        "9223372036854775808",
        "9223372036854774784",
        "9223372035781033984",
        "9223372035781033985",
        "8070450532247928832",
        "18446744073709551615",
        "18446744073709551616",
        "1.1",
        "1.0",
        "0",
        "nan",
        "0.1k",
        "1.0b",
        "7.999999E",
        "0xe",
        "2P",
        "32P",
    ] {
        same(&mut pair, &["create", "-f", "qcow2", "a", "--", size]);
        same(
            &mut pair,
            &["create", "-f", "qcow2", "-o", &format!("size={size}"), "a"],
        );
    }
    pair.finish();
}

#[test]
fn option_lists_and_their_help() {
    let Some(mut pair) = Pair::new() else { return };
    for words in [
        &["create", "-o", "help"][..],
        &["create", "-f", "raw", "-o", "help", "a"],
        &["create", "-f", "qcow2", "-o", "help"],
        &["create", "-f", "qcow2", "-o", "?", "a"],
        &[
            "create", "-f", "qcow2", "-q", "-o", "help", "-o", "foo", "a",
        ],
        &["create", "-f", "qcow2", "-o", "foo,help", "a", "1", "2"],
        &["create", "-f", "foo", "-o", "help"],
        &["create", "-f", "raw", "-o", "help", "x:y"],
        &["create", "-o", ""],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "compat=1.1",
            "-o",
            "cluster_size=4k",
            "a",
            "1M",
        ],
    ] {
        same(&mut pair, words);
    }
    for list in [
        "",
        ",size=1M",
        "size=1M,",
        ",,",
        "=",
        "=x",
        "a=b=c",
        "foo",
        "foo=help",
        "no",
        "nonolazy",
        "compat=1.1,compat=0.10",
        "compat=?",
        "compat",
        "compat=",
        "compat=2",
        "compat=v2",
        "compat=v3",
        "refcount_bits=0x10",
        "refcount_bits=010",
        "refcount_bits= 16",
        "refcount_bits=16k",
        "refcount_bits=18446744073709551616",
        "refcount_bits=",
        "refcount_bits",
        "refcount_bits=-1",
        "refcount_bits=3",
        "refcount_bits=128",
        "refcount_bits=1",
        "refcount_bits=64",
        "cluster_size=0x1000",
        "cluster_size=4K",
        "cluster_size",
        "cluster_size=1000",
        "cluster_size=4M",
        "cluster_size=512",
        "cluster_size=2M",
        "cluster_size=foo",
        "cluster_size=4k ",
        " cluster_size=4k",
        "lazy_refcounts",
        "nolazy_refcounts",
        "lazy_refcounts=yes",
        "lazy_refcounts=n",
        "lazy_refcounts=1",
        "lazy_refcounts=ON",
        "nocow",
        "nonocow",
        "nocow=on",
        "extent_size_hint=1M",
        "compression_type=foo",
        "compression_type=zstd",
        "extended_l2=on",
        "extended_l2=on,cluster_size=8k",
        "compat=0.10,lazy_refcounts=on",
        "compat=0.10,refcount_bits=1",
        "compat=0.10,extended_l2=on",
        "compat=0.10,compression_type=zstd",
        "compat=0.10,data_file=data",
        "data_file_raw=on",
        "data_file=data",
        "data_file=data,data_file_raw=on",
        "data_file=",
        "data_file=no/dir/data",
        "data_file=data,data_file_raw=on,backing_file=x,backing_fmt=raw",
        "preallocation=foo",
        "preallocation=metadata",
        "preallocation=off",
        "preallocation=metadata,cluster_size=2M",
        "backing_fmt=foo",
        "backing_fmt=raw",
        "backing_file=",
        "preallocation=metadata,backing_file=x,backing_fmt=raw",
        "encryption=off",
        "encryption=on",
        "encrypt.format=luks",
        "encrypt.format=foo",
        "encrypt.foo=x",
        "encryption=on,encrypt.format=aes",
        "encrypt.format=luks,encrypt.key-secret=s",
        "size=2M",
    ] {
        same(
            &mut pair,
            &["create", "-u", "-f", "qcow2", "-o", list, "a", "1M"],
        );
    }
    for list in [
        "preallocation=foo",
        "preallocation=metadata",
        "preallocation=off",
        "cluster_size=1",
        "nocow=x",
        "nocow=on",
    ] {
        same(&mut pair, &["create", "-f", "raw", "-o", list, "a", "1M"]);
    }
    pair.finish();
}

#[test]
fn the_first_of_two_mistakes() {
    let Some(mut pair) = Pair::new() else { return };
    let mistakes = [
        "cluster_size=1000",
        "compat=9",
        "preallocation=foo",
        "compression_type=foo",
        "refcount_bits=3",
        "backing_fmt=foo",
        "data_file_raw=on",
        "encrypt.format=foo",
        "size=64P",
        "encryption=on",
        "size=9223372036854775807",
        "compat=0.10,lazy_refcounts=on",
        "compat=0.10,refcount_bits=8",
        "compat=0.10,data_file=data",
        "compat=0.10,extended_l2=on",
    ];
    for (index, first) in mistakes.iter().enumerate() {
        for second in mistakes.iter().skip(index + 1) {
            let list = format!("{first},{second}");
            let size = if list.contains(",size") || list.starts_with("size") {
                None
            } else {
                Some("1M")
            };
            let words: Vec<&str> = ["create", "-u", "-f", "qcow2", "-o", &list, "a"]
                .into_iter()
                .chain(size)
                .collect();
            same(&mut pair, &words);
        }
    }
    pair.finish();
}

#[test]
fn backing_files() {
    let Some(mut pair) = Pair::new() else { return };
    base(&pair);
    let long = "x".repeat(1024);
    let longest = "x".repeat(1023);
    let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}"#;
    for words in [
        &["-o", "backing_file=base.qcow2,backing_fmt=qcow2"][..],
        &["-b", "base.qcow2"],
        &["-b", "base.raw"],
        &["-b", "base.qcow2", "-F", "qcow2"],
        &["-b", "base.qcow2", "-F", "qcow2", "-o", "backing_file=x"],
        &["-b", "base.qcow2", "-o", "backing_fmt=qcow2"],
        &["-b", "base.qcow2", "-F", "raw"],
        &["-b", "base.qcow2", "-F", "foo"],
        &["-b", "base.qcow2", "-F", ""],
        &["-b", "base.raw", "-F", "raw"],
        &["-b", "odd.raw", "-F", "raw"],
        &["-b", "base.raw", "-F", "qcow2"],
        &["-b", "file:base.qcow2", "-F", "qcow2"],
        &["-b", "./base.qcow2", "-F", "qcow2"],
        &["-b", json, "-F", "qcow2"],
        &["-b", json],
        &["-b", "json:{", "-F", "qcow2"],
        &["-b", "json:{}", "-F", "qcow2"],
        &["-b", "missing", "-F", "qcow2"],
        &["-b", "missing"],
        &["-b", "x:y", "-F", "raw"],
        &["-b", "x:y"],
        &["-b", ".", "-F", "raw"],
        &["-b", "", "-F", "raw"],
        &["-b", "a", "-F", "qcow2"],
        &["-b", "./a", "-F", "qcow2"],
        &["-u", "-b", "missing", "-F", "qcow2"],
        &["-u", "-b", "missing"],
        &["-u", "-b", "a,b", "-F", "raw"],
        &["-u", "-b", "x", "-F", "0123456789abcdef"],
        &["-u", "-b", &long, "-F", "raw"],
        &["-u", "-b", &longest, "-F", "raw"],
        &[
            "-u",
            "-b",
            &longest[..500],
            "-F",
            "raw",
            "-o",
            "cluster_size=512",
        ],
        &["-u", "-b", "json:{}", "-F", "qcow2"],
        &["-F", "qcow2"],
        &["-u"],
    ] {
        for size in [&[][..], &["1M"], &["128M"]] {
            let words = [&["create", "-f", "qcow2"][..], words, &["a"], size].concat();
            same(&mut pair, &words);
        }
    }
    for words in [
        &[
            "create",
            "-f",
            "raw",
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            "a",
        ][..],
        &["create", "-f", "raw", "-F", "qcow2", "a", "1M"],
        &["create", "-f", "raw", "-o", "backing_file=base.qcow2", "a"],
        &[
            "create", "-f", "raw", "-b", "x", "-F", "y", "-o", "size=1M", "a", "1M",
        ],
        &[
            "create", "-f", "qcow2", "-o", "size=1M", "a", "1M", "-b", "",
        ],
    ] {
        same(&mut pair, words);
    }
    pair.finish();
}

#[test]
fn what_was_there_before() {
    let Some(pair) = Pair::new() else { return };
    let file = pair.work().join("new");
    fs::write(&file, b"precious").unwrap();
    for format in ["raw", "qcow2"] {
        let refused = pair.ours(&["create", "-q", "--no-clobber", "-f", format, "new", "1M"]);
        assert_eq!(refused.code, Some(1));
        assert!(
            refused.stderr.contains("--no-clobber"),
            "{}",
            refused.stderr
        );
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        let wrong = pair.ours(&["create", "-q", "-f", format, "-o", "size=1M", "new", "1M"]);
        assert_eq!(wrong.code, Some(1));
        assert_eq!(
            fs::read(&file).unwrap(),
            b"precious",
            "a mistake must not cost the old file"
        );
    }
    let made = pair.ours(&["create", "-q", "-f", "qcow2", "new", "1M"]);
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""));
    let checked = pair.qemu(&["check", "-f", "qcow2", "new"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
}
