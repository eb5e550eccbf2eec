//! `convert`: the same words and exit codes, and targets that hold the same disk.

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::pair::{Pair, find};

const MIB: usize = 1 << 20;

/// Data that compresses, data that doesn't, zeros, at places of all alignments.
fn content(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut bytes = vec![0; len];
    for index in 0..60 {
        let at = random(len);
        let size = 1 << (6 + random(13));
        let end = len.min(at + random(size));
        let spread = [1, 3, 255][index % 3];
        for byte in &mut bytes[at..end] {
            *byte = (1 + random(spread)).to_le_bytes()[0];
        }
    }
    bytes
}

/// Makes the raw disk `name`.
fn raw(pair: &Pair, name: &str, bytes: &[u8]) {
    fs::write(pair.work().join(name), bytes).unwrap();
}

/// Runs ours, which must succeed.
fn ours(pair: &Pair, line: &str) {
    let words: Vec<_> = line.split_whitespace().collect();
    let outcome = pair.ours(&words);
    assert_eq!(outcome.code, Some(0), "{line}: {}", outcome.stderr);
    assert_eq!(outcome.stderr, "", "{line}");
}

/// That qemu-img finds the image sound, and the disk in it the same as that of `source`.
fn assert_same(pair: &Pair, source: &str, image: &str, what: &str) {
    let check = pair.qemu(&["check", image]);
    assert_eq!(
        check.code,
        Some(0),
        "{what}: {}{}",
        check.stdout,
        check.stderr
    );
    let compared = pair.qemu(&["compare", source, image]);
    assert_eq!(compared.code, Some(0), "{what}: {}", compared.stdout);
}

#[test]
fn words_and_exit_codes() {
    let Some(mut pair) = Pair::new() else { return };
    raw(&pair, "a", &content(MIB + 512));
    pair.make(&["convert", "-f", "raw", "-O", "qcow2", "a", "a.qcow2"]);
    pair.make(&["snapshot", "-c", "s1", "a.qcow2"]);
    pair.make(&["bitmap", "--add", "a.qcow2", "b0"]);
    for line in [
        "",
        "a",
        "a b c missing",
        "missing x",
        "a /nonexistent/x",
        "a a",
        "-O qcow2 a.qcow2 a.qcow2",
        "a x",
        "-p -q a x",
        "-U a x",
        "-W a x",
        "-m 16 a x",
        "-T none -t none a x",
        "-O foo a x",
        "-f foo a x",
        "-c a x",
        "-c -O raw a x",
        "-O qcow2 -c -o preallocation=metadata a x",
        "-o foo=1 -O qcow2 a x",
        "-O qcow2 -o size=1M a x",
        "-O qcow2 -o encryption=on a x",
        "-O qcow2 -o cluster_size=1 a x",
        "-O qcow2 -o preallocation=foo a x",
        "-O raw -o preallocation=metadata a x",
        "-S 1 a x",
        "-S 32M a x",
        "-S foo a x",
        "-S 3M a x",
        "-m 0 a x",
        "-m 17 a x",
        "-m x a x",
        "-r x a x",
        "-B a -O qcow2 a x",
        "-B a -F raw -O qcow2 a x",
        "-B missing -F raw -O qcow2 a x",
        "-B a -F raw a x",
        "-B a -F raw -O qcow2 a a x",
        "-F raw -O qcow2 a x",
        "-O qcow2 -o backing_file=a a x",
        "-O qcow2 -o backing_file=a,backing_fmt=raw a x",
        "-l s2 -O qcow2 a.qcow2 x",
        "-l s1 -O qcow2 a.qcow2 x",
        "-l s1 a a x",
        "-l s1 a x",
        "-l snapshot.id=1 a.qcow2 x",
        "-l snapshot.foo=1 a.qcow2 x",
        "-t foo a x",
        "-T foo a x",
        "-c -t foo a x",
        "--target-is-zero a x",
        "--skip-broken-bitmaps a x",
        "--bitmaps a x",
        "--bitmaps a.qcow2 x",
        "--bitmaps -O qcow2 a.qcow2 x",
        "--bitmaps -O qcow2 -o compat=v2 a.qcow2 x",
        "--bitmaps -O qcow2 a.qcow2 a.qcow2 x",
        "-C a x",
        "-C -S 4k a x",
        "-C -c -O qcow2 a x",
        "-C --salvage a x",
        "--salvage a x",
        "--image-opts -f raw a x",
        "--image-opts a x",
        "--image-opts driver=qcow2,file.filename=a.qcow2 x",
        "--target-image-opts a x",
        "--object secret a x",
        "-O qcow2 -o help",
        "-O qcow2 -o help a x",
        "-o help",
        "-o help -n a x",
        "-s a x",
        "-p missing x",
        "-p -O foo a x",
        "-p a",
        "-n -o a=b a x",
        "-n missing a",
        "-n a missing",
        "-n a there",
        "-n --target-is-zero a zeros",
        "-n -O qcow2 a there.qcow2",
        "-n -O raw a.qcow2 small",
        "-n --target-image-opts a driver=raw,file.filename=there",
        "-n -O raw --target-image-opts a driver=raw,file.filename=there",
    ] {
        for name in ["x", "there", "there.qcow2", "zeros"] {
            let _ = fs::remove_file(pair.work().join(name));
        }
        raw(&pair, "there", &vec![1; 2 * MIB]);
        raw(&pair, "zeros", &vec![0; 2 * MIB]);
        raw(&pair, "small", &[0; 1024]);
        pair.make(&["create", "-q", "-f", "qcow2", "there.qcow2", "2M"]);
        pair.same_line(&format!("convert {line}"));
    }
    pair.finish();
}

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

    pair.make(&["bitmap", "--add", "s", "one"]);
    pair.make(&["bitmap", "--add", "--disable", "-g", "4k", "s", "two"]);
    write("s", &["write -P 8 1M 70k"]);
    ours(&pair, "convert --bitmaps -O qcow2 s t");
    assert_same(&pair, "s", "t", "bitmaps");
    let list = |name: &str| pair.ours(&["bitmap", "--list", name]).stdout;
    assert!(!list("s").is_empty());
    assert_eq!(list("s"), list("t"));
}

#[test]
fn what_cannot_be_read_ends_it_or_is_salvaged() {
    let Some(pair) = Pair::new() else { return };
    raw(&pair, "a", &vec![0x55; MIB]);
    pair.make(&["convert", "-f", "raw", "-c", "-O", "qcow2", "a", "packed"]);
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let path = pair.work().join("packed");
    let mut bytes = fs::read(&path).unwrap();
    let place = |entry: u64| usize::try_from(entry & 0x00ff_ffff_ffff_fe00).unwrap();
    let l2 = place(word(&bytes, place(word(&bytes, 40))));
    let data = usize::try_from(word(&bytes, l2 + 24) & ((1 << 54) - 1)).unwrap();
    bytes[data..data + 60].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let words = ["convert", "-O", "raw", "packed", "t"];
    let (theirs, ours) = (pair.qemu(&words), pair.ours(&words));
    assert_eq!((theirs.code, ours.code), (Some(1), Some(1)));
    assert!(
        ours.stderr
            .lines()
            .last()
            .unwrap()
            .ends_with(": Input/output error")
    );
    let words = ["convert", "--salvage", "-O", "raw", "packed", "t"];
    let theirs = pair.qemu(&words);
    let saved = fs::read(pair.work().join("t")).unwrap();
    let ours = pair.ours(&words);
    assert_eq!((theirs.code, ours.code), (Some(0), Some(0)));
    assert!(fs::read(pair.work().join("t")).unwrap() == saved);
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&theirs.stderr), sorted(&ours.stderr));
}

/// Whatever its name, nothing but what was there before may open.
#[test]
fn a_kill_leaves_no_target_that_opens() {
    let Some(pair) = Pair::new() else { return };
    raw(&pair, "a", &content(40 * MIB));
    raw(&pair, "old", b"old");
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = names(&pair.work());
    for (target, wait) in [
        ("new", 5),
        ("new", 50),
        ("new", 150),
        ("old", 100),
        ("old", 200),
    ] {
        let mut running = Command::new(env!("CARGO_BIN_EXE_qimg"))
            .current_dir(pair.work())
            .args([
                "convert", "-r", "64M", "-f", "raw", "-O", "qcow2", "a", target,
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(wait));
        running.kill().unwrap();
        let mut said = String::new();
        running
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        running.wait().unwrap();
        assert_eq!(said, "");
        assert_eq!(names(&pair.work()), before, "{target} after {wait} ms");
        assert_eq!(fs::read(pair.work().join("old")).unwrap(), b"old");
    }
}

#[test]
fn bitmaps_left_behind_are_named_but_not_by_qemu_imgs_name() {
    let Some(pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a", "1M"]);
    pair.make(&["bitmap", "--add", "a", "b0"]);
    let run = |words: &[&OsStr]| {
        let output = Command::new(env!("CARGO_BIN_EXE_qimg"))
            .current_dir(pair.work())
            .args(words)
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let words = ["convert", "-O", "qcow2", "a", "t"].map(OsStr::new);
    assert_eq!(
        run(&words),
        "qimg: warning: 1 dirty bitmap of 'a' left behind (--bitmaps copies them)\n"
    );
    let words = ["convert", "--bitmaps", "-O", "qcow2", "a", "t"].map(OsStr::new);
    assert_eq!(run(&words), "");
    ours(&pair, "convert -O qcow2 a t");
}

/// The in-use flag of the only bitmap, set as by a program that crashed.
#[test]
fn bitmaps_that_are_inconsistent() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a", "1M"]);
    pair.make(&["bitmap", "--add", "a", "b0"]);
    let path = pair.work().join("a");
    let bytes = fs::read(&path).unwrap();
    let magic = 0x2385_2875_u32.to_be_bytes();
    let extension = bytes.windows(4).position(|word| word == magic).unwrap();
    let at = extension + 8 + 16;
    let directory = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let flags = u32::from_be_bytes(
        bytes[usize::try_from(directory).unwrap() + 12..][..4]
            .try_into()
            .unwrap(),
    );
    file.write_all_at(&(flags | 1).to_be_bytes(), directory + 12)
        .unwrap();
    for line in [
        "convert --bitmaps -O qcow2 a t",
        "convert --bitmaps --skip-broken-bitmaps -O qcow2 a t",
        "convert --bitmaps -O raw a t",
        "convert -O qcow2 a t",
    ] {
        pair.same_line(line);
    }
    pair.finish();
}

#[test]
fn a_pipe_gets_the_same_disk() {
    let Some(pair) = Pair::new() else { return };
    let bytes = content(3 * MIB + 512);
    raw(&pair, "a", &bytes);
    pair.make(&["convert", "-f", "raw", "-O", "qcow2", "a", "a.qcow2"]);
    let run = |line: &str| {
        Command::new(env!("CARGO_BIN_EXE_qimg"))
            .current_dir(pair.work())
            .args(line.split_whitespace())
            .output()
            .unwrap()
    };
    for options in [
        "cluster_size=512",
        "extended_l2=on",
        "refcount_bits=1,compat=v3",
    ] {
        let output = run(&format!("convert -p -O qcow2 -o {options} a.qcow2 -"));
        assert_eq!(output.status.code(), Some(0));
        raw(&pair, "t", &output.stdout);
        assert_same(&pair, "a", "t", options);
    }
    assert!(run("convert a.qcow2 -").stdout == bytes);
    for refused in [
        "-c -O qcow2",
        "-O qcow2 -B a -F raw",
        "-O qcow2 -o data_file=d",
    ] {
        let output = run(&format!("convert {refused} a.qcow2 -"));
        assert_eq!(output.status.code(), Some(1), "{refused}");
        assert!(output.stdout.is_empty());
    }
    assert!(!pair.work().join("-").exists());
}
