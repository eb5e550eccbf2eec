//! The images and streams in `testdata/` and the records beside them.

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
                ranges: b.get("ranges").map(ranges_of).unwrap_or_default(),
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

/// A bitmap of a recorded stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamBitmap {
    /// The source's node.
    pub node: String,
    /// The alias of the node in the stream.
    pub node_alias: String,
    /// Whether the stream says that it is to be stored.
    pub persistent: bool,
    /// Its bits, under the source's name.
    pub truth: BitmapTruth,
    /// Its alias in the stream.
    pub alias: String,
    /// Bytes of its disk.
    pub size: u64,
}

/// A recorded migration stream: the file and the JSON beside it.
#[derive(Debug, Clone)]
pub struct RecordedStream {
    /// File name without the ending, such as `01-single`.
    pub name: String,
    /// The stream.
    pub file: PathBuf,
    /// The source's nodes: name, image as it was before, bytes of the disk.
    pub images: Vec<(String, PathBuf, u64)>,
    /// The record, as `testdata/streams.py` wrote it.
    pub record: Value,
}

impl RecordedStream {
    /// The bitmaps that are in the stream, in no order that means anything.
    #[must_use]
    pub fn bitmaps(&self) -> Vec<StreamBitmap> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let listed = self.record["bitmaps"].as_array().unwrap();
        let migrated = listed.iter().filter(|b| b["migrated"] == true);
        migrated
            .map(|b| StreamBitmap {
                node: text(&b["node"]),
                node_alias: text(&b["node-alias"]),
                persistent: b["stream-persistent"].as_bool().unwrap(),
                alias: text(&b["bitmap-alias"]),
                size: self.size_of(&text(&b["node"])),
                truth: BitmapTruth {
                    name: text(&b["name"]),
                    state: match b["enabled"].as_bool().unwrap() {
                        true => "recording".to_owned(),
                        false => "disabled".to_owned(),
                    },
                    granularity: b["granularity"].as_u64().unwrap(),
                    count: b["count"].as_u64().unwrap(),
                    sha256: text(&b["sha256"]),
                    ranges: ranges_of(&b["dirty"]),
                },
            })
            .collect()
    }

    /// Bytes of the disk of a node.
    fn size_of(&self, node: &str) -> u64 {
        let known = self.images.iter().find(|(name, ..)| name == node);
        // The one put together by hand has no image; its disk is 1 MiB.
        known.map_or(1 << 20, |(_, _, size)| *size)
    }

    /// The machine type that QEMU was started with.
    #[must_use]
    pub fn machine(&self) -> &str {
        self.record["machine"].as_str().unwrap()
    }
}

/// The folder `testdata/stream/`.
#[must_use]
pub fn stream_dir() -> PathBuf {
    dir().join("stream")
}

/// A stream of `testdata/stream/`, without its ending.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn stream(name: &str) -> RecordedStream {
    let found = streams().into_iter().find(|s| s.name == name);
    found.unwrap_or_else(|| panic!("no stream {name}"))
}

/// Every recorded stream, by name.
///
/// # Panics
/// When there is none, or a record cannot be read.
#[must_use]
pub fn streams() -> Vec<RecordedStream> {
    let folder = stream_dir();
    let image = |value: &Value| {
        let text = |key: &str| value[key].as_str().unwrap().to_owned();
        let size = value["virtual-size"].as_u64().unwrap();
        (text("node"), folder.join(text("file")), size)
    };
    let all: Vec<_> = json_files(&folder)
        .into_iter()
        .map(|(path, record)| RecordedStream {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            file: folder.join(record["stream"].as_str().unwrap()),
            images: record["images"]
                .as_array()
                .unwrap()
                .iter()
                .map(image)
                .collect(),
            record,
        })
        .collect();
    assert!(!all.is_empty(), "testdata/stream has no records");
    all
}

/// A damaged image out of `testdata/bad/cases.json`.
#[derive(Debug, Clone)]
pub struct Damaged {
    /// Name of the case.
    pub name: String,
    /// What was damaged.
    pub what: String,
    /// `refuse`, `bitmaps`, `corrupt`, `leaks`, `fine` or `either`; see `testdata/damage.py`.
    pub must: String,
    /// The image.
    pub bytes: Vec<u8>,
    /// What qemu-img said to it.
    pub qemu: Value,
}

/// Every damaged image, in the order of the file.
///
/// # Panics
/// When there is none, or the file cannot be read.
#[must_use]
pub fn damaged() -> Vec<Damaged> {
    let folder = dir().join("bad");
    let good = fs::read(folder.join("good.qcow2")).unwrap();
    let cases: Vec<Value> =
        serde_json::from_slice(&fs::read(folder.join("cases.json")).unwrap()).unwrap();
    assert!(!cases.is_empty(), "testdata/bad/cases.json has no cases");
    cases.iter().map(|case| damage(&good, case)).collect()
}

fn damage(good: &[u8], case: &Value) -> Damaged {
    let text = |key: &str| case[key].as_str().unwrap().to_owned();
    let length = case["length"].as_u64().unwrap() as usize;
    let mut bytes = good.to_vec();
    bytes.resize(length, 0);
    for patch in case["patch"].as_array().unwrap() {
        let at = patch[0].as_u64().unwrap() as usize;
        let hex = patch[1].as_str().unwrap();
        for (i, pair) in hex.as_bytes().chunks(2).enumerate() {
            let pair = std::str::from_utf8(pair).unwrap();
            bytes[at + i] = u8::from_str_radix(pair, 16).unwrap();
        }
    }
    Damaged {
        name: text("name"),
        what: text("what"),
        must: text("must"),
        bytes,
        qemu: case["qemu"].clone(),
    }
}

fn records(folder: &Path) -> Vec<Recorded> {
    let recorded = |(_, record): (PathBuf, Value)| Recorded {
        image: folder.join(record["image"].as_str().unwrap()),
        record,
    };
    json_files(folder).into_iter().map(recorded).collect()
}

/// The JSON files of a folder, by name, with what they hold.
fn json_files(folder: &Path) -> Vec<(PathBuf, Value)> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let record = serde_json::from_slice(&fs::read(&path).unwrap())
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path, record)
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
