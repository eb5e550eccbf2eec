//! `check -r`, interrupted everywhere: killed before its n-th operation for every n, losing
//! power with any of the writes since the last sync missing or torn, and with every
//! operation failing. The image is no worse than before: the guest finds what it had, no
//! refcount is too low that wasn't, nothing is damaged that wasn't; and repaired
//! again it is as good as without the interruption.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic in a test is its message"
)]

#[path = "repair/state.rs"]
mod state;

use qcow2::{
    check::{CheckFailed, CheckOptions, Repair, RepairReport, Verdict, repair},
    format::HeaderArea,
    io::{
        Storage,
        memory::{CrashState, Fault, MemoryStorage, Operation, PowerLoss},
    },
};
use qimg_tests::testdata;
use state::{State, places, u64_at};

fn load(name: &str) -> MemoryStorage {
    MemoryStorage::load(testdata::qcow2(name)).unwrap()
}

fn repaired(storage: &MemoryStorage, what: Repair) -> Result<RepairReport, CheckFailed> {
    let mut area = HeaderArea::read_for_check(storage).unwrap();
    repair(
        storage,
        &mut area,
        what,
        CheckOptions::default(),
        &mut |_| {},
    )
}

/// Repairs a fork of `damaged` and looks at every state in which it could have been
/// interrupted. Returns how many those were.
fn interrupt_everywhere(damaged: &MemoryStorage, what: Repair, name: &str, how: &PowerLoss) -> u64 {
    let before = State::of(damaged);
    let storage = damaged.fork();
    storage.start_journal();
    let outcome = repaired(&storage, what);
    let after = State::of(&storage);
    before.assert_no_worse(&after, name);
    let journal = storage.journal();
    let mut states = 0;
    let mut check = |state: CrashState| {
        states += 1;
        let name = format!("{name} {state}");
        before.assert_no_worse(&State::of(&state.storage), &name);
        if let Ok(outcome) = &outcome {
            let again = repaired(&state.storage, what).unwrap_or_else(|e| panic!("{name}: {e}"));
            let (now, then) = (again.report.verdict(), outcome.report.verdict());
            assert!(
                now == then || now == Verdict::Clean,
                "{name}: {now:?}, not {then:?}"
            );
            before.assert_no_worse(&State::of(&state.storage), &name);
        }
    };
    journal.kills().for_each(&mut check);
    journal.power_losses(how).for_each(&mut check);
    states
}

/// Every operation of the repair fails, once or from then on. Nothing more is written
/// after the failure.
fn fail_everywhere(damaged: &MemoryStorage, what: Repair, name: &str) {
    let before = State::of(damaged);
    let storage = damaged.fork();
    storage.start_journal();
    if repaired(&storage, what).is_err() {
        let operations = storage.journal().operations().to_vec();
        assert_eq!(operations, [], "{name}: refused, but something was written");
        return;
    }
    let operations = storage.journal().operations().to_vec();
    for (at, operation) in operations.iter().enumerate() {
        for fault in [Fault::once(at as u64), Fault::for_good(at as u64)] {
            let name = format!("{name} {fault:?}");
            let storage = damaged.fork();
            storage.start_journal();
            storage.set_fault(Some(fault));
            let result = repaired(&storage, what);
            storage.set_fault(None);
            if matches!(operation, Operation::Punch(_)) {
                // Space that isn't given back is no failure.
                assert!(result.is_ok(), "{name}");
            } else {
                assert!(result.is_err(), "{name}: the failure went unnoticed");
                let done = storage.journal().operations().len();
                let failed = usize::from(*operation == Operation::Sync);
                assert_eq!(done, at + failed, "{name}: written after the failure");
            }
            before.assert_no_worse(&State::of(&storage), &name);
        }
    }
}

/// Overwrites the number of `len` bytes at `at`.
fn put(storage: &MemoryStorage, at: u64, len: usize, value: u64) {
    let bytes = value.to_be_bytes();
    storage.write_all_at(at, &bytes[8 - len..]).unwrap();
}

/// What is done to the image, whose first L2 table, refcount table and first refcount block
/// are at these offsets.
struct Parts<'a> {
    storage: &'a MemoryStorage,
    l1: u64,
    l2: u64,
    table: u64,
    block: u64,
    cluster: u64,
}

impl<'a> Parts<'a> {
    fn of(storage: &'a MemoryStorage) -> Self {
        const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
        let bytes = storage.to_vec(1 << 24).unwrap();
        let (l1, table) = (u64_at(&bytes, 40), u64_at(&bytes, 48));
        Self {
            storage,
            l1,
            l2: u64_at(&bytes, l1) & OFFSET,
            table,
            block: u64_at(&bytes, table),
            cluster: 1 << bytes[23],
        }
    }

    fn put(&self, at: u64, len: usize, value: u64) {
        put(self.storage, at, len, value);
    }

    fn entry(&self, index: u64) -> u64 {
        u64_at(&self.storage.to_vec(1 << 24).unwrap(), self.l2 + 8 * index)
    }
}

/// A kind of damage, for images with refcounts of 16 bits and standard L2 entries.
type Damage = (&'static str, fn(&Parts<'_>));

const DAMAGES: [Damage; 17] = [
    ("refcounts too high", |p| {
        p.put(p.block + 2, 2, 3);
        p.put(p.block + 10, 2, 9);
    }),
    ("refcounts too low", |p| {
        p.put(p.block, 2, 0);
        p.put(p.block + 8, 2, 0);
    }),
    ("both", |p| {
        p.put(p.block + 2, 2, 0);
        p.put(p.block + 10, 2, 9);
    }),
    ("a cluster that two entries name", |p| {
        p.put(p.l2 + 8, 8, p.entry(0))
    }),
    ("copied flags missing", |p| {
        p.put(p.l2, 8, p.entry(0) & !(1 << 63));
        p.put(p.l1, 8, p.l2);
    }),
    ("misplaced preallocation", |p| {
        p.put(p.l2, 8, p.entry(0) + 0x201)
    }),
    ("misplaced data", |p| p.put(p.l2, 8, p.entry(0) + 0x200)),
    ("an entry beyond the end", |p| {
        p.put(p.l2, 8, 1 << 63 | 0x1000_0000)
    }),
    ("an L2 table lost", |p| {
        p.put(p.l1, 8, 1 << 63 | 0x1000_0000)
    }),
    ("no refcount block", |p| p.put(p.table, 8, 0)),
    ("refcount block misplaced", |p| {
        p.put(p.table, 8, p.block + 0x200)
    }),
    ("refcount block outside", |p| p.put(p.table, 8, 0x1000_0000)),
    ("refcount block twice", |p| p.put(p.table + 8, 8, p.block)),
    ("refcount block in data", |p| {
        p.put(p.table + 8, 8, p.entry(0) & !(1 << 63));
    }),
    ("no refcount table", |p| p.put(56, 4, 0)),
    ("refcount table elsewhere", |p| {
        p.put(48, 8, 0x4000_0000_0000_0000)
    }),
    ("a refcount table with other things in it", |p| {
        p.put(56, 4, 3);
        p.put(p.table + 16, 8, p.cluster * 3);
    }),
];

#[test]
fn each_kind_of_damage() {
    let mut states = 0;
    for image in ["leaks.qcow2", "snapshots.qcow2", "zlib-compressed.qcow2"] {
        for (damage, apply) in DAMAGES {
            for what in [Repair::Leaks, Repair::All] {
                let storage = load(image);
                apply(&Parts::of(&storage));
                let name = format!("{image} {damage}, {what:?}");
                states += interrupt_everywhere(&storage, what, &name, &PowerLoss::default());
                fail_everywhere(&storage, what, &name);
            }
        }
    }
    assert!(states > 1000, "only {states} states");
}

/// An image that a crash left with the dirty bit, one with void bitmaps, and one whose
/// snapshot table is that of an older program.
#[test]
fn what_programs_leave_behind() {
    let dirty = load("lazy-dirty.qcow2");
    let void = load("autoclear-cleared.qcow2");
    let corrupt = load("corrupt-bit.qcow2");
    let old = without_extra_data(&load("snapshots.qcow2"));
    for (storage, name) in [
        (dirty, "dirty"),
        (void, "void"),
        (corrupt, "corrupt"),
        (old, "old snapshots"),
    ] {
        interrupt_everywhere(&storage, Repair::All, name, &PowerLoss::default());
        fail_everywhere(&storage, Repair::All, name);
        let outcome = repaired(&storage, Repair::All).unwrap();
        let clean = (outcome.report.corruptions, outcome.report.leaks);
        assert_eq!(clean, (0, 0), "{name}");
        let area = HeaderArea::read(&storage).unwrap();
        assert_eq!(area.header().incompatible_features.0 & 3, 0, "{name}");
        let bitmaps = area.extensions().bitmaps().unwrap();
        assert!(bitmaps.is_none() || name != "void");
    }
}

/// Takes the extra data out of the snapshot table, as there was none in version 2.
fn without_extra_data(storage: &MemoryStorage) -> MemoryStorage {
    let bytes = storage.to_vec(1 << 24).unwrap();
    let (count, at) = (u64_at(&bytes, 56) & 0xffff_ffff, u64_at(&bytes, 64));
    let mut rest = &bytes[usize::try_from(at).unwrap()..];
    let mut table = Vec::new();
    for index in 0..usize::try_from(count).unwrap() {
        let base = qcow2::addr::HostOffset(at);
        let (left, mut snapshot) = qcow2::format::Snapshot::parse(rest, base, index).unwrap();
        snapshot.extra.clear();
        snapshot.padded().encode(&mut table);
        rest = left;
    }
    storage.write_all_at(at, &table).unwrap();
    storage.fork()
}

/// Random damage to images of many kinds.
#[test]
fn random_damage() {
    let rounds = std::env::var("QIMG_CHECK_ROUNDS").ok();
    let rounds: u64 = rounds.and_then(|n| n.parse().ok()).unwrap_or(6);
    let seed = std::env::var("QIMG_CHECK_SEED").ok();
    let seed: u64 = seed.and_then(|n| n.parse().ok()).unwrap_or(1);
    let how = PowerLoss {
        exhaustive: 4,
        random: 8,
        tears: 1,
        seed: 1,
    };
    let mut states = 0;
    for image in [
        "leaks.qcow2",
        "snapshots.qcow2",
        "three-bitmaps.qcow2",
        "cluster-512.qcow2",
        "cluster-1k.qcow2",
        "extended-l2.qcow2",
        "data-file.qcow2",
        "refcount-1.qcow2",
        "refcount-4.qcow2",
        "refcount-64.qcow2",
        "v2.qcow2",
        "zstd.qcow2",
    ] {
        let sound = load(image);
        let places = places(&sound);
        for round in 0..rounds {
            let storage = sound.fork();
            let mut random = state::Random(0x9e37_79b9_7f4a_7c15 ^ (seed * 1_000_003 + round) << 8);
            random.below(2);
            for _ in 0..1 + random.below(3) {
                random.damage(&storage, &places);
            }
            for what in [Repair::Leaks, Repair::All] {
                let name = format!("{image} round {round}, {what:?}");
                states += interrupt_everywhere(&storage, what, &name, &how);
                if round % 3 == 0 {
                    fail_everywhere(&storage, what, &name);
                }
            }
        }
    }
    assert!(states > 500, "only {states} states");
}
