//! [`Journal`]: what was done to a storage, and the states that a kill or a power cut
//! in the middle of it can leave behind.
//!
//! ```text
//! w1 w2 S w3 w4 w5 S w6          S: a completed sync
//!       │          └ power cut here: w1…w5 are there, w6 or parts of it may be
//!       └ power cut between the two syncs: w1 w2 are there, of w3 w4 w5 any subset
//! ```
//!
//! A *kill* ends the process: the system still has everything that was written, in
//! order. A *power cut* also loses what the system and the disk hadn't made stable:
//! of the operations since the last completed sync any subset may be there, whatever
//! their order, because nothing orders them. A cut before all of them were asked for
//! gives no further states: those not yet asked for are just missing. A write can
//! also be torn at sectors of 512 bytes, which are there whole or not at all.
//!
//! The model is harsher than disks are: of two writes into one sector the later one
//! can be there without the earlier.

use std::{fmt, ops::Range, sync::Arc};

use super::{
    MemoryStorage, Operation,
    sparse::Sparse,
    subsets::{self, Dice},
};

/// What a disk writes as one, in bytes.
const SECTOR: u64 = 512;
/// A write that is cut by a kill is cut at pages, in bytes.
const PAGE: u64 = 4096;

/// The content at some moment, and every operation since.
#[derive(Clone, Debug)]
pub struct Journal {
    base: Sparse,
    operations: Vec<Operation>,
}

/// How many of the states after a power cut to look at, for each stretch between two
/// syncs.
#[derive(Clone, Copy, Debug)]
pub struct PowerLoss {
    /// Up to this many operations, all their subsets; 20 at most. Beyond, every
    /// prefix, every suffix, each missing, each alone.
    pub exhaustive: u32,
    /// Random subsets where there are more operations than that.
    pub random: usize,
    /// Places at which each write of several sectors is torn, in several ways for
    /// each place; 0: writes happen whole or not at all.
    pub tears: usize,
    /// Seed of what is random.
    pub seed: u64,
}

impl Default for PowerLoss {
    fn default() -> Self {
        Self {
            exhaustive: 8,
            random: 64,
            tears: 4,
            seed: 1,
        }
    }
}

/// An image as an interruption left it.
#[derive(Clone, Debug)]
pub struct CrashState {
    /// The image, a storage of its own.
    pub storage: MemoryStorage,
    /// The first so many operations had been asked for, at most, when it happened.
    pub issued: usize,
    /// The first so many operations had been followed by a completed sync.
    pub synced: usize,
    /// Of the operations asked for, the numbers of those that are missing.
    pub missing: Vec<usize>,
    /// The numbers of those that are there in part.
    pub torn: Vec<usize>,
}

impl fmt::Display for CrashState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after {} operations ({} synced)",
            self.issued, self.synced
        )?;
        if !self.missing.is_empty() {
            write!(f, ", missing {:?}", self.missing)?;
        }
        if !self.torn.is_empty() {
            write!(f, ", torn {:?}", self.torn)?;
        }
        Ok(())
    }
}

impl Journal {
    pub(super) fn starting_at(base: Sparse) -> Self {
        Self {
            base,
            operations: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// Every operation, in order; failed ones are absent, but for failed syncs.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The content when the journal was started.
    #[must_use]
    pub fn start(&self) -> MemoryStorage {
        MemoryStorage::holding(self.base.clone())
    }

    /// The states after a kill before the n-th operation, for every n from the first
    /// to behind the last; and in the middle of each write of several pages.
    pub fn kills(&self) -> impl Iterator<Item = CrashState> + '_ {
        let mut content = self.base.clone();
        let mut synced = 0;
        (0..=self.operations.len()).flat_map(move |n| {
            let mut states = Vec::with_capacity(2);
            let state = |content: &Sparse, torn| CrashState {
                storage: MemoryStorage::holding(content.clone()),
                issued: n + torn,
                synced,
                missing: Vec::new(),
                torn: (n..n + torn).collect(),
            };
            states.push(state(&content, 0));
            if let Some(operation) = self.operations.get(n) {
                if let Some(half) = half_of_pages(operation) {
                    let mut content = content.clone();
                    half.apply_to(&mut content);
                    states.push(state(&content, 1));
                }
                operation.apply_to(&mut content);
                if *operation == Operation::Sync {
                    synced = n + 1;
                }
            }
            states
        })
    }

    /// The states after a power cut, for every stretch between two syncs.
    pub fn power_losses(&self, how: &PowerLoss) -> impl Iterator<Item = CrashState> + '_ {
        let how = *how;
        self.stretches()
            .into_iter()
            .enumerate()
            .flat_map(move |(number, stretch)| {
                stretch.states(&how, Dice(how.seed ^ (number as u64) << 32))
            })
    }

    /// Cuts the journal at its syncs.
    fn stretches(&self) -> Vec<Stretch<'_>> {
        let mut stretches = Vec::new();
        let mut base = self.base.clone();
        let mut since: Vec<Since<'_>> = Vec::new();
        let mut synced = 0;
        for (number, operation) in self.operations.iter().enumerate() {
            let ends = matches!(operation, Operation::Sync | Operation::FailedSync);
            if ends {
                stretches.push(Stretch {
                    base: base.clone(),
                    since: since.clone(),
                    issued: number,
                    synced,
                });
            } else {
                since.push(Since {
                    number,
                    operation,
                    fate: Fate::Open,
                });
            }
            match operation {
                Operation::Sync => {
                    synced = number + 1;
                    for one in since.iter_mut().filter(|s| s.fate == Fate::Open) {
                        one.fate = Fate::Stable;
                    }
                    // What comes before every doubtful operation is settled.
                    let settled = since.iter().take_while(|s| s.fate == Fate::Stable).count();
                    for one in since.drain(..settled) {
                        one.operation.apply_to(&mut base);
                    }
                }
                Operation::FailedSync => {
                    for one in since.iter_mut().filter(|s| s.fate == Fate::Open) {
                        one.fate = Fate::Doubtful;
                    }
                }
                _ => {}
            }
        }
        stretches.push(Stretch {
            base,
            since,
            issued: self.operations.len(),
            synced,
        });
        stretches
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// No sync since.
    Open,
    /// A sync since, which failed: never sure again.
    Doubtful,
    /// Made stable, but behind a doubtful one.
    Stable,
}

/// An operation that isn't part of what is settled.
#[derive(Clone, Copy, Debug)]
struct Since<'a> {
    number: usize,
    operation: &'a Operation,
    fate: Fate,
}

/// What is settled, and what isn't.
#[derive(Clone, Debug)]
struct Stretch<'a> {
    base: Sparse,
    since: Vec<Since<'a>>,
    issued: usize,
    synced: usize,
}

/// How much of an operation is there.
#[derive(Clone, Debug)]
enum Kept {
    All,
    Nothing,
    /// These bytes of the image.
    Parts(Vec<Range<u64>>),
}

impl<'a> Stretch<'a> {
    fn states(self, how: &PowerLoss, mut dice: Dice) -> impl Iterator<Item = CrashState> + use<'a> {
        let unsure: Vec<usize> = (0..self.since.len())
            .filter(|i| self.since.get(*i).is_some_and(|s| s.fate != Fate::Stable))
            .collect();
        let tears = self.tears(&unsure, how.tears, &mut dice);
        let whole = subsets::of(unsure.len(), how.exhaustive, how.random, dice);
        let whole = whole.map(|set| {
            set.into_iter()
                .map(|is_in| if is_in { Kept::All } else { Kept::Nothing })
                .collect()
        });
        whole
            .chain(tears)
            .map(move |kept: Vec<Kept>| self.state(&unsure, &kept))
    }

    fn state(&self, unsure: &[usize], kept: &[Kept]) -> CrashState {
        let mut content = self.base.clone();
        let (mut missing, mut torn) = (Vec::new(), Vec::new());
        let mut choices = unsure.iter().zip(kept).peekable();
        for (index, one) in self.since.iter().enumerate() {
            match choices.next_if(|(i, _)| **i == index) {
                None | Some((_, Kept::All)) => one.operation.apply_to(&mut content),
                Some((_, Kept::Nothing)) => missing.push(one.number),
                Some((_, Kept::Parts(parts))) => {
                    torn.push(one.number);
                    for part in parts {
                        cut(one.operation, part).apply_to(&mut content);
                    }
                }
            }
        }
        let storage = MemoryStorage::holding(content);
        CrashState {
            storage,
            issued: self.issued,
            synced: self.synced,
            missing,
            torn,
        }
    }

    /// Each unsure operation of several sectors torn in several ways; the others all
    /// there, all missing, and there up to it.
    fn tears(
        &self,
        unsure: &[usize],
        places: usize,
        dice: &mut Dice,
    ) -> impl Iterator<Item = Vec<Kept>> + use<> {
        let mut all = Vec::new();
        for (position, index) in unsure.iter().enumerate() {
            let Some(one) = self.since.get(*index) else {
                continue;
            };
            for parts in torn_ways(one.operation, places, dice) {
                let others: [fn(usize, usize) -> bool; 3] =
                    [|_, _| true, |_, _| false, |other, torn| other < torn];
                for others in others {
                    all.push((position, parts.clone(), others));
                }
            }
        }
        let count = unsure.len();
        all.into_iter().map(move |(position, parts, others)| {
            (0..count)
                .map(|i| match (i == position, others(i, position)) {
                    (true, _) => Kept::Parts(parts.clone()),
                    (false, true) => Kept::All,
                    (false, false) => Kept::Nothing,
                })
                .collect()
        })
    }
}

/// The bytes that an operation covers, if it can happen in part.
fn covered(operation: &Operation) -> Option<Range<u64>> {
    match operation {
        Operation::Write { offset, data } => Some(*offset..*offset + data.len() as u64),
        Operation::Zero(range) | Operation::Punch(range) => Some(range.clone()),
        Operation::SetLen(_) | Operation::Sync | Operation::FailedSync => None,
    }
}

/// The part of an operation that concerns `part` of the bytes it covers.
fn cut(operation: &Operation, part: &Range<u64>) -> Operation {
    match operation {
        Operation::Write { offset, data } => {
            let within = |n: u64| usize::try_from(n.saturating_sub(*offset)).unwrap_or(usize::MAX);
            let data = data
                .get(within(part.start)..within(part.end))
                .unwrap_or_default();
            Operation::Write {
                offset: part.start,
                data: Arc::from(data),
            }
        }
        Operation::Zero(_) => Operation::Zero(part.clone()),
        Operation::Punch(_) => Operation::Punch(part.clone()),
        other => other.clone(),
    }
}

/// The first half of the pages of a write of several.
fn half_of_pages(operation: &Operation) -> Option<Operation> {
    let Operation::Write { offset, data } = operation else {
        return None;
    };
    let end = offset + data.len() as u64;
    let (first, last) = (offset / PAGE, (end - 1) / PAGE);
    let middle = (first + (last - first).div_ceil(2)) * PAGE;
    (first < last).then(|| cut(operation, &(*offset..middle)))
}

/// Ways in which an operation of several sectors can be there in part: at some of its
/// sector borders what is before, what is behind; some sectors alone, some missing;
/// and a random half.
fn torn_ways(operation: &Operation, places: usize, dice: &mut Dice) -> Vec<Vec<Range<u64>>> {
    let Some(range) = covered(operation).filter(|_| places > 0) else {
        return Vec::new();
    };
    let first = range.start / SECTOR;
    let sectors = range.end.div_ceil(SECTOR) - first;
    if sectors < 2 {
        return Vec::new();
    }
    // Byte range of the sectors from..to, of which the first and last may be cut.
    let bytes = |from: u64, to: u64| {
        ((first + from) * SECTOR).max(range.start)..((first + to) * SECTOR).min(range.end)
    };
    let mut ways = Vec::new();
    for border in spread(1, sectors - 1, places) {
        ways.push(vec![bytes(0, border)]);
        ways.push(vec![bytes(border, sectors)]);
    }
    if sectors == 2 {
        return ways;
    }
    for sector in spread(0, sectors - 1, places) {
        ways.push(vec![bytes(sector, sector + 1)]);
        let around = [bytes(0, sector), bytes(sector + 1, sectors)];
        ways.push(around.into_iter().filter(|r| !r.is_empty()).collect());
    }
    // Of very long ones (zeroing) pieces of several sectors.
    let step = sectors.div_ceil(4096);
    let pieces = usize::try_from(sectors.div_ceil(step)).unwrap_or(0);
    let chosen = dice
        .choose(pieces)
        .into_iter()
        .zip((0..sectors).step_by(usize::try_from(step).unwrap_or(1)));
    ways.push(
        chosen
            .filter(|(is_in, _)| *is_in)
            .map(|(_, from)| bytes(from, (from + step).min(sectors)))
            .collect(),
    );
    ways
}

/// Up to `count` numbers from `first` to `last`, both included, evenly spread.
fn spread(first: u64, last: u64, count: usize) -> impl Iterator<Item = u64> {
    let all = last - first + 1;
    let count = (count as u64).min(all);
    let steps = count.saturating_sub(1).max(1);
    (0..count).map(move |i| first + (all - 1) * i / steps)
}
