//! Reads or writes 4 KiB at places all over a qcow2 image's disk, and prints how long each
//! part took: `random_io IMAGE read|write COUNT [STEP]`.
//!
//! The places are those of `qemu-img bench -s 4096 -S STEP -c COUNT IMAGE`, so that the
//! two can be compared.

use std::{error::Error, time::Instant};

use qcow2::{BackingPolicy, DataFilePolicy, OpenOptions, disk::Disk};

/// Bytes of a request.
const BYTES: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [image, mode, count, step @ ..] = args.as_slice() else {
        return Err("usage: random_io IMAGE read|write COUNT [STEP]".into());
    };
    let count: u64 = count.parse()?;
    // Odd in clusters of any size, so that it comes by all places.
    let step: u64 = step.first().map_or(Ok(33_558_528), |step| step.parse())?;
    let writes = mode == "write";
    let start = Instant::now();
    let image = OpenOptions::new()
        .writable(writes)
        .backing(BackingPolicy::Follow)
        .data_file(DataFilePolicy::Follow)
        .open(image)?;
    let last = image.size().checked_sub(BYTES as u64);
    let last = last.ok_or("the disk is too small")?;
    let offsets = (0..count).scan(0, |at, _| {
        let offset = *at;
        *at += step;
        if *at > last {
            *at %= last + BYTES as u64;
            if *at > last {
                *at = 0;
            }
        }
        Some(offset)
    });
    let mut bytes = vec![7; BYTES];
    if writes {
        let writer = image.into_writer()?;
        tell("open and prove", 1, start);
        let start = Instant::now();
        for offset in offsets {
            writer.write(offset, &bytes)?;
        }
        tell("write 4 KiB", count, start);
        let start = Instant::now();
        writer.close()?;
        tell("close", 1, start);
    } else {
        tell("open", 1, start);
        let start = Instant::now();
        for offset in offsets {
            image.read(offset, &mut bytes)?;
        }
        tell("read 4 KiB", count, start);
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "it is what this is for")]
fn tell(what: &str, count: u64, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    println!(
        "{what}: {:.3} s, {:.2} µs each",
        seconds,
        seconds * 1e6 / f64::from(u32::try_from(count).unwrap_or(u32::MAX))
    );
}
