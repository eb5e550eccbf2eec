//! The check over the images in `testdata/`: those that QEMU made, and the damaged ones
//! with what QEMU said to them. Needs no QEMU.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic in a test's helper is its message"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use qcow2::{
    check::{CheckOptions, CheckReport, Finding, Metadata, Severity, Verdict, check},
    format::HeaderArea,
    io::{Access, FileStorage, LockMode},
};
use serde_json::Value;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

/// The report and the lines; `None` if the image can't be opened.
fn checked(image: &Path) -> Option<(CheckReport, Vec<String>)> {
    let storage = FileStorage::open(image, Access::ReadOnly, LockMode::None).unwrap();
    let area = HeaderArea::read_for_check(&storage).ok()?;
    let metadata = Metadata {
        storage: &storage,
        header: area.header(),
        extensions: area.extensions(),
        geometry: area.header().geometry(),
    };
    let mut lines = Vec::new();
    let report = check(
        &metadata,
        CheckOptions { bitmaps: true },
        &mut |finding: &Finding| {
            if finding.severity() != Severity::Note {
                lines.push(finding.to_string());
            }
        },
    );
    Some((report.ok()?, lines))
}

#[test]
fn images_made_by_qemu_are_sound() {
    let mut seen = 0;
    for entry in fs::read_dir(testdata().join("qcow2")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "qcow2")
        {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let (report, lines) = checked(&path).unwrap();
        let (verdict, leaks) = match name {
            "leaks" => (Verdict::Leaks, 2),
            // The clusters of the bitmaps that nothing speaks of any more.
            "autoclear-cleared" => (Verdict::Leaks, report.leaks),
            // What was killed had not written its refcounts.
            "lazy-dirty" => (Verdict::Corrupt, 0),
            _ => (Verdict::Clean, 0),
        };
        assert_eq!(
            (report.verdict(), report.leaks),
            (verdict, leaks),
            "{name}: {lines:#?}"
        );
        let unusable = match name {
            "in-use" => 2,
            "autoclear-cleared" => 1,
            _ => 0,
        };
        assert_eq!(report.unusable_bitmaps, unusable, "{name}");
        seen += 1;
    }
    assert!(seen > 25, "{seen} images");
}

#[test]
fn damaged_images_get_the_verdict_of_qemu() {
    let bad = testdata().join("bad");
    let good = fs::read(bad.join("good.qcow2")).unwrap();
    let cases: Value = serde_json::from_slice(&fs::read(bad.join("cases.json")).unwrap()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut bytes = good.clone();
        bytes.resize(
            usize::try_from(case["length"].as_u64().unwrap()).unwrap(),
            0,
        );
        for patch in case["patch"].as_array().unwrap() {
            let at = usize::try_from(patch[0].as_u64().unwrap()).unwrap();
            let hex = patch[1].as_str().unwrap();
            for (index, digits) in hex.as_bytes().chunks(2).enumerate() {
                let digits = std::str::from_utf8(digits).unwrap();
                bytes[at + index] = u8::from_str_radix(digits, 16).unwrap();
            }
        }
        let path = scratch.path().join(name);
        fs::write(&path, bytes).unwrap();
        let found = checked(&path);
        let theirs = match case["qemu"]["check"]["exit"].as_u64().unwrap() {
            0 => Verdict::Clean,
            2 => Verdict::Corrupt,
            3 => Verdict::Leaks,
            // QEMU didn't open it, or gave up; that we get here is what counts.
            _ => continue,
        };
        let (report, lines) = found.unwrap_or_else(|| panic!("{name}"));
        assert_eq!(report.verdict(), theirs, "{name}: {lines:#?}");
        compared += 1;
    }
    assert!(compared > 25, "{compared} cases");
}
