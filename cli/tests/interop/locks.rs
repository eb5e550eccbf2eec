//! A running storage daemon holds the image: we don't write it, and say so; QEMU's
//! own tool says the same.

use std::{fs, path::Path};

use qimg_tests::{
    Qsd, Run, Scratch, qemu_img::create, qemu_img::qemu_img, qimg, require::have_qemu,
};

fn args<'a>(words: &[&'a str], image: &'a str, name: &'a str) -> Vec<&'a str> {
    let mut args = words.to_vec();
    args.extend([image, name]);
    args.retain(|arg| !arg.is_empty());
    args
}

fn first_line(run: &Run) -> String {
    let line = run.stderr.lines().next().unwrap_or_default();
    line.replace("qemu-img: ", "").replace("qimg: ", "")
}

/// The first line less the name of the holder, which QEMU does not know.
fn without_holder(run: &Run) -> String {
    let line = first_line(run);
    match line.split_once(" (held by") {
        Some((before, _)) => before.to_owned(),
        None => line,
    }
}

/// An image with the bitmap `b`, and a daemon that has it open.
fn held(image: &Path, read_only: bool) -> Qsd {
    create(image, "8M", "");
    qimg_tests::qemu_img::bitmap(&["--add"], image, "b");
    if read_only {
        return Qsd::open_read_only(image);
    }
    Qsd::open(image)
}

#[test]
fn an_image_that_a_writer_holds_is_neither_written_nor_read_unasked() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.path("held.qcow2");
    let qsd = held(&image, false);
    let before = fs::read(&image).unwrap();
    let path = image.display().to_string();
    for (words, name) in [
        (&["bitmap", "--add"][..], "new"),
        (&["bitmap", "--clear"], "b"),
        (&["bitmap", "--remove"], "b"),
        (&["check"], ""),
        (&["info"], ""),
    ] {
        let ours = qimg!().run(args(words, &path, name)).code(1);
        let theirs = qemu_img(args(words, &path, name)).code(1);
        assert!(ours.stderr.contains("lock"), "{ours:?}");
        assert_eq!(without_holder(&ours), first_line(&theirs), "{words:?}");
        // Ours also says who it is.
        assert!(
            ours.stderr.contains(&format!("pid {}", qsd.pid())),
            "{ours:?}"
        );
    }
    for words in [&["bitmap", "--list"][..], &["bitmap", "--dump"]] {
        let name = if words.contains(&"--dump") { "b" } else { "" };
        let ours = qimg!().run(args(words, &path, name)).code(1);
        assert!(ours.stderr.contains("lock"), "{ours:?}");
    }
    assert!(before == fs::read(&image).unwrap());
    qsd.quit();
    qimg!().bitmap(&["--add"], &image, "new");
}

#[test]
fn with_force_share_a_held_image_is_read_and_its_bitmaps_are_live() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.path("held.qcow2");
    let qsd = held(&image, false);
    let path = image.display().to_string();
    let dump = qimg!()
        .run(["bitmap", "--dump", "--output=json", "-U", &path, "b"])
        .ok()
        .json();
    assert_eq!(dump["state"], "live");
    assert_eq!(dump["virtual-size"], 8 << 20);
    let list = qimg!().run(["bitmap", "--list", "-U", &path]).ok();
    assert!(list.stdout.contains("live"), "{list:?}");
    qimg!().run(["info", "-U", &path]).ok();
    qsd.kill();
    // The same bytes without a holder: a crash.
    let list = qimg!().run(["bitmap", "--list", &path]).ok();
    assert!(list.stdout.contains("inconsistent"), "{list:?}");
}

#[test]
fn a_reader_does_not_keep_us_from_reading_but_from_writing() {
    if !have_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.path("read.qcow2");
    let qsd = held(&image, true);
    let path = image.display().to_string();
    qimg!().run(["info", &path]).ok();
    qimg!().run(["check", &path]).ok();
    qimg!().run(["bitmap", "--dump", &path, "b"]).ok();
    let before = fs::read(&image).unwrap();
    let ours = qimg!().run(["bitmap", "--add", &path, "new"]).code(1);
    let theirs = qemu_img(["bitmap", "--add", &path, "new"]).code(1);
    assert_eq!(without_holder(&ours), first_line(&theirs));
    assert!(before == fs::read(&image).unwrap());
    qsd.quit();
}
