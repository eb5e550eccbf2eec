//! Random 4 KiB reads and writes of a qcow2 image through this library, imago and
//! qcow2-rs: `peers [--only reads,threads,allocated,empty] [--libraries qimg,imago,pread]
//! [--json] [IMAGE [COUNT [SEED]]]`. Without an image, or for `-`, one is made. See
//! README.md.
#![allow(missing_docs, reason = "a tool of the benches")]

mod images;
mod measure;
mod peers;

use std::path::{Path, PathBuf};

use qcow2::{OpenOptions, disk::Disk};

use crate::{
    images::{Random, Sum},
    measure::{ROUNDS, Times, print, print_json, time},
    peers::{BYTES, PEERS, Pattern, Peer, Result},
};

/// Threads that read at once.
const THREADS: usize = 2;

/// What is measured, and the libraries that take part.
struct Bench {
    folder: tempfile::TempDir,
    random: Random,
    count: u64,
    left_out: Vec<&'static str>,
    /// Results are for programs.
    json: bool,
}

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let (only, libraries) = (list(&mut args, "--only")?, list(&mut args, "--libraries")?);
    let json = args.iter().position(|arg| arg == "--json");
    json.map(|at| args.remove(at));
    let number = |at: usize, default: u64| args.get(at).map_or(Ok(default), |arg| arg.parse());
    let memory = Path::new("/dev/shm");
    let mut bench = Bench {
        folder: match memory.is_dir() {
            true => tempfile::tempdir_in(memory)?,
            false => tempfile::tempdir()?,
        },
        random: Random(number(2, 1)?.max(1)),
        count: number(1, 100_000)?,
        left_out: Vec::new(),
        json: json.is_some(),
    };
    if let Some(libraries) = libraries {
        let named = |name: &str| libraries.iter().any(|one| name.contains(one.as_str()));
        let others = PEERS.iter().map(|(name, _)| *name);
        bench.left_out = others.filter(|name| !named(name)).collect();
    }
    let wanted = |what: &str| {
        let list = only.as_ref();
        list.is_none_or(|list| list.iter().any(|one| one == what))
    };
    let given = args.first().filter(|path| *path != "-").map(PathBuf::from);
    let path = match given {
        Some(path) => path,
        None => {
            let full = bench.folder.path().join("full.qcow2");
            images::full(&full, &mut bench.random)?
        }
    };
    if wanted("reads") || wanted("threads") {
        bench.reads(&path, wanted("reads"), wanted("threads"))?;
    }
    // An image that was given is only read.
    let inside = path.starts_with(bench.folder.path());
    if wanted("allocated") && inside {
        bench.writes("into allocated clusters", &path, bench.count, true)?;
    }
    if inside {
        std::fs::remove_file(&path)?;
    }
    if wanted("empty") {
        let empty = bench.folder.path().join("empty.qcow2");
        bench.writes("into an empty image", &empty, bench.count / 5, false)?;
    }
    Ok(())
}

/// Takes the option `name` and its list out of `args`.
fn list(args: &mut Vec<String>, name: &str) -> Result<Option<Vec<String>>> {
    let Some(at) = args.iter().position(|arg| arg == name) else {
        return Ok(None);
    };
    let list = args.drain(at..(at + 2).min(args.len())).nth(1);
    let list = list.ok_or_else(|| format!("{name} needs a list"))?;
    Ok(Some(list.split(',').map(str::to_owned).collect()))
}

impl Bench {
    fn reads(&mut self, path: &Path, alone: bool, at_once: bool) -> Result<()> {
        let size = Disk::size(&OpenOptions::new().open(path)?);
        let offsets = self.random.offsets(self.count, size)?;
        let mut opened: Vec<Option<Box<dyn Peer>>> = Vec::new();
        for (name, open) in PEERS {
            let peer = match self.left_out.contains(&name) {
                true => None,
                false => open(path, false)
                    .map_err(|error| self.leave_out(name, &*error))
                    .ok(),
            };
            opened.push(peer);
        }

        // Not measured: all of the bytes are compared, and every cache gets warm.
        let mut first = None;
        for ((name, _), peer) in PEERS.iter().zip(&opened) {
            let Some(peer) = peer else { continue };
            let mut sum = Sum::default();
            peer.read(&offsets, &mut |bytes| sum.add(bytes))?;
            if *first.get_or_insert(sum.0) != sum.0 {
                return Err(format!("{name} reads other bytes than {}", PEERS[0].0).into());
            }
        }
        if alone {
            let times = by_turns(&opened, |peer| {
                peer.read(&offsets, &mut |bytes| {
                    std::hint::black_box(bytes);
                })
            })?;
            self.print(
                &format!("{} reads of {BYTES} bytes", offsets.len()),
                offsets.len(),
                &times,
            );
        }
        if at_once {
            let shares: Vec<&[u64]> = offsets.chunks(offsets.len().div_ceil(THREADS)).collect();
            let times = by_turns(&opened, |peer| peer.read_at_once(&shares))?;
            self.print(
                &format!("the same reads by {THREADS} threads at once"),
                offsets.len(),
                &times,
            );
        }
        Ok(())
    }

    /// Random writes into the image at `path`, which is made anew for each run unless it
    /// is `full`.
    fn writes(&mut self, what: &str, path: &Path, count: u64, full: bool) -> Result<()> {
        let offsets = self.random.offsets(count, images::DISK)?;
        let mut bytes = vec![0; BYTES];
        self.random.fill(&mut bytes);
        let mut times = vec![Times::new(); PEERS.len()];
        let mut told = Vec::new();
        for run in 0..ROUNDS {
            let mut sum = None;
            for ((name, open), times) in PEERS.iter().zip(&mut times) {
                if self.left_out.contains(name) {
                    continue;
                }
                match full {
                    // Other bytes, so that what isn't written shows.
                    true => {
                        let other = &mut Pattern::new(bytes.clone(), u64::MAX / 2);
                        peers::ours(path, true)?.write(&offsets, other)?;
                    }
                    false => drop(images::empty(path)?),
                }
                let peer = open(path, true)?;
                let mut pattern = Pattern::new(bytes.clone(), run);
                times.push(time(|| peer.write(&offsets, &mut pattern))?);
                drop(peer);
                let found = images::checksum(path)?;
                if *sum.get_or_insert(found) != found {
                    return Err(format!("{name} wrote other bytes than {}", PEERS[0].0).into());
                }
                match images::check(path) {
                    Ok(result) => {
                        let result = result.unwrap_or_else(|| "not checked".into());
                        told.push(format!("{name}: {result}"));
                    }
                    Err(error) => return Err(format!("{name}: {error}").into()),
                }
            }
        }
        let title = format!("{count} writes of {BYTES} bytes {what}, and a flush");
        self.print(&title, offsets.len(), &times);
        told.sort_unstable();
        told.dedup();
        if !self.json {
            println!(
                "\nthe disks are the same after each run; {}",
                told.join(", ")
            );
        }
        Ok(())
    }

    fn print(&self, title: &str, count: usize, times: &[Times]) {
        match self.json {
            true => print_json(title, times),
            false => print(title, count, times),
        }
    }

    fn leave_out(&mut self, name: &'static str, error: &dyn std::error::Error) {
        eprintln!("{name}: left out: {error}");
        self.left_out.push(name);
    }
}

/// Measures `work` of each library, by turns.
fn by_turns(
    opened: &[Option<Box<dyn Peer>>],
    work: impl Fn(&dyn Peer) -> Result<()>,
) -> Result<Vec<Times>> {
    let mut times = vec![Times::new(); opened.len()];
    for _ in 0..ROUNDS {
        for (peer, times) in opened.iter().zip(&mut times) {
            if let Some(peer) = peer {
                times.push(time(|| work(&**peer))?);
            }
        }
    }
    Ok(times)
}
