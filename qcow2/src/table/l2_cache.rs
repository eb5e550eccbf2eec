//! [`L2Cache`]: slices of L2 tables that were read, shared by all threads, within a
//! bound.
//!
//! The unit is a slice, not a table: a random read of an image with clusters of 2 MiB
//! must not cost a table of 2 MiB. Slices are found by their place in the file, so that
//! snapshots that share a table share its slices, too.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::addr::HostOffset;

/// Most bytes of a slice; tables that are smaller are one slice.
pub(crate) const SLICE: u64 = 16 << 10;
/// Bytes of slices that are kept. At 64 KiB a cluster they map 256 GiB; it is also what
/// QEMU keeps.
const MAX_BYTES: usize = 32 << 20;
/// Parts of the cache that are locked each by itself.
const SHARDS: usize = 16;
/// An odd number without a pattern: 2^64 divided by the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Slices of L2 tables by their offset in the file.
#[derive(Debug, Default)]
pub(crate) struct L2Cache {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    slices: HashMap<HostOffset, Slice, BuildHasherDefault<Mix>>,
    /// In the order in which they are looked at when room is needed.
    queue: VecDeque<HostOffset>,
    bytes: usize,
}

/// A hash of offsets that costs next to nothing. That an image can have been made so that
/// they collide does no harm: a shard has few of them.
#[derive(Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        // The low bits of a product know nothing of the high bits of its factors.
        let mixed = (self.0 ^ word).wrapping_mul(MULTIPLIER);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug)]
struct Slice {
    bytes: Arc<Vec<u8>>,
    /// Asked for since it was last looked at for room.
    used: bool,
}

impl L2Cache {
    /// The slice at `offset`, if it is kept.
    pub(crate) fn get(&self, offset: HostOffset) -> Option<Arc<Vec<u8>>> {
        let mut shard = self.shard(offset)?;
        let slice = shard.slices.get_mut(&offset)?;
        slice.used = true;
        Some(Arc::clone(&slice.bytes))
    }

    /// What `look` finds in the slice at `offset`, if it is kept. No other thread can look
    /// at its neighbours meanwhile: it is meant for an entry.
    pub(crate) fn look<T>(&self, offset: HostOffset, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let mut shard = self.shard(offset)?;
        let slice = shard.slices.get_mut(&offset)?;
        slice.used = true;
        Some(look(&slice.bytes))
    }

    /// Whether the slice at `offset` is kept.
    pub(crate) fn holds(&self, offset: HostOffset) -> bool {
        self.shard(offset)
            .is_some_and(|shard| shard.slices.contains_key(&offset))
    }

    /// Keeps a slice, and forgets others that were not asked for lately if room is needed.
    pub(crate) fn insert(&self, offset: HostOffset, bytes: Arc<Vec<u8>>) {
        if let Some(mut shard) = self.shard(offset) {
            shard.insert(offset, bytes);
        }
    }

    fn shard(&self, offset: HostOffset) -> Option<MutexGuard<'_, Shard>> {
        // Slices are as far apart as their size, or more: mix all bits.
        let mixed = offset.0.wrapping_mul(MULTIPLIER) >> 60;
        let shard = self.shards.get(usize::try_from(mixed).ok()?)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shard {
    fn insert(&mut self, offset: HostOffset, bytes: Arc<Vec<u8>>) {
        let added = bytes.len();
        let slice = Slice { bytes, used: false };
        match self.slices.insert(offset, slice) {
            Some(old) => self.bytes -= old.bytes.len(),
            None => self.queue.push_back(offset),
        }
        self.bytes += added;
        while self.bytes > MAX_BYTES / SHARDS {
            let Some(oldest) = self.queue.pop_front() else {
                break;
            };
            match self.slices.get_mut(&oldest) {
                Some(slice) if slice.used && oldest != offset => {
                    slice.used = false;
                    self.queue.push_back(oldest);
                }
                _ => {
                    let gone = self.slices.remove(&oldest);
                    self.bytes -= gone.map_or(0, |slice| slice.bytes.len());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(byte: u8) -> Arc<Vec<u8>> {
        Arc::new(vec![byte; 16 << 10])
    }

    fn kept(cache: &L2Cache) -> usize {
        cache.shards.iter().map(|s| s.lock().unwrap().bytes).sum()
    }

    #[test]
    fn what_is_asked_for_stays_within_the_bound() {
        let cache = L2Cache::default();
        let favourite = HostOffset(0x10000);
        cache.insert(favourite, slice(1));
        for n in 2..10_000 {
            assert_eq!(cache.get(favourite).unwrap()[0], 1);
            cache.insert(HostOffset(n << 16), slice(2));
            assert!(kept(&cache) <= MAX_BYTES);
        }
        assert!(kept(&cache) > MAX_BYTES / 4, "it is used");
        assert!(cache.holds(HostOffset(9999 << 16)));
        assert!(!cache.holds(HostOffset(2 << 16)));
    }

    #[test]
    fn a_slice_read_twice_counts_once() {
        let cache = L2Cache::default();
        for byte in 0..9 {
            cache.insert(HostOffset(512), slice(byte));
        }
        assert_eq!(kept(&cache), 16 << 10);
        assert_eq!(cache.get(HostOffset(512)).unwrap()[5], 8);
    }
}
