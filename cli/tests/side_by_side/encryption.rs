//! Encrypted images: secrets, wrong ones and missing ones, and what is made.

use std::fs;

use crate::pair::{Pair, find};

const SECRET: &str = "--object secret,id=s,data=x";

/// Runs qemu-io on the image that the words name.
fn write(pair: &Pair, image: &str, commands: &[&str]) {
    let mut words: Vec<&str> = image.split(' ').collect();
    words.extend(commands.iter().flat_map(|command| ["-c", command]));
    let output = std::process::Command::new(find("qemu-io").unwrap())
        .args(&words)
        .current_dir(pair.work())
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

fn opts(name: &str) -> String {
    format!("{SECRET} --image-opts driver=qcow2,encrypt.key-secret=s,file.filename={name}")
}

#[test]
fn secrets() {
    let Some(mut pair) = Pair::new() else { return };
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let words = format!("create -q -f qcow2 {SECRET} -o {luks} luks 1M");
    pair.make(&words.split(' ').collect::<Vec<_>>());
    let words =
        format!("create -q -f qcow2 {SECRET} -o encrypt.format=aes,encrypt.key-secret=s aes 1M");
    pair.make(&words.split(' ').collect::<Vec<_>>());
    pair.make(&["create", "-q", "-f", "qcow2", "plain", "1M"]);
    pair.make(&[
        "create", "-q", "-f", "qcow2", "-b", "luks", "-F", "qcow2", "top",
    ]);
    for name in ["luks", "aes"] {
        let commands = [
            "write -P 7 100k 200k",
            "write -z 512k 64k",
            "write -P 9 700k 1k",
        ];
        write(&pair, &opts(name), &commands);
    }
    fs::write(pair.work().join("not-text"), [0xff, 0xfe]).unwrap();
    fs::write(pair.work().join("zero"), b"x\0").unwrap();
    fs::write(pair.work().join("line"), b"x\n").unwrap();
    for name in ["luks", "aes", "plain", "top"] {
        pair.same_line(&format!("map {name}"));
        for secret in [
            "secret,id=s,data=x",
            "secret,id=s,data=y",
            "secret,id=s,data=",
            "secret,id=t,data=x",
            "secret,id=s,file=not-text",
            "secret,id=s,file=zero",
            "secret,id=s,file=line",
            "secret,id=s,data=eA==,format=base64",
            "secret,id=s,data=eA,format=base64",
            "secret,id=s,data=eA==zz,format=base64",
            "secret,id=s,data=%,format=base64",
        ] {
            let image = format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}");
            pair.same_line(&format!("map --object {secret} --image-opts {image}"));
        }
        for more in [
            "",
            ",encrypt.format=luks",
            ",encrypt.format=aes",
            ",encrypt.format=foo",
            ",encrypt.foo=x",
            ",backing.encrypt.key-secret=s",
        ] {
            for key in ["", ",encrypt.key-secret=s", ",encrypt.key-secret=nobody"] {
                // A plain image has no backing file to be opened.
                if more.starts_with(",backing") && name != "top" {
                    continue;
                }
                let image = format!("driver=qcow2,file.filename={name}{key}{more}");
                for form in ["human", "json"] {
                    pair.same_line(&format!(
                        "map --output={form} {SECRET} --image-opts {image}"
                    ));
                }
            }
        }
    }
    let image = |name: &str| format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}");
    for (one, two) in [("luks", "aes"), ("luks", "plain"), ("aes", "aes")] {
        let (one, two) = (image(one), image(two));
        pair.same_line(&format!("compare {SECRET} --image-opts {one} {two}"));
    }
    pair.same_line("compare luks plain");
    for more in [
        "encrypt.foo=x",
        "encrypt.foo=x,encrypt.bar.baz=y",
        "encrypt.foo=x,encrypt.format=luks",
        "encrypt.foo=x,foo=1",
        "encrypt.=x",
        "encrypt=x",
        "encryptfoo=x",
    ] {
        for command in ["info", "check", "map"] {
            let image = format!("driver=qcow2,file.filename=plain,{more}");
            pair.same_line(&format!("{command} --image-opts {image}"));
        }
    }
    for more in ["encrypt.foo=x", "encrypt.format=luks", "encrypt=x"] {
        let image = format!("driver=raw,file.filename=plain,{more}");
        pair.same_line(&format!("map --image-opts {image}"));
    }
    for command in ["info", "check"] {
        let image = "driver=qcow2,file.filename=luks,encrypt.foo=x";
        pair.same_line(&format!("{command} --image-opts {image}"));
    }
    for name in ["plain", "luks"] {
        let json = format!(
            "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{name}\"}},\
             \"encrypt\":{{\"foo\":1}}}}"
        );
        pair.same(&["map", &json]);
    }
    pair.finish();
}

/// The names that are refused, and those that make the same image but for its keys.
#[test]
fn made_as_by_qemu_img() {
    let Some(mut pair) = Pair::new() else { return };
    for options in [
        "encrypt.cipher-alg=foo",
        "encrypt.cipher-mode=foo",
        "encrypt.ivgen-alg=foo",
        "encrypt.ivgen-hash-alg=foo",
        "encrypt.hash-alg=foo",
        "encrypt.cipher-alg=sm4",
        "encrypt.cipher-alg=des",
        "encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha1",
        "encrypt.key-secret=nobody",
    ] {
        pair.same_line(&format!(
            "create -f qcow2 {SECRET} -o encrypt.format=luks,encrypt.key-secret=s,{options} a 1M"
        ));
    }
    for options in [
        "encrypt.format=aes",
        "encryption=on",
        "encrypt.format=luks,encrypt.iter-time=0",
        "encrypt.format=luks,encrypt.iter-time=0,encrypt.cipher-alg=serpent-128,\
         encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.hash-alg=sha1",
        "encrypt.format=luks,encrypt.iter-time=0,cluster_size=512,compat=0.10",
    ] {
        let words = format!("create -f qcow2 {SECRET} -o encrypt.key-secret=s,{options} a 1M");
        let words: Vec<&str> = words.split(' ').collect();
        let made = pair.qemu(&words);
        let theirs = (
            fs::metadata(pair.work().join("a")).unwrap().len(),
            info(&pair),
        );
        let ours = pair.ours(&words);
        pair.note(&words, &made, &ours);
        assert_eq!(
            (
                fs::metadata(pair.work().join("a")).unwrap().len(),
                info(&pair)
            ),
            theirs
        );
        write(
            &pair,
            &opts("a"),
            &["write -P 7 1k 300k", "read -P 7 1k 300k"],
        );
        pair.same_line(&format!("check {}", opts("a")));
        pair.same_line(&format!("map --output=json {}", opts("a")));
    }
    pair.finish();
}

/// What qemu-img says of `a`, but for what is random or of the moment.
fn info(pair: &Pair) -> String {
    let text = pair.qemu(&["info", "a"]).stdout;
    let kept = text
        .lines()
        .filter(|line| !line.contains("uuid") && !line.contains("disk size"));
    kept.collect::<Vec<_>>().join("\n")
}

/// A copy into a new encrypted image, and into one that is there, is read back by qemu-img.
#[test]
fn copied_into_encrypted_images() {
    let Some(pair) = Pair::new() else { return };
    let mut bytes: Vec<u8> = (0..=255_u8).flat_map(|byte| [byte; 1000]).collect();
    // Whole clusters of zeros.
    bytes.resize(1_000_000, 0);
    fs::write(pair.work().join("plain.raw"), &bytes).unwrap();
    let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
    let luks = "luks,encrypt.iter-time=10";
    let preallocated = |mode: &str| format!("{luks},preallocation={mode}");
    for how in [
        luks.to_owned(),
        "aes".to_owned(),
        preallocated("metadata"),
        preallocated("falloc"),
        preallocated("full"),
    ] {
        let lines = [
            format!(
                "convert -f raw -O qcow2 {SECRET} -o encrypt.format={how},encrypt.key-secret=s \
                 plain.raw made"
            ),
            format!(
                "convert -n -f raw {SECRET} --target-image-opts plain.raw \
                 driver=qcow2,encrypt.key-secret=s,file.filename=made"
            ),
        ];
        for line in lines {
            let copied = pair.ours(&words(&line));
            assert_eq!(copied.code, Some(0), "{line}: {copied:?}");
            let read = pair.qemu(&words(&format!("convert {} -O raw back", opts("made"))));
            assert_eq!(read.code, Some(0), "{line}: {read:?}");
            let back = fs::read(pair.work().join("back")).unwrap();
            assert!(back.starts_with(&bytes), "{line}");
            assert!(back[bytes.len()..].iter().all(|&byte| byte == 0));
        }
    }
}

/// A copy of an overlay into a new encrypted image over the same base.
#[test]
fn copied_into_encrypted_images_over_a_backing_file() {
    let Some(pair) = Pair::new() else { return };
    fs::write(pair.work().join("base"), vec![0x77; 900 << 10]).unwrap();
    pair.make(&[
        "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "top", "1M",
    ]);
    let commands = [
        "write -P 3 100k 200k",
        "write -z 400k 100k",
        "write -P 9 601k 1k",
        "write -P 5 1000k 24k",
    ];
    write(&pair, "-f qcow2 top", &commands);
    let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
    for how in [
        "luks,encrypt.iter-time=10",
        "luks,encrypt.iter-time=10,cluster_size=4k",
        "luks,encrypt.iter-time=10,extended_l2=on,preallocation=metadata",
        "aes,compat=0.10",
    ] {
        for base in [
            " -B base -F raw top made",
            ",backing_file=base,backing_fmt=raw top made",
            " top made",
        ] {
            if how.contains("preallocation") && !base.contains("base") {
                continue;
            }
            let line = format!(
                "convert -O qcow2 {SECRET} -o encrypt.key-secret=s,encrypt.format={how}{base}"
            );
            let copied = pair.ours(&words(&line));
            assert_eq!(copied.code, Some(0), "{line}: {copied:?}");
            let check = pair.qemu(&words(&format!("check {}", opts("made"))));
            assert_eq!(check.code, Some(0), "{line}: {check:?}");
            let same = format!("compare {} driver=qcow2,file.filename=top", opts("made"));
            let compared = pair.qemu(&words(&same));
            assert_eq!(compared.code, Some(0), "{line}: {compared:?}");
            let map = pair.qemu(&words(&format!("map --output=json {}", opts("made"))));
            let over_base = map.stdout.contains("\"depth\": 1");
            assert_eq!(over_base, base.contains("base"), "{line}: {map:?}");
        }
    }
}
