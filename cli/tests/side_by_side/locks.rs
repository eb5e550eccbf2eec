//! An image that another process is writing.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use crate::pair::{Pair, find};

/// A process that has the image open for writing until it is dropped.
struct Writer(Child);

impl Writer {
    fn of(pair: &Pair, image: &str) -> Option<Self> {
        let Some(qemu_io) = find("qemu-io") else {
            eprintln!("SKIPPED: qemu-io is not in $PATH");
            return None;
        };
        let mut child = Command::new(qemu_io)
            .args(["-f", "qcow2", image])
            .current_dir(pair.work())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It answers once the image is open.
        let stdin = child.stdin.as_mut().unwrap();
        stdin.write_all(b"write -P 1 0 64k\n").unwrap();
        stdin.flush().unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("wrote")));
        Some(Self(child))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_writer_is_noticed_by_all_but_those_who_share() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "busy.qcow2", "1M"]);
    pair.make(&["bitmap", "--add", "busy.qcow2", "b0"]);
    let Some(writer) = Writer::of(&pair, "busy.qcow2") else {
        return;
    };
    for line in [
        "info busy.qcow2",
        "info --backing-chain --output=json busy.qcow2",
        "check busy.qcow2",
        "bitmap --add busy.qcow2 b1",
        "create -q busy.qcow2 1M",
        "create -q -f qcow2 busy.qcow2 1M",
        "create -q -f qcow2 -b busy.qcow2 -F qcow2 over.qcow2",
        "info -U busy.qcow2",
        "info -U --output=json busy.qcow2",
        "info --image-opts driver=qcow2,force-share=on,file.filename=busy.qcow2",
    ] {
        pair.same_line(line);
    }
    drop(writer);
    pair.finish();
}
