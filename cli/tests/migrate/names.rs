//! Which bitmaps go, and what they are called on the way.

use std::fs;

use qimg_tests::{Scratch, qimg};
use serde_json::{Value, json};

use crate::support::{apply, blank, captured, emit, finish, migrate, names, source, text, truths};

/// The aliases in a stream.
fn aliases(scratch: &Scratch, stream: &[u8]) -> Vec<String> {
    let file = scratch.path("shown.stream");
    fs::write(&file, stream).unwrap();
    let shown = qimg!()
        .run(["stream", "show", "--output=json", text(&file)])
        .ok()
        .json();
    let bitmaps = shown["bitmaps"].as_array().unwrap().clone();
    let word = |bitmap: &Value, key: &str| bitmap[key].as_str().unwrap().to_owned();
    let alias = |b: &Value| {
        let kept = if b["persistent"] == true {
            ""
        } else {
            " transient"
        };
        format!("{}/{}{kept}", word(b, "node-alias"), word(b, "alias"))
    };
    bitmaps.iter().map(alias).collect()
}

#[test]
fn options_name_nodes_and_bitmaps() {
    let scratch = Scratch::new();
    let a = source(&scratch, "a.qcow2");
    let a = text(&a);
    let sent = |options: &[&str], images: &[&str]| aliases(&scratch, &emit(options, images));
    assert_eq!(sent(&[], &[a]), ["a/fine", "a/daily"]);
    assert_eq!(sent(&["--node-alias", "d0"], &[a]), ["d0/fine", "d0/daily"]);
    assert_eq!(sent(&["--bitmap", "daily=x=y"], &[a]), ["a/x=y"]);
    let transient = ["a/fine transient", "a/daily transient"];
    assert_eq!(sent(&["--persistent", "off"], &[a]), transient);
    let (m, n) = (
        format!("m={a}"),
        format!("n={}", text(&source(&scratch, "b.qcow2"))),
    );
    let options = [
        "--node-alias",
        "m=drive",
        "--bitmap",
        "n/fine",
        "--bitmap",
        "m/daily=D",
    ];
    assert_eq!(sent(&options, &[&m, &n]), ["drive/D", "n/fine"]);
}

#[test]
fn a_map_says_it_for_both_sides() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let map = scratch.path("map.json");
    let bitmaps = json!([
        {"name": "daily", "alias": "1", "transform": {"persistent": false}},
        {"name": "other", "alias": "2"},
    ]);
    let node = json!([{"node-name": "n0", "alias": "drive", "bitmaps": bitmaps}]);
    fs::write(&map, node.to_string()).unwrap();
    let stream = emit(&["--map", text(&map)], &[text(&from)]);
    assert_eq!(aliases(&scratch, &stream), ["drive/1 transient"]);
    // And back: the alias is known, and that it is transient counts.
    let to = blank(&scratch, "b.qcow2", 10 << 20);
    let words = ["--map", text(&map), text(&to)];
    let run = apply(&scratch, &stream, &words).ok();
    assert!(
        run.stderr.contains("'drive/1' is transient"),
        "{}",
        run.stderr
    );
    let bitmaps = json!([{"name": "daily", "alias": "1", "transform": {"persistent": true}}]);
    let node = json!([{"node-name": "n0", "alias": "drive", "bitmaps": bitmaps}]);
    fs::write(&map, node.to_string()).unwrap();
    apply(&scratch, &stream, &words).ok();
    assert_eq!(truths(&to), truths(&from)[..1]);
}

#[test]
fn one_node_and_one_image_belong_together() {
    let stream = fs::read(captured("01-single.stream")).unwrap();
    for (words, stored) in [
        (&[][..], true),
        (&["--node-alias", "n0"], true),
        // Who says what the node is called means it.
        (&["--node-alias", "n1"], false),
    ] {
        let scratch = Scratch::new();
        let to = blank(&scratch, "to.qcow2", 1 << 20);
        let words: Vec<&str> = words.iter().copied().chain([text(&to)]).collect();
        let run = apply(&scratch, &stream, &words);
        assert_eq!(run.code == 0, stored, "{words:?}: {}", run.stderr);
        assert_eq!(names(&to).len(), usize::from(stored));
    }
}

#[test]
fn of_several_nodes_the_name_tells_which() {
    let stream = fs::read(captured("03-multi-node.stream")).unwrap();
    let scratch = Scratch::new();
    // The stream begins with another node.
    let to = blank(&scratch, "disk0.qcow2", 1 << 20);
    let run = apply(&scratch, &stream, &[text(&to)]).code(1);
    assert!(
        run.stderr
            .contains("'disk2/daily' is lost: no image is this node"),
        "{}",
        run.stderr
    );
    assert_eq!(names(&to), Vec::<String>::new());
    // To leave the others out, they are left out by name.
    let words = ["--bitmap", "daily", "--bitmap", "mine=weekly", text(&to)];
    let run = apply(&scratch, &stream, &words).ok();
    assert!(
        run.stderr
            .contains("'disk2/daily' of the stream is left out"),
        "{}",
        run.stderr
    );
    assert_eq!(names(&to), ["daily", "mine"]);
    let disk0 = captured("03-multi-node.disk0.qcow2");
    let digests = |truths: Vec<qimg_tests::testdata::BitmapTruth>| -> Vec<String> {
        truths.into_iter().map(|truth| truth.sha256).collect()
    };
    assert_eq!(digests(truths(&to)), digests(truths(&disk0)));
}

#[test]
fn a_node_of_the_map_without_an_image_is_not_left_out() {
    let stream = fs::read(captured("03-multi-node.stream")).unwrap();
    let scratch = Scratch::new();
    let to = blank(&scratch, "x.qcow2", 1 << 20);
    let map = scratch.path("map.json");
    let bitmaps = json!([{"name": "daily", "alias": "daily"}]);
    let node = |name: &str| json!({"node-name": name, "alias": name, "bitmaps": bitmaps});
    fs::write(&map, json!([node("disk0"), node("disk2")]).to_string()).unwrap();
    let image = format!("disk0={}", text(&to));
    let run = apply(&scratch, &stream, &["--map", text(&map), &image]).code(1);
    assert!(
        run.stderr.contains("'disk2/daily' is lost: no image"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr
            .contains("'disk0/weekly' of the stream is left out"),
        "{}",
        run.stderr
    );
    fs::write(&map, json!([node("disk0")]).to_string()).unwrap();
    // The one node of the map is that of the one image.
    apply(&scratch, &stream, &["--map", text(&map), text(&to)]).ok();
    assert_eq!(names(&to), ["daily"]);
}

#[test]
fn transient_ones_are_stored_on_request() {
    let stream = fs::read(captured("06-transient.stream")).unwrap();
    let scratch = Scratch::new();
    let to = blank(&scratch, "to.qcow2", 1 << 20);
    let run = apply(&scratch, &stream, &["--output=json", text(&to)]).ok();
    assert!(
        run.stderr.contains("'n0/bm0' is transient and not stored"),
        "{}",
        run.stderr
    );
    let left =
        json!([{"node-alias": "n0", "alias": "bm0", "reason": "transient", "message": null}]);
    assert_eq!(run.json()["not-stored"], left);
    assert_eq!(names(&to).len(), 0);
    apply(&scratch, &stream, &["--persistent=on", text(&to)]).ok();
    assert_eq!(names(&to), ["bm0"]);
    // And persistent ones are not, on request.
    let stream = fs::read(captured("01-single.stream")).unwrap();
    apply(
        &scratch,
        &stream,
        &["--force", "--persistent=off", text(&to)],
    )
    .ok();
}

#[test]
fn names_that_no_stream_carries_go_from_image_to_image() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    // The name of a bitmap where it stands in the image: to bytes that are not UTF-8.
    let mut bytes = fs::read(&from).unwrap();
    let at = bytes
        .windows(5)
        .position(|window| window == b"daily")
        .unwrap();
    bytes[at + 1] = 0xff;
    fs::write(&from, bytes).unwrap();
    let long = "ä".repeat(511);
    let words = ["bitmap", "--add", text(&from), long.as_str()];
    qimg!().run(words).ok();
    let to = blank(&scratch, "b.qcow2", 10 << 20);
    let report = migrate(["--output=json", text(&from), text(&to)])
        .ok()
        .json();
    assert_eq!(report["bitmaps"][0]["name"], "d\u{fffd}ily");
    assert_eq!(report["bitmaps"][2]["name"], long);
    assert_eq!(names(&to), names(&from));
    let present = |wanted: &[u8]| {
        let bytes = fs::read(&to).unwrap();
        bytes.windows(wanted.len()).any(|window| window == wanted)
    };
    assert!(present(b"d\xffily") && present(long.as_bytes()));
    // A stream takes the long one under an alias, the other not at all.
    let run = migrate(["--emit", text(&from)]).code(1);
    assert!(
        run.stderr.contains("1022 bytes; allowed are 255"),
        "{}",
        run.stderr
    );
    let run = migrate(["--emit", "--bitmap", &long, text(&from)]).code(1);
    let said = "the alias of a bitmap has 1022 bytes, allowed are 255";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    let alias = format!("{long}=short");
    let stream = emit(&["--bitmap", &alias], &[text(&from)]);
    assert_eq!(aliases(&scratch, &stream), ["a/short"]);
    qimg!().bitmap(&["--remove"], &from, &long);
    let run = migrate(["--emit", text(&from)]).code(1);
    assert!(
        run.stderr
            .contains(r"'d\xffily' has a name that is not valid UTF-8"),
        "{}",
        run.stderr
    );
}

#[test]
fn control_characters_in_names_stay_out_of_the_terminal() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let nasty = "n\x1b[2J\n\u{202e}x";
    qimg!().run(["bitmap", "--add", text(&from), nasty]).ok();
    let file = scratch.path("s");
    let to = blank(&scratch, "b.qcow2", 10 << 20);
    let runs = [
        migrate(["--emit", "-o", text(&file), text(&from)]).ok(),
        qimg!()
            .run(["stream", "show", "--chunks", text(&file)])
            .ok(),
        migrate(["--apply", "-i", text(&file), text(&to)]).ok(),
        migrate(["--apply", "-i", text(&file), text(&to)]).code(1),
        migrate(["--force", text(&from), text(&to)]).ok(),
        finish(
            qimg!()
                .command()
                .args([
                    "migrate-bitmaps",
                    "--apply",
                    "--bitmap",
                    "daily",
                    "--force",
                    text(&to),
                ])
                .stdin(fs::File::open(&file).unwrap()),
        )
        .ok(),
    ];
    for run in runs {
        let shown = format!("{}{}", run.stdout, run.stderr);
        assert!(
            !shown.contains(['\x1b', '\u{202e}']),
            "{}: {shown}",
            run.command
        );
        assert!(
            shown.contains(r"n\x1b[2J\n\u{202e}x"),
            "{}: {shown}",
            run.command
        );
    }
}
