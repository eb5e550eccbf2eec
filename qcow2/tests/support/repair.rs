//! A repair of ours beside one of qemu-img's, on copies of the same image.

use std::fs;

use qcow2::{
    check::{CheckOptions, Repair, RepairEvent, Verdict, repair},
    format::HeaderArea,
    io::{Access, FileStorage, LockMode},
};
use serde_json::Value;

use super::{
    Qemu,
    check::{numbers, theirs as checked},
};

/// What a repair says and returns.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Repaired {
    pub(crate) lines: Vec<String>,
    pub(crate) code: i32,
    /// Leaks and corruptions that were repaired.
    pub(crate) fixed: (u64, u64),
    pub(crate) numbers: Vec<(&'static str, u64)>,
}

/// Our repair of `image`; `None` if it can't be opened.
pub(crate) fn ours(qemu: &Qemu, image: &str, what: Repair) -> Option<Repaired> {
    let storage = FileStorage::open(qemu.path(image), Access::ReadWrite, LockMode::None).unwrap();
    let mut area = HeaderArea::read_for_check(&storage).ok()?;
    let mut lines = Vec::new();
    let mut told = (0, 0);
    let outcome = repair(
        &storage,
        &mut area,
        what,
        CheckOptions::default(),
        &mut |event| {
            if let RepairEvent::DoubleCheck(fixed) = event {
                told = (fixed.leaks, fixed.corruptions);
                return;
            }
            let name = if event.names_the_program() {
                "qemu-img: "
            } else {
                ""
            };
            lines.extend(format!("{name}{event}").lines().map(str::to_owned));
        },
    );
    Some(match outcome {
        Ok(outcome) => {
            let fixed = (outcome.fixed.leaks, outcome.fixed.corruptions);
            assert_eq!(fixed, told);
            let code = match outcome.report.verdict() {
                Verdict::Clean => 0,
                Verdict::Failed => 1,
                Verdict::Corrupt => 2,
                Verdict::Leaks => 3,
            };
            if code == 1 {
                lines.push("qemu-img: Check failed".into());
            }
            Repaired {
                lines,
                code,
                fixed,
                numbers: numbers(&outcome.report),
            }
        }
        Err(failed) => {
            lines.push(format!("qemu-img: {failed}"));
            Repaired {
                lines,
                code: 1,
                ..Repaired::default()
            }
        }
    })
}

/// qemu-img's repair of `image`; `None` if it doesn't open it.
pub(crate) fn theirs(qemu: &Qemu, image: &str, what: Repair) -> Option<Repaired> {
    let word = match what {
        Repair::Leaks => "leaks",
        Repair::All => "all",
    };
    let line = format!("check -f qcow2 -r {word} --output=json {image}");
    let output = qemu.run(&line);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if stderr.contains("Could not open") {
        return None;
    }
    let report: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    let number = |key: &str| report.as_ref().and_then(|r| r[key].as_u64()).unwrap_or(0);
    let keys = numbers(&qcow2::check::CheckReport::default());
    let numbers = keys.into_iter().map(|(key, _)| (key, number(key)));
    Some(Repaired {
        lines: stderr
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect(),
        code: output.status.code().unwrap_or(-1),
        fixed: (number("leaks-fixed"), number("corruptions-fixed")),
        numbers: if report.is_some() {
            numbers.collect()
        } else {
            Vec::new()
        },
    })
}

/// What the guest reads; what can't be read is taken as zeros.
pub(crate) fn guest(qemu: &Qemu, image: &str) -> Vec<u8> {
    let output = qemu.run(&format!(
        "convert --salvage -f qcow2 -O raw {image} guest.raw"
    ));
    if !output.status.success() {
        return Vec::new();
    }
    let bytes = qemu.bytes("guest.raw");
    fs::remove_file(qemu.path("guest.raw")).unwrap();
    bytes
}

/// Repairs copies of `image`, ours and theirs, which must come to the same; returns what
/// ours came to, or `None` if qemu-img doesn't open the image.
pub(crate) fn agree(qemu: &Qemu, image: &str, repair: Repair, what: &str) -> Option<Repaired> {
    let what = format!("{what}, {repair:?}");
    let before = guest(qemu, image);
    for copy in ["ours", "theirs"] {
        fs::copy(qemu.path(image), qemu.path(copy)).unwrap();
    }
    let theirs = theirs(qemu, "theirs", repair)?;
    let ours = ours(qemu, "ours", repair).unwrap();
    let ours_after = checked(qemu, "ours").unwrap();
    let theirs_after = checked(qemu, "theirs");
    let dump =
        || format!("{what}\nours {ours:#?}\ntheirs {theirs:#?}\n{ours_after:?}\n{theirs_after:?}");

    let says = |side: &Repaired, words: &str| side.lines.iter().any(|line| line.contains(words));
    let kept = says(&ours, "leaked clusters are not freed");
    // qemu-img lays everything out anew where a refcount of 0 is wrong, makes the file
    // longer where a refcount block is past its end, and sometimes fails at it.
    let rebuilt = says(&theirs, "Rebuilding");
    let failed = theirs.code == 1;
    let grown = says(&theirs, "Repairing refcount block");

    // What we say is what is there, in the eyes of qemu-img.
    if ours.numbers.is_empty() {
        assert_eq!(ours.code, 1, "{}", dump());
    } else {
        assert_eq!(ours.code, ours_after.code, "{}", dump());
    }
    // As good as theirs.
    let rank = |code: i32| {
        [0, 3, 2, 1]
            .iter()
            .position(|known| *known == code)
            .unwrap()
    };
    let theirs_code = theirs_after.as_ref().map_or(1, |after| after.code);
    if failed {
        assert!(rank(ours_after.code) <= rank(theirs_code), "{}", dump());
    } else {
        assert_eq!(
            (ours_after.code, ours.code),
            (theirs_code, theirs.code),
            "{}",
            dump()
        );
        let theirs_fixed = (if kept { 0 } else { theirs.fixed.0 }, theirs.fixed.1);
        if !grown {
            assert_eq!(ours.fixed, theirs_fixed, "{}", dump());
        }
    }
    let lines = |side: &Repaired| {
        let lines = side
            .lines
            .iter()
            .filter(|line| !line.starts_with("qcow2: "));
        lines.cloned().collect::<Vec<_>>()
    };
    let comparable = !(kept || rebuilt || failed && repair == Repair::All);
    if comparable {
        assert_eq!(lines(&ours), lines(&theirs), "{}", dump());
        assert_eq!(ours.numbers, theirs.numbers, "{}", dump());
    }

    // The guest finds what it had, also where qemu-img has lost it.
    let (ours_guest, theirs_guest) = (guest(qemu, "ours"), guest(qemu, "theirs"));
    if !before.is_empty() {
        assert_eq!(ours_guest.len(), before.len(), "{}", dump());
        for (index, part) in before.chunks(512).enumerate() {
            let at = index * 512..index * 512 + part.len();
            let theirs_part = theirs_guest.get(at.clone());
            if ours_guest[at] != *part && theirs_part == Some(part) {
                panic!("guest data at sector {index} changed: {}", dump());
            }
        }
    }
    // Again there is nothing to do but what was left. (Where a table is taken for an L2
    // table, a change of it is one of guest data, which may look damaged in new ways.)
    let again = self::ours(qemu, "ours", repair).unwrap();
    if !ours.numbers.is_empty() && !failed {
        assert_eq!(
            (again.fixed, again.code),
            ((0, 0), ours.code),
            "{}\n{again:#?}",
            dump()
        );
    }
    Some(ours)
}
