//! What goes out of one image comes into another.

use std::{
    fs,
    process::{Command, Stdio},
};

use qimg_tests::{Scratch, qimg, testdata};

use crate::support::{
    apply, blank, captured, disk_size, emit, finish, migrate, names, source, text, truths,
};

/// Recorded images whose bitmaps are all valid.
fn sources() -> Vec<testdata::Recorded> {
    let mut all = testdata::recorded();
    all.retain(|recorded| {
        let bitmaps = recorded.bitmaps();
        !bitmaps.is_empty()
            && bitmaps
                .iter()
                .all(|b| b.state == "recording" || b.state == "disabled")
    });
    assert!(all.len() > 10, "{}", all.len());
    all
}

#[test]
fn every_recorded_bitmap_goes_and_arrives() {
    for recorded in sources() {
        let image = &recorded.image;
        let size = disk_size(image);
        for form in [&[][..], &["--compact"]] {
            let scratch = Scratch::new();
            let stream = emit(form, &[text(image)]);
            let to = blank(&scratch, "to.qcow2", size);
            apply(&scratch, &stream, &[text(&to)]).ok();
            let mut found = truths(&to);
            // The order of the directory is kept, too.
            assert_eq!(names(&to), names(image), "{image:?} {form:?}");
            found.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(found, recorded.bitmaps(), "{image:?} {form:?}");
        }
    }
}

#[test]
fn through_a_pipe_with_nothing_in_between() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let to = blank(&scratch, "b.qcow2", 10 << 20);
    let mut emitting = qimg!()
        .command()
        .args(["migrate-bitmaps", "--emit", "--output=json", text(&from)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stream = emitting.stdout.take().unwrap();
    let mut applying: Command = qimg!().command();
    applying.args(["migrate-bitmaps", "--apply", "--output=json", text(&to)]);
    let applied = finish(applying.stdin(stream)).ok().json();
    let emitted = emitting.wait_with_output().unwrap();
    assert!(emitted.status.success());
    // The stream has standard output to itself.
    let emitted: serde_json::Value = serde_json::from_slice(&emitted.stderr).unwrap();
    assert_eq!(truths(&to), truths(&from));
    let sent = &emitted["images"][0];
    let stored = &applied["images"][0];
    assert_eq!((&sent["node"], &stored["node"]), (&"a".into(), &"b".into()));
    for (place, truth) in truths(&to).iter().enumerate() {
        assert_eq!(stored["bitmaps"][place]["sha256"], truth.sha256.as_str());
        assert_eq!(stored["bitmaps"][place]["name"], truth.name.as_str());
        // Newest first in the stream.
        assert_eq!(sent["bitmaps"][1 - place]["sha256"], truth.sha256.as_str());
        assert_eq!(sent["bitmaps"][1 - place]["state"], truth.state.as_str());
    }
    assert_eq!(applied["error"], serde_json::Value::Null);
    assert_eq!(applied["not-stored"], serde_json::json!([]));
}

#[test]
fn several_images_in_one_stream() {
    let scratch = Scratch::new();
    let from = [
        source(&scratch, "one.qcow2"),
        captured("03-multi-node.disk2.qcow2"),
    ];
    let one = format!("first={}", text(&from[0]));
    let two = format!("second={}", text(&from[1]));
    let stream = emit(&[], &[&one, &two]);
    let to = [
        blank(&scratch, "x.qcow2", disk_size(&from[0])),
        blank(&scratch, "y.qcow2", disk_size(&from[1])),
    ];
    // In another order than they were sent.
    let two = format!("second={}", text(&to[1]));
    let one = format!("first={}", text(&to[0]));
    apply(&scratch, &stream, &[&two, &one]).ok();
    for (from, to) in from.iter().zip(&to) {
        assert_eq!(truths(from), truths(to));
    }
}

#[test]
fn a_file_appears_when_it_is_whole() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let file = scratch.path("a.stream");
    let run = migrate(["--emit", "-o", text(&file), text(&from)]).ok();
    assert!(run.stdout.contains("sent daily of"), "{}", run.stdout);
    assert_eq!(run.stderr, "");
    assert_eq!(fs::read(&file).unwrap(), emit(&[], &[text(&from)]));
    // A stream is replaced by another one, and nothing is left over.
    migrate(["--emit", "--compact", "-o", text(&file), text(&from)]).ok();
    assert_eq!(
        fs::read(&file).unwrap(),
        emit(&["--compact"], &[text(&from)])
    );
    let mut files: Vec<_> = fs::read_dir(file.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["a.qcow2", "a.stream", "applied.stream"]);
    // Where it is read from.
    let to = blank(&scratch, "b.qcow2", 10 << 20);
    migrate(["--apply", "-i", text(&file), text(&to)]).ok();
    assert_eq!(truths(&from), truths(&to));
}

#[test]
fn a_pipe_in_the_file_system_gets_the_stream_as_it_is() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let fifo = scratch.path("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let reader = fifo.clone();
    let reading = std::thread::spawn(move || fs::read(reader).unwrap());
    migrate(["--emit", "-o", text(&fifo), text(&from)]).ok();
    assert_eq!(reading.join().unwrap(), emit(&[], &[text(&from)]));
}

#[test]
fn the_machine_is_what_the_option_says() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let any = emit(&[], &[text(&from)]);
    assert_eq!(any[8..13], [7, 0, 0, 0, 0]);
    let pc = emit(&["--machine", "pc"], &[text(&from)]);
    assert_eq!(&pc[8..15], b"\x07\0\0\0\x02pc");
    let compact = emit(&["--compact"], &[text(&from)]);
    assert!(compact.len() < any.len());
}
