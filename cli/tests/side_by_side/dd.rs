//! `dd`: operands, what is refused, and which bytes arrive.

use std::fs;

use crate::pair::Pair;

fn made() -> Option<Pair> {
    let pair = Pair::new()?;
    // Not whole sectors, with a gap of zeros.
    let mut bytes: Vec<u8> = (1..=250_u8).flat_map(|byte| [byte; 401]).collect();
    bytes[20_000..60_000].fill(0);
    fs::write(pair.work().join("in.raw"), &bytes).unwrap();
    pair.make(&["convert", "-f", "raw", "-O", "qcow2", "in.raw", "in.qcow2"]);
    Some(pair)
}

#[test]
fn the_same_bytes_arrive() {
    let Some(pair) = made() else { return };
    for input in ["in.raw", "in.qcow2"] {
        for blocks in [
            "",
            "bs=1k count=3 skip=2",
            "bs=100 count=7",
            "bs=100 skip=3",
            "bs=1 skip=99990",
            "bs=64k",
            "count=0",
            "count=1 skip=2",
            "count=2 skip=2",
            "skip=100000",
            "bs=1M skip=9223372036854775807",
            "count=9223372036854775807",
            "bs=1.5k count=2",
            "count=1 count=2",
        ] {
            let words = format!("dd -f {} if={input} of=out {blocks}", &input[3..]);
            let words: Vec<&str> = words.split_whitespace().collect();
            let theirs = (
                pair.qemu(&words),
                fs::read(pair.work().join("out")).unwrap(),
            );
            fs::remove_file(pair.work().join("out")).unwrap();
            let ours = (
                pair.ours(&words),
                fs::read(pair.work().join("out")).unwrap(),
            );
            assert_eq!(ours.0, theirs.0, "{words:?}");
            assert!(ours.1 == theirs.1, "{words:?}");
        }
    }
    for options in ["", "bs=1000 count=77 skip=5"] {
        let words = format!("dd -f raw -O qcow2 if=in.raw of=out.qcow2 {options}");
        let words: Vec<&str> = words.split_whitespace().collect();
        assert_eq!(pair.ours(&words).code, Some(0));
        let words = format!("dd -f raw if=in.raw of=out {options}");
        assert_eq!(
            pair.qemu(&words.split_whitespace().collect::<Vec<_>>())
                .code,
            Some(0)
        );
        let same = pair.qemu(&["compare", "out", "out.qcow2", "-f", "raw", "-F", "qcow2"]);
        assert_eq!(same.code, Some(0), "{same:?}");
        assert_eq!(pair.qemu(&["check", "out.qcow2"]).code, Some(0));
    }
}

#[test]
fn what_is_refused() {
    let Some(mut pair) = made() else { return };
    for line in [
        "dd",
        "dd if=in.raw",
        "dd of=x",
        "dd if=in.raw of=x foo=1",
        "dd if=in.raw of=x foo",
        "dd if=in.raw of=x conv=notrunc",
        "dd if=in.raw of=x bs=0",
        "dd if=in.raw of=x bs=foo",
        "dd if=in.raw of=x bs=",
        "dd if=in.raw of=x bs=-1",
        "dd if=in.raw of=x bs=2G",
        "dd if=in.raw of=x bs=9999999999999999999999",
        "dd if=in.raw of=x count=foo",
        "dd if=in.raw of=x count=-1",
        "dd if=in.raw of=x skip=x",
        "dd -O foo if=in.raw of=x",
        "dd if=none of=x",
        "dd if= of=x",
        "dd -f qcow2 if=in.raw of=x",
        "dd -f raw if=in.raw of=nowhere/x",
        "dd --image-opts -f raw if=in.raw of=x",
        "dd -n if=in.raw of=x",
        "dd --skip if=in.raw of=x",
        "dd --image-opts if=driver=raw,file.filename=in.raw of=x",
        "dd -U -f qcow2 if=in.qcow2 of=x",
    ] {
        pair.same_line(line);
    }
    // An image onto itself would be lost.
    let itself = pair.ours(&["dd", "-f", "raw", "if=in.raw", "of=in.raw"]);
    assert_eq!(itself.code, Some(1), "{itself:?}");
    pair.finish();
}
