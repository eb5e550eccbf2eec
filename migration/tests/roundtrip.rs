//! What is written is what is read, whatever it is; and any bytes can be read.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use hbitmap::{Granularity, HBitmap};
use migration::{
    BitmapFlags, Chunk, ChunkLayout, ChunkWriter, Command, Error, Item, Limits, Output, SECTOR,
    SectionKind, Sectors, StreamReader, StreamWriter, write_bits, write_compact,
};
use proptest::{collection::vec, prelude::*};

/// The chunks of a list, as a stream's reader gives them.
fn read(content: &[u8], mut each: impl FnMut(Option<&str>, Option<&str>, Chunk<'_>, bool)) {
    let mut w = StreamWriter::new(Vec::new(), "").unwrap();
    w.begin(SectionKind::Full, 1, "dirty-bitmap", 0, 1).unwrap();
    w.content().put(content).unwrap();
    w.end().unwrap();
    let bytes = w.finish(false).unwrap();
    let mut stream = StreamReader::new(&bytes[..]);
    while let Some(item) = stream.next().unwrap() {
        if let Item::Chunk {
            node,
            bitmap,
            chunk,
            last,
        } = item
        {
            each(node, bitmap, chunk, last);
        }
    }
    assert_eq!(stream.offset(), bytes.len() as u64);
}

/// A bitmap out of the chunks that were written for one.
fn reread(bits: &HBitmap, write: impl FnOnce(&mut Output<Vec<u8>>, &mut ChunkWriter)) -> HBitmap {
    let mut w = Output::new(Vec::new());
    let mut chunks = ChunkWriter::new();
    chunks
        .start(&mut w, "n", "b", bits.granularity(), BitmapFlags::default())
        .unwrap();
    write(&mut w, &mut chunks);
    chunks.complete_last(&mut w, "n", "b").unwrap();
    let content = w.into_inner().unwrap();

    let len = bits.len();
    let mut got = HBitmap::new(len, bits.granularity()).unwrap();
    got.set_all(); // What isn't covered stays dirty.
    let word = bits.linear_align();
    read(&content, |_, _, chunk, _| match chunk {
        Chunk::Zeroes(sectors) | Chunk::Bits(sectors, _) => {
            let range = sectors.bytes();
            assert!(range.start.is_multiple_of(word));
            assert!(range.end.is_multiple_of(word) || range.end.div_ceil(512) == len.div_ceil(512));
            let range = range.start..range.end.min(len);
            if let Chunk::Bits(_, data) = chunk {
                let sizes = sectors.buffer_sizes(bits.granularity());
                assert!(sizes.contains(&(data.len() as u64)));
                got.check_padding(range.clone(), data).unwrap();
                got.load_linear(range, data).unwrap();
            } else {
                got.load_zeros(range).unwrap();
            }
        }
        _ => {}
    });
    got
}

/// Bitmaps of any size and granularity: few dirty places, runs of them, or noise.
fn bitmaps() -> impl Strategy<Value = HBitmap> {
    let places = vec((any::<u64>(), 0..6u32, any::<bool>()), 0..40);
    (9..=31u32, any::<u64>(), 0..40u32, places).prop_map(|(bits, len, small, places)| {
        let granularity = Granularity::from_bits(bits).unwrap();
        // Up to 2^18 granules, so that chunks of all shapes come.
        let most = granularity.bytes() << 18;
        let len = (len % most) >> (small % 19);
        let mut bitmap = HBitmap::new(len, granularity).unwrap();
        for (at, log, set) in places {
            if len == 0 {
                break;
            }
            let start = at % len;
            let end = start
                .saturating_add(granularity.bytes() << (3 * log))
                .min(len);
            if set {
                bitmap.set(start..end);
            } else if log < 3 {
                // Noise: every third granule of a part.
                let mut at = start;
                while at < end.min(start + (granularity.bytes() << 9)) {
                    bitmap.set(at..at + 1);
                    at += 3 * granularity.bytes();
                }
            } else {
                bitmap.reset(start..end);
            }
        }
        bitmap
    })
}

/// Something that is written to a list of chunks.
#[derive(Clone, Debug)]
enum Any {
    Start(u32, bool, bool),
    Bits(u64, u32, Vec<u8>),
    Zeroes(u64, u32),
    Complete,
}

fn chunks() -> impl Strategy<Value = Vec<(String, String, Any)>> {
    let range = (0..(1u64 << 55) - (1 << 32), any::<u32>());
    let buffer = (1..=1280usize, any::<u8>()).prop_map(|(words, byte)| vec![byte; words * 8]);
    let any = prop_oneof![
        (9..=31u32, any::<bool>(), any::<bool>()).prop_map(|(g, e, p)| Any::Start(g, e, p)),
        (range.clone(), buffer).prop_map(|((first, count), data)| Any::Bits(first, count, data)),
        range.prop_map(|(first, count)| Any::Zeroes(first, count)),
        Just(Any::Complete),
    ];
    let name = prop_oneof!["[ab]", "\\PC{1,60}"];
    vec((name.clone(), name, any), 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn bitmaps_come_back(bits in bitmaps()) {
        let all = 0..bits.len();
        let got = reread(&bits, |w, chunks| {
            write_bits(w, chunks, "n", "b", &bits, all).unwrap();
        });
        prop_assert_eq!(got.sha256(), bits.sha256());
        let got = reread(&bits, |w, chunks| {
            write_compact(w, chunks, "n", "b", &bits).unwrap();
        });
        prop_assert_eq!(got.sha256(), bits.sha256());
    }

    #[test]
    fn compact_is_never_larger(bits in bitmaps()) {
        let size = |compact: bool| {
            let mut w = Output::new(Vec::new());
            let mut chunks = ChunkWriter::new();
            if compact {
                write_compact(&mut w, &mut chunks, "n", "b", &bits).unwrap();
            } else {
                write_bits(&mut w, &mut chunks, "n", "b", &bits, 0..bits.len()).unwrap();
            }
            w.offset()
        };
        prop_assert!(size(true) <= size(false));
    }

    #[test]
    fn a_bitmap_in_parts_is_the_bitmap(bits in bitmaps(), cuts in vec(any::<u64>(), 0..6)) {
        // Parts of whole chunks in any order, some of them twice.
        let layout = ChunkLayout::of(&bits).unwrap();
        let got = reread(&bits, |w, chunks| {
            for cut in &cuts {
                let start = layout.chunk_at(cut % bits.len().max(1)).start;
                write_bits(w, chunks, "n", "b", &bits, start..bits.len()).unwrap();
            }
            let end = cuts.first().map_or(bits.len(), |cut| {
                layout.chunk_at(cut % bits.len().max(1)).end
            });
            write_bits(w, chunks, "n", "b", &bits, 0..end).unwrap();
        });
        prop_assert_eq!(got.sha256(), bits.sha256());
    }

    #[test]
    fn the_layout_covers_the_disk_once(bits in 9..=31u32, len in 0..hbitmap::MAX_LEN, cut in 0..63u32) {
        let layout = ChunkLayout::new(len >> cut, Granularity::from_bits(bits).unwrap()).unwrap();
        prop_assert_eq!(layout.total_sectors(), (len >> cut).div_ceil(SECTOR));
        prop_assert!(layout.chunk_bytes().is_multiple_of(layout.word_bytes()));
        // The first few and the last few chunks.
        let chunks = layout.chunks();
        for i in (0..chunks.min(3)).chain(chunks.saturating_sub(3)..chunks) {
            let chunk = layout.chunk_at(i * layout.chunk_bytes());
            let sectors = layout.sectors(&chunk).unwrap();
            prop_assert_eq!(sectors.bytes().start, i * layout.chunk_bytes());
            prop_assert!(layout.buffer_size(sectors) <= 1024);
            let next = sectors.first + u64::from(sectors.count);
            if i + 1 == chunks {
                prop_assert_eq!(next, layout.total_sectors());
            } else {
                prop_assert_eq!(next * SECTOR, (i + 1) * layout.chunk_bytes());
            }
        }
    }

    #[test]
    fn any_chunks_come_back(list in chunks()) {
        let mut w = Output::new(Vec::new());
        let mut writer = ChunkWriter::new();
        let mut wanted = Vec::new();
        for (node, bitmap, any) in &list {
            match any {
                Any::Start(bits, enabled, persistent) => {
                    let granularity = Granularity::from_bits(*bits).unwrap();
                    let flags = BitmapFlags { enabled: *enabled, persistent: *persistent };
                    writer.start(&mut w, node, bitmap, granularity, flags).unwrap();
                    wanted.push((node, bitmap, Chunk::Start { granularity, flags }));
                }
                Any::Bits(first, count, data) => {
                    let sectors = Sectors { first: *first, count: *count };
                    writer.bits(&mut w, node, bitmap, sectors, data).unwrap();
                    wanted.push((node, bitmap, Chunk::Bits(sectors, data)));
                }
                Any::Zeroes(first, count) => {
                    let sectors = Sectors { first: *first, count: *count };
                    writer.zeroes(&mut w, node, bitmap, sectors).unwrap();
                    wanted.push((node, bitmap, Chunk::Zeroes(sectors)));
                }
                Any::Complete => {
                    writer.complete(&mut w, node, bitmap).unwrap();
                    wanted.push((node, bitmap, Chunk::Complete));
                }
            }
        }
        writer.end_of_list(&mut w).unwrap();
        let content = w.into_inner().unwrap();
        let mut wanted = wanted.into_iter();
        read(&content, |node, bitmap, chunk, last| match wanted.next() {
            Some((n, b, c)) => {
                assert_eq!((node, bitmap, chunk, last), (Some(n.as_str()), Some(b.as_str()), c, false));
            }
            None => assert_eq!((chunk, last), (Chunk::Empty, true)),
        });
        prop_assert!(wanted.next().is_none());
    }

    #[test]
    fn any_frame_comes_back(
        machine in "[^\\x00]{0,20}",
        commands in vec((12..u16::MAX, vec(any::<u8>(), 0..300)), 0..8),
        pieces in 0..20usize,
    ) {
        let mut w = StreamWriter::new(Vec::new(), &machine).unwrap();
        for (number, argument) in &commands {
            w.command(*number, argument).unwrap();
        }
        for i in 0..pieces {
            let kind = if i == 0 { SectionKind::Start } else { SectionKind::Part };
            w.begin(kind, 77, "dirty-bitmap", 0, 1).unwrap();
            ChunkWriter::new().end_of_list(w.content()).unwrap();
            w.end().unwrap();
        }
        let bytes = w.finish(true).unwrap();
        let mut stream = StreamReader::new(&bytes[..]);
        let mut wanted = commands.iter();
        let mut sections = 0;
        while let Some(item) = stream.next().unwrap() {
            match item {
                Item::Configuration(configuration) => {
                    prop_assert_eq!(&configuration.machine, &machine);
                }
                Item::Command(Command { number, argument }) => {
                    let (n, a) = wanted.next().unwrap();
                    prop_assert_eq!((number, argument), (*n, &a[..]));
                }
                Item::Section(section) => {
                    prop_assert_eq!((section.id, section.name.as_str()), (77, "dirty-bitmap"));
                    sections += 1;
                }
                _ => {}
            }
        }
        prop_assert!(wanted.next().is_none());
        prop_assert_eq!(sections, pieces);
    }

    /// A reader ends on any bytes, and never says that it has read more than there are.
    #[test]
    fn any_bytes_can_be_read(
        middle in vec(prop_oneof![0..=8u8, Just(0x7e), Just(0x40), Just(0x1c), any::<u8>()], 0..400),
        name in prop_oneof![Just("dirty-bitmap"), Just("ram"), Just("block"), Just("x")],
    ) {
        let mut bytes = b"QEVM\0\0\0\x03\x07\0\0\0\0\x01\0\0\0\x01".to_vec();
        bytes.push(u8::try_from(name.len()).unwrap());
        bytes.extend(name.as_bytes());
        bytes.extend(b"\0\0\0\0\0\0\0");
        bytes.push(if name == "ram" { 4 } else { 1 });
        bytes.extend(&middle);
        let mut stream = StreamReader::new(&bytes[..]);
        let mut at = 0;
        let error = loop {
            match stream.next() {
                Ok(Some(_)) => {
                    prop_assert!(stream.item_offset() >= at);
                    at = stream.item_offset();
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        prop_assert!(stream.offset() <= bytes.len() as u64);
        if let Some(error) = error {
            prop_assert!(error.offset().unwrap() <= bytes.len() as u64, "{}", error);
            let from_transport = matches!(error, Error::Read { .. });
            prop_assert!(!from_transport);
        }
        prop_assert!(stream.next().unwrap().is_none());
    }
}

/// Numbers that no stream could keep up with are refused or run into its end.
#[test]
fn absurd_numbers() {
    let head = b"QEVM\0\0\0\x03\x07";
    let full = |name: &str, version: u8| {
        let mut bytes = [&head[..], b"\0\0\0\0\x04\0\0\0\x01"].concat();
        bytes.push(u8::try_from(name.len()).unwrap());
        bytes.extend(name.as_bytes());
        bytes.extend([0, 0, 0, 0, 0, 0, 0, version]);
        bytes
    };
    #[rustfmt::skip]
    let cases: [(Vec<u8>, &[u8], &str); 8] = [
        (head.to_vec(), b"\xff\xff\xff\xff", "the machine's name"),
        (full("dirty-bitmap", 1), b"\x1c\x01n\x01b\xff\xff\xff\xff\xff", "START chunk"),
        (full("dirty-bitmap", 1), b"\x4c\x01n\x01b\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "BITS chunk"),
        (full("dirty-bitmap", 1), b"\x4c\x01n\x01b\0\0\0\0\0\0\0\0\0\0\0\x01\xff\xff\xff\xff\xff\xff\xff\xff", "BITS chunk"),
        (full("ram", 4), b"\xff\xff\xff\xff\xff\xff\xf0\x04\0\0\0\0\0\0\0\0\0", "the list of blocks of RAM"),
        (full("block", 1), b"\xff\xff\xff\xff\xff\xff\xfe\x01\x01d", "the data of a block"),
        ([&head[..], b"\0\0\0\0"].concat(), b"\x08\0\x07\0\x04\xff\xff\xff\xff", "the stream within a command PACKAGED"),
        ([&head[..], b"\0\0\0\0"].concat(), b"\0\x06\xff\xff\xff\xff{}", "the VMDESCRIPTION"),
    ];
    for (mut bytes, tail, want) in cases {
        bytes.extend(tail);
        let mut stream = StreamReader::new(&bytes[..]);
        let error = loop {
            match stream.next() {
                Ok(item) => assert!(item.is_some(), "{want}: no error"),
                Err(error) => break error,
            }
        };
        match error {
            Error::Invalid { structure, .. } | Error::Truncated { structure, .. } => {
                assert_eq!(structure, want);
            }
            other => panic!("{want}: {other}"),
        }
    }
}

/// A stream without end is read without end, and nothing of it is kept.
#[test]
fn a_stream_without_end_takes_no_memory() {
    use std::io::Read;
    let mut limits = Limits::default();
    limits.description = 4096;
    // 1 GiB of the state of an unknown device, without a single zero byte.
    let mut head = b"QEVM\0\0\0\x03\x07\0\0\0\0\x04\0\0\0\x01\x01x\0\0\0\0\0\0\0\x01".to_vec();
    let start = head.len() as u64;
    head.push(1);
    let endless = std::io::repeat(0x7b).take(1 << 30);
    let mut stream = StreamReader::with_limits(head.as_slice().chain(endless), limits);
    let mut rest = None;
    while let Some(item) = stream.next().unwrap() {
        if let Item::Rest { len, whole } = item {
            rest = Some((len, whole));
        }
    }
    assert_eq!(rest, Some(((1 << 30) + 1, false)));
    assert_eq!(stream.offset(), start + 1 + (1 << 30));
}
