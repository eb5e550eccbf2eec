use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::*;
use crate::io::{Access, FileStorage};

/// False, with the reason printed, where QEMU's tools aren't installed; a failure
/// if they are required.
fn have(tool: &str) -> bool {
    if Command::new(tool).arg("--version").output().is_ok() {
        return true;
    }
    assert!(
        std::env::var_os("QIMG_REQUIRE_QEMU").is_none_or(|v| v != "1"),
        "{tool} is missing"
    );
    eprintln!("skipped: {tool} is not installed");
    false
}

/// One test at a time: between a fork and its exec the child has our descriptors,
/// and so our locks, too.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Scratch {
    _dir: tempfile::TempDir,
    image: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("a.qcow2");
        let made = qemu_img(&["create", "-q", "-f", "qcow2"], &image, &["1M"]);
        assert!(made.status.success());
        Self { _dir: dir, image }
    }

    fn open(&self, mode: LockMode) -> Result<FileStorage> {
        FileStorage::open(&self.image, Access::ReadWrite, mode)
    }
}

fn qemu_img(before: &[&str], image: &Path, after: &[&str]) -> Output {
    Command::new("qemu-img")
        .args(before)
        .arg(image)
        .args(after)
        .output()
        .unwrap()
}

/// A qemu-io that has the image open until dropped.
struct Holder(Child);

impl Holder {
    fn start(image: &Path, options: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(options)
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The prompt comes when the image is open.
        let mut prompt = [0; 9];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut prompt)
            .unwrap();
        assert_eq!(&prompt, b"qemu-io> ");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"quit\n").ok();
        self.0.wait().ok();
    }
}

fn permission(result: Result<FileStorage>, holder_name: &str) -> String {
    match result.unwrap_err() {
        Error::Locked { permission, holder } => {
            let holder = holder.expect("the holder runs under the same user");
            assert!(
                holder.starts_with("pid ") && holder.contains(holder_name),
                "{holder}"
            );
            permission
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_of_every_use() {
    let bytes = |mode: LockMode| {
        (
            mode.held().collect::<Vec<_>>(),
            mode.tested().collect::<Vec<_>>(),
        )
    };
    assert_eq!(bytes(LockMode::None), (vec![], vec![]));
    assert_eq!(bytes(LockMode::Info), (vec![201, 203], vec![101, 103]));
    assert_eq!(
        bytes(LockMode::Read),
        (vec![100, 201, 203], vec![200, 101, 103])
    );
    assert_eq!(
        bytes(LockMode::ReadWrite),
        (vec![100, 101, 103, 201, 203], vec![200, 201, 203, 101, 103])
    );
    assert_eq!(
        bytes(LockMode::Create),
        (vec![101, 103, 203], vec![201, 203, 103])
    );
}

#[test]
fn a_writing_qemu_is_respected_and_named() {
    let _alone = alone();
    if !have("qemu-io") {
        return;
    }
    let scratch = Scratch::new();
    let holder = Holder::start(&scratch.image, &[]);
    for (mode, expected) in [
        (LockMode::Info, r#"shared "write""#),
        (LockMode::Read, r#"shared "write""#),
        (LockMode::ReadWrite, r#""write""#),
        (LockMode::Create, r#""write""#),
    ] {
        assert_eq!(
            permission(scratch.open(mode), "qemu-io"),
            expected,
            "{mode:?}"
        );
    }
    let unlocked = scratch.open(LockMode::None).unwrap();
    assert_eq!(unlocked.locking(), Locking::NotAsked);
    assert!(unlocked.writer_present().unwrap());
    let id = holder.0.id();
    let Err(Error::Locked { holder: named, .. }) = scratch.open(LockMode::ReadWrite) else {
        panic!("not locked");
    };
    let named = named.unwrap();
    assert!(named.starts_with(&format!("pid {id} (")), "{named}");
    drop(holder);
    assert!(!unlocked.writer_present().unwrap());
    assert_eq!(
        scratch.open(LockMode::ReadWrite).unwrap().locking(),
        Locking::Held
    );
}

#[test]
fn a_reading_qemu_lets_readers_in_and_keeps_writers_out() {
    let _alone = alone();
    if !have("qemu-io") {
        return;
    }
    let scratch = Scratch::new();
    let _holder = Holder::start(&scratch.image, &["-r"]);
    scratch.open(LockMode::Info).unwrap();
    let reader = scratch.open(LockMode::Read).unwrap();
    assert!(!reader.writer_present().unwrap());
    drop(reader);
    assert_eq!(
        permission(scratch.open(LockMode::ReadWrite), "qemu-io"),
        r#""write""#
    );
    assert_eq!(
        permission(scratch.open(LockMode::Create), "qemu-io"),
        r#""write""#
    );
}

#[test]
fn a_storage_daemon_s_writable_export_is_seen() {
    let _alone = alone();
    if !have("qemu-storage-daemon") {
        return;
    }
    let scratch = Scratch::new();
    let dir = scratch.image.parent().unwrap();
    let pid_file = dir.join("pid");
    let mut daemon = Command::new("qemu-storage-daemon")
        .arg("--blockdev")
        .arg(format!(
            "driver=qcow2,node-name=n,file.driver=file,file.filename={}",
            scratch.image.display()
        ))
        .arg("--nbd-server")
        .arg(format!(
            "addr.type=unix,addr.path={}",
            dir.join("nbd").display()
        ))
        .args(["--export", "type=nbd,id=e,node-name=n,writable=on"])
        .arg("--pidfile")
        .arg(&pid_file)
        .spawn()
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(30);
    while !pid_file.exists() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    let seen = scratch
        .open(LockMode::None)
        .unwrap()
        .writer_present()
        .unwrap();
    let info = scratch.open(LockMode::Info);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(seen);
    assert_eq!(
        info.unwrap_err().to_string().split(" (").next(),
        Some("Failed to get shared \"write\" lock")
    );
}

#[test]
fn qemu_respects_our_locks_as_it_does_its_own() {
    let _alone = alone();
    if !have("qemu-img") {
        return;
    }
    let scratch = Scratch::new();
    let image = &scratch.image;
    let run = |what: &str| match what {
        "info" => qemu_img(&["info"], image, &[]),
        "check" => qemu_img(&["check"], image, &[]),
        "write" => qemu_img(&["resize", "-q"], image, &["1M"]),
        _ => qemu_img(&["create", "-q", "-f", "qcow2"], image, &["1M"]),
    };
    let read_only = [None, None, Some("\"write\""), Some("\"write\"")];
    let shared = Some("shared \"write\"");
    let writing = [shared, shared, Some("\"write\""), Some("\"write\"")];
    let creating = [shared, shared, Some("\"resize\""), Some("\"resize\"")];
    for (mode, expected) in [
        (LockMode::None, [None; 4]),
        (LockMode::Info, read_only),
        (LockMode::Read, read_only),
        (LockMode::ReadWrite, writing),
        (LockMode::Create, creating),
    ] {
        let ours = scratch.open(mode).unwrap();
        for (what, expected) in ["info", "check", "write", "create"]
            .into_iter()
            .zip(expected)
        {
            let output = run(what);
            let text = String::from_utf8(output.stderr).unwrap();
            match expected {
                None => assert!(output.status.success(), "{mode:?} {what}: {text}"),
                Some(p) => assert!(
                    text.contains(&format!("Failed to get {p} lock")),
                    "{mode:?} {what}: {text}"
                ),
            }
        }
        drop(ours);
    }
}

#[test]
fn two_of_our_own_exclude_each_other_by_the_same_table() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, b"").unwrap();
    use LockMode::{Create, Info, None, Read, ReadWrite};
    for (first, second, fits) in [
        (Info, Info, true),
        (Info, Read, true),
        (Read, Read, true),
        (Read, ReadWrite, false),
        (ReadWrite, Info, false),
        (ReadWrite, ReadWrite, false),
        (Info, ReadWrite, false),
        (Create, Info, false),
        (Create, Create, false),
        (ReadWrite, None, true),
    ] {
        let _first = FileStorage::open(&path, Access::ReadWrite, first).unwrap();
        let second_one = FileStorage::open(&path, Access::ReadWrite, second);
        assert_eq!(second_one.is_ok(), fits, "{first:?} then {second:?}");
    }
}

#[test]
fn a_failed_change_leaves_the_locks_as_they_were() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, b"").unwrap();
    let open = |mode| FileStorage::open(&path, Access::ReadWrite, mode);
    let a = open(LockMode::Read).unwrap();
    let b = open(LockMode::Read).unwrap();
    assert!(matches!(
        a.relock(LockMode::ReadWrite),
        Err(Error::Locked { .. })
    ));
    // Still a reader: another reader fits, a writer doesn't.
    drop(b);
    drop(open(LockMode::Read).unwrap());
    assert!(open(LockMode::ReadWrite).is_err());
    // Now alone.
    a.relock(LockMode::ReadWrite).unwrap();
    assert!(open(LockMode::Info).is_err());
    a.relock(LockMode::Info).unwrap();
    drop(open(LockMode::Read).unwrap());
    assert!(open(LockMode::ReadWrite).is_err());
    a.relock(LockMode::None).unwrap();
    drop(open(LockMode::ReadWrite).unwrap());
}
