//! `bench`: what it says, what it refuses, and where it writes.

use std::fs;

use crate::pair::{Outcome, Pair};

/// An outcome without the time that it took.
fn timeless(mut outcome: Outcome) -> Outcome {
    let lines = outcome.stdout.lines().map(|line| {
        let head = line.strip_prefix("Run completed in ");
        match head.and_then(|rest| rest.strip_suffix(" seconds.")) {
            Some(seconds) => {
                let (whole, part) = seconds.split_once('.').unwrap();
                assert!(whole.parse::<u64>().is_ok() && part.len() == 3, "{line}");
                "Run completed".into()
            }
            None => format!("{line}\n"),
        }
    });
    outcome.stdout = lines.collect();
    outcome
}

/// Runs both and notes a difference, but for the time.
fn same(pair: &mut Pair, words: &str) {
    let words: Vec<_> = format!("bench {words}")
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let (theirs, ours) = (pair.qemu(&words), pair.ours(&words));
    // The particulars of a failure stand on a line before qemu-img's.
    let mut ours = timeless(ours);
    if let Some((_, last)) = ours.stderr.trim_end().rsplit_once('\n')
        && last.starts_with("qemu-img: Failed request: ")
    {
        ours.stderr = format!("{last}\n");
    }
    pair.note(&words, &timeless(theirs), &ours);
}

#[test]
fn reads() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a", "10M"]);
    fs::write(pair.work().join("r"), vec![1; 1000]).unwrap();
    fs::write(pair.work().join("empty"), "").unwrap();
    for words in [
        "-c 100 a",
        "-c 0x10 -d 010 a",
        "-q -c 4 a",
        "-c 4 -s 1k -S 100k a",
        "-c 10 -s 512k -o 9M a",
        "-c 10 -s 1000 -o 333 -S 1.5k a",
        "-c 4 -s 11M a",
        "-c 4 -o 10M a",
        "-c 2 -o 20M a",
        "-c 4 -S 11M -d 1 a",
        "-c 4 --pattern 3 --no-drain a",
        "-c 4 -t none -n a",
        "-c 4 -t directsync -i native a",
        "-c 4 -i io_uring a",
        "-c 1 -s 1024 -f raw r",
        "-c 2 -s 600 -f raw r",
        "-c 1 -f raw empty",
        "-c 4 -U a",
        "-c 4 --image-opts driver=qcow2,file.filename=a",
        "-c 4 -U --image-opts driver=qcow2,file.filename=a,force-share=on",
    ] {
        same(&mut pair, words);
    }
    pair.finish();
}

#[test]
fn writes_go_where_qemu_img_writes() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "base", "6M"]);
    for words in [
        "-c 5",
        "-c 7 --pattern 0x5a -s 3000 -o 70000",
        "-c 10 -d 2 --flush-interval 3 --pattern 1 -s 64k -S 700k",
        "-c 10 -d 2 --flush-interval 3 --no-drain --pattern 2 -s 1k -S 5M -o 9M",
        "-c 3 -t writethrough --pattern 3",
        "-c 3 -t unsafe --pattern 255 -S 3M",
        "-c 3 -t none --pattern 4",
        "-c 100 -s 100k --pattern 9",
        "-c 4 -s 11M",
    ] {
        for format in ["qcow2", "raw"] {
            let mut read = Vec::new();
            for name in ["theirs", "ours"] {
                match format {
                    "raw" => pair.make(&["create", "-q", "-f", "raw", name, "10M"]),
                    _ => pair.make(&[
                        "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", name, "10M",
                    ]),
                }
                let line = format!("bench -w -f {format} {words} {name}");
                let line: Vec<_> = line.split_whitespace().collect();
                let outcome = match name {
                    "theirs" => pair.qemu(&line),
                    _ => pair.ours(&line),
                };
                if format == "qcow2" {
                    pair.make(&["check", "-q", name]);
                }
                let mut outcome = timeless(outcome);
                let last = outcome.stderr.lines().last().unwrap_or_default();
                outcome.stderr = last.to_owned();
                pair.make(&["convert", "-f", format, "-O", "raw", name, "disk"]);
                read.push((outcome, fs::read(pair.work().join("disk")).unwrap()));
            }
            let [theirs, ours] = read.as_slice() else {
                panic!("two runs")
            };
            pair.note(&[format, words], &theirs.0, &ours.0);
            assert!(theirs.1 == ours.1, "{format} {words}: other content");
        }
    }
    pair.finish();
}

#[test]
fn mistakes_on_the_command_line() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a", "10M"]);
    for words in [
        "",
        "a a",
        "-c 1 missing",
        "-c 0 a",
        "-c -1 a",
        "-c x a",
        "-c 1k a",
        "-c 3000000000 a",
        "-d 0 a",
        "-d x a",
        "-s 0 a",
        "-s 5E a",
        "-s x a",
        "-S x a",
        "-S 3G a",
        "-S -5 a",
        "-o x a",
        "-o -1 a",
        "--pattern 256 a",
        "--pattern x a",
        "--flush-interval x a",
        "--flush-interval -1 a",
        "-c 1 --flush-interval 100 a",
        "-w -d 65 --flush-interval 64 missing",
        "-t foo -c x a",
        "-i foo -t foo a",
        "-t foo missing",
        "-n -c 1 a",
        "-n -i threads -c 1 a",
        "-i native -c 1 missing",
        "-w -U missing",
        "-w -U a",
        "-f foo a",
        "-f qcow2 --image-opts a",
        "--image-opts a",
        "-w -c 1 -f raw missing",
        "-w -c 1 --image-opts driver=qcow2,file.filename=a,read-only=on",
        "--count",
        "--no-drain=1 a",
        "--flush a",
        "--object x a",
        "-x a",
    ] {
        same(&mut pair, words);
    }
    pair.finish();
}
