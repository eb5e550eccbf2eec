//! The same command line, ours and qemu-img's, on copies of one image: the same exit
//! code, the same message, and bitmaps that QEMU finds to be the same.

use std::{fs, path::Path};

use qimg_tests::{
    Qimg, Qsd, Run, Scratch,
    qemu_img::{assert_clean, create, qemu_img},
    qimg,
    require::have_qemu,
    testdata::BitmapTruth,
};

use crate::layouts::{Numbers, guest_writes};

fn truth(image: &Path) -> Vec<BitmapTruth> {
    let mut qsd = Qsd::open_read_only(image);
    let truth = qsd.truth();
    qsd.quit();
    truth
}

/// An image with three bitmaps that saw different writes, and its copy.
fn twins(scratch: &Scratch, seed: u64) -> [std::path::PathBuf; 2] {
    let (a, b) = (scratch.path("a.qcow2"), scratch.path("b.qcow2"));
    create(&a, "12M", "cluster_size=4k");
    let mut qsd = Qsd::open(&a);
    qsd.add_bitmap("one", 4096, false);
    guest_writes(&mut qsd, &mut Numbers::new(seed), 6);
    qsd.add_bitmap("two", 65536, false);
    guest_writes(&mut qsd, &mut Numbers::new(seed + 1), 6);
    qsd.add_bitmap("three", 512, true);
    qsd.quit();
    fs::copy(&a, &b).unwrap();
    [a, b]
}

/// `bitmap ACTIONS IMAGE NAME` by both; they must end alike and say the same.
#[track_caller]
fn both(qimg: &Qimg, images: &[std::path::PathBuf; 2], actions: &[&str], name: &str) -> Run {
    let args = |image: &Path| {
        let mut args = vec!["bitmap".to_owned()];
        args.extend(actions.iter().map(ToString::to_string));
        args.extend([image.display().to_string(), name.to_owned()]);
        args
    };
    let ours = qimg.run(args(&images[0]));
    let theirs = qemu_img(args(&images[1]));
    let said = |run: &Run, tool: &str, image: &Path| {
        let said = run.stderr.replace(&format!("{tool}: "), "");
        without_node(&said.replace(&image.display().to_string(), "IMAGE"))
    };
    assert_eq!(ours.code, theirs.code, "{ours:?}\n{theirs:?}");
    assert_eq!(
        said(&ours, "qimg", &images[0]),
        said(&theirs, "qemu-img", &images[1]),
        "{actions:?} {name}"
    );
    assert_eq!(ours.stdout, theirs.stdout);
    ours
}

/// QEMU names its nodes by numbers of its own, `'#block123'`, sometimes without the
/// quotes, where we name the image.
fn without_node(said: &str) -> String {
    let said = said.replace("'IMAGE'", "IMAGE");
    match said.split_once("#block") {
        Some((before, after)) => {
            let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
            let (before, after) = match before.strip_suffix('\'') {
                Some(before) => (before, after.trim_start_matches('\'')),
                None => (before, after),
            };
            format!("{before}IMAGE{after}")
        }
        None => said,
    }
}

#[test]
fn random_commands_give_what_qemu_img_gives() {
    if !have_qemu() {
        return;
    }
    let qimg = qimg!();
    for seed in 0..4 {
        let scratch = Scratch::new();
        let images = twins(&scratch, seed);
        let mut numbers = Numbers::new(100 + seed);
        for _ in 0..25 {
            let names = ["one", "two", "three", "four", "missing"];
            let pick = |numbers: &mut Numbers| names[numbers.below(5) as usize];
            let (name, source) = (pick(&mut numbers), pick(&mut numbers));
            // One action a command: where it fails, qemu-img leaves no half either.
            let actions: Vec<&str> = match numbers.below(9) {
                0 => vec!["--add"],
                1 => vec!["--add", "-g", "2k"],
                2 => vec!["--remove"],
                3 => vec!["--clear"],
                4 => vec!["--enable"],
                5 => vec!["--disable"],
                _ => vec!["--merge", source],
            };
            both(&qimg, &images, &actions, name);
            assert_clean(&images[0]);
        }
        assert_eq!(truth(&images[0]), truth(&images[1]), "seed {seed}");
    }
}

#[test]
fn faults_have_qemu_imgs_words() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let images = twins(&scratch, 50);
    for (actions, name) in [
        (&["--add"][..], "one"),
        (&["--add", "-g", "1000"], "new"),
        (&["--add", "-g", "256"], "new"),
        (&["--add", "-g", "4G"], "new"),
        (&["--add", "-g", "nonsense"], "new"),
        (&["--add"], ""),
        (&["--remove"], "missing"),
        (&["--clear"], "missing"),
        (&["--enable"], "missing"),
        (&["--disable"], "missing"),
        (&["--merge", "missing"], "one"),
        (&["--merge", "one"], "missing"),
        (&[], "one"),
        (&["-g", "64k", "--clear"], "one"),
        (&["--merge", "one", "-F", "qcow2"], "two"),
        (&["--merge", "one", "-b", "/no/such/image"], "two"),
        (&["--clear", "-b", "/no/such/image"], "two"),
    ] {
        let before = fs::read(&images[0]).unwrap();
        let run = both(&qimg, &images, actions, name);
        assert_eq!(run.code, 1, "{actions:?} {name}");
        assert!(
            before == fs::read(&images[0]).unwrap(),
            "{actions:?} {name} changed the image"
        );
    }
}

#[test]
fn a_failing_action_leaves_the_image_as_it_was() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    let [image, _] = twins(&scratch, 60);
    let before = fs::read(&image).unwrap();
    for actions in [
        &["--add", "--merge", "missing"][..],
        &["--add", "--merge", "one", "--merge", "missing"],
        &["--add", "-g", "4k", "--disable", "--merge", "missing"],
    ] {
        let mut args = vec!["bitmap"];
        args.extend(actions);
        let path = image.display().to_string();
        args.extend([path.as_str(), "new"]);
        qimg.run(args).code(1);
        assert!(before == fs::read(&image).unwrap(), "{actions:?}");
    }
}

#[test]
fn images_that_cannot_hold_bitmaps_are_refused_in_the_same_words() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    for (name, options, format) in [("v2", "compat=0.10", "qcow2"), ("raw", "", "raw")] {
        let images = ["a", "b"].map(|twin| scratch.path(&format!("{name}-{twin}")));
        for image in &images {
            if format == "raw" {
                fs::write(image, vec![0; 1 << 20]).unwrap();
            } else {
                create(image, "1M", options);
            }
        }
        let before = fs::read(&images[0]).unwrap();
        both(&qimg, &images, &["-f", format, "--add"], "new").code(1);
        assert!(before == fs::read(&images[0]).unwrap(), "{name}");
    }
}
