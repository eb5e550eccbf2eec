//! [`PackSink`]: an image that is there, whose clusters are stored compressed.

use std::ops::Range;

use super::{
    plan::Zeros,
    sink::{COMPRESSED_PIECE, Sink},
};
use crate::{
    Result,
    image::{GuestWriter, Pieces, build::Unit},
};

/// An image that is there.
#[derive(Debug)]
pub(super) struct PackSink<'a> {
    writer: &'a GuestWriter,
    is_zero: bool,
}

impl<'a> PackSink<'a> {
    pub(super) fn new(writer: &'a GuestWriter, is_zero: bool) -> Self {
        Self { writer, is_zero }
    }
}

impl Sink for PackSink<'_> {
    type Ready = Pieces;

    fn piece(&self) -> u64 {
        COMPRESSED_PIECE
    }

    fn unit(&self) -> u64 {
        self.writer.cluster_size()
    }

    fn align(&self) -> u64 {
        self.writer.cluster_size()
    }

    fn zeros(&self) -> Zeros {
        Zeros::on(self.is_zero)
    }

    fn prepare(&self, at: u64, bytes: &[u8], units: &[Unit], ready: &mut Pieces) -> Result<()> {
        if !self.is_zero {
            return self.writer.pack(ready, at, bytes, units);
        }
        let units: Vec<_> = units
            .iter()
            .map(|unit| match unit {
                Unit::Zero => Unit::Leave,
                other => *other,
            })
            .collect();
        self.writer.pack(ready, at, bytes, &units)
    }

    fn store(&self, bytes: &[u8], pieces: &mut Pieces) -> Result<()> {
        self.writer.store_packed(bytes, pieces)
    }

    fn zero(&self, range: &Range<u64>) -> Result<()> {
        self.writer.zero(range.clone(), true)
    }
}
