//! The kinds of images that the tests go through, and writes to fill them with.

use std::path::PathBuf;

use qimg_tests::{Nbd, Qsd, Scratch, qemu_img};

/// One kind of image.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// For messages, and the file's name.
    pub(crate) name: String,
    /// For `qemu-img create -o`.
    options: String,
    /// Guest bytes.
    pub(crate) size: u64,
    data_file: bool,
}

impl Layout {
    fn new(name: impl Into<String>, options: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            options: options.into(),
            size,
            data_file: false,
        }
    }

    /// Makes an empty image of this kind.
    pub(crate) fn create(&self, scratch: &Scratch) -> PathBuf {
        let image = scratch.path(&format!("{}.qcow2", self.name));
        let mut options = self.options.clone();
        if self.data_file {
            let raw = scratch.path(&format!("{}.raw", self.name));
            options.push_str(&format!(",data_file={}", raw.display()));
        }
        qemu_img::create(&image, &self.size.to_string(), &options);
        image
    }
}

/// Every refcount width, cluster size and feature that bitmaps must live with.
pub(crate) fn all() -> Vec<Layout> {
    const MIB: u64 = 1 << 20;
    let mut out = Vec::new();
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let options = format!("cluster_size=4k,refcount_bits={bits}");
        out.push(Layout::new(format!("refcount-{bits}"), options, 8 * MIB));
    }
    for (cluster, size) in [
        ("512", 2 * MIB),
        ("1k", 8 * MIB),
        ("16k", 16 * MIB),
        ("64k", 64 * MIB),
        ("2M", 256 * MIB),
    ] {
        let options = format!("cluster_size={cluster}");
        out.push(Layout::new(format!("cluster-{cluster}"), options, size));
    }
    for (bits, cluster) in [(1, "512"), (64, "512"), (1, "2M"), (64, "2M")] {
        let options = format!("cluster_size={cluster},refcount_bits={bits}");
        out.push(Layout::new(
            format!("refcount-{bits}-{cluster}"),
            options,
            2 * MIB,
        ));
    }
    for cluster in ["16k", "64k", "2M"] {
        let options = format!("cluster_size={cluster},extended_l2=on");
        out.push(Layout::new(
            format!("extended-{cluster}"),
            options,
            16 * MIB,
        ));
    }
    out.push(Layout::new(
        "zstd-lazy",
        "compression_type=zstd,lazy_refcounts=on",
        8 * MIB,
    ));
    // Neither a cluster nor a granule ends where the disk ends.
    out.push(Layout::new(
        "odd-size",
        "cluster_size=4k",
        3 * MIB + 512 * 7,
    ));
    for raw in ["on", "off"] {
        let mut layout = Layout::new(
            format!("data-file-{raw}"),
            format!("cluster_size=4k,data_file_raw={raw}"),
            4 * MIB,
        );
        layout.data_file = true;
        out.push(layout);
    }
    out
}

/// Numbers without end, the same in each run.
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// `count` writes, zeros and discards of different sizes, as a guest would do them.
pub(crate) fn guest_writes(qsd: &mut Qsd, numbers: &mut Numbers, count: usize) {
    let (socket, export) = qsd.export(&[], true);
    let mut nbd = Nbd::connect(&socket, &export, &[]);
    let sectors = nbd.size() / 512;
    for _ in 0..count {
        let longest = [1, 9, 130][numbers.below(3) as usize];
        let start = numbers.below(sectors);
        let length = (1 + numbers.below(longest)).min(sectors - start);
        let (offset, bytes) = (start * 512, (length * 512) as u32);
        match numbers.below(5) {
            0 => nbd.zero(offset, bytes),
            1 => nbd.trim(offset, bytes),
            _ => nbd.write(offset, bytes, numbers.below(255) as u8 + 1),
        }
    }
    nbd.flush();
    drop(nbd);
    qsd.unexport(&export);
}
