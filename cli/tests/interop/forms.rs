//! The other forms of a dump hold the same bits as the JSON, on every recorded image.

use std::path::Path;

use hbitmap::{Granularity, HBitmap, layered::Limits};
use qimg_tests::{
    Run, qimg,
    testdata::{self, BitmapTruth, recorded},
};

fn dump(form: &str, image: &Path, name: &str) -> Run {
    let form = format!("--output={form}");
    let image = image.to_str().unwrap();
    qimg!().run(["bitmap", "--dump", &form, image, name])
}

/// Every bitmap of the records whose bits can be relied on, with the disk's size.
fn sound() -> Vec<(testdata::Recorded, u64, BitmapTruth)> {
    let mut out = Vec::new();
    for recorded in recorded() {
        let size = recorded.record["virtual-size"].as_u64().unwrap();
        for truth in recorded.bitmaps() {
            if truth.state != "inconsistent" {
                out.push((recorded.clone(), size, truth));
            }
        }
    }
    assert!(out.len() > 30);
    out
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn ranges_are_lines_of_offset_and_length() {
    for (recorded, _, truth) in sound() {
        let lines: String = truth
            .ranges
            .iter()
            .map(|range| format!("{} {}\n", range.start, range.end - range.start))
            .collect();
        assert_eq!(
            dump("ranges", &recorded.image, &truth.name).ok().stdout,
            lines
        );
    }
}

#[test]
fn layered_is_read_back_by_the_library() {
    for (recorded, size, truth) in sound() {
        let run = dump("layered", &recorded.image, &truth.name).ok();
        let bits = HBitmap::from_layered(&run.raw_stdout, &Limits::default()).unwrap();
        assert_eq!(bits.len(), size);
        assert_eq!(bits.granularity().bytes(), truth.granularity);
        assert_eq!(bits.ranges().collect::<Vec<_>>(), truth.ranges);
        assert_eq!(hex(&bits.sha256()), truth.sha256);
    }
}

#[test]
fn raw_is_the_linear_form_that_qemu_hashes() {
    for (recorded, size, truth) in sound() {
        let raw = dump("raw", &recorded.image, &truth.name).ok().raw_stdout;
        let granularity = Granularity::from_bytes(truth.granularity).unwrap();
        let mut bits = HBitmap::new(size, granularity).unwrap();
        bits.load_linear(0..size, &raw).unwrap();
        bits.finish();
        assert_eq!(hex(&bits.sha256()), truth.sha256);
    }
}

#[test]
fn a_layered_file_with_any_byte_wrong_is_refused() {
    let image = testdata::qcow2("three-bitmaps.qcow2");
    let good = dump("layered", &image, "weekly").ok().raw_stdout;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let read = HBitmap::from_layered(&bad, &Limits::default());
        assert!(read.is_err(), "byte {at} wrong, yet read");
        let cut = HBitmap::from_layered(&good[..at], &Limits::default());
        assert!(cut.is_err(), "cut at {at}, yet read");
    }
}

#[test]
fn an_inconsistent_bitmap_has_no_form() {
    let image = testdata::qcow2("in-use.qcow2");
    for form in ["ranges", "raw", "layered"] {
        let run = dump(form, &image, "since-start").code(1);
        assert!(run.raw_stdout.is_empty(), "{run:?}");
        assert!(run.stderr.contains("inconsistent"), "{run:?}");
    }
}
