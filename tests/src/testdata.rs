//! The images in `testdata/` and the records beside them.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// What QEMU says about one bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapTruth {
    /// Name.
    pub name: String,
    /// `recording`, `disabled` or `inconsistent`.
    pub state: String,
    /// Bytes a bit stands for.
    pub granularity: u64,
    /// Dirty bits times granularity.
    pub count: u64,
    /// SHA-256 of the bits in linear form; empty when inconsistent.
    pub sha256: String,
    /// Dirty guest ranges, merged and in order.
    pub ranges: Vec<Range<u64>>,
}

/// A recorded image: the file and the JSON beside it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The image.
    pub image: PathBuf,
    /// The record, as `testdata/make.py` wrote it.
    pub record: Value,
}

impl Recorded {
    /// The bitmaps of the record, by name.
    #[must_use]
    pub fn bitmaps(&self) -> Vec<BitmapTruth> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let listed = self.record["bitmaps"].as_array().unwrap();
        let mut out: Vec<_> = listed
            .iter()
            .map(|b| BitmapTruth {
                name: text(&b["name"]),
                state: text(&b["state"]),
                granularity: b["granularity"].as_u64().unwrap(),
                count: b["count"].as_u64().unwrap_or_default(),
                sha256: text(&b["sha256"]),
                ranges: ranges_of(&b["ranges"]),
            })
            .collect();
        out.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }
}

/// The folder `testdata/`.
#[must_use]
pub fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("testdata")
}

/// An image in `testdata/qcow2/`.
#[must_use]
pub fn qcow2(name: &str) -> PathBuf {
    dir().join("qcow2").join(name)
}

/// Every recorded image that QEMU made, by name.
///
/// # Panics
/// When there is none, or a record cannot be read.
#[must_use]
pub fn recorded() -> Vec<Recorded> {
    let all = records(&dir().join("qcow2"));
    assert!(!all.is_empty(), "testdata/qcow2 has no records");
    all
}

/// Every damaged image with its record, by name.
///
/// # Panics
/// When there is none, or a record cannot be read.
#[must_use]
pub fn damaged() -> Vec<Recorded> {
    let all = records(&dir().join("bad"));
    assert!(!all.is_empty(), "testdata/bad has no records");
    all
}

fn records(folder: &Path) -> Vec<Recorded> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let record: Value = serde_json::from_slice(&fs::read(&path).unwrap())
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let image = folder.join(record["image"].as_str().unwrap());
            Recorded { image, record }
        })
        .collect()
}

/// Ranges out of `[{"offset","length"},…]` or `[[offset,length],…]`.
///
/// # Panics
/// When the value has another shape.
#[must_use]
pub fn ranges_of(value: &Value) -> Vec<Range<u64>> {
    let listed = value.as_array().unwrap();
    let number = |v: &Value| v.as_u64().unwrap();
    listed
        .iter()
        .map(|extent| match extent {
            Value::Array(pair) => number(&pair[0])..number(&pair[0]) + number(&pair[1]),
            object => {
                let start = number(&object["offset"]);
                start..start + number(&object["length"])
            }
        })
        .collect()
}
