//! Block devices: loop devices with old bytes on them, one for each program. They take
//! root; where there are none the tests say so and pass.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use qimg_tests::require::skipped;

use crate::{images::qemu_io, pair::Pair};

/// There are few loop devices: one test at a time has them.
static DEVICES: Mutex<()> = Mutex::new(());

/// A file as a block device, as long as this value lives.
struct Loop {
    device: PathBuf,
    file: PathBuf,
}

impl Loop {
    fn attach(file: &Path, options: &[&str]) -> Result<Self, String> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(file)
            .output();
        let output = output.map_err(|e| format!("losetup can't be run: {e}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(Self {
                device: text(&output.stdout).into(),
                file: file.to_owned(),
            }),
            false => Err(text(&output.stderr)),
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("-d").arg(&self.device).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// Both programs, each with a device that it knows as `dev`.
struct Devices {
    pair: Pair,
    /// qemu-img's, and ours.
    both: [Loop; 2],
    _turn: MutexGuard<'static, ()>,
}

impl Devices {
    /// Devices of `bytes` bytes in sectors of `sector`, with no byte of 0 on them. `None`,
    /// with a printed reason, where there can't be any.
    fn new(bytes: usize, sector: u32) -> Option<Self> {
        let turn = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = Pair::new()?;
        let old: Vec<u8> = (1..=251).cycle().take(bytes).collect();
        let attach = |name| {
            let file = pair.work().join(name);
            fs::write(&file, &old).unwrap();
            Loop::attach(&file, &["--sector-size", &sector.to_string()])
        };
        let attached = attach("theirs").and_then(|theirs| Ok([theirs, attach("ours")?]));
        match attached {
            Ok(both) => Some(Self {
                pair,
                both,
                _turn: turn,
            }),
            Err(why) => {
                skipped(&format!("no loop devices: {why}"));
                None
            }
        }
    }

    /// The same devices, to be read only.
    fn read_only(self) -> Self {
        let Self { pair, both, _turn } = self;
        let both = both.map(|device| {
            let file = device.file.clone();
            drop(device);
            Loop::attach(&file, &["--read-only"]).unwrap()
        });
        Self { pair, both, _turn }
    }

    /// Has `dev` lead to one of them.
    fn lead_to(&self, which: usize) {
        let link = self.pair.work().join("dev");
        match fs::remove_file(&link) {
            Err(e) if e.kind() != ErrorKind::NotFound => panic!("{e}"),
            _ => symlink(&self.both[which].device, link).unwrap(),
        }
    }

    /// Runs both programs, each on its device, and notes a difference.
    fn same(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        self.lead_to(0);
        let theirs = self.pair.qemu(&words);
        self.lead_to(1);
        let ours = self.pair.ours(&words);
        self.pair.note(&words, &theirs, &ours);
    }

    /// Has qemu-io write to the images on both.
    fn write(&self, commands: &[&str]) {
        for which in 0..2 {
            self.lead_to(which);
            qemu_io(&self.pair, "dev", commands);
        }
    }

    /// What is on both, which is the same.
    fn bytes(&self) -> Vec<u8> {
        let [theirs, ours] = [0, 1].map(|which| {
            self.lead_to(which);
            fs::read(self.pair.work().join("dev")).unwrap()
        });
        let differs = theirs.iter().zip(&ours).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the devices differ");
        ours
    }

    /// The images on both hold what `name` does, and are sound, as qemu-img sees it.
    fn assert_hold(&self, name: &str) {
        for which in 0..2 {
            self.lead_to(which);
            self.pair.make(&["compare", "-F", "qcow2", name, "dev"]);
            self.pair.make(&["check", "-q", "-f", "qcow2", "dev"]);
        }
    }
}

/// `src.qcow2` and `src.raw`: 4 MiB with data, zeros on record and others, and a bitmap.
fn sources(pair: &Pair) -> Vec<u8> {
    pair.make(&["create", "-q", "-f", "qcow2", "src.qcow2", "4M"]);
    let writes = [
        "write -P 5 64k 100k",
        "write -P 6 1M 1M",
        "write -z 2M 512k",
        "write -P 9 3M 5000",
    ];
    qemu_io(pair, "src.qcow2", &writes);
    pair.make(&["bitmap", "--add", "src.qcow2", "b"]);
    pair.make(&["convert", "-O", "raw", "src.qcow2", "src.raw"]);
    fs::read(pair.work().join("src.raw")).unwrap()
}

#[test]
fn a_disk_on_a_device_as_it_is() {
    for (bytes, sector) in [(8 << 20, 512), (8 << 20, 4096), ((4 << 20) + 512, 512)] {
        let Some(mut devices) = Devices::new(bytes, sector) else {
            return;
        };
        let disk = sources(&devices.pair);
        for line in [
            "info dev",
            "info --output=json dev",
            "info -f qcow2 dev",
            "check dev",
            "map -f raw --output=json dev",
            "measure -f raw -O qcow2 dev",
            "compare -f raw -F raw src.raw dev",
            "create -f raw -o help dev",
            "create -f qcow2 -o help dev",
        ] {
            devices.same(line);
        }
        let old = devices.bytes();
        devices.same("create -f raw dev 1M");
        let mut wiped = old.clone();
        wiped[..512].fill(0);
        assert!(
            devices.bytes() == wiped,
            "only the first sector was cleared"
        );
        for line in [
            "convert -O raw src.qcow2 dev",
            "convert -n -O raw src.qcow2 dev",
            "convert -O raw -S 0 src.qcow2 dev",
            "convert -n -f raw -O raw src.raw dev",
            "dd -f qcow2 -O raw if=src.qcow2 of=dev bs=64k",
        ] {
            // Old bytes again.
            for which in 0..2 {
                fs::write(&devices.both[which].device, &old).unwrap();
            }
            devices.same(line);
            let is = devices.bytes();
            assert!(is[..disk.len()] == disk, "{line}");
            assert!(
                is[disk.len()..] == old[disk.len()..],
                "{line}: behind the disk"
            );
        }
        devices.same("convert -f raw -O raw dev out.raw");
        assert!(fs::read(devices.pair.work().join("out.raw")).unwrap() == devices.bytes());
        devices.same("compare -f raw -F raw dev out.raw");
        for options in ["nocow=on", "preallocation=full", "preallocation=metadata"] {
            devices.same(&format!("create -f raw -o {options} dev 4M"));
            devices.same(&format!("convert -O raw -o {options} src.qcow2 dev"));
        }
        devices.same("create -f raw dev 16M");
        devices.pair.finish();
    }
}

#[test]
fn an_image_on_a_device() {
    for sector in [512, 4096] {
        let Some(mut devices) = Devices::new(8 << 20, sector) else {
            return;
        };
        sources(&devices.pair);
        for line in [
            "create -f qcow2 dev 16M",
            "info dev",
            "info --output=json dev",
            "map --output=json dev",
            "check dev",
            "measure -f qcow2 -O qcow2 dev",
            "create -f qcow2 -o nocow=on dev 4M",
            "create -f qcow2 -o preallocation=falloc dev 4M",
            "create -f qcow2 -o preallocation=full dev 4M",
            "create -f qcow2 -o preallocation=metadata dev 16M",
            "create -f qcow2 dev",
        ] {
            devices.same(line);
        }
        for line in [
            "convert -O qcow2 src.qcow2 dev",
            "convert -n -O qcow2 src.qcow2 dev",
            "convert -c -O qcow2 src.qcow2 dev",
            "convert -O qcow2 -o preallocation=metadata src.qcow2 dev",
            "convert -O qcow2 -o cluster_size=4k,extended_l2=off src.qcow2 dev",
            "convert --bitmaps -O qcow2 src.qcow2 dev",
        ] {
            devices.same(line);
            devices.assert_hold("src.qcow2");
            devices.same("compare -F qcow2 src.qcow2 dev");
            devices.same("convert -f qcow2 -O raw dev out.raw");
        }
        for line in [
            "bitmap --add -g 512 dev x",
            "bitmap --merge b dev x",
            "bitmap --disable dev x",
            "bitmap --remove dev b",
            "info dev",
            "bench -w -c 0 dev",
        ] {
            devices.same(line);
        }
        devices.write(&["write -P 7 100k 3k"]);
        devices.same("info dev");
        devices.same("convert -O qcow2 -o data_file=dev src.qcow2 outside.qcow2");
        devices
            .pair
            .make(&["compare", "src.qcow2", "outside.qcow2"]);
        devices.pair.finish();
    }
}

#[test]
fn a_device_without_room() {
    for kib in [64, 192, 256, 512, 1024] {
        let Some(mut devices) = Devices::new(kib << 10, 512) else {
            return;
        };
        sources(&devices.pair);
        for line in [
            "convert -O raw src.qcow2 dev",
            "convert -n -O raw src.qcow2 dev",
            "create -f qcow2 -o cluster_size=2M dev 4M",
            "create -f qcow2 -o preallocation=metadata dev 4M",
            "create -f qcow2 dev 4M",
        ] {
            devices.same(line);
        }
        // Where in the disk it ends depends on how much is written at once.
        if kib == 512 {
            devices.same("convert -O qcow2 src.qcow2 dev");
            devices.same("create -q -f qcow2 dev 4M");
            // An image that is there is written in any order.
            devices.lead_to(1);
            let ours = devices
                .pair
                .ours(&["convert", "-n", "-O", "qcow2", "src.qcow2", "dev"]);
            assert_eq!(ours.code, Some(1));
            assert!(
                ours.stderr.ends_with(": No space left on device\n"),
                "{ours:?}"
            );
            assert_eq!(ours.stderr.lines().count(), 1, "{ours:?}");
            // What did find room is sound.
            devices.lead_to(1);
            devices.pair.make(&["check", "-q", "dev"]);
        }
        devices.pair.finish();
    }
}

#[test]
fn a_read_only_device() {
    let Some(mut devices) = Devices::new(1 << 20, 512) else {
        return;
    };
    sources(&devices.pair);
    devices.same("create -q -f qcow2 dev 4M");
    let mut devices = devices.read_only();
    for line in [
        "info dev",
        "check dev",
        "check -r all dev",
        "bitmap --add dev b",
        "bench -w -c 1 dev",
        "create -f qcow2 dev 4M",
        "create -f raw dev 1M",
        "create -f qcow2 -o data_file=dev outside.qcow2 1M",
        "convert -O qcow2 src.qcow2 dev",
        "convert -O raw src.qcow2 dev",
        "convert -n -O qcow2 src.qcow2 dev",
        "dd -O raw if=src.raw of=dev",
        "convert -f qcow2 -O raw dev out.raw",
        "create -f qcow2 -b dev -F qcow2 over.qcow2",
        "map --output=json over.qcow2",
    ] {
        devices.same(line);
    }
    devices.pair.finish();
}
