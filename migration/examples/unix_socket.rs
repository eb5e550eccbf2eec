//! Migrates the dirty bitmaps of a running machine from one process to another, over a Unix
//! socket, and proves that no dirty bit is lost on the way.
//!
//! Threads play the machine: they write to a disk and mark what they wrote in a
//! `SharedTracker`, here until the switch-over, over there from then on. Each keeps a journal
//! of its own. At the end the digests of the bitmaps over there are those of the journals.
//!
//! ```text
//! cargo run -p qimg-migration --example unix_socket
//! ```
//!
//! The destination is this program again, with the arguments `destination SOCKET`.

use std::{
    env,
    error::Error,
    io::{Read, Write},
    net::Shutdown,
    ops::Range,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, ExitCode},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hbitmap::{DirtyBitmap, Granularity, HBitmap, SharedTracker};
use migration::{
    AliasMap, Design, Limits, Node, Outgoing, Receiver, Sender, SenderOptions, Source, StreamReader,
};
use serde_json::{Value, json};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Bytes of the disk.
const DISK: u64 = (64 << 30) + 512;
/// Granularity of the tracker, the journals and the finest bitmap.
const FINE: u32 = 12;
/// Name, log2 of the granularity, and whether it records.
const BITMAPS: [(&str, u32, bool); 3] = [
    ("hourly", FINE, true),
    ("daily", 16, true),
    ("old", 16, false),
];
/// Threads that write.
const WRITERS: u64 = 4;
/// What the last pass of precopy may take while the machine stands still.
const DOWNTIME_BYTES: u64 = 64 << 10;
/// What the line carries in a millisecond.
const BYTES_PER_MS: u64 = 64 << 10;

pub(crate) fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let done = match (args.next().as_deref(), args.next()) {
        (Some("destination"), Some(socket)) => destination(Path::new(&socket)),
        // Test runners ask what tests there are.
        (Some("--list"), _) => Ok(()),
        _ => [Design::Precopy, Design::Postcopy]
            .into_iter()
            .try_for_each(source),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("unix_socket: {e}");
            ExitCode::FAILURE
        }
    }
}

// The machine --------------------------------------------------------------------------

fn bitmap(bits: u32) -> Result<HBitmap> {
    Ok(HBitmap::new(DISK, Granularity::from_bits(bits)?)?)
}

/// A disk, as far as dirty bitmaps are concerned.
struct Disk {
    /// Where writers mark, without waiting for each other or for who reads.
    tracker: SharedTracker,
    /// Whether writers may go on. Who writes has it shared, so that to change it is to wait
    /// for the writes that are under way.
    running: RwLock<bool>,
    writes: AtomicU64,
}

/// The threads that write to a disk. Each returns its journal.
struct Machine {
    disk: Arc<Disk>,
    writers: Vec<JoinHandle<Result<HBitmap>>>,
}

impl Machine {
    fn start(seed: u64) -> Result<Self> {
        let disk = Arc::new(Disk {
            tracker: SharedTracker::new(DISK, Granularity::from_bits(FINE)?)?,
            running: RwLock::new(true),
            writes: AtomicU64::new(0),
        });
        let writers = (0..WRITERS)
            .map(|i| {
                let disk = Arc::clone(&disk);
                thread::spawn(move || disk.write(seed ^ (i << 32)))
            })
            .collect();
        Ok(Self { disk, writers })
    }

    /// Waits until there were so many writes more.
    fn run_for(&self, writes: u64) {
        let until = self.disk.writes.load(Ordering::SeqCst) + writes;
        while self.disk.writes.load(Ordering::SeqCst) < until {
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// Holds the writers, for good; what they wrote in all.
    fn hold(self) -> Result<HBitmap> {
        *self
            .disk
            .running
            .write()
            .unwrap_or_else(PoisonError::into_inner) = false;
        let mut journal = bitmap(FINE)?;
        for writer in self.writers {
            let written = writer.join().map_err(|_| "a writer panicked")??;
            journal.merge(&written)?;
        }
        Ok(journal)
    }
}

impl Disk {
    /// Writes until it is held; returns what was written.
    fn write(&self, mut seed: u64) -> Result<HBitmap> {
        let mut journal = bitmap(FINE)?;
        loop {
            let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
            if !*running {
                return Ok(journal);
            }
            // Most writes go to the first 256 MiB, as most machines write to few places.
            let (place, len) = (random(&mut seed), random(&mut seed));
            let within = if place & 15 == 0 { DISK } else { 256 << 20 };
            let start = (place >> 8) % within;
            let range = start..start + 1 + len % (32 << 10);
            self.tracker.mark(range.clone());
            // The data itself would be written here.
            journal.set(range);
            self.writes.fetch_add(1, Ordering::SeqCst);
            drop(running);
            if len >> 32 & 15 == 0 {
                thread::sleep(Duration::from_micros(200));
            }
        }
    }
}

/// SplitMix64.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

// The source ---------------------------------------------------------------------------

/// The bitmaps of a disk, and how what was marked gets into them.
struct Tracked {
    disk: Arc<Disk>,
    bitmaps: Vec<Arc<Mutex<DirtyBitmap>>>,
}

/// One of them, as the sender finds it.
struct Handle {
    all: Arc<Tracked>,
    bitmap: Arc<Mutex<DirtyBitmap>>,
}

impl Tracked {
    fn new(disk: Arc<Disk>) -> Result<Arc<Self>> {
        let mut bitmaps = Vec::new();
        for (name, bits, records) in BITMAPS {
            let mut bitmap = DirtyBitmap::new(name, bitmap(bits)?);
            bitmap.set_persistent(true);
            dirty_before().for_each(|range| bitmap.record(range));
            if !records {
                bitmap.disable()?;
            }
            bitmaps.push(Arc::new(Mutex::new(bitmap)));
        }
        Ok(Arc::new(Self { disk, bitmaps }))
    }
}

/// What was dirty before anything of this began: something in each chunk.
fn dirty_before() -> impl Iterator<Item = Range<u64>> {
    (0..DISK).step_by(1 << 20).map(|start| start..start + 1)
}

impl Source for Handle {
    fn with<T>(&self, f: impl FnOnce(&mut DirtyBitmap) -> T) -> T {
        self.bitmap.with(f)
    }

    fn refresh(&self) {
        // One tracker serves all bitmaps of the disk. Draining it for the first of them
        // leaves nothing to do for the others.
        if let Ok(marked) = self.all.disk.tracker.drain() {
            for bitmap in &self.all.bitmaps {
                bitmap.with(|b| marked.ranges().for_each(|range| b.record(range)));
            }
        }
    }
}

fn source(design: Design) -> Result<()> {
    let begun = Instant::now();
    let socket = env::temp_dir().join(format!("qimg-migration-{}", std::process::id()));
    let listener = UnixListener::bind(&socket)?;
    let mut child = Command::new(env::current_exe()?)
        .arg("destination")
        .arg(&socket)
        .spawn()?;
    let stream = accept(&listener, &mut child);
    std::fs::remove_file(&socket)?;
    let stream = stream?;
    let mut back = stream.try_clone()?;

    let machine = Machine::start(1)?;
    let tracked = Tracked::new(Arc::clone(&machine.disk))?;
    let handle = |bitmap: &Arc<_>| Handle {
        all: Arc::clone(&tracked),
        bitmap: Arc::clone(bitmap),
    };
    let outgoing = BITMAPS
        .iter()
        .zip(&tracked.bitmaps)
        .map(|((name, ..), bitmap)| Outgoing::new("disk", *name, handle(bitmap)))
        .collect();
    let options = SenderOptions {
        design,
        ..SenderOptions::default()
    };
    let mut sender = Sender::begin(stream, outgoing, options)?;

    let mut passes = 0;
    let pause;
    let (here, stream);
    machine.run_for(1000);
    if design == Design::Precopy {
        // First everything, then what changed meanwhile, until that is little.
        let mut pending = sender.pending();
        while pending.bytes > DOWNTIME_BYTES && passes < 500 {
            machine.run_for(50);
            pending = sender.pass(BYTES_PER_MS)?;
            passes += 1;
            thread::sleep(Duration::from_millis(1));
        }
        let held = Instant::now();
        here = machine.hold()?;
        stream = sender.complete()?;
        pause = held.elapsed();
    } else {
        let held = Instant::now();
        here = machine.hold()?;
        sender.switch_over()?;
        pause = held.elapsed();
        while sender.pass(BYTES_PER_MS)?.chunks != 0 {
            passes += 1;
            thread::sleep(Duration::from_millis(1));
        }
        stream = sender.complete()?;
    }
    stream.shutdown(Shutdown::Write)?;

    let mut answer = String::new();
    back.read_to_string(&mut answer)?;
    if !child.wait()?.success() {
        return Err("the destination failed".into());
    }
    println!(
        "{design:?}: {passes} passes, writers held for {pause:?}, {:?} in all",
        begun.elapsed()
    );
    prove(&here, &serde_json::from_str(&answer)?)
}

/// Waits for the destination, but not if it ended.
fn accept(listener: &UnixListener, child: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                if let Some(status) = child.try_wait()? {
                    return Err(format!("the destination ended before it began: {status}").into());
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Compares what arrived with the journals of both sides.
fn prove(here: &HBitmap, answer: &Value) -> Result<()> {
    let mut there = bitmap(FINE)?;
    let written = answer.get("written").cloned().unwrap_or_default();
    for (start, end) in serde_json::from_value::<Vec<(u64, u64)>>(written)? {
        there.set(start..end);
    }
    for (name, bits, records) in BITMAPS {
        let mut want = bitmap(bits)?;
        for range in dirty_before() {
            want.set(range);
        }
        if records {
            want.merge(here)?;
            want.merge(&there)?;
        }
        let digest = hex(&want.sha256());
        let got = answer.pointer(&format!("/bitmaps/{name}"));
        let got = got.and_then(Value::as_str).unwrap_or("lost");
        println!("  {name:6}  {:7} granules dirty, {got}", want.count());
        if got != digest {
            return Err(format!("'{name}' should have the digest {digest}").into());
        }
    }
    println!(
        "  as the journals say: {} granules written here, {} over there",
        here.count(),
        there.count()
    );
    if there.count() == 0 || here.count() == 0 {
        return Err("nothing was written, so nothing is proved".into());
    }
    Ok(())
}

// The destination ----------------------------------------------------------------------

fn destination(socket: &Path) -> Result<()> {
    let stream = UnixStream::connect(socket)?;
    let mut back = stream.try_clone()?;
    let node = Node::new("vda", DISK);
    let mut receiver = Receiver::single(node, AliasMap::identity(), Limits::default());
    let mut reader = StreamReader::new(stream);
    let mut machine: Option<Machine> = None;
    let mut items = 0_u64;
    loop {
        let offset = reader.offset();
        let Some(item) = reader.next()? else { break };
        receiver.apply(&item, offset)?;
        // Postcopy: the machine runs here while the bits are on their way.
        if machine.is_none() && receiver.switched_over() {
            machine = Some(Machine::start(2)?);
        }
        items += 1;
        if items.is_multiple_of(64)
            && let Some(machine) = &machine
        {
            record(&mut receiver, &machine.disk)?;
        }
    }
    // Precopy: it runs from here on.
    let machine = match machine {
        Some(machine) => machine,
        None => Machine::start(2)?,
    };
    machine.run_for(1000);
    let disk = Arc::clone(&machine.disk);
    let written = machine.hold()?;
    record(&mut receiver, &disk)?;

    let outcome = receiver.finish();
    for lost in &outcome.lost {
        eprintln!("lost {}: {}", lost.bitmap_alias, lost.reason);
    }
    let bitmaps: serde_json::Map<_, _> = outcome
        .complete
        .iter()
        .map(|b| {
            (
                b.bitmap.name().to_owned(),
                hex(&b.bitmap.bits().sha256()).into(),
            )
        })
        .collect();
    let written: Vec<_> = written.ranges().map(|r| [r.start, r.end]).collect();
    let answer = json!({ "bitmaps": bitmaps, "written": written });
    back.write_all(answer.to_string().as_bytes())?;
    Ok(())
}

/// Brings what was marked here into the bitmaps, complete or not.
fn record(receiver: &mut Receiver, disk: &Disk) -> Result<()> {
    for range in &disk.tracker.drain()? {
        receiver.record("vda", range)?;
    }
    Ok(())
}
