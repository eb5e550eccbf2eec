//! `qimg stream blocks --apply`: the disk out of a stream, into an image.

use std::{
    fs::{self, File},
    path::Path,
    process::Stdio,
};

use migration::{BlockWriter, StreamWriter};
use qcow2::{
    BackingPolicy, OpenOptions,
    disk::{Disk, RawDisk},
};
use qimg_tests::{Qimg, Run, Scratch, qimg};

use crate::support::{blank, captured, finish, text, unchanged};

const MIB: usize = 1 << 20;

/// `qimg stream blocks --apply IMAGE WORDS`.
fn applied(image: &Path, words: &[&str]) -> Run {
    let qimg: Qimg = qimg!();
    qimg.run(
        ["stream", "blocks", "--apply", text(image)]
            .iter()
            .chain(words),
    )
}

/// What a guest reads.
fn content(image: &Path) -> Vec<u8> {
    let disk: Box<dyn Disk> = match image.extension().is_some_and(|e| e == "raw") {
        true => Box::new(RawDisk::open(image).unwrap()),
        false => {
            let options = OpenOptions::new().backing(BackingPolicy::Follow);
            Box::new(options.open(image).unwrap())
        }
    };
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// Disks of data, zeros, and an end within a block.
fn disks() -> [Vec<u8>; 2] {
    let mut first: Vec<u8> = (0..4 * MIB + 5 * 512)
        .map(|n| (n / 512 + 1) as u8)
        .collect();
    first[MIB..2 * MIB].fill(0);
    let mut second = vec![0; 3 * MIB];
    second[2 * MIB..].fill(9);
    [first, second]
}

/// A stream with two disks, the first of them sent twice, once as it was before.
fn stream(disks: &[Vec<u8>; 2]) -> Vec<u8> {
    let mut writer = StreamWriter::new(Vec::new(), "").unwrap();
    let total = disks.iter().map(|disk| disk.len() as u64).sum();
    let mut blocks = BlockWriter::begin(&mut writer, 3, total).unwrap();
    let before = vec![0xee; disks[0].len()];
    for (device, disk) in [("a", &before), ("a", &disks[0]), ("b", &disks[1])] {
        let len = disk.len() as u64;
        blocks
            .disk(&mut writer, device, &mut &disk[..], len)
            .unwrap();
    }
    blocks.end(&mut writer).unwrap();
    writer.finish(false).unwrap()
}

#[test]
fn the_disk_of_a_capture() {
    let scratch = Scratch::new();
    let stream = captured("31-old-block.stream");
    let truth = content(&captured("31-old-block.n0.qcow2"));
    let image = blank(&scratch, "disk.qcow2", truth.len() as u64);
    qimg!().bitmap(&["--add", "-g", "64k"], &image, "b");
    let run = applied(&image, &[text(&stream)]).ok();
    let said = "1 MiB of data and 1 zero block of 'drive-n0' were written to";
    assert!(run.stdout.starts_with(said), "{run:?}");
    assert!(content(&image) == truth);
    // The whole disk was written, and that is recorded.
    let all = 0..truth.len() as u64;
    assert_eq!(qimg!().dirty(&image, "b"), vec![all]);
    assert_eq!(qimg!().dump(&image, "b")["state"], "recording");
    qimg!().run(["check", text(&image)]).ok();
}

#[test]
fn each_kind_of_image_from_a_file_and_from_a_pipe() {
    let scratch = Scratch::new();
    let disks = disks();
    let file = scratch.path("vm.stream");
    fs::write(&file, stream(&disks)).unwrap();
    for (device, disk) in [("a", &disks[0]), ("b", &disks[1])] {
        let size = disk.len() as u64;
        let raw = scratch.path("disk.raw");
        fs::write(&raw, vec![0x55; disk.len()]).unwrap();
        let plain = blank(&scratch, "plain.qcow2", size);
        // Clusters larger than a block, over another disk.
        let base = scratch.path("base.raw");
        fs::write(&base, vec![0x66; disk.len()]).unwrap();
        let overlay = scratch.path("overlay.qcow2");
        let options = "cluster_size=2M,backing_file=base.raw,backing_fmt=raw";
        let size = size.to_string();
        let words = [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            options,
            text(&overlay),
            &size,
        ];
        qimg!().run(words).ok();
        for image in [&raw, &plain, &overlay] {
            let original = fs::read(image).unwrap();
            for piped in [false, true] {
                fs::write(image, &original).unwrap();
                let run = if piped {
                    let mut cat = std::process::Command::new("cat")
                        .arg(&file)
                        .stdout(Stdio::piped())
                        .spawn()
                        .unwrap();
                    let mut command = qimg!().command();
                    command.args(["stream", "blocks", "--device", device, "--apply"]);
                    command
                        .args([text(image), "-"])
                        .stdin(cat.stdout.take().unwrap());
                    let run = finish(&mut command);
                    cat.wait().unwrap();
                    run
                } else {
                    applied(image, &["--device", device, text(&file)])
                };
                let run = run.ok();
                assert!(
                    run.stdout.contains(&format!("of '{device}' were")),
                    "{run:?}"
                );
                assert!(content(image) == *disk, "{}", image.display());
            }
        }
        for image in [&plain, &overlay] {
            qimg!().run(["check", text(image)]).ok();
        }
        assert_eq!(fs::read(&base).unwrap(), vec![0x66; disk.len()]);
        for file in [raw, plain, base, overlay] {
            fs::remove_file(file).unwrap();
        }
    }
}

/// What is wrong with the end of a stream keeps its beginning from being written.
#[test]
fn nothing_is_written_of_what_is_not_whole() {
    let scratch = Scratch::new();
    let disks = disks();
    let whole = stream(&disks);
    let image = blank(&scratch, "disk.qcow2", disks[0].len() as u64);
    qimg!().bitmap(&["--add"], &image, "b");
    let locked = blank(&scratch, "locked.qcow2", 5 << 20);
    let writer = OpenOptions::new().writable(true).open(&locked).unwrap();
    let file = scratch.path("cut.stream");
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 0x10;
    for bytes in [
        &whole[..whole.len() - 1],
        &whole[..whole.len() / 2],
        &damaged[..],
        &[],
    ] {
        fs::write(&file, bytes).unwrap();
        unchanged(&[&image], || {
            applied(&image, &["--device", "a", text(&file)]).code(1);
            let mut command = qimg!().command();
            command.args(["stream", "blocks", "--device", "a", "--apply"]);
            command.args([text(&image), "-"]);
            finish(command.stdin(File::open(&file).unwrap())).code(1)
        });
    }
    fs::write(&file, &whole).unwrap();
    unchanged(&[&locked, &image], || {
        let run = applied(&locked, &["--device", "a", text(&file)]).code(1);
        assert!(run.stderr.contains("lock"), "{run:?}");
        applied(&image, &[text(&file)]).code(1)
    });
    drop(writer);
    applied(&image, &["--device", "a", text(&file)]).ok();
}
