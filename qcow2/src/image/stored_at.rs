//! [`View::stored_at`]: the short way to data, for a request within one cluster whose L2
//! entry is in memory, which is what most requests of a guest are.

use std::ops::Range;

use super::{
    entries::Rules,
    extents::{Mapped, View},
};
use crate::{
    addr::HostOffset,
    format::{ExtendedL2Entry, L2Entry, SubclusterBitmap, l2::SUBCLUSTERS},
    table::slice_size,
};

/// Where data of the disk is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    /// In the image, or in the external data file.
    pub(super) host: HostOffset,
    /// The entry says that nobody else refers to the cluster.
    pub(super) copied: bool,
}

impl View<'_> {
    /// Where `range` of the disk is stored as it is, if it is, and if that is told by one
    /// entry that is in memory. The entry was checked. For all else, be it an error, there is
    /// [`stretches`](Self::stretches).
    pub(super) fn stored_at(&self, range: &Range<u64>) -> Option<Stored> {
        let geometry = self.image.geometry();
        let cluster_size = geometry.cluster_size();
        let within = range.start % cluster_size;
        let length = range.end.checked_sub(range.start)?;
        if length == 0 || length > cluster_size - within {
            return None;
        }
        let coverage = geometry.l2_coverage();
        let table = self.l2_table(range.start / coverage).ok()??;
        let entry_at = range.start % coverage / cluster_size * geometry.l2_entry_size();
        let in_slice = entry_at % slice_size(geometry);
        let slice = HostOffset(table.0 + (entry_at - in_slice));
        let in_slice = usize::try_from(in_slice).ok()?;
        let word = |bytes: &[u8], at: usize| {
            let bytes = bytes.get(at..)?.first_chunk::<8>()?;
            Some(u64::from_be_bytes(*bytes))
        };
        let both = |bytes: &[u8]| {
            Some(ExtendedL2Entry {
                entry: L2Entry(word(bytes, in_slice)?),
                bitmap: SubclusterBitmap(match geometry.extended_l2() {
                    true => word(bytes, in_slice + 8)?,
                    false => 0,
                }),
            })
        };
        let both = match self.changed.and_then(|changed| changed.get(slice)) {
            Some(bytes) => both(bytes),
            None => self.image.guest.l2.look(slice, both).flatten(),
        }?;
        if geometry.extended_l2() {
            let size = cluster_size / u64::from(SUBCLUSTERS);
            let (first, end) = (within / size, (within + length).div_ceil(size));
            let touched = (1_u64 << end) - (1 << first);
            let stored = both.bitmap.allocated() & !both.bitmap.zeros();
            if touched & !u64::from(stored) != 0 {
                return None;
            }
        }
        let rules = Rules::new(self.image);
        match rules.mapped(both.entry, cluster_size).ok()? {
            Mapped::Data { host } => Some(Stored {
                host: HostOffset(host.0 + within),
                copied: both.entry.copied(),
            }),
            _ => None,
        }
    }
}
