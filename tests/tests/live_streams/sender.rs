//! [`Sender`] into QEMU.

use std::{os::unix::net::UnixStream, sync::Mutex};

use hbitmap::DirtyBitmap;
use migration::{Design, Outgoing, Sender, SenderOptions};
use qimg_tests::{
    QemuSystem, Qsd, Scratch, qemu_img::create, require::have_qemu_system, testdata::BitmapTruth,
};

use crate::{assert_same, bits, digest};

const DISK: u64 = (64 << 20) + 512;

/// Two bitmaps: one of many chunks that records, one that doesn't.
fn bitmaps() -> [Mutex<DirtyBitmap>; 2] {
    let fine: Vec<_> = (0..500).map(|n| (n * 131_072, 512 + n % 5 * 512)).collect();
    let mut fine = DirtyBitmap::new("fine", bits(DISK, 512, &fine));
    let mut coarse = DirtyBitmap::new("coarse", bits(DISK, 1 << 20, &[(DISK - 512, 512)]));
    coarse.disable().unwrap();
    for bitmap in [&mut fine, &mut coarse] {
        bitmap.set_persistent(true);
    }
    [Mutex::new(fine), Mutex::new(coarse)]
}

fn outgoing(bitmaps: &[Mutex<DirtyBitmap>; 2]) -> Vec<Outgoing<&Mutex<DirtyBitmap>>> {
    bitmaps
        .iter()
        .map(|source| {
            let name = source.lock().unwrap().name().to_owned();
            Outgoing::new("disk", name, source)
        })
        .collect()
}

/// A QEMU that listens, and our end of the socket.
fn listening(scratch: &Scratch, machine: &str) -> (QemuSystem, UnixStream) {
    let image = scratch.path("disk.qcow2");
    create(&image, &DISK.to_string(), "");
    let mut qemu = QemuSystem::machine(machine)
        .node("disk", &image)
        .args(&["-incoming", "defer"])
        .start();
    let socket = scratch.path("migration.sock");
    qemu.incoming(&format!("unix:{}", socket.display()));
    let stream = UnixStream::connect(socket).unwrap();
    (qemu, stream)
}

fn options(design: Design) -> SenderOptions {
    SenderOptions {
        design,
        describe: design == Design::Precopy,
        ..SenderOptions::default()
    }
}

fn stored(scratch: &Scratch) -> Vec<BitmapTruth> {
    let mut qsd = Qsd::open_read_only(&scratch.path("disk.qcow2"));
    let truth = qsd.truth();
    qsd.quit();
    truth
}

/// Passes with sets and resets between them: QEMU takes a chunk again and again, and the
/// last one counts.
#[test]
fn precopy_in_passes() {
    if !have_qemu_system() {
        return;
    }
    for machine in ["none", "pc", "q35"] {
        let scratch = Scratch::new();
        let bitmaps = bitmaps();
        let (mut qemu, socket) = listening(&scratch, machine);
        let mut sender =
            Sender::begin(socket, outgoing(&bitmaps), options(Design::Precopy)).unwrap();
        let mut passes = 0;
        while sender.pass(4096).unwrap().chunks > 6 {
            passes += 1;
            let mut fine = bitmaps[0].lock().unwrap();
            fine.record(passes * 3_000_000..passes * 3_000_000 + 512);
            assert!(passes < 100, "it never ends");
        }
        assert!(passes > 2, "too few passes to mean anything: {passes}");
        bitmaps[0].lock().unwrap().record(0..DISK / 4);
        sender.complete().unwrap();
        assert_eq!(qemu.wait_migrated(), Ok(()));
        qemu.cont();
        let live = qemu.bitmaps("disk");
        let [fine, coarse] = bitmaps.map(|b| b.into_inner().unwrap());
        assert_eq!(live.len(), 2);
        assert_same(&live[0], coarse.bits());
        assert_same(&live[1], fine.bits());
        assert_eq!(live[0].truth.state, "disabled");
        assert_eq!(live[1].truth.state, "recording");
        assert_eq!(qemu.quit(), "");
        let stored = stored(&scratch);
        assert_eq!(stored[0].sha256, digest(coarse.bits()));
        assert_eq!(stored[1].sha256, digest(fine.bits()));
    }
}

/// QEMU has the machine, writes, and gets the bits afterwards: it has both in the end.
#[test]
fn postcopy_with_writes_over_there() {
    if !have_qemu_system() {
        return;
    }
    for machine in ["none", "pc"] {
        let scratch = Scratch::new();
        let bitmaps = bitmaps();
        let (mut qemu, socket) = listening(&scratch, machine);
        let mut sender =
            Sender::begin(socket, outgoing(&bitmaps), options(Design::Postcopy)).unwrap();
        sender.switch_over().unwrap();
        // It takes over as soon as the package is there.
        for _ in 0..500 {
            let status = qemu.qmp("query-migrate", serde_json::json!({}));
            if status["status"] == "postcopy-active" {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        qemu.cont();
        qemu.write("disk", 40_000_000, 65536);
        sender.complete().unwrap();
        assert_eq!(qemu.wait_migrated(), Ok(()));
        let live = qemu.bitmaps("disk");
        let [mut fine, coarse] = bitmaps.map(|b| b.into_inner().unwrap());
        fine.record(40_000_000 / 512 * 512..40_000_000 + 65536);
        assert_same(&live[0], coarse.bits());
        assert_same(&live[1], fine.bits());
        assert!(live.iter().all(|b| !b.busy));
        qemu.quit();
        assert_eq!(stored(&scratch)[1].sha256, digest(fine.bits()));
    }
}

/// A stream that is given up leaves the bitmaps here as they were, and none over there.
#[test]
fn cancelled() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let bitmaps = bitmaps();
    let before = digest(bitmaps[0].lock().unwrap().bits());
    let (mut qemu, socket) = listening(&scratch, "none");
    let mut sender = Sender::begin(socket, outgoing(&bitmaps), options(Design::Precopy)).unwrap();
    sender.pass(u64::MAX).unwrap();
    sender.cancel();
    assert!(qemu.wait_migrated().is_err());
    let fine = bitmaps[0].lock().unwrap();
    assert!(!fine.is_busy());
    assert_eq!(digest(fine.bits()), before);
    drop(qemu);
    assert_eq!(stored(&scratch), []);
}
