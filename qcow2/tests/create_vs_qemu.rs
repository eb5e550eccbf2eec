//! New images beside those of qemu-img: the same bytes, the same refusals.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests say what they expect; a panic is the message"
)]

mod support;

use qcow2::{
    Error,
    format::CompressionType,
    image::create::{
        Backing, CreateOptions, Preallocation, RawOptions, Version, create, create_raw,
    },
};
use support::Qemu;

/// Options as `-o` has them, with `size`.
fn options(line: &str) -> CreateOptions {
    let mut options = CreateOptions::default();
    let mut backing = Backing::default();
    for item in line.split(',').filter(|item| !item.is_empty()) {
        let (key, value) = item.split_once('=').unwrap();
        let on = value == "on";
        match key {
            "size" => options.size = Some(bytes(value)),
            "compat" => {
                options.version = if value == "0.10" {
                    Version::V2
                } else {
                    Version::V3
                }
            }
            "cluster_size" => options.cluster_size = bytes(value),
            "refcount_bits" => options.refcount_bits = value.parse().unwrap(),
            "extended_l2" => options.extended_l2 = on,
            "lazy_refcounts" => options.lazy_refcounts = on,
            "compression_type" if value == "zstd" => {
                options.compression_type = CompressionType::Zstd;
            }
            "compression_type" => {}
            "preallocation" => {
                options.preallocation = match value {
                    "metadata" => Preallocation::Metadata,
                    "off" => Preallocation::Off,
                    other => panic!("{other}"),
                }
            }
            "data_file" => options.data_file = Some(value.into()),
            "data_file_raw" => options.data_file_raw = on,
            "backing_file" => backing.file = value.into(),
            "backing_fmt" => backing.format = Some(value.into()),
            "nocow" => options.nocow = on,
            other => panic!("{other}"),
        }
    }
    options.backing = (!backing.file.is_empty()).then_some(backing);
    options
}

fn bytes(text: &str) -> u64 {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let shift = match text.chars().last().unwrap() {
        'k' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        'P' => 50,
        'E' => 60,
        _ => 0,
    };
    digits.parse::<u64>().unwrap() << shift
}

/// Both make an image, each in a directory of its own, so that all names are equal.
fn both(qemu: &Qemu, line: &str) -> Result<(), Error> {
    for side in ["theirs", "ours"] {
        let directory = qemu.path(side);
        std::fs::remove_dir_all(&directory).ok();
        std::fs::create_dir(&directory).unwrap();
    }
    // A data file's name counts from the working directory: here it is an absolute
    // one, of equal length on both sides.
    let named = |side: &str| line.replace("=data", &format!("={}", data_file(qemu, side)));
    qemu.img_in(
        "theirs",
        &format!("create -q -u -f qcow2 -o {} image", named("theirs")),
    );
    create(qemu.path("ours/image"), &options(&named("ours/.")), false).map(|_| ())
}

fn data_file(qemu: &Qemu, side: &str) -> String {
    qemu.path(side).join("data").display().to_string()
}

fn assert_same_files(qemu: &Qemu, line: &str) {
    let theirs = qemu.bytes("theirs/image");
    let mut ours = qemu.bytes("ours/image");
    replace(
        &mut ours,
        &data_file(qemu, "ours/."),
        &data_file(qemu, "theirs"),
    );
    assert_eq!(theirs.len(), ours.len(), "{line}");
    if theirs != ours {
        let differs = theirs.iter().zip(&ours).position(|(a, b)| a != b);
        panic!("{line}: differs at {differs:?}");
    }
    assert_same_data_length(qemu, line);
}

fn assert_same_data_length(qemu: &Qemu, line: &str) {
    let length = |side| {
        std::fs::metadata(data_file(qemu, side))
            .ok()
            .map(|m| m.len())
    };
    assert_eq!(length("ours"), length("theirs"), "data file of {line}");
}

fn replace(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let header = bytes.len().min(4096);
    if let Some(at) = bytes[..header]
        .windows(from.len())
        .position(|w| w == from.as_bytes())
    {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
}

#[test]
fn images_without_preallocation_are_equal_byte_for_byte() {
    let Some(qemu) = Qemu::find() else { return };
    let base = [
        "",
        "compat=0.10",
        "lazy_refcounts=on",
        "compression_type=zstd",
        "nocow=on",
        "backing_file=base,backing_fmt=raw",
        "compat=0.10,backing_file=b,backing_fmt=qcow2",
        "data_file=data",
        "data_file=data,backing_file=base,backing_fmt=qcow2",
        "compression_type=zstd,lazy_refcounts=on,refcount_bits=1",
    ];
    let mut lines: Vec<String> = Vec::new();
    for size in ["0", "1", "513", "1M", "1000000007", "100G"] {
        for base in base {
            lines.push(format!("size={size},{base}"));
        }
    }
    for cluster_size in ["512", "1k", "2k", "4k", "8k", "16k", "128k", "1M", "2M"] {
        for refcount_bits in [1, 2, 4, 8, 16, 32, 64] {
            let widths = format!("cluster_size={cluster_size},refcount_bits={refcount_bits}");
            lines.push(format!("size=1M,{widths}"));
            if bytes(cluster_size) >= 16 << 10 {
                lines.push(format!("size=3G,extended_l2=on,{widths}"));
            }
        }
        lines.push(format!(
            "size=1M,backing_file=base,backing_fmt=raw,cluster_size={cluster_size}"
        ));
        lines.push(format!(
            "size=1M,data_file=data,cluster_size={cluster_size}"
        ));
        lines.push(format!("size=1M,compat=0.10,cluster_size={cluster_size}"));
    }
    // The largest disks for their cluster size that one refcount block still counts.
    lines.extend([
        "size=16T,cluster_size=64k".into(),
        "size=1P,cluster_size=2M".into(),
    ]);
    for line in lines {
        let line = line.trim_end_matches(',');
        both(&qemu, line).unwrap();
        assert_same_files(&qemu, line);
    }
}

#[test]
fn preallocated_images_are_clean_mapped_and_as_long_as_qemu_s() {
    let Some(qemu) = Qemu::find() else { return };
    for line in [
        "size=0",
        "size=1M",
        "size=200k",
        "size=1G",
        "size=1000000007,compat=0.10",
        "size=3M,cluster_size=512",
        "size=1M,cluster_size=512,refcount_bits=1",
        "size=1M,cluster_size=1k,refcount_bits=2",
        "size=1M,cluster_size=2k,refcount_bits=4",
        "size=5M,cluster_size=4k,refcount_bits=8",
        "size=64M,cluster_size=8k,refcount_bits=32",
        "size=64M,cluster_size=2M,refcount_bits=64",
        "size=10G,cluster_size=16k,extended_l2=on",
        "size=1M,extended_l2=on,backing_file=base,backing_fmt=raw",
        "size=1M,data_file=data",
        "size=100k,data_file=data",
        "size=100k,data_file=data,data_file_raw=on",
        "size=1M,data_file=data,extended_l2=on",
        "size=3M,data_file=data,data_file_raw=on,cluster_size=512,refcount_bits=64",
    ] {
        let line = format!("preallocation=metadata,{line}");
        both(&qemu, &line).unwrap();
        // A backing file for both to be opened with.
        for side in ["theirs", "ours"] {
            let length = options(&line).size.unwrap();
            std::fs::File::create(qemu.path(&format!("{side}/base")))
                .unwrap()
                .set_len(length)
                .unwrap();
        }
        qemu.img_in("ours", "check -q image");
        let map = |side| -> Vec<(u64, u64, bool)> {
            let text = qemu.img_in(side, "map --output=json image");
            extents(&text)
        };
        let (theirs, ours) = (map("theirs"), map("ours"));
        let mapped =
            |extents: &[(u64, u64, bool)]| extents.iter().filter(|e| e.2).map(|e| e.1).sum::<u64>();
        assert_eq!(mapped(&ours), mapped(&theirs), "{line}");
        let length = |side| std::fs::metadata(qemu.path(side)).unwrap().len();
        assert_eq!(length("ours/image"), length("theirs/image"), "{line}");
        assert_same_data_length(&qemu, &line);
        qemu.img_in("ours", "compare -q image ../theirs/image");
        // And QEMU writes to it.
        if options(&line).size != Some(0) {
            qemu.io("ours/image", &["write -q -P 7 0 1k", "read -q -P 7 0 1k"]);
        }
        qemu.img_in("ours", "check -q image");
    }
}

/// Start, length, present of each extent in qemu-img's JSON.
fn extents(json: &str) -> Vec<(u64, u64, bool)> {
    let number = |line: &str, key: &str| -> u64 {
        let at = line.find(key).unwrap() + key.len();
        let digits: String = line[at..]
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        digits.parse().unwrap()
    };
    json.lines()
        .filter(|line| line.contains("\"start\""))
        .map(|line| {
            let offset = line.contains("\"offset\"");
            (
                number(line, "\"start\": "),
                number(line, "\"length\": "),
                offset,
            )
        })
        .collect()
}

#[test]
fn tables_beyond_one_refcount_block_are_clean_and_can_be_written() {
    let Some(qemu) = Qemu::find() else { return };
    for line in [
        "size=64G,cluster_size=512",
        "size=16G,cluster_size=512,refcount_bits=64",
        "size=128G,cluster_size=512",
        "size=8T,cluster_size=4k,refcount_bits=64",
    ] {
        create(qemu.path("image"), &options(line), false).unwrap();
        qemu.img("check -q image");
        qemu.io(
            "image",
            &[
                "write -q -P 7 1G 1M",
                "read -q -P 7 1G 1M",
                "read -q -P 0 3G 1M",
            ],
        );
        qemu.img("check -q image");
    }
}

#[test]
fn refusals_are_qemu_s() {
    let Some(qemu) = Qemu::find() else { return };
    let bad = [
        "cluster_size=300",
        "cluster_size=4M",
        "cluster_size=0",
        "compat=0.10,extended_l2=on",
        "extended_l2=on,cluster_size=4k",
        "extended_l2=on,cluster_size=300",
        "compat=0.10,lazy_refcounts=on",
        "compat=0.10,refcount_bits=8",
        "refcount_bits=7",
        "refcount_bits=0",
        "refcount_bits=128",
        "data_file_raw=on",
        "data_file_raw=on,backing_file=a,backing_fmt=raw",
        "compat=0.10,data_file=zz",
        "compat=0.10,compression_type=zstd",
        "preallocation=metadata,backing_file=a,backing_fmt=raw",
        "data_file=zz,data_file_raw=on,backing_file=a,backing_fmt=raw",
        "size=3P",
        "size=129G,cluster_size=512",
    ];
    let mut lines: Vec<String> = bad.map(str::to_owned).to_vec();
    for (i, a) in bad.iter().enumerate() {
        for b in bad.iter().skip(i + 1) {
            // Of two values for one key each program has its own idea which counts.
            let keys = |line: &str| -> Vec<String> {
                line.split(',')
                    .map(|o| o.split('=').next().unwrap().to_owned())
                    .collect()
            };
            if keys(a).iter().all(|key| !keys(b).contains(key)) {
                lines.push(format!("{a},{b}"));
            }
        }
    }
    lines.push(format!(
        "size=1M,cluster_size=512,backing_file={},backing_fmt=raw",
        "x".repeat(600)
    ));
    lines.push(format!(
        "size=1M,backing_file={},backing_fmt=raw",
        "x".repeat(1024)
    ));
    lines.push("size=1M,data_file=/no/where".into());
    for line in lines {
        let line =
            if line.contains("size=1") || line.starts_with("size=") || line.contains(",size=") {
                line
            } else {
                format!("{line},size=1M")
            };
        std::fs::remove_file(qemu.path("image")).ok();
        let output = qemu.run(&format!("create -q -u -f qcow2 -o {line} image"));
        assert!(!output.status.success(), "{line}");
        let theirs = String::from_utf8(output.stderr).unwrap();
        let theirs = theirs.trim_end().strip_prefix("qemu-img: image: ").unwrap();
        let ours = create(qemu.path("image"), &options(&line), false)
            .unwrap_err()
            .to_string();
        assert_eq!(ours, theirs, "{line}");
        assert!(!qemu.path("image").exists(), "{line}");
    }
    // The backing file itself, under another name.
    std::fs::write(qemu.path("image"), b"precious").unwrap();
    std::fs::hard_link(qemu.path("image"), qemu.path("other")).unwrap();
    let own = options("size=1M,backing_file=other,backing_fmt=raw");
    assert_eq!(
        create(qemu.path("image"), &own, false)
            .unwrap_err()
            .to_string(),
        "Error: Trying to create an image with the same filename as the backing file"
    );
    assert_eq!(qemu.bytes("image"), b"precious");
    std::fs::remove_file(qemu.path("image")).unwrap();
    let none = create(qemu.path("image"), &CreateOptions::default(), false).unwrap_err();
    assert_eq!(none.to_string(), "Image creation needs a size parameter");
}

#[test]
fn raw_images_are_qemu_s() {
    let Some(qemu) = Qemu::find() else { return };
    for size in [0, 1, 512, 513, 1000, 65537, 1 << 40] {
        qemu.img(&format!("create -q -f raw theirs.raw {size}"));
        let options = RawOptions {
            size: Some(size),
            ..RawOptions::default()
        };
        let made = create_raw(qemu.path("ours.raw"), &options, false).unwrap();
        let length = |name| std::fs::metadata(qemu.path(name)).unwrap().len();
        assert_eq!(length("ours.raw"), length("theirs.raw"));
        assert_eq!(made.virtual_size, length("ours.raw"));
    }
    let refusal = |options: &RawOptions| {
        create_raw(qemu.path("x"), options, false)
            .unwrap_err()
            .to_string()
    };
    let sized = RawOptions {
        size: Some(1),
        ..RawOptions::default()
    };
    assert_eq!(
        refusal(&RawOptions::default()),
        "Image creation needs a size parameter"
    );
    let metadata = RawOptions {
        preallocation: Preallocation::Metadata,
        ..sized.clone()
    };
    assert_eq!(
        refusal(&metadata),
        "Unsupported preallocation mode: metadata"
    );
    let backing = RawOptions {
        backing: Some(Backing::default()),
        ..sized
    };
    assert_eq!(
        refusal(&backing),
        "Backing file not supported for file format 'raw'"
    );
    assert!(!qemu.path("x").exists());
}
