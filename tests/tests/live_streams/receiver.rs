//! QEMU into [`Receiver`].

use std::{
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::Mutex,
    thread,
};

use hbitmap::State;
use migration::{AliasMap, Limits, Node, Receiver, StreamReader};
use qimg_tests::{QemuSystem, Scratch, qemu_img::create, require::have_qemu_system};

use crate::{bits, digest};

const DISK: u64 = 64 << 20;

/// A QEMU with a disk and two bitmaps that saw writes; it runs.
fn source(scratch: &Scratch, machine: &str) -> QemuSystem {
    let image = scratch.path("disk.qcow2");
    create(&image, &DISK.to_string(), "");
    let mut qemu = QemuSystem::machine(machine).node("disk", &image).start();
    qemu.add_bitmap("disk", "fine", 512, true, true);
    qemu.write("disk", 1 << 20, 1 << 20);
    qemu.add_bitmap("disk", "frozen", 65536, false, false);
    qemu.capabilities(&[]);
    qemu.cont();
    qemu
}

fn receiver() -> Mutex<Receiver> {
    let node = Node::new("disk", DISK);
    let map = AliasMap::identity();
    Mutex::new(Receiver::new(vec![node], map, Limits::default()))
}

fn listen(scratch: &Scratch) -> (UnixListener, PathBuf) {
    let path = scratch.path("migration.sock");
    (UnixListener::bind(&path).unwrap(), path)
}

#[test]
fn precopy_of_a_running_machine() {
    if !have_qemu_system() {
        return;
    }
    for machine in ["none", "pc", "q35"] {
        let scratch = Scratch::new();
        let mut qemu = source(&scratch, machine);
        let (listener, path) = listen(&scratch);
        let receiver = receiver();
        thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                let mut stream = StreamReader::new(listener.accept().unwrap().0);
                Receiver::receive_shared(&receiver, &mut stream)
            });
            qemu.begin_migration(&format!("unix:{}", path.display()), 1);
            let writes = (0..20_u64)
                .map(|n| (n * (3 << 20), 4096))
                .map(|(at, len)| at..at + len);
            for write in writes.clone() {
                qemu.write("disk", write.start, 4096);
            }
            // They are busy now: a digest is all that QEMU tells of them.
            let live = qemu.bitmaps("disk");
            qemu.let_it_end();
            assert_eq!(qemu.wait_migrated(), Ok(()));
            receiving.join().unwrap().unwrap();
            let outcome = std::mem::replace(
                &mut *receiver.lock().unwrap(),
                Receiver::survey(Limits::default()),
            )
            .finish();
            assert!(outcome.whole && !outcome.switched_over);
            assert_eq!(outcome.lost, []);
            assert_eq!(outcome.complete.len(), 2);
            for received in outcome.complete {
                let name = received.bitmap.name();
                let live = live.iter().find(|b| b.truth.name == name).unwrap();
                let mut expected = bits(DISK, live.truth.granularity, &[]);
                if name == "fine" {
                    expected.set(1 << 20..2 << 20);
                    writes.clone().for_each(|write| {
                        expected.set(write);
                    });
                }
                assert_eq!(received.bitmap.bits(), &expected, "{name}");
                assert_eq!(digest(&expected), live.truth.sha256, "{name}");
                assert_eq!(received.persistent, live.persistent);
                assert!(!received.bitmap.is_busy());
                let recording = received.bitmap.state() == State::Recording;
                assert_eq!(recording, live.truth.state == "recording");
            }
        });
        qemu.quit();
    }
}

/// After the switch-over the writes are ours, and what was recorded of them is kept.
#[test]
fn postcopy_with_writes_here() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let mut qemu = source(&scratch, "none");
    let (listener, path) = listen(&scratch);
    let receiver = receiver();
    let live = qemu.bitmaps("disk");
    qemu.begin_migration(&format!("unix:{}", path.display()), 1);
    let socket = listener.accept().unwrap().0;
    thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut stream = StreamReader::new(socket);
            Receiver::receive_shared(&receiver, &mut stream)
        });
        qemu.start_postcopy();
        while !receiver.lock().unwrap().switched_over() {
            thread::yield_now();
        }
        let write = 50 << 20..(50 << 20) + 4096;
        receiver
            .lock()
            .unwrap()
            .record("disk", write.clone())
            .unwrap();
        assert_eq!(qemu.wait_migrated(), Ok(()));
        receiving.join().unwrap().unwrap();
        let outcome = std::mem::replace(
            &mut *receiver.lock().unwrap(),
            Receiver::survey(Limits::default()),
        )
        .finish();
        assert!(outcome.whole && outcome.switched_over);
        assert_eq!((outcome.lost.len(), outcome.complete.len()), (0, 2));
        for received in outcome.complete {
            let name = received.bitmap.name();
            let live = live.iter().find(|b| b.truth.name == name).unwrap();
            let mut expected = bits(DISK, live.truth.granularity, &[]);
            for range in &live.truth.ranges {
                expected.set(range.clone());
            }
            if live.truth.state == "recording" {
                expected.set(write.clone());
            }
            assert_eq!(received.bitmap.bits(), &expected, "{name}");
        }
    });
    qemu.quit();
}

/// The source dies in the middle: nothing is complete, and that is said of each bitmap.
#[test]
fn a_source_that_dies() {
    if !have_qemu_system() {
        return;
    }
    let scratch = Scratch::new();
    let mut qemu = source(&scratch, "none");
    let (listener, path) = listen(&scratch);
    qemu.begin_migration(&format!("unix:{}", path.display()), 1);
    let socket: UnixStream = listener.accept().unwrap().0;
    let receiver = receiver();
    thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut stream = StreamReader::new(&socket);
            Receiver::receive_shared(&receiver, &mut stream)
        });
        while receiver.lock().unwrap().unfinished() < 2 {
            thread::yield_now();
        }
        drop(qemu);
        assert!(receiving.join().unwrap().is_err());
    });
    let _ = socket.shutdown(Shutdown::Both);
    let outcome = receiver.into_inner().unwrap().finish();
    assert!(!outcome.whole);
    assert_eq!((outcome.lost.len(), outcome.complete.len()), (2, 0));
}
