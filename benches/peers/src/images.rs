//! The images that are read and written, and what they hold.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use qcow2::{
    OpenOptions,
    disk::Disk,
    image::create::{CreateOptions, create},
};

use crate::peers::{BYTES, Result};

/// Bytes of the disk of an image that is made.
pub const DISK: u64 = 1 << 30;
/// Bytes that are written or read at once where time doesn't count.
const MUCH: usize = 1 << 20;

/// xorshift64*: the same numbers for the same seed, everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
    }

    /// Places of requests on a disk of `size` bytes.
    pub fn offsets(&mut self, count: u64, size: u64) -> Result<Vec<u64>> {
        let places = size / BYTES as u64;
        if places == 0 || count == 0 {
            return Err("nothing to read or write".into());
        }
        let offset = |_| self.next() % places * BYTES as u64;
        Ok((0..count).map(offset).collect())
    }
}

/// An image with clusters of 64 KiB, none of which is there.
pub fn empty(path: &Path) -> Result<PathBuf> {
    let options = CreateOptions {
        size: Some(DISK),
        ..CreateOptions::default()
    };
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    create(path, &options, true)?;
    Ok(path.to_path_buf())
}

/// An image of which every cluster is there, with bytes that are all different.
pub fn full(path: &Path, random: &mut Random) -> Result<PathBuf> {
    let path = empty(path)?;
    let writer = OpenOptions::new()
        .writable(true)
        .open(&path)?
        .into_writer()?;
    let mut bytes = vec![0; MUCH];
    for offset in (0..DISK).step_by(MUCH) {
        random.fill(&mut bytes);
        writer.write(offset, &bytes)?;
    }
    writer.close()?;
    Ok(path)
}

/// A checksum of the guest's disk, read through this library.
pub fn checksum(path: &Path) -> Result<u64> {
    let image = OpenOptions::new().open(path)?;
    let (mut bytes, mut sum) = (vec![0; MUCH], Sum::default());
    let mut offset = 0;
    while offset < Disk::size(&image) {
        let len = (Disk::size(&image) - offset).min(MUCH as u64);
        let part = &mut bytes[..usize::try_from(len)?];
        Disk::read(&image, offset, part)?;
        sum.add(part);
        offset += len;
    }
    Ok(sum.0)
}

/// A checksum that depends on the order of the words, and is fast.
#[derive(Default)]
pub struct Sum(pub u64);

impl Sum {
    pub fn add(&mut self, bytes: &[u8]) {
        for word in bytes.as_chunks::<8>().0 {
            let mixed = self.0.rotate_left(5) ^ u64::from_le_bytes(*word);
            self.0 = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
}

/// Whether `qemu-img check` finds the image without fault; leaked clusters are told.
/// `None` where there is no qemu-img.
pub fn check(path: &Path) -> Result<Option<String>> {
    let check = Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(path)
        .output();
    match check {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
        Ok(check) => match check.status.code() {
            Some(0) => Ok(Some("sound".into())),
            Some(3) => Ok(Some("clusters leaked".into())),
            _ => {
                let text = String::from_utf8_lossy(&check.stdout);
                let line = text.lines().next().unwrap_or_default();
                Err(format!("qemu-img check: {line}").into())
            }
        },
    }
}
