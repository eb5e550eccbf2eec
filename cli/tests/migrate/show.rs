//! `qimg stream show`: what is in a stream.

use std::fs;

use qimg_tests::{Scratch, qimg, testdata::ranges_of};
use serde_json::Value;

use crate::support::{captured, finish, text};

fn shown(words: &[&str]) -> String {
    let dir = captured("");
    let words = ["stream", "show"].iter().chain(words);
    qimg!().run_in(&dir, words).ok().stdout
}

#[test]
fn for_people() {
    insta::assert_snapshot!("show_single", shown(&["01-single.stream"]));
    insta::assert_snapshot!(
        "show_single_chunks",
        shown(&["--chunks", "01-single.stream"])
    );
    insta::assert_snapshot!("show_block", shown(&["31-old-block.stream"]));
}

#[test]
fn as_json() {
    let words = ["--chunks", "--output=json", "01-single.stream"];
    insta::assert_snapshot!("show_single_json", shown(&words));
}

/// The captures that can be read, with what QEMU said of their bitmaps.
fn captures() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(captured("")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "json") {
            let record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let stream = record["stream"].as_str().unwrap().to_owned();
            if !stream.contains("mapped-ram") && !stream.contains("multifd") {
                all.push((stream, record));
            }
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(all.len() > 10, "{}", all.len());
    all
}

#[test]
fn bitmaps_of_captures_are_what_qemu_said() {
    for (stream, record) in captures() {
        let shown: Value = serde_json::from_str(&shown(&["--output=json", &stream])).unwrap();
        let recorded = record["bitmaps"].as_array().cloned().unwrap_or_default();
        let migrated: Vec<_> = recorded.iter().filter(|b| b["migrated"] != false).collect();
        let bitmaps = shown["bitmaps"].as_array().unwrap();
        assert_eq!(bitmaps.len(), migrated.len(), "{stream}");
        for truth in migrated {
            let same = |b: &&Value| {
                b["node-alias"] == truth["node-alias"] && b["alias"] == truth["bitmap-alias"]
            };
            let bitmap = bitmaps
                .iter()
                .find(same)
                .unwrap_or_else(|| panic!("{stream}: {truth}"));
            assert_eq!(bitmap["sha256"], truth["sha256"], "{stream}");
            assert_eq!(bitmap["granularity"], truth["granularity"], "{stream}");
            let state = if truth["enabled"] == true {
                "recording"
            } else {
                "disabled"
            };
            assert_eq!(bitmap["state"], state, "{stream}");
            assert_eq!(bitmap["persistent"], truth["stream-persistent"], "{stream}");
            let (found, dirty) = (&bitmap["extents"], &truth["dirty"]);
            assert_eq!(ranges_of(found), ranges_of(dirty), "{stream}");
        }
        assert_eq!(shown["whole"], true, "{stream}");
    }
}

#[test]
fn elements_follow_each_other_without_a_gap() {
    for (stream, _) in captures() {
        let shown: Value = serde_json::from_str(&shown(&["--output=json", &stream])).unwrap();
        let mut end = 0;
        for element in shown["elements"].as_array().unwrap() {
            assert_eq!(element["offset"], end, "{stream}");
            end += element["size"].as_u64().unwrap();
        }
        assert_eq!(shown["size"], end, "{stream}");
        assert_eq!(
            fs::metadata(captured(&stream)).unwrap().len(),
            end,
            "{stream}"
        );
    }
}

#[test]
fn of_a_file_the_devices_are_listed_of_a_pipe_only_the_bitmaps() {
    let path = captured("14-pc-paused.stream");
    let of_file = shown(&["14-pc-paused.stream"]);
    assert!(
        of_file.contains("FULL '0000:00:01.3/piix4_pm'"),
        "{of_file}"
    );
    let mut cat = std::process::Command::new("cat")
        .arg(&path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut show = qimg!().command();
    show.args(["stream", "show", "-"]);
    let run = finish(show.stdin(cat.stdout.take().unwrap())).ok();
    cat.wait().unwrap();
    assert!(!run.stdout.contains("piix4_pm"), "{}", run.stdout);
    assert!(
        run.stdout
            .contains("states of devices, to the end of the stream"),
        "{}",
        run.stdout
    );
    let bitmaps = |text: &str| text.split_once("\nbitmap ").unwrap().1.to_owned();
    assert_eq!(bitmaps(&run.stdout), bitmaps(&of_file));
}

#[test]
fn damage_is_named_and_what_comes_before_it_is_shown() {
    let scratch = Scratch::new();
    let file = scratch.path("bad.stream");
    let stream = fs::read(captured("01-single.stream")).unwrap();
    for (at, byte, said) in [
        (0, b'q', "header"),
        (0x11, 9, "type 0x09"),
        (0x58, 0xff, "name in a chunk"),
        (0x64, 0x7d, "footer"),
        (0x81, 9, "id"),
    ] {
        let mut bytes = stream.clone();
        bytes[at] = byte;
        fs::write(&file, &bytes).unwrap();
        let run = qimg!().run(["stream", "show", text(&file)]).code(1);
        assert!(run.stderr.contains("offset 0x"), "{at:#x}: {}", run.stderr);
        assert!(run.stderr.contains(said), "{at:#x}: {}", run.stderr);
        assert!(run.stdout.contains("damaged"), "{at:#x}: {}", run.stdout);
        let header = at > 0;
        assert_eq!(run.stdout.contains("header, version 3"), header, "{at:#x}");
    }
    // A bitmap that can't be had, in a stream that is whole.
    let mut bytes = stream;
    let sector = 0x8d;
    assert_eq!(bytes[0x85..=sector], [0x40, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes[sector] = 1;
    fs::write(&file, &bytes).unwrap();
    let run = qimg!().run(["stream", "show", text(&file)]).code(1);
    assert!(
        run.stderr.contains("bitmap 'n0/bm0' at offset"),
        "{}",
        run.stderr
    );
    assert!(run.stdout.contains("1 not"), "{}", run.stdout);
}

#[test]
fn mistakes_in_the_words() {
    for (words, said) in [
        (&["stream"][..], "Expecting 'show' or 'blocks'"),
        (&["stream", "show"], "Expecting 'show' or 'blocks'"),
        (&["stream", "list", "x"], "not 'list'"),
        (
            &["stream", "show", "--apply", "x", "y"],
            "only go with blocks",
        ),
        (
            &["stream", "blocks", "--chunks", "--apply", "x", "y"],
            "only go with show",
        ),
        (
            &["stream", "show", "/no/such/stream"],
            "Could not open '/no/such/stream'",
        ),
        (&["stream", "show", "/"], "is a directory"),
    ] {
        let run = qimg!().run(words).code(1);
        assert!(run.stderr.contains(said), "{words:?}: {}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}

/// A few bytes can say that exabytes are clean, and every clean bit counts in a digest.
#[test]
fn digests_are_not_computed_for_ever() {
    let mut stream = b"QEVM\0\0\0\x03\x07\0\0\0\0".to_vec();
    stream.extend(b"\x04\0\0\0\x01\x0cdirty-bitmap\0\0\0\0\0\0\0\x01");
    stream.extend(b"\x1c\x01n\x01b\0\0\x02\0\x03");
    let count = u32::MAX / 64 * 64;
    for i in 0..2000 {
        stream.push(0x42);
        stream.extend((i * u64::from(count)).to_be_bytes());
        stream.extend(count.to_be_bytes());
    }
    stream.extend(b"\x21\x7e\0\0\0\x01\0");
    let scratch = Scratch::new();
    let file = scratch.path("clean.stream");
    fs::write(&file, stream).unwrap();
    let run = qimg!().run(["stream", "show", "--output=json", text(&file)]);
    let bitmap = &run.ok().json()["bitmaps"][0];
    assert_eq!(bitmap["complete"], true);
    assert_eq!(bitmap["disk-size"], 2000 * u64::from(count) * 512);
    assert_eq!(bitmap["sha256"], Value::Null);
    let run = qimg!().run(["stream", "show", text(&file)]).ok();
    assert!(
        run.stdout.contains("sha256: not computed"),
        "{}",
        run.stdout
    );
}
