//! `bitmap`: the same actions on copies of an image, and what becomes of it.

use std::fs;

use crate::{
    images::patch,
    pair::{Outcome, Pair},
};

/// Runs a command line on a fresh copy of `base.qcow2` called `a` with either program;
/// what qemu-img says about the image afterwards must be the same too.
fn same(pair: &mut Pair, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let fresh = |pair: &Pair| {
        fs::copy(pair.work().join("base.qcow2"), pair.work().join("a")).unwrap();
    };
    let after = |pair: &Pair| -> Vec<String> {
        let told = pair.qemu(&["info", "--output=json", "a"]);
        let lines = told
            .stdout
            .lines()
            .skip_while(|line| !line.starts_with("    ],"));
        lines
            .filter(|line| !line.contains("actual-size"))
            .map(Into::into)
            .collect()
    };
    fresh(pair);
    let theirs = with_image_for_node(pair.qemu(&words), "a");
    let their_image = after(pair);
    fresh(pair);
    let before = after(pair);
    let ours = pair.ours(&words);
    let our_image = after(pair);
    pair.note(&words, &theirs, &ours);
    if ours.code == Some(0) {
        assert_eq!(their_image, our_image, "{line}");
        let checked = pair.qemu(&["check", "a"]);
        assert_eq!(
            checked.code,
            Some(0),
            "{line}: {}{}",
            checked.stdout,
            checked.stderr
        );
    } else {
        assert_eq!(
            before, our_image,
            "{line}: a failed command must leave the image alone"
        );
    }
}

fn base(pair: &Pair) {
    pair.make(&["create", "-q", "-f", "qcow2", "base.qcow2", "64M"]);
    pair.make(&["bitmap", "--add", "base.qcow2", "on"]);
    pair.make_line("bitmap --add --disable -g 4k base.qcow2 off");
    pair.make(&["create", "-q", "-f", "qcow2", "other.qcow2", "64M"]);
    pair.make(&["bitmap", "--add", "-g", "1M", "other.qcow2", "on"]);
    pair.make(&["create", "-q", "-f", "qcow2", "small.qcow2", "32M"]);
    pair.make(&["bitmap", "--add", "small.qcow2", "on"]);
    pair.make(&["create", "-q", "-f", "raw", "raw.img", "64M"]);
}

#[test]
fn actions_and_their_messages() {
    let Some(mut pair) = Pair::new() else { return };
    base(&pair);
    for line in [
        "bitmap --add a new",
        "bitmap --add --disable a new",
        "bitmap --add -g 512 a new",
        "bitmap --add -g 2G a new",
        "bitmap --add -g 0 a new",
        "bitmap --add -g 256 a new",
        "bitmap --add -g 1000 a new",
        "bitmap --add -g 4G a new",
        "bitmap --add a on",
        "bitmap --add --add a new",
        "bitmap --add a ",
        "bitmap --remove a on",
        "bitmap --remove a nosuch",
        "bitmap --remove --disable a nosuch",
        "bitmap --remove --add -g 1M a on",
        "bitmap --clear a on",
        "bitmap --clear a off",
        "bitmap --clear a nosuch",
        "bitmap --enable a on",
        "bitmap --enable a off",
        "bitmap --enable a nosuch",
        "bitmap --disable a on",
        "bitmap --disable --enable --disable a on",
        "bitmap --disable a nosuch",
        "bitmap --merge off a on",
        "bitmap --merge on a off",
        "bitmap --merge on a on",
        "bitmap --merge nosuch a on",
        "bitmap --merge on a nosuch",
        "bitmap --add --merge on --merge off a new",
        "bitmap --merge on -b other.qcow2 -F qcow2 a on",
        "bitmap --merge on -b other.qcow2 a off",
        "bitmap --merge nosuch -b other.qcow2 a on",
        "bitmap --merge on -b missing a on",
        "bitmap --merge on -b other.qcow2 -F foo a on",
        "bitmap --merge on -b raw.img -F raw a on",
        "bitmap --merge on -b small.qcow2 -F qcow2 a on",
        "bitmap -f qcow2 --add a new",
        "bitmap -f foo --add a new",
        "bitmap --add missing new",
        "bitmap --image-opts --add driver=qcow2,file.filename=a new",
        "bitmap --image-opts --clear driver=qcow2,file.filename=a on",
        "bitmap --image-opts --add driver=qcow2,file.filename=a,read-only=on new",
        "bitmap --image-opts --add driver=qcow2,file.filename=a,read-only=off new",
        "bitmap --image-opts --add driver=qcow2,file.filename=a,file.read-only=on new",
    ] {
        same(&mut pair, line);
    }
    pair.finish();
}

#[test]
fn images_that_keep_no_bitmaps() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make_line("create -q -f qcow2 -o compat=0.10 base.qcow2 64M");
    same(&mut pair, "bitmap --add a new");
    same(&mut pair, "bitmap --remove a new");
    pair.make(&["create", "-q", "-f", "qcow2", "base.qcow2", "64M"]);
    patch(&pair.work(), "base.qcow2", "base.qcow2", &[(79, &[2])]);
    same(&mut pair, "bitmap --add a new");
    pair.finish();
}

/// What another program has made worthless goes away, but not in silence.
#[test]
fn void_bitmaps_go_with_a_warning() {
    let Some(mut pair) = Pair::new() else { return };
    base(&pair);
    patch(&pair.work(), "base.qcow2", "void.qcow2", &[(95, &[0])]);
    for line in [
        "bitmap --add a new",
        "bitmap --remove a on",
        "bitmap --merge on a off",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let outcomes = [Pair::qemu, Pair::ours].map(|run| {
            fs::copy(pair.work().join("void.qcow2"), pair.work().join("a")).unwrap();
            run(&pair, &words)
        });
        assert!(
            outcomes[1]
                .stderr
                .contains("a program lacking bitmap support")
        );
        pair.note(&words, &outcomes[0], &outcomes[1]);
    }
    pair.finish();
}

/// QEMU names its nodes by numbers that are new in every run; we name the image.
fn with_image_for_node(outcome: Outcome, image: &str) -> Outcome {
    let digits = |c: char| c.is_ascii_digit();
    let stderr = match outcome.stderr.split_once("#block") {
        Some((before, after)) => format!("{before}{image}{}", after.trim_start_matches(digits)),
        None => outcome.stderr,
    };
    Outcome { stderr, ..outcome }
}

#[test]
fn raw_images() {
    let Some(pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "raw", "raw.img", "1M"]);
    let words = ["bitmap", "--add", "-f", "raw", "raw.img", "b"];
    let theirs = with_image_for_node(pair.qemu(&words), "'raw.img'");
    assert_eq!(pair.ours(&words), theirs);
}
