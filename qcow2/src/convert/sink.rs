//! [`Sink`]: what the copying asks of a target.

use std::ops::Range;

use super::plan::Zeros;
use crate::{
    Result,
    disk::DiskMut,
    image::build::{Builder, Prepared, Unit},
};

/// Bytes of a piece, unless a cluster is larger: few enough to stay in the caches between
/// reading and writing, many enough for the threads to wake each other seldom.
const PIECE: u64 = 1 << 20;
/// Bytes of a piece that is compressed.
pub(super) const COMPRESSED_PIECE: u64 = 256 << 10;
/// Bytes of a part of a disk that is written or not, where everything is.
const UNIT: u64 = 64 << 10;
/// Where pieces may begin on a disk that is written in place.
const ALIGN: u64 = 4096;
/// Clusters of zeros that are entered at once.
const ZEROS: u64 = 8192;

/// A target. Any thread prepares pieces; one stores them, in the order of the disk.
pub(super) trait Sink: Sync {
    /// A piece on its way; its memory serves for the next one.
    type Ready: Default + Send;

    /// Bytes of a piece.
    fn piece(&self) -> u64 {
        PIECE
    }

    /// Bytes of the parts of which each is stored or not.
    fn unit(&self) -> u64;

    /// Units in a row that are stored if one of them is.
    fn units_together(&self) -> usize {
        1
    }

    /// Pieces begin at multiples of this.
    fn align(&self) -> u64;

    /// Whether the bytes of a piece are to be filled up to a multiple of `align`.
    fn is_filled_up(&self) -> bool {
        false
    }

    /// What is done about zeros.
    fn zeros(&self) -> Zeros;

    /// What can be done in any order. `bytes` are the disk's from `at` on.
    fn prepare(&self, at: u64, bytes: &[u8], units: &[Unit], ready: &mut Self::Ready)
    -> Result<()>;

    /// Gives it its place, and writes it.
    fn store(&self, bytes: &[u8], ready: &mut Self::Ready) -> Result<()>;

    /// Makes zeros.
    fn zero(&self, range: &Range<u64>) -> Result<()>;
}

/// A new image.
#[derive(Debug)]
pub(super) struct BuildSink<'a> {
    builder: &'a Builder,
    sparse: u64,
}

impl<'a> BuildSink<'a> {
    pub(super) fn new(builder: &'a Builder, sparse: u64) -> Self {
        Self { builder, sparse }
    }
}

impl Sink for BuildSink<'_> {
    type Ready = Prepared;

    fn piece(&self) -> u64 {
        match self.builder.compresses() {
            true => COMPRESSED_PIECE,
            false => PIECE,
        }
    }

    fn unit(&self) -> u64 {
        self.builder.unit_size()
    }

    fn units_together(&self) -> usize {
        usize::try_from(self.sparse / self.unit())
            .unwrap_or(1)
            .max(1)
    }

    fn align(&self) -> u64 {
        self.builder.cluster_size()
    }

    fn is_filled_up(&self) -> bool {
        true
    }

    fn zeros(&self) -> Zeros {
        match self.builder.has_backing() {
            true if self.builder.zeros_are_data() => Zeros::Store,
            true => Zeros::Make,
            false => Zeros::Skip,
        }
    }

    fn prepare(&self, at: u64, bytes: &[u8], units: &[Unit], ready: &mut Prepared) -> Result<()> {
        self.builder.prepare_in(ready, at, bytes, units)
    }

    fn store(&self, bytes: &[u8], ready: &mut Prepared) -> Result<()> {
        self.builder.place(ready)?;
        self.builder.store(bytes, ready)
    }

    fn zero(&self, range: &Range<u64>) -> Result<()> {
        let step = self.builder.cluster_size().saturating_mul(ZEROS);
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at.saturating_add(step));
            let mut ready = self.builder.prepare_zeros(&(at..end))?;
            self.builder.place(&mut ready)?;
            at = end;
        }
        Ok(())
    }
}

/// A disk that is there.
#[derive(Debug)]
pub(super) struct DiskSink<'a> {
    disk: &'a dyn DiskMut,
    is_zero: bool,
    unit: u64,
}

impl<'a> DiskSink<'a> {
    pub(super) fn new(disk: &'a dyn DiskMut, is_zero: bool, sparse: u64) -> Self {
        Self {
            disk,
            is_zero,
            unit: if sparse == 0 { UNIT } else { sparse },
        }
    }
}

/// Parts of a piece: where they are in it, and what they are.
#[derive(Debug, Default)]
pub(super) struct Runs {
    at: u64,
    runs: Vec<(Range<usize>, Unit)>,
}

impl Sink for DiskSink<'_> {
    type Ready = Runs;

    fn unit(&self) -> u64 {
        self.unit
    }

    fn align(&self) -> u64 {
        ALIGN
    }

    fn zeros(&self) -> Zeros {
        Zeros::on(self.is_zero)
    }

    fn prepare(&self, at: u64, bytes: &[u8], units: &[Unit], ready: &mut Runs) -> Result<()> {
        let unit = usize::try_from(self.unit).unwrap_or(usize::MAX);
        ready.at = at;
        let runs = &mut ready.runs;
        runs.clear();
        let mut start: usize = 0;
        for what in units {
            let end = start.saturating_add(unit).min(bytes.len());
            match runs.last_mut() {
                Some((range, last)) if last == what => range.end = end,
                _ => runs.push((start..end, *what)),
            }
            start = end;
        }
        Ok(())
    }

    fn store(&self, bytes: &[u8], ready: &mut Runs) -> Result<()> {
        for (range, what) in &ready.runs {
            let start = ready.at.saturating_add(range.start as u64);
            match what {
                Unit::Leave => {}
                Unit::Zero if self.is_zero => {}
                Unit::Zero => {
                    let end = ready.at.saturating_add(range.end as u64);
                    self.disk.zero(start..end, true)?;
                }
                Unit::Data => {
                    let bytes = bytes.get(range.clone()).unwrap_or_default();
                    self.disk.write(start, bytes)?;
                }
            }
        }
        Ok(())
    }

    fn zero(&self, range: &Range<u64>) -> Result<()> {
        self.disk.zero(range.clone(), true)
    }
}
