//! A stream that is damaged leaves the image as it was, wherever the damage is.

use std::fs;

use qimg_tests::{Scratch, qimg};

use crate::support::{apply, blank, captured, emit, names, small_source, text, unchanged};

#[test]
fn cut_at_any_byte() {
    let scratch = Scratch::new();
    let from = small_source(&scratch, "a.qcow2");
    let to = blank(&scratch, "b.qcow2", 1 << 20);
    let stream = emit(&["--compact"], &[text(&from)]);
    for len in 0..stream.len() {
        let run = unchanged(&[&to], || {
            apply(&scratch, &stream[..len], &[text(&to)]).code(1)
        });
        assert!(
            run.stderr.contains("ends at offset"),
            "{len}: {}",
            run.stderr
        );
        assert_eq!(run.stdout, "");
    }
    apply(&scratch, &stream, &[text(&to)]).ok();
}

#[test]
fn a_capture_cut_at_any_byte_is_whole_only_behind_its_eof() {
    const EOF: usize = 0x178;
    let scratch = Scratch::new();
    let to = blank(&scratch, "b.qcow2", 1 << 20);
    let stream = fs::read(captured("01-single.stream")).unwrap();
    let ends = (0..EOF).chain(EOF + 1..stream.len());
    for len in ends.step_by(7) {
        unchanged(&[&to], || {
            apply(&scratch, &stream[..len], &[text(&to)]).code(1)
        });
    }
    apply(&scratch, &stream[..EOF], &[text(&to)]).ok();
    assert_eq!(names(&to), ["bm0"]);
}

#[test]
fn any_byte_may_be_another() {
    let scratch = Scratch::new();
    let from = small_source(&scratch, "a.qcow2");
    let stream = emit(&["--compact", "--bitmap", "bm0"], &[text(&from)]);
    let mut refused = 0;
    for at in 0..stream.len() {
        let mut damaged = stream.clone();
        damaged[at] ^= 0x81;
        let to = blank(&scratch, "b.qcow2", 1 << 20);
        let before = fs::read(&to).unwrap();
        let run = apply(&scratch, &damaged, &[text(&to)]);
        match run.code {
            // A name or a bit: nothing in the stream guards those.
            0 => assert_eq!(names(&to).len(), 1, "{at:#x}"),
            1 => {
                assert!(before == fs::read(&to).unwrap(), "{at:#x}: {}", run.stderr);
                assert!(!run.stderr.is_empty());
                refused += 1;
            }
            other => panic!("{at:#x}: exit code {other}: {}", run.stderr),
        }
    }
    assert!(refused > 60, "{refused} of {}", stream.len());
}

#[test]
fn what_is_shown_of_a_cut_stream_ends_with_the_damage() {
    let scratch = Scratch::new();
    let stream = fs::read(captured("20-postcopy.stream")).unwrap();
    let file = scratch.path("cut.stream");
    for len in (0..stream.len()).step_by(13) {
        fs::write(&file, &stream[..len]).unwrap();
        let shown = qimg!().run(["stream", "show", "--chunks", "--output=json", text(&file)]);
        let shown = shown.code(1);
        let offset = format!("{len:#x}");
        assert!(shown.stderr.contains(&offset), "{len}: {}", shown.stderr);
        let json = shown.json();
        assert_eq!(json["whole"], false);
        assert_eq!(json["error"]["offset"], len);
        let human = qimg!().run(["stream", "show", text(&file)]).code(1);
        assert!(human.stderr.contains(&offset), "{len}: {}", human.stderr);
        let end = format!("\n{len} byte");
        assert!(human.stdout.contains(&end), "{len}: {}", human.stdout);
    }
}
