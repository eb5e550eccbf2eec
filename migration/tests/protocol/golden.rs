//! The section `dirty-bitmap` as QEMU wrote it.

use std::{cell::RefCell, fs};

use hbitmap::{DirtyBitmap, Granularity, HBitmap};
use migration::{
    Design, Item, Limits, Outgoing, Received, Receiver, Sender, SenderOptions, StreamReader,
    VmDescription,
};
use serde_json::Value;

fn folder() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/stream").into()
}

/// The bytes of each piece of the section, from its type to its footer, without its id:
/// older versions give 2 to `block`.
fn pieces(stream: &[u8]) -> Vec<Vec<u8>> {
    let description = VmDescription::from_tail(stream).unwrap_or_default();
    let mut reader = StreamReader::new(stream).describe(description);
    let mut pieces = Vec::new();
    let mut begun = None;
    loop {
        let offset = reader.offset() as usize;
        let Some(item) = reader.next().unwrap() else {
            return pieces;
        };
        match item {
            Item::Section(section) if section.name == "dirty-bitmap" => begun = Some(offset),
            Item::Footer { .. } => {
                let end = reader.offset() as usize;
                if let Some(begin) = begun.take() {
                    let mut piece = stream[begin..end].to_vec();
                    let len = piece.len();
                    assert_eq!(piece[1..5], piece[len - 4..]);
                    piece.truncate(len - 4);
                    piece.drain(1..5);
                    pieces.push(piece);
                }
            }
            _ => {}
        }
    }
}

/// Aliases of nodes and bitmaps in the order that the stream starts them.
fn order(stream: &[u8]) -> Vec<(String, String)> {
    let mut survey = Receiver::survey(Limits::default());
    let description = VmDescription::from_tail(stream).unwrap_or_default();
    survey
        .receive(&mut StreamReader::new(stream).describe(description))
        .unwrap();
    let outcome = survey.finish();
    assert_eq!(outcome.lost, []);
    let names = |b: Received| (b.node_alias, b.bitmap_alias);
    outcome.complete.into_iter().map(names).collect()
}

/// Our stream of the bitmaps that a capture's truth has.
fn ours(truth: &Value, order: &[(String, String)], design: Design) -> Vec<u8> {
    let len = |node: &Value| {
        let images = truth["images"].as_array().unwrap();
        let image = images.iter().find(|image| image["node"] == *node).unwrap();
        image["virtual-size"].as_u64().unwrap()
    };
    let mut outgoing = Vec::new();
    for b in truth["bitmaps"].as_array().unwrap() {
        if b["migrated"] != true {
            continue;
        }
        let granularity = Granularity::from_bytes(b["granularity"].as_u64().unwrap()).unwrap();
        let mut bits = HBitmap::new(len(&b["node"]), granularity).unwrap();
        for range in b["dirty"].as_array().unwrap() {
            let (start, len) = (range[0].as_u64().unwrap(), range[1].as_u64().unwrap());
            bits.set(start..start + len);
        }
        let mut bitmap = DirtyBitmap::new(b["name"].as_str().unwrap(), bits);
        bitmap.set_persistent(b["stream-persistent"] == true);
        if b["enabled"] != true {
            bitmap.disable().unwrap();
        }
        let alias = |key: &str| b[key].as_str().unwrap();
        outgoing.push(Outgoing::new(
            alias("node-alias"),
            alias("bitmap-alias"),
            RefCell::new(bitmap),
        ));
    }
    let place = |o: &Outgoing<_>| order.iter().position(|(n, b)| (n, b) == (&o.node, &o.name));
    outgoing.sort_by_key(|o| place(o).unwrap());
    let options = SenderOptions {
        design,
        ..SenderOptions::default()
    };
    let mut sender = Sender::begin(Vec::new(), outgoing, options).unwrap();
    if design == Design::Postcopy {
        sender.switch_over().unwrap();
    }
    sender.complete().unwrap()
}

fn compare(name: &str, design: Design) {
    let stream = fs::read(format!("{}/{name}.stream", folder())).unwrap();
    let truth = fs::read(format!("{}/{name}.json", folder())).unwrap();
    let truth = serde_json::from_slice(&truth).unwrap();
    let ours = ours(&truth, &order(&stream), design);
    let (want, got) = (pieces(&stream), pieces(&ours));
    assert_eq!(got, want, "{name}");
}

#[test]
fn byte_for_byte_what_qemu_sends() {
    for name in [
        "01-single",
        "02-multi-bitmap",
        "03-multi-node",
        "04-aliases",
        "05-disabled",
        "06-transient",
        "07-empty",
        "08-zero-size",
        "09-coarse",
        "10-odd-size",
        "12-write-during",
        "14-pc-paused",
        "15-pc-running",
        "16-no-bitmaps",
        "17-q35-paused",
        "30-old-single",
    ] {
        compare(name, Design::Precopy);
    }
    compare("20-postcopy", Design::Postcopy);
}
