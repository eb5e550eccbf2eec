//! `check -r`: what both programs say and do to copies of the same damaged image.

use std::fs;

use crate::{
    check::{Places, image_with_data},
    pair::{Outcome, Pair},
};

type Patch = (usize, Vec<u8>);

/// Gives each program a copy of its own of the same damaged bytes.
fn repaired(
    pair: &Pair,
    bytes: &[u8],
    patches: &[Patch],
    words: &[&str],
) -> (Outcome, Outcome, [Vec<u8>; 2]) {
    let mut damaged = bytes.to_vec();
    for (at, patch) in patches {
        damaged[*at..*at + patch.len()].copy_from_slice(patch);
    }
    let path = pair.work().join("damaged.qcow2");
    fs::write(&path, &damaged).unwrap();
    let theirs = pair.qemu(words);
    let their_bytes = fs::read(&path).unwrap();
    fs::write(&path, &damaged).unwrap();
    let ours = pair.ours(words);
    let our_bytes = fs::read(&path).unwrap();
    (theirs, ours, [their_bytes, our_bytes])
}

fn word(word: u64) -> Vec<u8> {
    word.to_be_bytes().to_vec()
}

fn half(half: u16) -> Vec<u8> {
    half.to_be_bytes().to_vec()
}

#[test]
fn what_is_repaired_in_place_is_the_same_to_the_byte() {
    let Some(mut pair) = Pair::new() else { return };
    let places = image_with_data(&pair);
    let Places {
        l1, l2, refcounts, ..
    } = places;
    let first = u64::from_be_bytes(places.bytes[l2..l2 + 8].try_into().unwrap());
    for patches in [
        vec![],
        // Refcounts of cluster 10 and 11 that are too high.
        vec![(refcounts + 20, half(2))],
        vec![(refcounts + 20, half(3)), (refcounts + 22, half(5))],
        // A cluster that nothing refers to.
        vec![(l2, word(0))],
        vec![(l1, word(0))],
        // Copied flags.
        vec![(l2, word(first & !(1 << 63)))],
        vec![(l2, word(first & !(1 << 63))), (refcounts + 20, half(2))],
        vec![(l1, word(l2 as u64))],
        // A cluster that two entries refer to.
        vec![(l2 + 8, word(first))],
        // A preallocated cluster that is not aligned; data that isn't.
        vec![(l2, word(first + 0x201))],
        vec![(l2, word(first + 0x200))],
        // What neither repairs.
        vec![(l2, word(first | 1 << 58))],
        vec![(l2, word((1 << 62) | (1 << 63) | 0x50000 | (3 << 54)))],
        // The dirty and the corrupt bit.
        vec![(79, vec![1])],
        vec![(79, vec![2])],
        vec![(79, vec![3]), (refcounts + 20, half(2))],
        vec![(79, vec![2]), (l2, word(first | 1 << 58))],
    ] {
        for line in [
            "check -r leaks damaged.qcow2",
            "check -r all damaged.qcow2",
            "check -q --repair=all damaged.qcow2",
            "check -r leaks --output=json damaged.qcow2",
            "check --output=json -r all damaged.qcow2",
        ] {
            let words: Vec<_> = line.split(' ').collect();
            let (theirs, ours, bytes) = repaired(&pair, &places.bytes, &patches, &words);
            pair.note(&words, &theirs, &ours);
            // Space is only given back in an image that is sound.
            let same = bytes[0] == bytes[1] || ours.code != Some(0);
            assert!(same, "{patches:x?}: {line}: the files differ");
        }
    }
    pair.finish();
}

/// Where refcount blocks are missing or misplaced qemu-img lays all of them out anew,
/// also where a refcount of 0 is wrong; we do so with those that can't stay.
#[test]
fn what_is_laid_out_anew_is_as_clean() {
    let Some(mut pair) = Pair::new() else { return };
    let places = image_with_data(&pair);
    let Places {
        l2,
        refcounts,
        refcount_table,
        ..
    } = places;
    for patches in [
        vec![(refcounts + 20, half(0))],
        vec![(refcounts, half(0)), (refcounts + 22, half(5))],
        vec![(refcount_table, word(0))],
        vec![(refcount_table + 8, word(refcounts as u64))],
        vec![(refcount_table + 8, word(0x2_0200))],
        vec![(56, vec![0; 4])],
        vec![(l2, word(refcounts as u64))],
        vec![(79, vec![3]), (refcounts + 20, half(0))],
    ] {
        let leaks = ["check", "-r", "leaks", "damaged.qcow2"];
        let (theirs, ours, bytes) = repaired(&pair, &places.bytes, &patches, &leaks);
        pair.note(&leaks, &theirs, &ours);
        // qemu-img clears the dirty bit for all that.
        let mut damaged = places.bytes.clone();
        for (at, patch) in &patches {
            damaged[*at..*at + patch.len()].copy_from_slice(patch);
        }
        assert!(
            bytes[1] == damaged,
            "{patches:x?}: nothing is to be changed"
        );

        for form in ["human", "json"] {
            let all = ["check", "--output", form, "-r", "all", "damaged.qcow2"];
            let (mut theirs, mut ours, _) = repaired(&pair, &places.bytes, &patches, &all);
            for outcome in [&mut theirs, &mut ours] {
                let lines = outcome.stdout.lines();
                let but_for_the_end = |line: &&str| !line.to_lowercase().contains("end");
                outcome.stdout = lines.filter(but_for_the_end).collect();
                outcome.stderr.clear();
            }
            pair.note(&all, &theirs, &ours);
            // Ours was last.
            let clean = pair.qemu(&["check", "damaged.qcow2"]);
            assert_eq!(clean.code, Some(0), "{patches:x?}: {}", clean.stderr);
            let same = pair.qemu(&["compare", "damaged.qcow2", "data.qcow2"]);
            assert!(
                same.code == Some(0) || patches[0].0 == l2,
                "{patches:x?}: {same:?}"
            );
        }
    }
    pair.finish();
}

#[test]
fn what_is_not_repaired() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "v3.qcow2", "1M"]);
    pair.make(&["create", "-q", "-f", "raw", "raw.img", "1M"]);
    for line in [
        "check -r leaks -f raw raw.img",
        "check -r all -f raw v3.qcow2",
        "check -r all missing",
        "check -r foo v3.qcow2",
        "check -r ALL v3.qcow2",
        "check -r leaks -U v3.qcow2",
        "check -r all --image-opts driver=qcow2,file.filename=v3.qcow2,read-only=on",
        "check -r all --image-opts driver=qcow2,file.filename=v3.qcow2",
        "check -r all v3.qcow2",
    ] {
        pair.same_line(line);
    }
    let both = pair.ours(&["check", "--findings", "-r", "all", "v3.qcow2"]);
    assert_eq!((both.code, both.stdout.as_str()), (Some(1), ""));
    assert!(
        both.stderr.contains("mutually exclusive"),
        "{}",
        both.stderr
    );
    pair.finish();
}

/// Guest data that a broken entry has lost sight of is not given away, as by qemu-img.
#[test]
fn what_may_be_somebodys_is_not_freed() {
    let Some(pair) = Pair::new() else { return };
    let places = image_with_data(&pair);
    let patches = [(places.l1, word((1 << 63) | 0x1000_0000))];
    let words = ["check", "-r", "all", "damaged.qcow2"];
    let (theirs, ours, bytes) = repaired(&pair, &places.bytes, &patches, &words);
    assert_eq!((theirs.code, ours.code), (Some(2), Some(2)));
    assert!(
        ours.stderr.contains("leaked clusters are not freed"),
        "{}",
        ours.stderr
    );
    let data = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == 7).count() >> 10;
    assert_eq!((data(&bytes[0]), data(&bytes[1])), (0, 3 << 10));
    // With the entry put right, all is there again.
    let mut saved = bytes[1].clone();
    saved[places.l1..places.l1 + 8].copy_from_slice(&word((1 << 63) | places.l2 as u64));
    fs::write(pair.work().join("saved.qcow2"), saved).unwrap();
    assert_eq!(pair.qemu(&["check", "saved.qcow2"]).code, Some(0));
    let same = pair.qemu(&["compare", "saved.qcow2", "data.qcow2"]);
    assert_eq!(same.code, Some(0), "{}", same.stdout);
}

#[test]
fn findings_are_listed_and_left() {
    let Some(pair) = Pair::new() else { return };
    let Places {
        mut bytes,
        l2,
        refcounts,
        ..
    } = image_with_data(&pair);
    bytes[refcounts + 21] = 2;
    bytes[l2 + 8] |= 4;
    let path = pair.work().join("damaged.qcow2");
    fs::write(&path, &bytes).unwrap();
    let listed = pair.ours(&["check", "--findings", "damaged.qcow2"]);
    assert_eq!((listed.code, listed.stderr.as_str()), (Some(2), ""));
    assert!(fs::read(&path).unwrap() == bytes);
    let report: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let kinds: Vec<_> = findings
        .iter()
        .map(|finding| {
            (
                finding["kind"].as_str().unwrap(),
                finding["repair"].as_str(),
            )
        })
        .collect();
    // What seems leaked isn't freed beside an entry with reserved bits.
    let expected = [
        ("l2-reserved", None),
        ("refcount-wrong", None),
        ("l2-copied", Some("all")),
    ];
    assert_eq!(kinds, expected, "{}", listed.stdout);
    assert_eq!(findings[1]["cluster"], 10);
    assert_eq!(
        (&findings[1]["refcount"], &findings[1]["references"]),
        (&2.into(), &1.into())
    );
    let numbers = (
        &report["corruptions"],
        &report["leaks"],
        &report["check-errors"],
    );
    assert_eq!(numbers, (&2.into(), &1.into(), &0.into()));
    // An image that can't be checked to the end.
    bytes[64..72].copy_from_slice(&word(0x100));
    fs::write(&path, &bytes).unwrap();
    let failed = pair.ours(&["check", "--findings", "damaged.qcow2"]);
    assert_eq!(failed.code, Some(1));
    let report: serde_json::Value = serde_json::from_str(&failed.stdout).unwrap();
    assert_eq!(report["error"], "Check failed: Invalid argument");
    assert_eq!(report["findings"][0]["kind"], "snapshot-table-misplaced");
}
