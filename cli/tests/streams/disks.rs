//! Images with bitmaps that saw writes, and what is to be found where they arrive.

use std::path::{Path, PathBuf};

use qimg_tests::{
    QemuSystem, Qsd, Run, Scratch,
    qemu_img::{assert_clean, create},
    qimg,
    qmp::LiveBitmap,
    testdata::BitmapTruth,
};

/// An image, the name of its node, and what its bitmaps hold in QEMU's words.
pub(crate) struct Disk {
    pub(crate) node: String,
    pub(crate) image: PathBuf,
    pub(crate) size: u64,
    pub(crate) truth: Vec<BitmapTruth>,
}

/// A bitmap to be made: name, granularity, whether it records, writes as (offset, length).
pub(crate) type Plan<'a> = (&'a str, u64, bool, &'a [(u64, u64)]);

impl Disk {
    /// A new image with these bitmaps. A bitmap sees the writes of those after it as well,
    /// as long as it records.
    #[track_caller]
    pub(crate) fn new(scratch: &Scratch, node: &str, size: u64, plans: &[Plan<'_>]) -> Self {
        let image = scratch.path(&format!("{node}.qcow2"));
        create(&image, &size.to_string(), options(size));
        let mut qsd = Qsd::open(&image);
        for (name, granularity, _, writes) in plans {
            qsd.add_bitmap(name, *granularity, false);
            if writes.is_empty() {
                continue;
            }
            let (socket, export) = qsd.export(&[], true);
            let mut nbd = qimg_tests::Nbd::connect(&socket, &export, &[]);
            for &(offset, length) in *writes {
                nbd.zero(offset, u32::try_from(length).unwrap());
            }
            drop(nbd);
            qsd.unexport(&export);
        }
        for (name, _, recording, _) in plans {
            if !recording {
                qsd.bitmap("disable", name);
            }
        }
        qsd.quit();
        Self {
            node: node.to_owned(),
            truth: stored(&image),
            image,
            size,
        }
    }

    /// `NODE=IMAGE`, as the command line has it.
    pub(crate) fn operand(&self) -> String {
        format!("{}={}", self.node, self.image.display())
    }

    /// A new empty image for a disk of the same size.
    pub(crate) fn blank(&self, scratch: &Scratch) -> PathBuf {
        blank(scratch, &format!("{}-to", self.node), self.size)
    }
}

/// A new empty image.
#[track_caller]
pub(crate) fn blank(scratch: &Scratch, name: &str, size: u64) -> PathBuf {
    let image = scratch.path(&format!("{name}.qcow2"));
    create(&image, &size.to_string(), options(size));
    image
}

/// Large clusters where small ones would make a large L1 table.
fn options(size: u64) -> &'static str {
    match size > 1 << 40 {
        true => "cluster_size=2M",
        false => "",
    }
}

/// The usual: two disks; large and small granularities, recording and not, clean and not.
#[track_caller]
pub(crate) fn two_disks(scratch: &Scratch) -> Vec<Disk> {
    let a: [Plan<'_>; 3] = [
        ("daily", 65536, true, &[(0, 65536), (1 << 20, 3 << 20)]),
        ("fine", 512, true, &[(5 << 20, 1024), (40_000_000, 512)]),
        ("frozen", 1 << 20, false, &[(63 << 20, 1 << 20)]),
    ];
    let b: [Plan<'_>; 2] = [
        ("daily", 4096, true, &[(12_288, 4096)]),
        ("clean", 65536, true, &[]),
    ];
    vec![
        Disk::new(scratch, "drive0", 64 << 20, &a),
        Disk::new(scratch, "drive1", (10 << 20) + 512, &b),
    ]
}

/// What QEMU finds in an image, which must have no error and no leak.
#[track_caller]
pub(crate) fn stored(image: &Path) -> Vec<BitmapTruth> {
    assert_clean(image);
    let mut qsd = Qsd::open_read_only(image);
    let truth = qsd.truth();
    qsd.quit();
    truth
}

/// What a running QEMU is to say of persistent bitmaps that hold `truth`.
pub(crate) fn live(truth: &[BitmapTruth], persistent: bool) -> Vec<LiveBitmap> {
    let live = |truth: &BitmapTruth| LiveBitmap {
        truth: truth.clone(),
        persistent,
        busy: false,
    };
    truth.iter().map(live).collect()
}

/// `qimg migrate-bitmaps --emit -o STREAM …`, which must succeed.
#[track_caller]
pub(crate) fn emit(stream: &Path, more: &[&str], disks: &[Disk]) -> Run {
    let stream = stream.display().to_string();
    let operands: Vec<_> = disks.iter().map(Disk::operand).collect();
    let mut args = vec!["migrate-bitmaps", "--emit", "-o", &stream];
    args.extend(more);
    args.extend(operands.iter().map(String::as_str));
    qimg!().run(args).ok()
}

/// `qimg migrate-bitmaps --apply -i STREAM …`.
pub(crate) fn apply(stream: &Path, more: &[&str], to: &[(&str, &Path)]) -> Run {
    let stream = stream.display().to_string();
    let operands: Vec<_> = to
        .iter()
        .map(|(node, image)| format!("{node}={}", image.display()))
        .collect();
    let mut args = vec!["migrate-bitmaps", "--apply", "-i", &stream];
    args.extend(more);
    args.extend(operands.iter().map(String::as_str));
    qimg!().run(args)
}

/// A QEMU that waits for a migration, with these nodes.
pub(crate) fn waiting(machine: &str, nodes: &[(&str, &Path)]) -> QemuSystem {
    let mut start = QemuSystem::machine(machine);
    for (node, image) in nodes {
        start = start.node(node, image);
    }
    start.args(&["-incoming", "defer"]).start()
}
