//! A check of ours beside one of qemu-img's, and the images to check.

use qcow2::{
    check::{CheckOptions, CheckReport, Metadata, Severity, Verdict, check},
    format::HeaderArea,
    io::{Access, FileStorage, LockMode},
};
use serde_json::Value;

use super::Qemu;

/// What a check prints and returns.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) lines: Vec<String>,
    pub(crate) code: i32,
    /// The numbers of the JSON form; empty where there is no report.
    pub(crate) numbers: Vec<(&'static str, u64)>,
}

/// Numbers in JSON that are left out when they are 0, and those that aren't.
pub(crate) const OPTIONAL: [&str; 6] = [
    "corruptions",
    "leaks",
    "allocated-clusters",
    "fragmented-clusters",
    "compressed-clusters",
    "total-clusters",
];
pub(crate) const ALWAYS: [&str; 2] = ["check-errors", "image-end-offset"];

pub(crate) fn numbers(report: &CheckReport) -> Vec<(&'static str, u64)> {
    let values = [
        report.corruptions,
        report.leaks,
        report.allocated_clusters,
        report.fragmented_clusters,
        report.compressed_clusters,
        report.total_clusters,
        report.check_errors,
        report.image_end_offset.get(),
    ];
    OPTIONAL.into_iter().chain(ALWAYS).zip(values).collect()
}

/// Runs `with` over the image's metadata; `None` if it can't be opened.
pub(crate) fn opened<T>(
    qemu: &Qemu,
    image: &str,
    with: impl FnOnce(&Metadata<'_>) -> T,
) -> Option<T> {
    let storage = FileStorage::open(qemu.path(image), Access::ReadOnly, LockMode::None).unwrap();
    let area = HeaderArea::read_for_check(&storage).ok()?;
    let metadata = Metadata {
        storage: &storage,
        header: area.header(),
        extensions: area.extensions(),
        geometry: area.header().geometry(),
    };
    Some(with(&metadata))
}

pub(crate) fn ours(qemu: &Qemu, image: &str) -> Option<Outcome> {
    opened(qemu, image, |metadata| {
        let mut lines = Vec::new();
        let mut findings = CheckReport::default();
        let result = check(metadata, CheckOptions::default(), &mut |finding| {
            let name = if finding.names_the_program() {
                "qemu-img: "
            } else {
                ""
            };
            lines.extend(format!("{name}{finding}").lines().map(str::to_owned));
            match finding.severity() {
                Severity::Corruption => findings.corruptions += 1,
                Severity::Leak => findings.leaks += 1,
                Severity::CheckError => findings.check_errors += 1,
                Severity::Note => {}
            }
        });
        match result {
            Ok(report) => {
                let told = (findings.corruptions, findings.leaks, findings.check_errors);
                assert_eq!(
                    told,
                    (report.corruptions, report.leaks, report.check_errors)
                );
                let code = match report.verdict() {
                    Verdict::Clean => 0,
                    Verdict::Failed => 1,
                    Verdict::Corrupt => 2,
                    Verdict::Leaks => 3,
                };
                if code == 1 {
                    lines.push("qemu-img: Check failed".into());
                }
                Outcome {
                    lines,
                    code,
                    numbers: numbers(&report),
                }
            }
            Err(failed) => {
                lines.push(format!("qemu-img: {failed}"));
                Outcome {
                    lines,
                    code: 1,
                    numbers: Vec::new(),
                }
            }
        }
    })
}

/// What qemu-img says; `None` if it doesn't open the image.
pub(crate) fn theirs(qemu: &Qemu, image: &str) -> Option<Outcome> {
    let output = qemu.run(&format!("check -f qcow2 --output=json {image}"));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if stderr.contains("Could not open") {
        return None;
    }
    let report: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    let numbers = report.map_or_else(Vec::new, |report| {
        let number = |key: &'static str| (key, report[key].as_u64().unwrap_or(0));
        assert!(ALWAYS.iter().all(|key| report[*key].is_u64()), "{report}");
        OPTIONAL.into_iter().chain(ALWAYS).map(number).collect()
    });
    let lines = stderr
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    Some(Outcome {
        lines,
        code: output.status.code().unwrap(),
        numbers,
    })
}

/// Both must say the same of `image`; returns what they say.
pub(crate) fn agree(qemu: &Qemu, image: &str, what: &str) -> Option<Outcome> {
    let (ours, theirs) = (ours(qemu, image), theirs(qemu, image));
    let Some(theirs) = theirs else { return ours };
    let ours = ours.unwrap_or_else(|| panic!("{what}: only qemu-img opens it: {theirs:?}"));
    if ours != theirs {
        let differ = ours
            .lines
            .iter()
            .zip(&theirs.lines)
            .position(|(a, b)| a != b);
        let from = differ
            .unwrap_or(ours.lines.len().min(theirs.lines.len()))
            .saturating_sub(2);
        let part = |o: &Outcome| {
            o.lines
                .iter()
                .skip(from)
                .take(8)
                .cloned()
                .collect::<Vec<_>>()
        };
        panic!(
            "{what}: from line {from} on\nours   {:#?}\ntheirs {:#?}\nours   {} {:?}\ntheirs {} {:?}",
            part(&ours),
            part(&theirs),
            ours.code,
            ours.numbers,
            theirs.code,
            theirs.numbers
        );
    }
    Some(ours)
}

/// Images with everything that can be in one, small.
pub(crate) const BASES: [&str; 12] = [
    "plain",
    "long",
    "extended",
    "data-file",
    "v2",
    "one-bit",
    "wide",
    "tiny",
    "snapshots",
    "bitmaps",
    "compressed",
    "mixed",
];

pub(crate) fn make(qemu: &Qemu, base: &str) {
    let create = |options: &str, size: &str| {
        qemu.img(&format!("create -q -f qcow2 -o {options} {base} {size}"));
    };
    let text: Vec<u8> = (0..1_u32 << 20)
        .map(|i| ((i * 7 + i / 300) % 40) as u8)
        .collect();
    std::fs::write(qemu.path("text"), text).unwrap();
    match base {
        "plain" | "long" => {
            create("lazy_refcounts=on", "10M");
            qemu.io(base, &["write 0 256k", "write 1M 128k", "write -z 2M 64k"]);
            if base == "long" {
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .open(qemu.path(base));
                file.unwrap().set_len(20 << 16).unwrap();
            }
        }
        "extended" => {
            create("extended_l2=on", "600M");
            qemu.io(
                base,
                &[
                    "write 0 200k",
                    "write 1M 4k",
                    "write -z 500M 128k",
                    "write 400M 9k",
                ],
            );
        }
        "data-file" => {
            create("data_file=data.raw", "10M");
            qemu.io(base, &["write 0 200k", "write 1M 4k", "write -z 2M 64k"]);
        }
        "v2" => {
            create("compat=0.10", "10M");
            qemu.io(base, &["write 0 200k"]);
            qemu.img(&format!("snapshot -c one {base}"));
            qemu.io(base, &["write 64k 64k"]);
        }
        "one-bit" => {
            create("refcount_bits=1,cluster_size=4k", "10M");
            qemu.io(base, &["write 0 200k", "write 3M 64k"]);
        }
        "wide" => {
            create("refcount_bits=64,cluster_size=4k", "8M");
            qemu.io(base, &["write 0 3M"]);
        }
        "tiny" => {
            create("refcount_bits=4,cluster_size=512", "1M");
            qemu.io(base, &["write 0 16k", "write 100k 3k", "write 700k 40k"]);
            qemu.img(&format!("snapshot -c one {base}"));
            qemu.io(base, &["write 4k 8k"]);
        }
        "snapshots" => {
            create("cluster_size=64k", "1G");
            qemu.io(base, &["write 0 256k", "write 800M 64k"]);
            qemu.img(&format!("snapshot -c one {base}"));
            qemu.io(base, &["write 64k 64k"]);
            qemu.img(&format!("snapshot -c two {base}"));
            qemu.io(base, &["write 128k 64k"]);
        }
        "bitmaps" => {
            create("cluster_size=64k", "10G");
            for bitmap in ["b0", "b1 -g 4096", "b2 --disable"] {
                qemu.img(&format!("bitmap --add {base} {bitmap}"));
            }
            qemu.io(base, &["write 0 256k", "write 5G 64k"]);
        }
        "compressed" => {
            let line = "convert -q -f raw -c -O qcow2 -o cluster_size=4k,extended_l2=off";
            qemu.img(&format!("{line} text {base}"));
        }
        _ => {
            let line = "convert -q -f raw -c -O qcow2 -o cluster_size=16k,extended_l2=on";
            qemu.img(&format!("{line} text {base}"));
            qemu.io(base, &["write 32k 64k"]);
            qemu.img(&format!("snapshot -c one {base}"));
            qemu.img(&format!("bitmap --add -g 512 {base} b0"));
            qemu.io(base, &["write 16k 3k"]);
        }
    }
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Numbers to overwrite: where, of how many bytes (big-endian), with what.
pub(crate) type Changes<'a> = &'a [(u64, u32, u64)];

/// Overwrites numbers in a copy of `base`, which is called "t".
pub(crate) fn damaged(qemu: &Qemu, base: &str, changes: Changes<'_>) {
    let mut bytes = qemu.bytes(base);
    for (at, len, value) in changes {
        let (at, len) = (usize::try_from(*at).unwrap(), *len as usize);
        bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    }
    std::fs::write(qemu.path("t"), bytes).unwrap();
}
