//! The streams in `testdata/stream/`: applied to fresh images, their bitmaps are what the
//! QEMU that was the source said; made anew from its images, they are the same bytes.

use std::{collections::BTreeMap, fs, path::PathBuf};

use qimg_tests::{
    Scratch, qimg,
    require::have_qemu,
    testdata::{self, BitmapTruth, RecordedStream, StreamBitmap},
};

use crate::disks::{apply, blank, stored};

/// Streams that must be refused by name.
const REFUSED: [&str; 2] = ["18-mapped-ram", "19-multifd"];

/// Applies a stream to fresh images; the images by the alias of their node.
#[track_caller]
fn applied(
    scratch: &Scratch,
    recorded: &RecordedStream,
    more: &[&str],
) -> BTreeMap<String, PathBuf> {
    let mut images = BTreeMap::new();
    for bitmap in recorded.bitmaps() {
        let alias = bitmap.node_alias;
        images
            .entry(alias.clone())
            .or_insert_with(|| blank(scratch, &alias, bitmap.size));
    }
    let to: Vec<_> = images
        .iter()
        .map(|(alias, image)| (alias.as_str(), image.as_path()))
        .collect();
    apply(&recorded.file, more, &to).ok();
    images
}

/// What the image of a node is to hold.
fn expected<'a>(
    bitmaps: impl IntoIterator<Item = &'a StreamBitmap>,
    alias: &str,
) -> Vec<BitmapTruth> {
    let of_node = bitmaps.into_iter().filter(|b| b.node_alias == alias);
    let mut expected: Vec<_> = of_node
        .map(|b| BitmapTruth {
            name: b.alias.clone(),
            ..b.truth.clone()
        })
        .collect();
    expected.sort_by(|a, b| a.name.cmp(&b.name));
    expected
}

/// Those with bitmaps that can be read.
fn readable() -> Vec<RecordedStream> {
    let mut all = testdata::streams();
    all.retain(|s| !REFUSED.contains(&s.name.as_str()) && !s.bitmaps().is_empty());
    // No qcow2 image of a disk of size 0 can hold a bitmap: its table would have no entry.
    all.retain(|s| s.name != "08-zero-size");
    assert!(all.len() > 12);
    all
}

#[test]
fn applied_they_are_what_qemu_said() {
    if !have_qemu() {
        return;
    }
    for recorded in readable() {
        let scratch = Scratch::new();
        let bitmaps = recorded.bitmaps();
        for (alias, image) in applied(&scratch, &recorded, &["--persistent=on"]) {
            let found = stored(&image);
            assert_eq!(found, expected(&bitmaps, &alias), "{}", recorded.name);
            for truth in found {
                let ours = qimg!().truth(&image, &truth.name);
                assert_eq!(ours, truth, "{}", recorded.name);
            }
        }
    }
}

#[test]
fn transient_ones_are_named_and_not_stored() {
    if !have_qemu() {
        return;
    }
    for name in ["02-multi-bitmap", "04-aliases"] {
        let scratch = Scratch::new();
        let recorded = testdata::stream(name);
        let bitmaps = recorded.bitmaps();
        let (kept, left): (Vec<_>, Vec<_>) = bitmaps.iter().partition(|b| b.persistent);
        assert!(!kept.is_empty() && !left.is_empty());
        let alias = bitmaps[0].node_alias.clone();
        let image = blank(&scratch, "to", bitmaps[0].size);
        let run = apply(&recorded.file, &[], &[(&alias, &image)]).ok();
        assert_eq!(stored(&image), expected(kept, &alias));
        for bitmap in left {
            assert!(run.stderr.contains(&bitmap.alias), "{}", run.stderr);
        }
    }
}

#[test]
fn one_node_and_one_image_match_whatever_its_name() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let recorded = testdata::stream("01-single");
    let image = blank(&scratch, "another", 1 << 20);
    let (stream, to) = (
        recorded.file.display().to_string(),
        image.display().to_string(),
    );
    let args = ["migrate-bitmaps", "--apply", "-i", &stream, &to];
    qimg!().run(args).ok();
    assert_eq!(stored(&image), expected(&recorded.bitmaps(), "n0"));
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    for (name, word) in [("18-mapped-ram", "mapped-ram"), ("19-multifd", "multifd")] {
        let scratch = Scratch::new();
        let recorded = testdata::stream(name);
        let image = scratch.copy(&testdata::qcow2("empty.qcow2"));
        let before = fs::read(&image).unwrap();
        let run = apply(&recorded.file, &[], &[("n0", &image)]).code(1);
        assert!(run.stderr.contains(word), "{}", run.stderr);
        assert!(before == fs::read(&image).unwrap(), "{name} was written");
    }
}

/// The chunks of the START and of the END section, with their EOS.
#[track_caller]
fn chunks(stream: &[u8]) -> (&[u8], &[u8]) {
    let find = |needle: &[u8], from: usize| {
        let found = stream[from..]
            .windows(needle.len())
            .position(|w| w == needle);
        from + found.unwrap_or_else(|| panic!("no {needle:02x?}"))
    };
    let name = find(b"\x0cdirty-bitmap", 0);
    // Which number the section has depends on what else there is.
    let id = &stream[name - 4..name];
    let footer = [&[0x01, 0x7e], id].concat();
    let start = name + 13 + 8;
    let start_end = find(&footer, start);
    let end = find(&[&[3], id].concat(), start_end + footer.len()) + 5;
    (
        &stream[start..=start_end],
        &stream[end..=find(&footer, end)],
    )
}

#[test]
fn emitted_they_are_the_same_bytes() {
    // All bitmaps of these are in the images, and none was written to since.
    for name in [
        "01-single",
        "03-multi-node",
        "07-empty",
        "09-coarse",
        "10-odd-size",
        "14-pc-paused",
        "30-old-single",
    ] {
        let scratch = Scratch::new();
        let recorded = testdata::stream(name);
        let out = scratch.path("out.stream");
        let out_name = out.display().to_string();
        let mut args = vec!["migrate-bitmaps".to_owned(), "--emit".into(), "-o".into()];
        args.push(out_name);
        for (node, image, _) in &recorded.images {
            args.push(format!("{node}={}", image.display()));
        }
        qimg!().run(args).ok();
        let (ours, theirs) = (fs::read(&out).unwrap(), fs::read(&recorded.file).unwrap());
        let (ours, theirs) = (chunks(&ours), chunks(&theirs));
        assert!(ours == theirs, "{name}\n{ours:02x?}\n{theirs:02x?}");
    }
}
