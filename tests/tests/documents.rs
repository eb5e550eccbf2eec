//! What the documents show of files in `testdata/` is what those files hold.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

use std::fs;

use qimg_tests::testdata::{dir, stream_dir};

/// Blocks of code that begin with "```bytes NAME" have a line for each run of bytes of
/// `testdata/stream/NAME.stream`: offset and bytes in hex, and words behind three blanks.
#[test]
fn the_bytes_in_the_documents() {
    let document = dir().parent().unwrap().join("docs/migration-stream.md");
    let text = fs::read_to_string(document).unwrap();
    let mut shown = 0;
    for block in text.split("```bytes ").skip(1) {
        let block = block.split("```").next().unwrap();
        let (name, lines) = block.split_once('\n').unwrap();
        let stream = fs::read(stream_dir().join(format!("{name}.stream"))).unwrap();
        for line in lines.lines() {
            let (offset, rest) = line.split_once("  ").unwrap();
            let hex = rest.split("   ").next().unwrap();
            let offset = usize::from_str_radix(offset, 16).unwrap();
            let bytes: Vec<u8> = hex
                .split(' ')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect();
            let found = stream.get(offset..offset + bytes.len());
            assert!(found == Some(&bytes), "{name}: {line}\nfound {found:02x?}");
            shown += bytes.len();
        }
    }
    assert!(shown > 1000, "only {shown} bytes are shown");
}
