//! What is refused leaves everything as it was, with a message of its own.

use std::fs;

use qimg_tests::{Qimg, Run, Scratch, qimg, testdata};

use crate::support::{apply, blank, captured, emit, migrate, names, source, text, unchanged};

#[test]
fn applying() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let stream = emit(&[], &[text(&from)]);
    let size = 10 << 20;
    let good = blank(&scratch, "good.qcow2", size);
    let taken = blank(&scratch, "taken.qcow2", size);
    qimg!().bitmap(&["--add"], &taken, "fine");
    let small = blank(&scratch, "small.qcow2", size - 512);
    let large = blank(&scratch, "large.qcow2", size + 512);
    let v2 = scratch.path("v2.qcow2");
    let words = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "compat=0.10",
        text(&v2),
        "10M",
    ];
    qimg!().run(words).ok();
    let raw = scratch.path("disk.raw");
    fs::write(&raw, vec![0; 10 << 20]).unwrap();
    let other = scratch.path("disk.vmdk");
    fs::write(&other, b"KDMV and so on").unwrap();
    let link = scratch.path("link.qcow2");
    std::os::unix::fs::symlink(&good, &link).unwrap();
    let x = format!("x={}", text(&good));
    let y = format!("y={}", text(&taken));
    let same = format!("y={}", text(&link));

    let cases: [(&str, &[&str], &str); 16] = [
        ("raw", &[text(&raw)], "can't hold bitmaps"),
        ("v2", &[text(&v2)], "qcow2 v2"),
        ("another format", &[text(&other)], "vmdk"),
        ("no image", &["/no/such/image"], "No such file"),
        (
            "a smaller disk",
            &[text(&small)],
            "is the disk of another size?",
        ),
        (
            "a larger disk",
            &[text(&large)],
            "is the disk of another size?",
        ),
        (
            "a name that is taken",
            &[text(&taken)],
            "--force replaces it",
        ),
        ("one of two", &[&x, text(&small)], "no image is this node"),
        ("twice the same", &[&x, &same], "are the same image"),
        ("twice a node", &[&x, &x], "both be the node 'x'"),
        (
            "no such bitmap",
            &["--bitmap", "weekly", text(&good)],
            "'good/weekly' is not in the stream",
        ),
        (
            "no such node",
            &["--node-alias", "z=w", text(&good)],
            "no image is the node 'z'",
        ),
        (
            "a bad alias",
            &["--node-alias", "0", text(&good)],
            "can't be the alias of a node",
        ),
        (
            "no map",
            &["--map", "/no/such/map", text(&good)],
            "Could not read '/no/such/map'",
        ),
        (
            "a bad map",
            &["--map", text(&raw), text(&good)],
            "not a block-bitmap-mapping",
        ),
        (
            "several",
            &["--bitmap", "fine", &x, &y],
            "expects NODE/NAME",
        ),
    ];
    for (what, words, said) in cases {
        let files = [&*from, &good, &taken, &small, &large, &v2, &raw];
        let run = unchanged(&files, || apply(&scratch, &stream, words).code(1));
        assert!(run.stderr.contains(said), "{what}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{what}");
    }
    let run = unchanged(&[&good], || {
        migrate(["--apply", "-i", "/no/such/stream", text(&good)]).code(1)
    });
    assert!(
        run.stderr.contains("Could not open '/no/such/stream'"),
        "{}",
        run.stderr
    );
    let run = unchanged(&[&good], || {
        migrate(["--apply", "-i", "/", text(&good)]).code(1)
    });
    assert!(run.stderr.contains("is a directory"), "{}", run.stderr);
    apply(&scratch, &stream, &[text(&good)]).ok();
}

#[test]
fn emitting() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let in_use = testdata::qcow2("in-use.qcow2");
    let void = testdata::qcow2("autoclear-cleared.qcow2");
    let raw = scratch.path("disk.raw");
    fs::write(&raw, vec![7; 1 << 20]).unwrap();
    let notes = scratch.path("notes.txt");
    fs::write(&notes, b"not a stream").unwrap();
    let out = scratch.path("out.stream");
    let nowhere = scratch.path("no/a.stream");

    let cases: [(&str, &[&str], &str); 13] = [
        ("raw", &[text(&raw)], "has no bitmaps"),
        (
            "in use",
            &[text(&in_use)],
            "'since-then', 'since-start' are inconsistent",
        ),
        ("void", &[text(&void)], "inconsistent and cannot"),
        (
            "no such bitmap",
            &["--bitmap", "weekly", text(&from)],
            "'weekly' not found",
        ),
        ("twice a node", &[text(&from), text(&from)], "NODE=FILE"),
        (
            "one alias",
            &["--bitmap", "daily=x", "--bitmap", "fine=x", text(&from)],
            "two bitmaps",
        ),
        (
            "a long alias",
            &["--node-alias", &"a".repeat(256), text(&from)],
            "can't be the alias",
        ),
        (
            "an empty alias",
            &["--node-alias", "", text(&from)],
            "can't be the alias",
        ),
        (
            "onto the source",
            &["-o", text(&from), text(&from)],
            "that the bitmaps come from",
        ),
        (
            "into no folder",
            &["-o", text(&nowhere), text(&from)],
            "/no/a.stream': No such file or directory\n",
        ),
        (
            "onto another file",
            &["-o", text(&notes), text(&from)],
            "is not replaced",
        ),
        (
            "onto an image",
            &["-o", text(&raw), text(&from)],
            "is not replaced",
        ),
        (
            "into no directory",
            &["-o", "/no/such/dir/x", text(&from)],
            "Could not write",
        ),
    ];
    for (what, words, said) in cases {
        let files = [&*from, &in_use, &void, &raw, &notes];
        let words = ["--emit"].iter().chain(words);
        let run = unchanged(&files, || migrate(words).code(1));
        assert!(run.stderr.contains(said), "{what}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{what}");
    }
    // With the others named, those that can't go are no obstacle; the file is not there
    // before all is well.
    migrate(["--emit", "-o", text(&out), text(&in_use)]).code(1);
    assert!(!out.exists());
}

#[test]
fn an_inconsistent_one_gives_way_without_force() {
    let scratch = Scratch::new();
    let to = scratch.path("to.qcow2");
    fs::copy(testdata::qcow2("in-use.qcow2"), &to).unwrap();
    let size = crate::support::disk_size(&to);
    let from = blank(&scratch, "from.qcow2", size);
    qimg!().bitmap(&["--add"], &from, "since-then");
    let stream = emit(&[], &[text(&from)]);
    apply(&scratch, &stream, &[text(&to)]).ok();
    assert_eq!(
        qimg!().truth(&to, "since-then"),
        qimg!().truth(&from, "since-then")
    );
    // Likewise from image to image.
    fs::copy(testdata::qcow2("in-use.qcow2"), &to).unwrap();
    migrate([text(&from), text(&to)]).ok();
    assert_eq!(
        qimg!().truth(&to, "since-then"),
        qimg!().truth(&from, "since-then")
    );
}

#[test]
fn a_reader_that_goes_away_is_a_closed_pipe() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = qimg!()
        .command()
        .args(["migrate-bitmaps", "--emit", text(&from)])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_full_disk_is_an_error() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let run = migrate(["--emit", "-o", "/dev/full", text(&from)]).code(1);
    let said = "Could not write to '/dev/full': No space left on device";
    assert!(run.stderr.contains(said), "{}", run.stderr);
}

#[test]
fn a_terminal_is_no_place_for_a_stream() {
    let scratch = Scratch::new();
    let image = blank(&scratch, "a.qcow2", 1 << 20);
    let image = text(&image);
    for (words, said) in [
        (
            format!("migrate-bitmaps --emit {image}"),
            "would go to a terminal",
        ),
        (
            format!("migrate-bitmaps --apply {image}"),
            "which is a terminal",
        ),
        ("stream show -".into(), "which is a terminal"),
    ] {
        // It runs a command in a terminal of its own.
        let command = format!("{} {words}", env!("CARGO_BIN_EXE_qimg"));
        let run = Run::new("script", ["-qec", &command, "/dev/null"]).code(1);
        assert!(run.stdout.contains(said), "{words}: {}", run.stdout);
    }
}

fn blocks(words: &[&str]) -> Run {
    let qimg: Qimg = qimg!();
    qimg.run(["stream", "blocks"].iter().chain(words)).code(1)
}

#[test]
fn blocks_that_are_not_written() {
    let scratch = Scratch::new();
    let stream = captured("31-old-block.stream");
    let stream = text(&stream);
    let fits = blank(&scratch, "fits.qcow2", 1_572_864);
    let small = blank(&scratch, "small.qcow2", 1 << 20);
    let cut = scratch.path("cut.stream");
    let whole = fs::read(stream).unwrap();
    fs::write(&cut, &whole[..whole.len() - 1]).unwrap();
    let single = captured("01-single.stream");
    for (words, said) in [
        (
            &["--apply", text(&small), stream][..],
            "is it the right disk?",
        ),
        (
            &["--apply", text(&fits), "--device", "x", stream],
            "its devices are drive-n0",
        ),
        (
            &["--apply", text(&fits), text(&single)],
            "no section 'block'",
        ),
        (&["--apply", text(&fits), text(&cut)], "ends at offset"),
        (&["--apply", "/no/such/image", stream], "No such file"),
        (&[stream], "blocks expects --apply IMAGE"),
    ] {
        let run = unchanged(&[&fits, &small], || blocks(words));
        assert!(run.stderr.contains(said), "{words:?}: {}", run.stderr);
    }
    assert_eq!(names(&fits), Vec::<String>::new());
}
