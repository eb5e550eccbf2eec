//! Streams that a real QEMU wrote (`testdata/stream`): they are read to their last byte,
//! and what is written for the same bitmaps is the same, byte for byte.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::{collections::HashMap, fs, path::PathBuf};

use hbitmap::{Granularity, HBitmap};
use migration::{
    BitmapFlags, BlockData, BlockItem, BlockWriter, Chunk, ChunkWriter, Error, Item, Limits,
    Output, SECTOR, SectionKind, StreamReader, StreamWriter, VmDescription, write_bits,
    write_compact,
};
use serde_json::Value;

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "testdata", "stream"]
        .iter()
        .collect()
}

/// A capture and what is known of it.
struct Capture {
    name: String,
    bytes: Vec<u8>,
    truth: Value,
}

/// The captures that can be read, by name.
fn captures() -> Vec<Capture> {
    let all: Vec<_> = every_capture()
        .into_iter()
        .filter(|capture| capture.refused().is_none())
        .collect();
    assert!(all.len() >= 14, "captures are missing");
    all
}

fn every_capture() -> Vec<Capture> {
    let mut all: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "stream"))
        .map(|path| {
            let json = fs::read(path.with_extension("json")).unwrap();
            Capture {
                name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
                bytes: fs::read(&path).unwrap(),
                truth: serde_json::from_slice(&json).unwrap(),
            }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// A bitmap as QEMU had it.
struct Truth {
    bits: HBitmap,
    flags: BitmapFlags,
    sha256: String,
}

impl Capture {
    /// The capability that it was made with and that puts it beyond reading.
    fn refused(&self) -> Option<&str> {
        let capabilities = self.truth["capabilities"].as_array()?;
        let mut names = capabilities.iter().filter_map(Value::as_str);
        names.find(|name| ["mapped-ram", "multifd"].contains(name))
    }

    fn reader(&self) -> StreamReader<&[u8]> {
        let description = VmDescription::from_tail(&self.bytes).unwrap_or_default();
        StreamReader::new(&self.bytes[..]).describe(description)
    }

    /// The bitmaps that were migrated, by their names in the stream.
    fn truth(&self) -> HashMap<(String, String), Truth> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let disk = |node: &str| {
            self.truth["images"]
                .as_array()
                .unwrap()
                .iter()
                .find(|image| image["node"] == node)
                .unwrap()["virtual-size"]
                .as_u64()
                .unwrap()
        };
        self.truth["bitmaps"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|bitmap| bitmap["migrated"] == true)
            .map(|bitmap| {
                let granularity = bitmap["granularity"].as_u64().unwrap();
                let granularity = Granularity::from_bytes(granularity).unwrap();
                let len = disk(bitmap["node"].as_str().unwrap());
                let mut bits = HBitmap::new(len, granularity).unwrap();
                for range in bitmap["dirty"].as_array().unwrap() {
                    let start = range[0].as_u64().unwrap();
                    bits.set(start..start + range[1].as_u64().unwrap());
                }
                let truth = Truth {
                    bits,
                    flags: BitmapFlags {
                        enabled: bitmap["enabled"] == true,
                        persistent: bitmap["stream-persistent"] == true,
                    },
                    sha256: text(&bitmap["sha256"]),
                };
                let names = (text(&bitmap["node-alias"]), text(&bitmap["bitmap-alias"]));
                (names, truth)
            })
            .collect()
    }
}

#[test]
fn what_cant_be_read_is_refused_by_name() {
    let mut seen = 0;
    for capture in every_capture() {
        let Some(capability) = capture.refused() else {
            continue;
        };
        let mut stream = capture.reader();
        let error = loop {
            match stream.next() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{} was read", capture.name),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(capability), "{error}");
        seen += 1;
    }
    assert_eq!(seen, 2);
}

#[test]
fn captures_are_read_to_their_last_byte() {
    for capture in captures() {
        let mut stream = capture.reader();
        let mut last = String::new();
        let mut at = 0;
        while let Some(item) = stream
            .next()
            .unwrap_or_else(|e| panic!("{}: {e}", capture.name))
        {
            assert!(!matches!(item, Item::Rest { .. }), "{}", capture.name);
            last = format!("{item:?}");
            assert_eq!(
                stream.item_offset(),
                at,
                "{}: no gap between items",
                capture.name
            );
            at = stream.offset();
        }
        assert_eq!(at, capture.bytes.len() as u64, "{}", capture.name);
        assert!(last.starts_with("VmDescription") || last == "Eof", "{last}");
    }
}

#[test]
fn without_a_description_the_end_is_found() {
    let capture = captures()
        .into_iter()
        .find(|c| c.name == "14-pc-paused")
        .unwrap();
    let mut stream = StreamReader::new(&capture.bytes[..]);
    let mut rest = None;
    while let Some(item) = stream.next().unwrap() {
        if let Item::Rest { len, whole } = item {
            rest = Some((len, whole));
        }
    }
    let (len, whole) = rest.unwrap();
    assert!(whole);
    assert!(len > 8192);
    assert_eq!(stream.offset(), capture.bytes.len() as u64);
    // Whatever is missing at its end, it isn't whole.
    let last = capture.bytes.len();
    for cut in [1, 2, 100, 5000] {
        let mut stream = StreamReader::new(&capture.bytes[..last - cut]);
        let mut whole = true;
        while let Some(item) = stream.next().unwrap() {
            if let Item::Rest { whole: is, .. } = item {
                whole = is;
            }
        }
        assert!(!whole, "{cut} bytes are missing");
    }
}

/// Each dirty-bitmap section is written anew out of the truth, and compared.
#[test]
fn sections_are_written_as_qemu_does() {
    for capture in captures().into_iter().filter(|c| c.name != "minimal") {
        let name = &capture.name;
        let truth = capture.truth();
        for bitmap in truth.values() {
            let digest: String = bitmap
                .bits
                .sha256()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            assert_eq!(digest, bitmap.sha256, "{name}");
        }
        let mut chunks = ChunkWriter::new();
        let mut stream = capture.reader();
        let (mut sent, mut complete) = (Vec::new(), 0);
        while let Some(item) = stream.next().unwrap() {
            if !matches!(item, Item::Section(section) if section.name == "dirty-bitmap") {
                continue;
            }
            let start = usize::try_from(stream.offset()).unwrap();
            let mut w = Output::new(Vec::new());
            let end = loop {
                let Some(Item::Chunk {
                    node,
                    bitmap,
                    chunk,
                    last,
                }) = stream.next().unwrap()
                else {
                    panic!("{name}: the footer isn't behind the end of the list");
                };
                if let (Some(node), Some(bitmap)) = (node, bitmap) {
                    let names = (node.to_owned(), bitmap.to_owned());
                    let known = &truth[&names];
                    match chunk {
                        Chunk::Start { granularity, flags } => {
                            assert_eq!(granularity, known.bits.granularity(), "{name}");
                            assert_eq!(flags, known.flags, "{name}");
                            chunks
                                .start(&mut w, node, bitmap, granularity, flags)
                                .unwrap();
                        }
                        Chunk::Bits(..) | Chunk::Zeroes(_) if !sent.contains(&names) => {
                            let all = 0..known.bits.len();
                            write_bits(&mut w, &mut chunks, node, bitmap, &known.bits, all)
                                .unwrap();
                            sent.push(names);
                        }
                        Chunk::Complete => {
                            chunks.complete(&mut w, node, bitmap).unwrap();
                            complete += 1;
                        }
                        _ => {}
                    }
                }
                if last {
                    chunks.end_of_list(&mut w).unwrap();
                    break usize::try_from(stream.offset()).unwrap();
                }
            };
            let written = w.into_inner().unwrap();
            assert_eq!(
                written,
                capture.bytes[start..end],
                "{name}, section at {start:#x}"
            );
        }
        assert_eq!((sent.len(), complete), (truth.len(), truth.len()), "{name}");
    }
}

#[test]
fn the_smallest_streams_that_qemu_loads() {
    let mut bits = HBitmap::new(1 << 20, Granularity::from_bytes(65536).unwrap()).unwrap();
    bits.set(131_072..131_072 + 65536);
    bits.set(524_288..524_289);
    let written = |compact: bool| {
        let mut w = StreamWriter::new(Vec::new(), "").unwrap();
        w.begin(SectionKind::Full, 1, "dirty-bitmap", 0, 1).unwrap();
        let (mut chunks, content) = (ChunkWriter::new(), w.content());
        let flags = BitmapFlags {
            enabled: true,
            persistent: true,
        };
        chunks
            .start(content, "n0", "bm0", bits.granularity(), flags)
            .unwrap();
        if compact {
            write_compact(content, &mut chunks, "n0", "bm0", &bits).unwrap();
            chunks.complete_last(content, "n0", "bm0").unwrap();
        } else {
            write_bits(content, &mut chunks, "n0", "bm0", &bits, 0..1 << 20).unwrap();
            chunks.complete(content, "n0", "bm0").unwrap();
            chunks.end_of_list(content).unwrap();
        }
        w.end().unwrap();
        w.finish(false).unwrap()
    };
    let capture = captures().into_iter().find(|c| c.name == "minimal");
    assert_eq!(written(false), capture.unwrap().bytes);
    // Without padding, and the end within the last chunk.
    assert_eq!(written(true).len(), 113 - 24 - 1);
}

/// Cut anywhere, a stream is an error that says so, and reads no further.
#[test]
fn truncation_at_every_byte() {
    for capture in captures() {
        let name = &capture.name;
        let description = VmDescription::from_tail(&capture.bytes).unwrap_or_default();
        let len = capture.bytes.len();
        // Where a stream ends right behind its EOF, it is whole.
        let mut stream = capture.reader();
        let mut eof = 0;
        while let Some(item) = stream.next().unwrap() {
            if item == Item::Eof {
                eof = usize::try_from(stream.offset()).unwrap();
            }
        }
        // Of a large capture every byte where sections are small, and then some.
        let cuts = (0..len)
            .filter(|cut| len < 10_000 || *cut < 2000 || cut % 997 == 0 || *cut + 300 > len);
        for cut in cuts {
            let mut stream = StreamReader::new(&capture.bytes[..cut]).describe(description.clone());
            let result = loop {
                match stream.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            match result {
                Ok(()) => assert_eq!(cut, eof, "{name}"),
                Err(Error::Truncated { offset, structure }) => {
                    assert_ne!(cut, eof, "{name}");
                    assert_eq!(offset, cut as u64, "{name}");
                    assert!(!structure.is_empty(), "{name} {cut:#x}");
                }
                Err(error) => panic!("{name} cut at {cut:#x}: {error}"),
            }
            assert!(stream.next().unwrap().is_none());
        }
    }
}

/// Damaged anywhere, a stream is read or refused: nothing panics.
#[test]
fn damage_at_every_byte() {
    let mut limits = Limits::default();
    limits.description = 1 << 20;
    let some = ["02-multi-bitmap", "14-pc-paused", "20-postcopy"];
    for capture in captures()
        .into_iter()
        .filter(|c| some.contains(&c.name.as_str()))
    {
        let mut bytes = capture.bytes.clone();
        for at in 0..bytes.len().min(1500) {
            let good = bytes[at];
            for bad in [0, 0x7f, 0xff, good ^ 1, good ^ 0x10] {
                bytes[at] = bad;
                let mut stream = StreamReader::with_limits(&bytes[..], limits);
                let mut items = 0;
                while let Ok(Some(_)) = stream.next() {
                    items += 1;
                }
                assert!(items <= bytes.len(), "each item has a byte");
                assert!(stream.offset() <= bytes.len() as u64);
            }
            bytes[at] = good;
        }
    }
}

/// The pieces that are written for the disk of the capture stand in it, byte for byte.
#[test]
fn blocks_are_written_as_qemu_did() {
    let capture = captures().into_iter().find(|c| c.name == "31-old-block");
    let capture = capture.unwrap().bytes;
    let mut disk = vec![0; 1_572_864];
    disk[1 << 20..(1 << 20) + 4096].fill(3);
    disk[1535 << 10..1536 << 10].fill(4);

    let mut w = StreamWriter::new(Vec::new(), "none").unwrap();
    let mut pieces = vec![usize::try_from(w.offset()).unwrap()];
    let mut cut = |offset: u64| pieces.push(usize::try_from(offset).unwrap());
    let mut blocks = BlockWriter::begin(&mut w, 1, disk.len() as u64).unwrap();
    cut(w.offset());
    let head = w.offset() + 5; // A PART and its id.
    blocks
        .disk(&mut w, "drive-n0", &mut &disk[..], disk.len() as u64)
        .unwrap();
    cut(head);
    cut(head + 17); // A block of zeros, and how far that is.
    cut(head + 17 + 8);
    cut(head + 17 + 8 + 17 + (1 << 20)); // A block of data.
    let end = w.offset();
    blocks.end(&mut w).unwrap();
    cut(end);
    cut(w.offset());
    let written = w.finish(false).unwrap();
    let has = |piece: &[u8]| capture.windows(piece.len()).any(|part| part == piece);
    for (i, what) in [
        (0, "START"),
        (2, "zeros"),
        (3, "66 %"),
        (4, "data"),
        (6, "END"),
    ] {
        assert!(has(&written[pieces[i]..pieces[i + 1]]), "{what}");
    }

    // What the capture holds is the disk.
    let mut stream = StreamReader::new(&capture[..]);
    let mut got = vec![0xee; 2 << 20];
    while let Some(item) = stream.next().unwrap() {
        if let Item::Block(BlockItem::Block {
            device,
            sector,
            data,
        }) = item
        {
            assert_eq!(device, "drive-n0");
            let at = usize::try_from(sector * SECTOR).unwrap();
            match data {
                BlockData::Zero => got[at..at + (1 << 20)].fill(0),
                BlockData::Data(data) => got[at..at + (1 << 20)].copy_from_slice(data),
            }
        }
    }
    disk.resize(2 << 20, 0);
    assert!(got == disk);
}
