//! [`Prepared`]: clusters on their way into an image, from content to places.

use std::ops::Range;

use crate::{addr::HostOffset, compress::Packed, format::SubclusterBitmap};

/// What a part of the new disk is: a cluster, or with extended L2 entries a subcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nothing is said of it: it reads from the backing file, or as zeros.
    Leave,
    /// It reads as zeros.
    Zero,
    /// It holds bytes.
    Data,
}

/// What becomes of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It gets no entry.
    Nothing,
    /// It reads as zeros; the subclusters that do, with extended L2 entries.
    Zero(SubclusterBitmap),
    /// It is stored as it is; the subclusters that are, with extended L2 entries.
    Plain(SubclusterBitmap),
    /// It is stored compressed; where in `Prepared::packed` the bytes are.
    Packed(Range<usize>),
}

/// Bytes that are to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// Where to.
    pub(super) host: HostOffset,
    /// Whether they are compressed ones.
    pub(super) packed: bool,
    /// Which of the piece's bytes, or of the compressed ones.
    pub(super) bytes: Range<usize>,
}

/// Clusters of the guest's disk in a row, ready for their places in the image.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The first cluster's index on the guest's disk.
    pub(super) first: u64,
    pub(super) fates: Vec<Fate>,
    pub(super) packed: Packed,
    pub(super) writes: Vec<Write>,
}

impl Prepared {
    /// Makes it ready for clusters from `first` on.
    pub(super) fn begin(&mut self, first: u64) {
        self.first = first;
        self.fates.clear();
        self.writes.clear();
    }

    /// Notes that `bytes` go to `host`; together with those before them if they adjoin.
    pub(super) fn write(&mut self, host: HostOffset, packed: bool, bytes: Range<usize>) {
        if let Some(last) = self.writes.last_mut() {
            let len = (last.bytes.end - last.bytes.start) as u64;
            let adjoins = last.packed == packed
                && last.bytes.end == bytes.start
                && last.host.checked_add(len) == Some(host);
            if adjoins {
                last.bytes.end = bytes.end;
                return;
            }
        }
        self.writes.push(Write {
            host,
            packed,
            bytes,
        });
    }
}
