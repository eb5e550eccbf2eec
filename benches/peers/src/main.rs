//! Random 4 KiB reads of one qcow2 image through this library, imago and qcow2-rs:
//! `peers [IMAGE [COUNT [SEED]]]`. Without an image, or for `-`, one is made.
#![allow(missing_docs, reason = "a tool of the benches")]

mod peers;

use std::{
    hash::{DefaultHasher, Hasher},
    path::{Path, PathBuf},
    time::Instant,
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use qcow2::{
    OpenOptions,
    disk::Disk,
    image::create::{CreateOptions, create},
};

use crate::peers::{BYTES, Peer, Result};

/// Times that each library is measured, by turns.
const ROUNDS: usize = 7;
/// Bytes of the disk of the image that is made.
const DISK: u64 = 1 << 30;

/// How a library opens an image.
type Open = fn(&Path) -> Result<Box<dyn Peer>>;
const PEERS: [(&str, Open); 4] = [
    ("qimg-qcow2", peers::ours),
    ("imago 0.2.6, sync", peers::imago),
    ("qcow2-rs 0.1.6, pread", peers::blocking),
    ("qcow2-rs 0.1.6, io_uring", peers::uring),
];

/// xorshift64*: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| args.get(at).map_or(Ok(default), |arg| arg.parse());
    let (count, seed) = (number(1, 200_000)?, number(2, 1)?);
    let mut random = Random(seed.max(1));
    let made;
    let path = match args.first().filter(|path| *path != "-") {
        Some(path) => PathBuf::from(path),
        None => {
            let memory = Path::new("/dev/shm");
            made = if memory.is_dir() {
                tempfile::tempdir_in(memory)?
            } else {
                tempfile::tempdir()?
            };
            make(&made.path().join("disk.qcow2"), &mut random)?
        }
    };

    let path = path.as_path();
    let places = OpenOptions::new().open(path)?.size() / BYTES as u64;
    if places == 0 || count == 0 {
        return Err("nothing to read".into());
    }
    let offsets: Vec<u64> = (0..count)
        .map(|_| random.next() % places * BYTES as u64)
        .collect();

    let mut opened = Vec::new();
    for (name, open) in PEERS {
        match open(path) {
            Ok(peer) => opened.push((name, peer)),
            Err(error) => println!("{name}: left out: {error}"),
        }
    }

    // Not measured: all of the bytes are compared, and every cache gets warm.
    let mut sums = Vec::new();
    for (name, peer) in &opened {
        let mut sum = DefaultHasher::new();
        peer.read(&offsets, &mut |bytes| sum.write(bytes))?;
        sums.push((name, sum.finish()));
    }
    if let Some((name, _)) = sums.iter().find(|(_, sum)| *sum != sums[0].1) {
        return Err(format!("{name} reads other bytes than {}", sums[0].0).into());
    }
    println!(
        "{count} reads of {BYTES} bytes, checksum {:016x}",
        sums[0].1
    );

    let mut times = vec![Vec::new(); opened.len()];
    for _ in 0..ROUNDS {
        for ((_, peer), times) in opened.iter().zip(&mut times) {
            let (start, cpu) = (Instant::now(), cpu()?);
            peer.read(&offsets, &mut |bytes| {
                std::hint::black_box(bytes);
            })?;
            times.push((start.elapsed().as_secs_f64(), self::cpu()? - cpu));
        }
    }
    print(&opened, &times, count as f64);
    Ok(())
}

fn print(opened: &[(&str, Box<dyn Peer>)], times: &[Vec<(f64, f64)>], count: f64) {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2] * 1e6 / count
    };
    println!("medians of {ROUNDS} runs, µs per request; ratios to the first\n");
    println!("| library | wall | CPU | ratio, wall | ratio, CPU |\n|---|---|---|---|---|");
    let mut first = None;
    for ((name, _), times) in opened.iter().zip(times) {
        let wall = median(times.iter().map(|time| time.0).collect());
        let cpu = median(times.iter().map(|time| time.1).collect());
        let (wall1, cpu1) = *first.get_or_insert((wall, cpu));
        let (of_wall, of_cpu) = (wall / wall1, cpu / cpu1);
        println!("| {name} | {wall:.2} | {cpu:.2} | {of_wall:.2} | {of_cpu:.2} |");
    }
}

/// Seconds of CPU, user and system, of all threads of this process.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = usage.user_time() + usage.system_time();
    Ok(time.num_microseconds() as f64 / 1e6)
}

/// An image of which every cluster is there, with bytes that are all different.
fn make(path: &Path, random: &mut Random) -> Result<PathBuf> {
    let options = CreateOptions {
        size: Some(DISK),
        ..CreateOptions::default()
    };
    create(path, &options, true)?;
    let writer = OpenOptions::new()
        .writable(true)
        .open(path)?
        .into_writer()?;
    let mut bytes = vec![0; 1 << 20];
    for offset in (0..DISK).step_by(bytes.len()) {
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        writer.write(offset, &bytes)?;
    }
    writer.close()?;
    Ok(path.to_path_buf())
}
