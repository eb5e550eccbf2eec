//! A repair of ours beside one of qemu-img's, on copies of the same image.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt,
};

use qcow2::{
    check::{CheckOptions, Repair, RepairEvent, Verdict, repair},
    format::HeaderArea,
    io::{Access, FileStorage, LockMode},
};
use rustix::fs::SeekFrom;
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

/// What the guest reads: the sectors that aren't zeros. What can't be read is taken as
/// zeros. `None` if nothing can be, or if so much can't that it takes too long.
pub(crate) fn guest(qemu: &Qemu, image: &str) -> Option<HashMap<u64, [u8; 512]>> {
    let line = format!("convert --salvage -f qcow2 -O raw {image} guest.raw");
    if !qemu.run_briefly(&line).status.success() {
        return None;
    }
    let file = File::open(qemu.path("guest.raw")).unwrap();
    let mut sectors = HashMap::new();
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
        let mut bytes = vec![0; usize::try_from(hole - data).unwrap()];
        file.read_exact_at(&mut bytes, data).unwrap();
        for (index, sector) in (data / 512..).zip(bytes.as_chunks().0) {
            if *sector != [0; 512] {
                sectors.insert(index, *sector);
            }
        }
        at = hole;
    }
    fs::remove_file(qemu.path("guest.raw")).unwrap();
    Some(sectors)
}

/// How strictly two repairs can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Likeness {
    /// We leave what qemu-img damages further or throws away: what the guest reads must be
    /// the same.
    Guest,
    /// qemu-img damages such an image, or fails; ours must be no worse than theirs.
    NoWorse,
    /// We leave alone what qemu-img changes at the cost of data, or lay out refcounts in
    /// another way: the verdict must be the same.
    Verdict,
    /// What is said may differ, the number of repairs not.
    Counts,
    /// Every line and every number must be the same.
    Lines,
}

impl Likeness {
    fn of(repair: Repair, ours: &Repaired, theirs: &Repaired, what: &str) -> Self {
        let says = |side: &Repaired, words: &str| {
            let mut lines = side.lines.iter();
            lines.any(|line| line.contains(words))
        };
        // It deletes the snapshots of an image that has bitmaps, also of a sound one.
        if what.starts_with("mixed") {
            return Self::NoWorse;
        }
        let left = |side: &Repaired| {
            says(side, "ERROR OFLAG_COPIED")
                || side.lines.iter().any(|line| {
                    line.starts_with("ERROR") && line.contains("Preallocated cluster is not")
                })
        };
        if repair == Repair::All && left(ours) && !left(theirs) {
            return Self::Guest;
        }
        // It makes the file longer where entries lead beyond its end, throws away what it
        // can't read of snapshots, and writes or loses damaged bitmaps when it closes the
        // image. We keep what more refer to than a refcount can count until the next repair.
        if says(ours, "can't become longer")
            || says(ours, "ERROR snapshot table entry")
            || says(theirs, "Discarding")
            || says(theirs, "qcow2_free_clusters failed")
            || says(theirs, "Lost persistent bitmaps")
            || says(ours, "overflow cluster")
        {
            return Self::Guest;
        }
        // It fails at some rebuilds, some flags of shared tables, some broken L1 entries.
        if theirs.code == 1 && repair == Repair::All {
            return Self::NoWorse;
        }
        // It frees what is not found any more, writes copied flags into tables that lie
        // across data and for clusters with more references than can be counted, and makes
        // the file longer for a refcount block that is beyond its end.
        let apart = says(ours, "leaked clusters are not freed")
            || says(ours, "Table is not cluster aligned")
            || says(theirs, "Repairing refcount block");
        match apart {
            true => Self::Verdict,
            false if says(theirs, "Rebuilding") => Self::Counts,
            false => Self::Lines,
        }
    }
}

/// Repairs copies of `image`, ours and theirs, in both ways, which must come to the same.
/// Returns whether qemu-img opens the image.
pub(crate) fn agree(qemu: &Qemu, image: &str, what: &str) -> bool {
    let before = guest(qemu, image);
    [Repair::Leaks, Repair::All].into_iter().all(|repair| {
        let what = format!("{what}, {repair:?}");
        agree_in(qemu, image, repair, &what, before.as_ref()).is_some()
    })
}

fn agree_in(
    qemu: &Qemu,
    image: &str,
    repair: Repair,
    what: &str,
    before: Option<&HashMap<u64, [u8; 512]>>,
) -> Option<()> {
    for copy in ["ours", "theirs"] {
        fs::copy(qemu.path(image), qemu.path(copy)).unwrap();
    }
    let theirs = theirs(qemu, "theirs", repair)?;
    let ours = ours(qemu, "ours", repair).unwrap();
    let ours_after = checked(qemu, "ours").unwrap();
    let theirs_after = checked(qemu, "theirs");
    let likeness = match &theirs_after {
        // Theirs can't be opened any more.
        None => Likeness::Guest,
        Some(_) => Likeness::of(repair, &ours, &theirs, what),
    };
    println!("{likeness:?} {:?} {:?} {what}", ours.fixed, theirs.fixed);
    let dump =
        || format!("{what}\nours {ours:#?}\ntheirs {theirs:#?}\n{ours_after:?}\n{theirs_after:?}");

    // What we say is what is there, in the eyes of qemu-img.
    if ours.numbers.is_empty() {
        assert_eq!(ours.code, 1, "{}", dump());
    } else {
        assert_eq!(ours.code, ours_after.code, "{}", dump());
    }
    let rank = |code: i32| {
        let mut ranks = [0, 3, 2, 1].into_iter();
        ranks.position(|known| known == code).unwrap()
    };
    let theirs_code = theirs_after.as_ref().map_or(1, |after| after.code);
    if likeness == Likeness::NoWorse && !what.starts_with("mixed") {
        assert!(rank(ours_after.code) <= rank(theirs_code), "{}", dump());
    }
    if likeness >= Likeness::Verdict {
        let codes = (theirs_code, theirs.code);
        assert_eq!((ours_after.code, ours.code), codes, "{}", dump());
    }
    if likeness >= Likeness::Counts {
        assert_eq!(ours.fixed, theirs.fixed, "{}", dump());
    }
    if likeness >= Likeness::Lines {
        let lines = |side: &Repaired| {
            let lines = side.lines.iter();
            // What QEMU says of the corrupt bit.
            let lines = lines.filter(|line| !line.starts_with("qcow2: "));
            lines.cloned().collect::<Vec<_>>()
        };
        assert_eq!(lines(&ours), lines(&theirs), "{}", dump());
        assert_eq!(ours.numbers, theirs.numbers, "{}", dump());
    }

    // The guest finds what it had, also where qemu-img has lost it.
    if let Some(before) = before {
        // Nothing to compare with if it took too long now.
        let ours_guest = guest(qemu, "ours").unwrap_or_else(|| before.clone());
        if ours_guest != *before {
            let theirs_guest = guest(qemu, "theirs").unwrap_or_default();
            for sector in before.keys().chain(ours_guest.keys()) {
                let [was, is, with_them] =
                    [before, &ours_guest, &theirs_guest].map(|guest| guest.get(sector));
                assert!(
                    is == was || with_them != was,
                    "guest data at sector {sector} changed: {}",
                    dump()
                );
            }
        }
    }
    // Again there is nothing to do but what was left. (Where the header is taken for an L2
    // table, a change of the one is one of the other.)
    let again = self::ours(qemu, "ours", repair).unwrap();
    if matches!(ours.code, 0 | 3) {
        assert_eq!(again.fixed, (0, 0), "{}\n{again:#?}", dump());
    }
    // Where there were more references than a refcount can hold, old refcount structures took
    // some of them away.
    let overflowed = ours
        .lines
        .iter()
        .any(|line| line.contains("overflow cluster"));
    let better = overflowed && rank(again.code) < rank(ours.code);
    assert!(again.code == ours.code || better, "{}\n{again:#?}", dump());
    Some(())
}
