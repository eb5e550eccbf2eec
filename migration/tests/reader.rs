//! Reading streams: what each kind of stream has, what is refused.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "tests"
)]

use migration::{
    BlockData, BlockItem, ChunkWriter, Command, Configuration, Error, Item, Limits, RamSummary,
    Section, SectionKind, StreamReader, StreamWriter, VmDescription,
};

/// The items as text.
fn items(bytes: &[u8]) -> Vec<String> {
    let mut stream = StreamReader::new(bytes);
    let mut items = Vec::new();
    while let Some(item) = stream.next().unwrap() {
        items.push(format!("{item:?}"));
    }
    assert_eq!(stream.offset(), bytes.len() as u64);
    items
}

/// The error that ends a stream.
fn error(bytes: &[u8]) -> Error {
    let mut stream = StreamReader::new(bytes);
    loop {
        match stream.next() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no error"),
            Err(error) => {
                assert!(stream.next().unwrap().is_none(), "an error ends it");
                return error;
            }
        }
    }
}

fn head() -> Vec<u8> {
    b"QEVM\0\0\0\x03\x07\0\0\0\0".to_vec()
}

/// A stream of nothing but `middle`.
fn stream(middle: &[u8]) -> Vec<u8> {
    [&head(), middle, b"\0"].concat()
}

/// A stream with one section.
fn section(name: &str, version: u32, content: &[u8]) -> Vec<u8> {
    let mut w = StreamWriter::new(Vec::new(), "").unwrap();
    w.begin(SectionKind::Full, 9, name, 0, version).unwrap();
    w.content().put(content).unwrap();
    w.end().unwrap();
    w.finish(false).unwrap()
}

#[test]
fn the_frame() {
    let mut w = StreamWriter::new(Vec::new(), "pc").unwrap();
    w.command(Command::PING, &[1, 2, 3, 4]).unwrap();
    let mut chunks = ChunkWriter::new();
    for kind in [SectionKind::Start, SectionKind::Part, SectionKind::End] {
        w.begin(kind, 7, "dirty-bitmap", 0, 1).unwrap();
        chunks.complete(w.content(), "n", "b").unwrap();
        chunks.end_of_list(w.content()).unwrap();
        w.end().unwrap();
    }
    let bytes = w.finish(true).unwrap();

    let mut stream = StreamReader::new(&bytes[..]);
    assert_eq!(stream.next().unwrap(), Some(Item::Header { version: 3 }));
    let configuration = Configuration {
        machine: "pc".into(),
        ..Configuration::default()
    };
    assert_eq!(
        stream.next().unwrap(),
        Some(Item::Configuration(&configuration))
    );
    assert_eq!(stream.item_offset(), 8);
    let ping = Command {
        number: Command::PING,
        argument: &[1, 2, 3, 4],
    };
    assert_eq!(stream.next().unwrap(), Some(Item::Command(ping)));
    assert_eq!((stream.item_offset(), stream.offset()), (15, 24));
    for kind in [SectionKind::Start, SectionKind::Part, SectionKind::End] {
        let section = Section {
            kind,
            id: 7,
            name: "dirty-bitmap".into(),
            instance: 0,
            version: 1,
        };
        assert_eq!(stream.next().unwrap(), Some(Item::Section(&section)));
        for (chunk, last) in [
            (migration::Chunk::Complete, false),
            (migration::Chunk::Empty, true),
        ] {
            let want = Item::Chunk {
                node: Some("n"),
                bitmap: Some("b"),
                chunk,
                last,
            };
            assert_eq!(stream.next().unwrap(), Some(want));
        }
        assert_eq!(stream.next().unwrap(), Some(Item::Footer { id: 7 }));
    }
    assert_eq!(stream.next().unwrap(), Some(Item::Eof));
    assert_eq!(stream.next().unwrap(), Some(Item::VmDescription { len: 2 }));
    assert_eq!(stream.next().unwrap(), None);
    assert_eq!(stream.next().unwrap(), None);
}

#[test]
fn the_frame_is_strict() {
    #[rustfmt::skip]
    let cases: &[(&[u8], &str)] = &[
        (b"QEVN\0\0\0\x03", "the header at offset 0x0: found \"QEVN\", allowed is \"QEVM\""),
        (b"QEVM\0\0\0\x02", "the header at offset 0x0: found version 2, allowed is 3"),
        (b"QEVM\0\0\0\x03\0", "the configuration at offset 0x8: found type 0x00, \
          allowed is 0x07, which every stream has behind its header"),
        (&stream(b"\x7e\0\0\0\x01"), "a section at offset 0xd: found type 0x7e, \
          allowed is 0x00 (EOF), 0x01 to 0x04 and 0x08 (COMMAND)"),
        (&stream(b"\x03\0\0\0\x01"), "a section's PART or END at offset 0xd: found id 1, \
          allowed is the id of a section that was started"),
        (&stream(b"\x01\0\0\0\x01\x0cdirty-bitmap\0\0\0\0\0\0\0\x02"),
          "section 'dirty-bitmap' at offset 0xd: found instance 0, version 2, \
          allowed is instance 0, version 1"),
        (&stream(b"\x01\0\0\0\x01\x0cdirty-bitmap\0\0\0\x01\0\0\0\x01"),
          "section 'dirty-bitmap' at offset 0xd: found instance 1, version 1, \
          allowed is instance 0, version 1"),
        (&stream(b"\x04\0\0\0\x01\0"), "the name of a section at offset 0x12: found \"\", \
          allowed is 1 to 255 bytes of UTF-8 without a NUL"),
        (&stream(b"\x04\0\0\0\x01\x0cdirty-bitmap\0\0\0\0\0\0\0\x01\x01\x7e\0\0\0\x02"),
          "the footer of section 'dirty-bitmap' at offset 0x28: found type 0x7e, id 2, \
          allowed is type 0x7e, id 1"),
        (&stream(b"\x04\0\0\0\x01\x0cdirty-bitmap\0\0\0\0\0\0\0\x01\x01\x7f\0\0\0\x01"),
          "the footer of section 'dirty-bitmap' at offset 0x28: found type 0x7f, id 1, \
          allowed is type 0x7e, id 1"),
        (&stream(b"\x04\0\0\0\x01\x0cdirty-bitmap\0\0\0\0\0\0\0\x01\x01\x7e\0\0\0\x01\
          \x04\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04"),
          "section 'ram' at offset 0x2d: found id 1, \
          allowed is any but that of section 'dirty-bitmap'"),
        (&stream(b"\0\x07"), "the end of the stream at offset 0xe: found byte 0x07, \
          allowed is nothing but one VMDESCRIPTION behind the EOF"),
        (&stream(b"\0\x06\0\0\0\x02{}"), "the end of the stream at offset 0x15: found byte 0x00, \
          allowed is nothing but one VMDESCRIPTION behind the EOF"),
        (&stream(b"\x08\0\0\0\0"), "COMMAND at offset 0xd: found number 0, \
          allowed is numbers from 1"),
        (&stream(b"\x08\0\x02\0\x03abc"), "COMMAND PING at offset 0xd: \
          found an argument of 3 bytes, allowed is 4"),
        (&stream(b"\x08\0\x07\0\0"), "COMMAND PACKAGED at offset 0xd: \
          found an argument of 0 bytes, allowed is 4"),
        (&head(), "the stream ends at offset 0xd, within the list of sections, before its EOF"),
    ];
    for (bytes, want) in cases {
        assert_eq!(error(bytes).to_string(), *want);
    }
}

#[test]
fn what_cant_be_read_is_named() {
    let configuration = |capability: &str| {
        let mut bytes = head();
        bytes.extend(b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01");
        bytes.push(capability.len() as u8);
        bytes.extend(capability.as_bytes());
        bytes.push(0);
        bytes
    };
    let cases = [
        (
            configuration("multifd"),
            "a stream with the capability multifd",
        ),
        (
            configuration("mapped-ram"),
            "a stream with the capability mapped-ram",
        ),
        (
            configuration("compress"),
            "a stream with the capability compress",
        ),
        (
            section("ram", 4, &0x200u64.to_be_bytes()),
            "a multifd stream",
        ),
        (
            section("ram", 4, &0x100u64.to_be_bytes()),
            "a stream with the capability compress",
        ),
        (section("ram", 4, &0x80u64.to_be_bytes()), "an RDMA stream"),
        (stream(b"\x08\0\x03\0\x10"), "a stream with postcopy of RAM"),
        (stream(b"\x08\0\x06\0\0"), "a stream with postcopy of RAM"),
        (stream(b"\x08\0\x08\0\0"), "a COLO stream"),
        (
            stream(b"\x01\0\0\0\x01\x04vfio\0\0\0\0\0\0\0\x01"),
            "section 'vfio'",
        ),
        (
            [&head()[..], b"\x05\x01x\0\0\0\x01"].concat(),
            "subsection 'x' of version 1 of the configuration",
        ),
    ];
    for (bytes, want) in cases {
        match error(&bytes) {
            Error::Unsupported { feature, .. } => assert_eq!(feature, want),
            other => panic!("{want}: {other}"),
        }
    }
    // A command that is new is read past, for it has a length.
    let got = items(&stream(b"\x08\0\x63\0\x02ab"));
    assert_eq!(
        got[2],
        "Command(Command { number: 99, argument: [97, 98] })"
    );
}

#[test]
fn the_configurations_subsections() {
    let mut bytes = head();
    bytes.extend(b"\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x0e");
    bytes.extend(b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x02");
    bytes.extend(b"\x0ddirty-bitmaps\x0fx-ignore-shared");
    bytes.extend(b"\x05\x12configuration/uuid\0\0\0\x010123456789abcdef");
    // Pages are as large as that says, and blocks of RAM have addresses.
    bytes.extend(b"\x04\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04");
    bytes.extend(b"\0\0\0\0\0\0\x80\x04\x02pc\0\0\0\0\0\0\x80\0");
    bytes.extend([0xaa; 8]);
    bytes.extend(b"\0\0\0\0\0\0\x40\x08\x02pc");
    bytes.extend(vec![1; 16384]);
    bytes.extend(b"\0\0\0\0\0\0\0\x10\x7e\0\0\0\x01\0");
    let mut stream = StreamReader::new(&bytes[..]);
    stream.next().unwrap();
    let want = Configuration {
        machine: String::new(),
        target_page_bits: Some(14),
        capabilities: vec!["dirty-bitmaps".into(), "x-ignore-shared".into()],
        uuid: Some(*b"0123456789abcdef"),
    };
    assert_eq!(stream.next().unwrap(), Some(Item::Configuration(&want)));
    stream.next().unwrap();
    let want = RamSummary {
        blocks: 1,
        total: 32768,
        pages: 1,
        ..RamSummary::default()
    };
    assert_eq!(stream.next().unwrap(), Some(Item::Ram(want)));

    let mut limits = Limits::default();
    limits.subsections = 2;
    limits.description = 3;
    for (bytes, found) in [
        (b"\0\0\0\x04none".to_vec(), "4 bytes"),
        (b"\xff\xff\xff\xff".to_vec(), "4294967295 bytes"),
        (b"\0\0\0\x01\0".to_vec(), "other bytes"),
        (
            b"\0\0\0\0\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x03".to_vec(),
            "3 capabilities",
        ),
        (
            [
                &b"\0\0\0\0"[..],
                &b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\0".repeat(3),
            ]
            .concat(),
            "one subsection more",
        ),
        (
            b"\0\0\0\0\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x20".to_vec(),
            "pages of 2^32 bytes",
        ),
    ] {
        let bytes = [&b"QEVM\0\0\0\x03\x07"[..], &bytes].concat();
        let mut stream = StreamReader::with_limits(&bytes[..], limits);
        stream.next().unwrap();
        match stream.next() {
            Err(Error::Invalid { found: f, .. }) => assert_eq!(f, found),
            other => panic!("{found}: {other:?}"),
        }
    }
}

#[test]
fn ram_is_read_past() {
    let mut content = Vec::new();
    content.extend(b"\0\0\0\0\0\0\x30\x04\x01a\0\0\0\0\0\0\x10\0\x01b\0\0\0\0\0\0\x20\0");
    content.extend(b"\0\0\0\0\0\0\0\x02\x01a\0"); // A page of zeros,
    content.extend(b"\0\0\0\0\0\0\x10\x22\0"); // and one in the same block,
    content.extend(b"\0\0\0\0\0\0\0\x08\x01b"); // a whole one,
    content.extend([7; 4096]);
    content.extend(b"\0\0\0\0\0\0\0\x28"); // another,
    content.extend([7; 4096]);
    content.extend(b"\0\0\0\0\0\0\0\x60\x01\0\x03abc"); // and a difference.
    content.extend(b"\0\0\0\0\0\0\0\x10");
    let bytes = section("ram", 4, &content);
    let mut stream = StreamReader::new(&bytes[..]);
    for _ in 0..3 {
        stream.next().unwrap();
    }
    let want = RamSummary {
        blocks: 2,
        total: 0x3000,
        pages: 2,
        zero_pages: 2,
        delta_pages: 1,
    };
    assert_eq!(stream.next().unwrap(), Some(Item::Ram(want)));
    while stream.next().unwrap().is_some() {}

    for (content, found) in [
        (&b"\0\0\0\0\0\0\0\0"[..], "flags 0x0"),
        (b"\0\0\0\0\0\0\0\x0a", "flags 0xa"),
        (b"\0\0\0\0\0\0\x04\0", "flags 0x400"),
        (b"\0\0\0\0\0\0\0\x30", "flags 0x30"),
        (b"\0\0\0\0\0\0\0\x22\0", "flags 0x22"), // In the block of no page.
        (
            b"\0\0\0\0\0\0\x10\x04\x01a\0\0\0\0\0\0\x20\0",
            "a block of 8192 bytes",
        ),
        (b"\0\0\0\0\0\0\0\x40\x01a\x01\xff\xff", "65535 bytes"),
    ] {
        match error(&section("ram", 4, content)) {
            Error::Invalid { found: f, .. } => assert_eq!(f, found),
            other => panic!("{found}: {other}"),
        }
    }
}

#[test]
fn devices_of_known_length_and_the_rest() {
    let state = |len: usize| vec![0xab; len];
    let got = items(&section("timer", 2, &state(24)));
    assert_eq!(got[3..5], ["Device { len: 24 }", "Footer { id: 9 }"]);
    let got = items(&section("globalstate", 1, &state(104)));
    assert_eq!(got[3], "Device { len: 104 }");
    // Of another version it is anything.
    let got = items(&section("timer", 3, &state(24)));
    assert_eq!(got[3], "Rest { len: 30, whole: false }");

    // With a description behind it, which fits exactly, the stream is whole.
    let json = br#"{"page_size": 4096, "devices": [{"name": "x", "instance_id": 0,
        "vmsd_name": "x", "version": 1,
        "fields": [{"name": "a", "type": "uint8", "size": 3},
                   {"name": "b", "array_len": 5, "type": "struct", "size": 4}],
        "subsections": [{"vmsd_name": "x/y", "version": 1,
                         "fields": [{"name": "c", "size": 7}]}]}]}"#;
    let mut bytes = section("x", 1, &state(3 + 20 + 9 + 7));
    bytes.push(6);
    bytes.extend((json.len() as u32).to_be_bytes());
    bytes.extend(json);
    let rest = items(&bytes)[3].clone();
    assert!(rest.ends_with("whole: true }"), "{rest}");
    assert_eq!(items(&bytes).len(), 4);
    let mut more = bytes.clone();
    more.push(b' ');
    assert!(items(&more)[3].ends_with("whole: false }"));
    let mut damaged = bytes.clone();
    let last = damaged.len() - 1;
    damaged[last] = b'x';
    assert!(items(&damaged)[3].ends_with("whole: false }"));

    // Whoever knows the description can go on.
    let description = VmDescription::from_tail(&bytes).unwrap();
    assert_eq!(description, VmDescription::from_json(json).unwrap());
    assert_eq!(description.size("x", 0), Some(39));
    assert_eq!(description.size("x", 1), None);
    assert_eq!(description.size("y", 0), None);
    assert_eq!(description.page_bits(), Some(12));
    assert!(VmDescription::from_tail(&damaged).is_none());
    let mut stream = StreamReader::new(&bytes[..]).describe(description);
    let mut got = Vec::new();
    while let Some(item) = stream.next().unwrap() {
        got.push(format!("{item:?}"));
    }
    assert_eq!(
        got[3..],
        [
            "Device { len: 39 }".to_owned(),
            "Footer { id: 9 }".into(),
            "Eof".into(),
            format!("VmDescription {{ len: {} }}", json.len()),
        ]
    );
}

#[test]
fn a_package_is_skipped() {
    let got = items(&stream(b"\x08\0\x07\0\x04\0\0\0\x05abcde\x08\0\x05\0\0"));
    assert_eq!(
        got[2..],
        [
            "Command(Command { number: 7, argument: [0, 0, 0, 5] })",
            "Command(Command { number: 5, argument: [] })",
            "Eof",
        ]
    );
    assert_eq!(
        error(&[&head()[..], b"\x08\0\x07\0\x04\xff\xff\xff\xffabcde"].concat()).to_string(),
        "the stream ends at offset 0x1b, within the stream within a command PACKAGED"
    );
}

#[test]
fn legacy_blocks() {
    let mut content = Vec::new();
    content.extend(((8u64 << 9) | 1).to_be_bytes());
    content.extend(b"\x03sda");
    content.extend(vec![0x5a; 1 << 20]);
    content.extend(((2048u64 << 9) | 9).to_be_bytes());
    content.extend(b"\x03sdb");
    content.extend(((50u64 << 9) | 4 | 2).to_be_bytes());
    let bytes = section("block", 1, &content);
    let mut stream = StreamReader::new(&bytes[..]);
    for _ in 0..3 {
        stream.next().unwrap();
    }
    let data = vec![0x5a; 1 << 20];
    let want = [
        BlockItem::Block {
            device: "sda",
            sector: 8,
            data: BlockData::Data(&data),
        },
        BlockItem::Block {
            device: "sdb",
            sector: 2048,
            data: BlockData::Zero,
        },
        BlockItem::Progress(50),
        BlockItem::End,
    ];
    for item in want {
        assert_eq!(stream.next().unwrap(), Some(Item::Block(item)));
    }
    assert_eq!(stream.next().unwrap(), Some(Item::Footer { id: 9 }));

    for flags in 0..512u64 {
        let done = section("block", 1, &[&flags.to_be_bytes()[..], b"\x01a"].concat());
        let mut stream = StreamReader::new(&done[..]);
        for _ in 0..3 {
            stream.next().unwrap();
        }
        match (flags, stream.next()) {
            (2, Ok(Some(Item::Block(BlockItem::End))))
            | (4 | 6, Ok(Some(Item::Block(BlockItem::Progress(0)))))
            | (9 | 11, Ok(Some(Item::Block(BlockItem::Block { .. }))))
            | (1 | 3, Err(Error::Truncated { .. })) => {}
            (flags, Err(Error::Invalid { .. })) if ![1, 2, 3, 4, 6, 9, 11].contains(&flags) => {}
            (flags, other) => panic!("{flags:#x}: {other:?}"),
        }
    }
}
