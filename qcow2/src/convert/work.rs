//! [`Worker`]: what each thread does with the pieces, and what they share.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{
    ConvertError, ConvertOptions, Event, Overlay, lock,
    plan::{Part, Piece, Plan, What},
    queue::{Buffers, Job, Queue},
    sink::Sink,
};
use crate::{
    Error, Result,
    disk::{Disk, is_zero},
    image::build::Unit,
    io::PageBuffer,
};

/// Sectors that are tried one by one where a larger read failed.
const SECTOR: usize = 512;
/// Zeros on record up to which reading goes on over them.
const SMALL: u64 = 32 << 10;

/// Who is told of what happens.
type Events<'e> = &'e mut (dyn FnMut(Event<'_>) + Send);

/// What the threads share.
pub(super) struct Shared<'a, 'e, R> {
    plan: Mutex<(Plan<'a>, Pace)>,
    queue: Queue<R>,
    failed: Mutex<Option<ConvertError>>,
    events: Mutex<Events<'e>>,
}

/// Keeps to a rate.
#[derive(Debug)]
struct Pace {
    start: Instant,
    bytes: u64,
}

impl Pace {
    /// Waits until so many bytes more are allowed.
    fn keep(&mut self, bytes: u64, rate: Option<u64>) {
        let Some(rate) = rate.filter(|rate| *rate > 0) else {
            return;
        };
        let due = Duration::from_millis(self.bytes.saturating_mul(1000) / rate);
        self.bytes = self.bytes.saturating_add(bytes);
        thread::sleep(due.saturating_sub(self.start.elapsed()));
    }
}

impl<'a, 'e, R> Shared<'a, 'e, R> {
    pub(super) fn new(plan: Plan<'a>, queue: Queue<R>, events: Events<'e>) -> Self {
        let pace = Pace {
            start: Instant::now(),
            bytes: 0,
        };
        Self {
            plan: Mutex::new((plan, pace)),
            queue,
            failed: Mutex::default(),
            events: Mutex::new(events),
        }
    }

    /// What failed first on the disk, if anything did.
    pub(super) fn into_outcome(self) -> (Option<ConvertError>, Events<'e>) {
        let failed = self.failed.into_inner();
        let events = self.events.into_inner();
        (
            failed.unwrap_or_else(PoisonError::into_inner),
            events.unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn fail(&self, error: ConvertError) {
        let mut failed = lock(&self.failed);
        let earlier = failed.as_ref();
        if earlier.is_none_or(|earlier| error.at() < earlier.at()) {
            *failed = Some(error);
        }
        drop(failed);
        self.queue.stop();
    }
}

/// What a thread needs for its work.
pub(super) struct Worker<'a, 's, 'e, S: Sink> {
    pub(super) source: &'a dyn Disk,
    pub(super) sink: &'a S,
    pub(super) overlay: Overlay<'a>,
    pub(super) options: ConvertOptions,
    pub(super) shared: &'s Shared<'a, 'e, S::Ready>,
}

/// Lets nobody wait for a thread that panicked.
struct Alarm<'b, 'a, 'e, R>(&'b Shared<'a, 'e, R>);

impl<R> Drop for Alarm<'_, '_, '_, R> {
    fn drop(&mut self) {
        if thread::panicking() {
            let source = Error::Refused("a thread of the conversion panicked".into());
            self.0.fail(ConvertError::Write { at: 0, source });
        }
    }
}

impl<S: Sink> Worker<'_, '_, '_, S> {
    /// Reads pieces until none is left, or something failed.
    pub(super) fn read_all(&self) {
        let _alarm = Alarm(self.shared);
        let mut units = Vec::new();
        let queue = &self.shared.queue;
        while let Some(mut buffers) = queue.buffers() {
            let Some(piece) = self.next() else {
                queue.give_back(buffers);
                break;
            };
            if let Err(error) = self.read_piece(&piece, &mut buffers, &mut units) {
                self.shared.fail(error);
                break;
            }
            queue.push(Job {
                number: piece.number,
                is_zero: piece.parts.is_empty(),
                range: piece.range,
                buffers,
            });
        }
        queue.leave();
    }

    fn next(&self) -> Option<Piece> {
        let mut plan = lock(&self.shared.plan);
        if self.shared.queue.is_stopped() {
            return None;
        }
        let (plan, pace) = &mut *plan;
        match plan.next() {
            Ok(piece) => {
                if let Some(piece) = piece.as_ref().filter(|piece| !piece.parts.is_empty()) {
                    pace.keep(piece.range.end - piece.range.start, self.options.rate);
                }
                piece
            }
            Err(error) => {
                self.shared.fail(error);
                None
            }
        }
    }

    /// Reads a piece, and does with it what can be done before its turn.
    fn read_piece(
        &self,
        piece: &Piece,
        buffers: &mut Buffers<S::Ready>,
        units: &mut Vec<Unit>,
    ) -> Result<(), ConvertError> {
        if piece.parts.is_empty() {
            return Ok(());
        }
        let Buffers { bytes, ready } = buffers;
        self.fill(piece, bytes)?;
        self.units(piece, bytes, units);
        let at = piece.range.start;
        let prepared = self.sink.prepare(at, bytes, units, ready);
        prepared.map_err(|source| ConvertError::Write { at, source })
    }

    /// Writes the pieces in order, until none is left, or something failed.
    pub(super) fn write_all(&self) {
        let _alarm = Alarm(self.shared);
        while let Some(mut job) = self.shared.queue.next() {
            if let Err(source) = self.write(&mut job) {
                let at = job.range.start;
                return self.shared.fail(ConvertError::Write { at, source });
            }
            self.shared.queue.give_back(job.buffers);
            self.tell(Event::Progress(job.range.end));
        }
    }

    fn write(&self, job: &mut Job<S::Ready>) -> Result<()> {
        if job.is_zero {
            return self.sink.zero(&job.range);
        }
        let Buffers { bytes, ready } = &mut job.buffers;
        self.sink.store(bytes, ready)
    }

    fn tell(&self, event: Event<'_>) {
        lock(&self.shared.events)(event);
    }

    /// Fills `bytes` with what the disk holds in the piece.
    fn fill(&self, piece: &Piece, bytes: &mut PageBuffer) -> Result<(), ConvertError> {
        let start = piece.range.start;
        let index = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
        let len = index(piece.range.end);
        let align = usize::try_from(self.sink.align()).unwrap_or(1);
        let whole = match self.sink.is_filled_up() {
            true => len.next_multiple_of(align),
            false => len,
        };
        bytes.resize(whole);
        bytes.get_mut(len..).unwrap_or_default().fill(0);
        let mut parts = piece.parts.as_slice();
        while let Some((part, mut rest)) = parts.split_first() {
            let mut range = part.range.clone();
            if part.what == What::Read {
                // Small gaps are cheaper to read than to leave out.
                while let [gap, next, ..] = rest {
                    let small = gap.range.end - gap.range.start <= SMALL;
                    if gap.what != What::Zero || next.what != What::Read || !small {
                        break;
                    }
                    range.end = next.range.end;
                    rest = rest.get(2..).unwrap_or_default();
                }
            }
            let out = bytes.get_mut(index(range.start)..index(range.end));
            let out = out.unwrap_or_default();
            match part.what {
                What::Zero => out.fill(0),
                What::Read => self.read(range.start, out)?,
                What::Leave => self.read_base(range.start, out)?,
            }
            parts = rest;
        }
        Ok(())
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<(), ConvertError> {
        let Err(source) = self.source.read(at, out) else {
            return Ok(());
        };
        if !self.options.salvage {
            let at = match &source {
                Error::Guest { start, .. } => start.0.max(at),
                _ => at,
            };
            return Err(ConvertError::Read { at, source });
        }
        for (index, sector) in out.chunks_mut(SECTOR).enumerate() {
            let at = at.saturating_add((index * SECTOR) as u64);
            if let Err(error) = self.source.read(at, sector) {
                sector.fill(0);
                self.tell(Event::Salvaged { at, error: &error });
            }
        }
        Ok(())
    }

    /// Reads what the target has behind it.
    fn read_base(&self, at: u64, out: &mut [u8]) -> Result<(), ConvertError> {
        let size = self.overlay.base.map_or(0, Disk::size);
        let inside = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
        let (part, beyond) = out.split_at_mut(inside.min(out.len()));
        beyond.fill(0);
        match self.overlay.base {
            Some(base) if !part.is_empty() => base
                .read(at, part)
                .map_err(|source| ConvertError::Read { at, source }),
            _ => Ok(()),
        }
    }

    /// Says of each unit what it is.
    fn units(&self, piece: &Piece, bytes: &[u8], units: &mut Vec<Unit>) {
        let unit = usize::try_from(self.sink.unit()).unwrap_or(usize::MAX);
        units.clear();
        units.extend(bytes.chunks(unit).map(|bytes| match self.options.sparse {
            0 => Unit::Data,
            _ if is_zero(bytes) => Unit::Zero,
            _ => Unit::Data,
        }));
        let together = self.sink.units_together();
        if together > 1 {
            for units in units.chunks_mut(together) {
                if units.contains(&Unit::Data) {
                    units.fill(Unit::Data);
                }
            }
        }
        if piece.parts.iter().any(|part| part.what == What::Leave) {
            self.leave(piece, units);
        }
    }

    /// Units of nothing but what the target has behind it aren't touched.
    fn leave(&self, piece: &Piece, units: &mut [Unit]) {
        let mut parts: &[Part] = &piece.parts;
        let mut start = piece.range.start;
        for unit in units {
            let end = start.saturating_add(self.sink.unit());
            while let [part, rest @ ..] = parts
                && part.range.end <= start
            {
                parts = rest;
            }
            let here = parts.iter().take_while(|part| part.range.start < end);
            let is_left = here.clone().count() > 0 || start >= piece.range.end;
            if is_left && here.clone().all(|part| part.what == What::Leave) {
                *unit = Unit::Leave;
            }
            start = end;
        }
    }
}
