//! Sender, receiver and writers in threads of their own, with a socket between.

use std::{
    ops::Range,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use hbitmap::{DirtyBitmap, Granularity, HBitmap};
use migration::{
    AliasMap, Design, Limits, Node, Outgoing, Receiver, Sender, SenderOptions, StreamReader,
};

use crate::rng::Rng;

const LEN: u64 = (1 << 30) + 512;

type Shared = Arc<Mutex<DirtyBitmap>>;

fn bitmap(granularity: u64) -> DirtyBitmap {
    let granularity = Granularity::from_bytes(granularity).unwrap();
    DirtyBitmap::new("b", HBitmap::new(LEN, granularity).unwrap())
}

/// Threads that write until they are held.
struct Writers {
    stop: Arc<AtomicBool>,
    /// Writes so far.
    count: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<HBitmap>>,
}

impl Writers {
    /// Three threads, which call `record` for what they write.
    fn start(seed: u64, record: impl Fn(Range<u64>) + Clone + Send + 'static) -> Self {
        let (stop, count) = (Arc::default(), Arc::default());
        let threads = (seed..seed + 3)
            .map(|seed| {
                let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
                let record = record.clone();
                thread::spawn(move || Self::write(seed, &stop, &count, record))
            })
            .collect();
        Self {
            stop,
            count,
            threads,
        }
    }

    fn write(
        seed: u64,
        stop: &AtomicBool,
        count: &AtomicU64,
        record: impl Fn(Range<u64>),
    ) -> HBitmap {
        let mut rng = Rng(seed);
        let mut written = bitmap(512).into_bits();
        while !stop.load(Ordering::SeqCst) {
            let start = rng.below(LEN);
            let range = start..start + 1 + rng.below(20_000);
            record(range.clone());
            written.set(range);
            count.fetch_add(1, Ordering::SeqCst);
            thread::yield_now();
        }
        written
    }

    /// Waits until another 100 writes are done.
    fn go_on(&self) {
        let until = self.count.load(Ordering::SeqCst) + 100;
        while self.count.load(Ordering::SeqCst) < until {
            thread::yield_now();
        }
    }

    /// Ends them; returns what all of them wrote.
    fn hold(self) -> HBitmap {
        self.go_on();
        self.stop.store(true, Ordering::SeqCst);
        let mut all = bitmap(512).into_bits();
        for thread in self.threads {
            all.merge(&thread.join().unwrap()).unwrap();
        }
        all
    }
}

fn run(design: Design) {
    let sources: Vec<Shared> = [512, 65536]
        .map(|granularity| Arc::new(Mutex::new(bitmap(granularity))))
        .into();
    let writers = Writers::start(0, {
        let sources = sources.clone();
        move |range| {
            for source in &sources {
                source.lock().unwrap().record(range.clone());
            }
        }
    });

    let (ours, theirs) = UnixStream::pair().unwrap();
    let node = Node::new("n", LEN);
    let receiver = Receiver::new(vec![node], AliasMap::identity(), Limits::default());
    let receiver = Arc::new(Mutex::new(receiver));
    let receiving = {
        let receiver = Arc::clone(&receiver);
        thread::spawn(move || {
            Receiver::receive_shared(&receiver, &mut StreamReader::new(theirs)).unwrap();
        })
    };

    let outgoing = sources
        .iter()
        .zip(["fine", "coarse"])
        .map(|(source, name)| Outgoing::new("n", name, Arc::clone(source)))
        .collect();
    let options = SenderOptions {
        design,
        ..SenderOptions::default()
    };
    let mut sender = Sender::begin(ours, outgoing, options).unwrap();
    let mut want;
    if design == Design::Precopy {
        for _ in 0..5 {
            writers.go_on();
            sender.pass(200_000).unwrap();
        }
        sender.precopy(100_000, 10).unwrap();
        want = writers.hold();
        drop(sender.complete().unwrap());
    } else {
        want = writers.hold();
        sender.switch_over().unwrap();
        while !receiver.lock().unwrap().switched_over() {
            thread::yield_now();
        }
        let over_there = Writers::start(10, {
            let receiver = Arc::clone(&receiver);
            move |range| receiver.lock().unwrap().record("n", range).unwrap()
        });
        while sender.pass(100_000).unwrap().chunks != 0 {
            over_there.go_on();
        }
        drop(sender.complete().unwrap());
        want.merge(&over_there.hold()).unwrap();
    }
    receiving.join().unwrap();

    let receiver = Arc::into_inner(receiver).unwrap().into_inner().unwrap();
    let outcome = receiver.finish();
    assert_eq!(outcome.lost, []);
    for (received, granularity) in outcome.complete.iter().zip([512, 65536]) {
        let mut all = bitmap(granularity).into_bits();
        all.merge(&want).unwrap();
        assert!(all.count() > 100);
        assert!(*received.bitmap.bits() == all);
    }
    for source in sources {
        assert!(!source.lock().unwrap().is_busy());
    }
}

#[test]
fn precopy_while_three_threads_write() {
    run(Design::Precopy);
}

#[test]
fn postcopy_while_three_threads_write_over_there() {
    run(Design::Postcopy);
}
