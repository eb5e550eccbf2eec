//! Images that a QEMU with lazy refcounts was killed over: both programs repair them when
//! they are to write them.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::{images::patch, pair::Pair};

/// Has a guest write to `dirty.qcow2`, and kills its QEMU.
fn killed(pair: &Pair) {
    pair.make_line("create -q -f qcow2 -o lazy_refcounts=on dirty.qcow2 4M");
    let status = Command::new("qemu-io")
        .args(["-c", "write -P 7 64k 300k", "-c", "flush", "-c", "abort"])
        .arg("dirty.qcow2")
        .current_dir(pair.work())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
    let bytes = fs::read(pair.work().join("dirty.qcow2")).unwrap();
    assert_eq!(bytes[79] & 1, 1, "the image is not dirty");
}

#[test]
fn a_killed_writers_image_is_repaired() {
    let Some(mut pair) = Pair::new() else { return };
    killed(&pair);
    let words = ["bitmap", "--add", "a", "b"];
    let copy = |pair: &Pair| {
        fs::copy(pair.work().join("dirty.qcow2"), pair.work().join("a")).unwrap();
    };
    copy(&pair);
    let mut theirs = pair.qemu(&words);
    copy(&pair);
    let mut ours = pair.ours(&words);
    // What is wrong is the same; qemu-img lays all refcounts out anew, we raise them.
    for outcome in [&mut theirs, &mut ours] {
        let lines = outcome.stderr.lines();
        let told = lines.filter_map(|line| {
            let cluster = line.strip_prefix("ERROR cluster ")?;
            cluster.strip_suffix(" refcount=0 reference=1")
        });
        outcome.stderr = told.collect::<Vec<_>>().join(" ");
    }
    assert_eq!(ours.stderr, "5 6 7 8 9");
    pair.note(&words, &theirs, &ours);
    pair.same_line("check a");
    pair.same_line("info a");
    let data = pair.qemu(&["compare", "-f", "qcow2", "dirty.qcow2", "a"]);
    assert_eq!(data.code, Some(0), "{}", data.stdout);
    let again = pair.ours(&["bitmap", "--remove", "a", "b"]);
    assert_eq!((again.code, again.stderr.as_str()), (Some(0), ""));

    // Under our own name one line says it.
    copy(&pair);
    let run = Command::new(env!("CARGO_BIN_EXE_qimg"))
        .args(words)
        .current_dir(pair.work())
        .output()
        .unwrap();
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.success(), "{text}");
    assert_eq!(
        text,
        "qimg: warning: 'a' was not closed properly; 0 leaked clusters and 5 corruptions \
         were repaired\n"
    );
    pair.finish();
}

/// Where the same is repaired in the same way, the same is said.
#[test]
fn what_is_repaired_in_place_is_told_alike() {
    let Some(mut pair) = Pair::new() else { return };
    let mut bytes = crate::check::image_with_data(&pair).bytes;
    bytes[79] |= 1;
    fs::write(pair.work().join("base"), &bytes).unwrap();
    let places = crate::check::image_with_data(&pair);
    let first = places.l2;
    for changes in [
        vec![],
        vec![(places.refcounts + 21, 3)],
        vec![(places.refcounts + 21, 3), (places.refcounts + 23, 2)],
        vec![(first, 0)],
    ] {
        let changes: Vec<_> = changes.iter().map(|(at, byte)| (*at, [*byte])).collect();
        let patches: Vec<(usize, &[u8])> = changes
            .iter()
            .map(|(at, bytes)| (*at, bytes.as_slice()))
            .collect();
        patch(&pair.work(), "base", "damaged", &patches);
        for line in ["bitmap --add a b", "bitmap --clear a nosuch"] {
            let words: Vec<_> = line.split(' ').collect();
            let [theirs, ours] = [Pair::qemu, Pair::ours].map(|run| {
                fs::copy(pair.work().join("damaged"), pair.work().join("a")).unwrap();
                run(&pair, &words)
            });
            pair.note(&words, &theirs, &ours);
        }
    }
    pair.finish();
}
