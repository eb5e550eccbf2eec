//! `--partial`: what is complete is stored, what is lost is named.

use std::fs;

use qimg_tests::{Scratch, qimg};

use crate::support::{
    apply, blank, captured, emit, names, small_source, source, text, truths, unchanged,
};

#[test]
fn complete_bitmaps_of_a_stream_that_breaks_off() {
    let scratch = Scratch::new();
    let from = small_source(&scratch, "a.qcow2");
    // Bitmap follows bitmap: the newest is complete first.
    let stream = emit(&["--compact"], &[text(&from)]);
    let whole = stream.len();
    let mut seen = [0; 3];
    for len in 0..whole {
        let to = blank(&scratch, "b.qcow2", 1 << 20);
        let image = format!("a={}", text(&to));
        let words = ["--partial", "--output=json", &image];
        let run = apply(&scratch, &stream[..len], &words).code(1);
        let stored = names(&to);
        assert!(stored.len() < 3, "{len}: {stored:?}");
        seen[stored.len()] += 1;
        let report = run.json();
        assert!(report["error"].is_string(), "{len}: {report}");
        if stored == ["late"] {
            assert_eq!(truths(&to), truths(&from)[1..]);
        } else if stored.len() == 2 {
            // Only the end is missing.
            assert_eq!(truths(&to), truths(&from));
        }
        let lost = report["not-stored"].as_array().unwrap();
        assert!(lost.iter().all(|b| b["reason"] == "lost"), "{report}");
        assert!(
            run.stderr
                .contains("the stream is damaged: the stream ends at"),
            "{}",
            run.stderr
        );
    }
    assert!(seen.iter().all(|&times| times > 0), "{seen:?}");
}

#[test]
fn a_name_that_is_taken_loses_that_bitmap_alone() {
    let scratch = Scratch::new();
    let from = source(&scratch, "a.qcow2");
    let to = blank(&scratch, "b.qcow2", 10 << 20);
    qimg!().bitmap(&["--add"], &to, "daily");
    let before = truths(&to);
    let stream = emit(&[], &[text(&from)]);
    let run = unchanged(&[&to], || apply(&scratch, &stream, &[text(&to)]).code(1));
    assert!(run.stderr.contains("--force replaces it"), "{}", run.stderr);
    let run = apply(&scratch, &stream, &["--partial", text(&to)]).code(1);
    assert!(run.stderr.contains("'a/daily' is lost"), "{}", run.stderr);
    assert!(run.stdout.contains("stored a/fine"), "{}", run.stdout);
    assert_eq!(names(&to), ["daily", "fine"]);
    assert_eq!(truths(&to)[0], before[0]);
    apply(&scratch, &stream, &["--force", text(&to)]).ok();
    assert_eq!(truths(&to), truths(&from));
}

#[test]
fn a_bitmap_too_large_for_the_image_is_lost_and_what_it_replaces_stays() {
    let scratch = Scratch::new();
    // 4 TiB at 512 bytes would take 1 GiB; such a bitmap is made by hand.
    let len = 4_u64 << 40;
    let to = blank(&scratch, "b.qcow2", len);
    qimg!().bitmap(&["--add", "-g", "64k"], &to, "big");
    let before = truths(&to);
    let mut stream =
        b"QEVM\0\0\0\x03\x07\0\0\0\0\x04\0\0\0\x01\x0cdirty-bitmap\0\0\0\0\0\0\0\x01".to_vec();
    for (name, granularity) in [(b"big", 512_u32), (b"low", 65536)] {
        stream.extend(b"\x1c\x01n\x03");
        stream.extend(name);
        stream.extend(granularity.to_be_bytes());
        stream.push(3);
        let sectors = len / 512;
        let step = u64::from(u32::MAX) / 2_097_152 * 2_097_152;
        let mut first = 0;
        while first < sectors {
            let count = step.min(sectors - first) as u32;
            stream.push(0x42);
            stream.extend(first.to_be_bytes());
            stream.extend(count.to_be_bytes());
            first += u64::from(count);
        }
        stream.push(0x20);
    }
    stream.extend(b"\x01\x7e\0\0\0\x01\0");
    let run = unchanged(&[&to], || {
        apply(&scratch, &stream, &["--force", text(&to)]).code(1)
    });
    assert!(run.stderr.contains("Too much space"), "{}", run.stderr);
    let run = apply(&scratch, &stream, &["--force", "--partial", text(&to)]).code(1);
    assert!(
        run.stderr.contains("'n/big' is lost: Too much space"),
        "{}",
        run.stderr
    );
    assert_eq!(names(&to), ["big", "low"]);
    assert_eq!(truths(&to)[0], before[0]);
}

#[test]
fn a_machine_whose_end_is_not_proven_is_refused() {
    let scratch = Scratch::new();
    let stream = fs::read(captured("14-pc-paused.stream")).unwrap();
    let to = blank(&scratch, "b.qcow2", 1 << 20);
    // The description is cut off, so that nothing is known of the devices.
    let cut = &stream[..stream.len() - 1000];
    let run = unchanged(&[&to], || apply(&scratch, cut, &[text(&to)]).code(1));
    assert!(
        run.stderr.contains("whether the stream is whole"),
        "{}",
        run.stderr
    );
    let image = format!("n0={}", text(&to));
    apply(&scratch, cut, &["--partial", &image]).code(1);
    assert_eq!(names(&to), ["bm0"]);
}

#[test]
fn of_a_stream_that_breaks_off_only_the_named_node_is_taken() {
    let scratch = Scratch::new();
    let from = small_source(&scratch, "a.qcow2");
    let to = blank(&scratch, "b.qcow2", 1 << 20);
    let stream = emit(&["--compact"], &[text(&from)]);
    // It could have gone on with the node b.
    let cut = &stream[..stream.len() - 1];
    let run = unchanged(&[&to], || {
        apply(&scratch, cut, &["--partial", text(&to)]).code(1)
    });
    assert!(
        run.stderr
            .contains("'a/late' is lost: no image is this node"),
        "{}",
        run.stderr
    );
    let words = ["--partial", "--node-alias", "a", text(&to)];
    apply(&scratch, cut, &words).code(1);
    assert_eq!(truths(&to), truths(&from));
}
