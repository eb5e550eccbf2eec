//! Damaged images: whatever the bytes, our commands end in time with one of their
//! exit codes, reading changes nothing, and what is refused stays byte for byte.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use qimg_tests::{Qimg, Run, Scratch, qimg, testdata::damaged};

/// Far more than any of these should take, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(10);

fn run(qimg: &Qimg, scratch: &Scratch, args: &[&str]) -> Run {
    let start = Instant::now();
    // 1 GiB of address space: memory that follows a number in the file fails here.
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -v 1048576; exec \"$0\" \"$@\""])
        .arg(qimg.command().get_program())
        .args(args)
        .current_dir(scratch.dir());
    let run = Run::of(&mut command);
    assert!(start.elapsed() < PATIENCE, "{args:?} took too long");
    assert!(
        [0, 1, 2, 3, 63].contains(&run.code) && !run.stderr.contains("panicked"),
        "{run:?}"
    );
    run
}

#[test]
fn reading_ends_as_it_must_and_changes_nothing() {
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let mut wrong = Vec::new();
    for case in damaged() {
        let name = format!("{}.qcow2", case.name);
        let path = scratch.path(&name);
        fs::write(&path, &case.bytes).unwrap();
        let info = run(&qimg, &scratch, &["info", "-f", "qcow2", &name]);
        let check = run(&qimg, &scratch, &["check", "-f", "qcow2", &name]);
        let list = run(&qimg, &scratch, &["bitmap", "--list", "-f", "qcow2", &name]);
        let dump = [
            "bitmap",
            "--dump",
            "--output=json",
            "-f",
            "qcow2",
            &name,
            "b0",
        ];
        let dump = run(&qimg, &scratch, &dump);
        assert!(case.bytes == fs::read(&path).unwrap(), "{name} changed");

        // check's exit code is QEMU's, where both open the image.
        let qemu = case.qemu["check"]["exit"].as_i64();
        let checked = qemu == Some(i64::from(check.code));
        let as_it_must = match case.must.as_str() {
            "refuse" => info.code == 1 && list.code == 1 && dump.code == 1 && check.code != 0,
            "bitmaps" => dump.code == 1 || is_void(&dump),
            "corrupt" => info.code == 0 && checked && check.code != 0,
            "leaks" => info.code == 0 && checked && check.code == 3,
            "fine" => info.code == 0 && checked && check.code == 0,
            "either" => true,
            other => panic!("{}: must {other}", case.name),
        };
        if !as_it_must {
            wrong.push(format!(
                "{} ({}) must {}: info {}, check {}, list {}, dump {}",
                case.name, case.what, case.must, info.code, check.code, list.code, dump.code
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn is_void(dump: &Run) -> bool {
    dump.code == 0
        && ["corrupt", "inconsistent"]
            .iter()
            .any(|s| dump.json()["state"] == *s)
}

#[test]
fn a_refused_edit_leaves_every_byte_and_one_that_works_leaves_no_more_damage() {
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let mut wrong = Vec::new();
    for case in damaged() {
        let name = format!("{}.qcow2", case.name);
        let path = scratch.path(&name);
        let (new, b0) = ([name.as_str(), "new"], [name.as_str(), "b0"]);
        for (actions, image_and_name) in [
            (&["--add"][..], new),
            (&["--add", "--merge", "b0"], new),
            (&["--clear"], b0),
            (&["--remove"], b0),
        ] {
            fs::write(&path, &case.bytes).unwrap();
            let check = || run(&qimg, &scratch, &["check", "-f", "qcow2", &name]);
            let before = check();
            let edit = [&["bitmap", "-f", "qcow2"], actions, &image_and_name].concat();
            let edited = run(&qimg, &scratch, &edit);
            let what = format!("{} ({}), {actions:?}", case.name, case.what);
            if edited.code == 0 {
                if case.must == "refuse" {
                    wrong.push(format!("{what}: not refused"));
                }
                let after = check();
                let rank = |run: &Run| [0, 3, 2, 1, 63].iter().position(|c| *c == run.code);
                if rank(&after) > rank(&before) {
                    wrong.push(format!("{what}: check {} → {}", before.code, after.code));
                }
            } else {
                // Length first: a file that grew to terabytes is better not read.
                let length = fs::metadata(&path).unwrap().len();
                let same =
                    length == case.bytes.len() as u64 && case.bytes == fs::read(&path).unwrap();
                if !same {
                    wrong.push(format!("{what}: refused, yet written: {}", edited.stderr));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_refusal_says_why() {
    let (scratch, qimg) = (Scratch::new(), qimg!());
    for case in damaged() {
        let name = format!("{}.qcow2", case.name);
        fs::write(scratch.path(&name), &case.bytes).unwrap();
        let info = run(&qimg, &scratch, &["info", "-f", "qcow2", &name]);
        if info.code != 0 {
            assert!(info.stderr.len() > 20, "{info:?}");
        }
        for text in [&info.stdout, &info.stderr] {
            assert!(!text.contains('\u{1b}'), "a raw escape character: {info:?}");
        }
    }
}
