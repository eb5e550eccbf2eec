//! Bitmaps that QEMU made are dumped with the very ranges that an NBD client sees.

use qimg_tests::{
    Qsd, Scratch, qimg,
    require::have_qemu,
    testdata::{self, recorded},
};

use crate::layouts::{self, Numbers, guest_writes};

/// Needs no QEMU: the truth was recorded when the images were made.
#[test]
fn recorded_images_are_dumped_as_qemu_saw_them() {
    let qimg = qimg!();
    let mut dumped = 0;
    for recorded in recorded() {
        for truth in recorded.bitmaps() {
            if truth.state == "inconsistent" {
                continue;
            }
            let image = &recorded.image;
            assert_eq!(qimg.truth(image, &truth.name), truth, "{}", image.display());
            dumped += 1;
        }
    }
    assert!(dumped > 30, "only {dumped} bitmaps");
}

#[test]
fn bitmaps_in_use_are_never_dumped_as_valid() {
    let image = testdata::qcow2("in-use.qcow2");
    let args = ["bitmap", "--dump", "--output=json"];
    let run = qimg!().run(
        args.map(String::from)
            .into_iter()
            .chain([image.display().to_string(), "since-start".to_owned()]),
    );
    if run.code == 0 {
        assert_eq!(run.json()["state"], "inconsistent", "{run:?}");
    } else {
        assert_eq!(run.code, 1, "{run:?}");
        assert!(run.stderr.contains("in use") || run.stderr.contains("inconsistent"));
    }
}

#[test]
fn bitmaps_behind_a_cleared_autoclear_bit_are_void() {
    let image = testdata::qcow2("autoclear-cleared.qcow2");
    let image = image.display().to_string();
    let run = qimg!().run(["bitmap", "--dump", "--output=json", &image, "since-start"]);
    assert!(
        run.code == 1
            || ["inconsistent", "corrupt"]
                .iter()
                .any(|s| run.json()["state"] == *s),
        "{run:?}"
    );
}

#[test]
fn reading_changes_no_byte() {
    let scratch = Scratch::new();
    let qimg = qimg!();
    for recorded in recorded() {
        let image = scratch.copy(&recorded.image);
        for file in recorded.record["other-files"].as_array().unwrap() {
            let _ = scratch.copy(&testdata::qcow2(file.as_str().unwrap()));
        }
        let before = std::fs::read(&image).unwrap();
        let name = image.file_name().unwrap().to_str().unwrap();
        for verb in [
            &["info"][..],
            &["info", "--output=json", "--backing-chain"],
            &["check"],
            &["check", "--output=json", "--bitmaps"],
            &["bitmap", "--list"],
            &["bitmap", "--list", "--output=json"],
        ] {
            let mut args = verb.to_vec();
            args.push(name);
            let run = qimg.run_in(scratch.dir(), &args);
            assert!([0, 1, 2, 3, 63].contains(&run.code), "{run:?}");
        }
        assert!(before == std::fs::read(&image).unwrap(), "{name} changed");
    }
}

#[test]
fn live_writes_on_every_layout_are_dumped_as_an_nbd_client_sees_them() {
    if !have_qemu() {
        return;
    }
    let (scratch, qimg) = (Scratch::new(), qimg!());
    for (seed, layout) in layouts::all().into_iter().enumerate() {
        let image = layout.create(&scratch);
        let mut numbers = Numbers::new(seed as u64);
        let mut qsd = Qsd::open(&image);
        qsd.add_bitmap("first", 65536, false);
        guest_writes(&mut qsd, &mut numbers, 8);
        qsd.add_bitmap("fine", 512, false);
        qsd.add_bitmap("coarse", 1 << 20, false);
        guest_writes(&mut qsd, &mut numbers, 8);
        qsd.bitmap("disable", "first");
        guest_writes(&mut qsd, &mut numbers, 4);
        qsd.add_bitmap("empty", 4096, true);
        let truth = qsd.truth();
        qsd.quit();
        assert_eq!(truth.len(), 4);
        for bitmap in truth {
            let dumped = qimg.truth(&image, &bitmap.name);
            assert_eq!(dumped, bitmap, "{}", layout.name);
        }
    }
}
