//! What is told of the bitmaps that went.

use std::io::{self, Write};

use hbitmap::HBitmap;

use crate::{
    cmd::bitmap::{Digests, NO_DIGEST, hex},
    output::{Json, Tree, counted},
    size::Human,
};

/// What is told of a bitmap's bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Bytes of disk that a bit stands for.
    pub(super) granularity: u64,
    /// Whether it records writes.
    pub(super) recording: bool,
    /// Dirty granules.
    pub(super) dirty_count: u64,
    /// The bytes of disk that they cover.
    pub(super) dirty_bytes: u64,
    /// Over the bits in linear form; `None` if they are too many.
    pub(super) sha256: Option<[u8; 32]>,
}

impl Facts {
    /// Those of a bitmap with these bits.
    pub(super) fn of(bits: &HBitmap, recording: bool, digests: &mut Digests) -> Self {
        Self {
            granularity: bits.granularity().bytes(),
            recording,
            dirty_count: bits.count(),
            dirty_bytes: bits.dirty_bytes(),
            sha256: digests.compute(bits),
        }
    }

    /// `recording` or `disabled`.
    fn state(&self) -> &'static str {
        if self.recording {
            "recording"
        } else {
            "disabled"
        }
    }

    /// `: recording, 1 MiB (1048576 bytes) dirty in 16 granules of 64 KiB`, which ends a
    /// line.
    pub(super) fn human(&self, out: &mut impl Write) -> io::Result<()> {
        let (state, bytes) = (self.state(), self.dirty_bytes);
        let count = counted(self.dirty_count, "granule");
        let granularity = Human(self.granularity);
        writeln!(
            out,
            ": {state}, {} ({bytes} bytes) dirty in {count} of {granularity}",
            Human(bytes)
        )
    }

    /// A line with the digest, which is called `what`.
    pub(super) fn human_digest(&self, what: &str, out: &mut impl Write) -> io::Result<()> {
        match &self.sha256 {
            Some(digest) => writeln!(out, "  {what} {}", hex(digest)),
            None => writeln!(out, "  {what} {NO_DIGEST}"),
        }
    }

    /// The digest as the member `key` of an open object.
    pub(super) fn json_digest<W: Write>(&self, key: &str, json: &mut Json<W>) -> io::Result<()> {
        match &self.sha256 {
            Some(digest) => json.string(key, hex(digest).as_bytes()),
            None => json.null(key),
        }
    }

    /// The members that all reports have, in an open object. The digest has a name of its
    /// own in each.
    pub(super) fn json<W: Write>(&self, json: &mut Json<W>) -> io::Result<()> {
        json.number("granularity", self.granularity.into())?;
        json.string("state", self.state().as_bytes())?;
        json.number("dirty-count", self.dirty_count.into())?;
        json.number("dirty-bytes", self.dirty_bytes.into())
    }
}
