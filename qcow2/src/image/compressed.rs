//! Compressed clusters of the guest's disk: neighbours are read at once, and the last
//! ones are kept decompressed, since a guest reads less than a cluster at a time.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::extents::{Mapped, Stretch, View};
use crate::{Error, Result, addr::HostOffset};

/// Bytes of compressed clusters that are read at once.
const READ: u64 = 1 << 20;
/// Decompressed bytes that are kept, and clusters, whichever is less.
const KEPT_BYTES: usize = 4 << 20;
const KEPT: usize = 16;

/// What is wanted of a compressed cluster.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    /// Where its data is in the image file.
    host: HostOffset,
    /// Bytes that it takes up, at most.
    len: u64,
    /// Bytes of the cluster before those that are wanted.
    skip: u64,
}

impl Cluster {
    /// The cluster of which `stretch` is a part, if it is compressed.
    fn of(stretch: &Stretch, cluster_size: u64) -> Option<Self> {
        match stretch.mapped {
            Mapped::Compressed { host, len } => Some(Self {
                host,
                len,
                skip: stretch.start % cluster_size,
            }),
            _ => None,
        }
    }

    /// Its place in the file.
    fn place(&self) -> Range<u64> {
        self.host.0..self.host.0.saturating_add(self.len)
    }

    /// The part of the file from `span` to the end of this cluster's data; `None` if they
    /// aren't neighbours, or too much.
    fn joined_to(&self, span: &Range<u64>) -> Option<Range<u64>> {
        let place = self.place();
        let joined = span.start..place.end.max(span.end);
        let near = span.start <= place.start && place.start <= span.end;
        (near && joined.end - joined.start <= READ).then_some(joined)
    }
}

impl View<'_> {
    /// Fills `out` with the first of `stretches`, which is compressed. The data of those
    /// behind it is read, too, as far as it is next in the file, and left in `data`.
    pub(super) fn fill_cluster(
        &self,
        stretches: &[Stretch],
        data: &mut CompressedData,
        out: &mut [u8],
    ) -> Result<()> {
        // It isn't encrypted, whatever else is; but without the secret nothing is read.
        self.image.cipher()?;
        let cluster_size = self.image.geometry().cluster_size();
        let first = stretches.first();
        let Some(cluster) = first.and_then(|first| Cluster::of(first, cluster_size)) else {
            return Ok(());
        };
        let cache = &self.image.guest.clusters;
        if let Some(bytes) = cache.get(cluster.host) {
            return cluster.copy(&bytes, out);
        }
        let input = data.of(self, &cluster, stretches)?;
        let decompress = |input: &[u8], out: &mut [u8]| {
            let done = self.image.guest.decompressor.decompress(input, out);
            done.map_err(|found| {
                let (place, allowed) = (cluster.host, format!("{cluster_size} bytes of data"));
                Error::corrupt("compressed cluster", place, found, allowed)
            })
        };
        if out.len() as u64 == cluster_size {
            return decompress(input, out);
        }
        let mut bytes = vec![0; usize::try_from(cluster_size).unwrap_or(0)];
        decompress(input, &mut bytes)?;
        let bytes = Arc::new(bytes);
        cache.insert(cluster.host, &bytes);
        cluster.copy(&bytes, out)
    }
}

impl Cluster {
    /// Copies what is wanted out of the decompressed cluster.
    fn copy(&self, bytes: &[u8], out: &mut [u8]) -> Result<()> {
        let skip = usize::try_from(self.skip).unwrap_or(usize::MAX);
        let part = bytes.get(skip..).and_then(|bytes| bytes.get(..out.len()));
        let part = part.ok_or_else(|| Error::Refused("more than a cluster of a cluster".into()))?;
        out.copy_from_slice(part);
        Ok(())
    }
}

/// Compressed data in memory.
#[derive(Debug, Default)]
pub(super) struct CompressedData {
    start: u64,
    bytes: Vec<u8>,
}

impl CompressedData {
    /// The data of `cluster`, read together with that of the others that `stretches`,
    /// which begin with its own, have next to it. Past the file's end are zeros.
    fn of(&mut self, view: &View<'_>, cluster: &Cluster, stretches: &[Stretch]) -> Result<&[u8]> {
        let cluster_size = view.image.geometry().cluster_size();
        if self.get(cluster).is_none() {
            let mut span = cluster.place();
            for other in stretches.iter().skip(1) {
                let other = Cluster::of(other, cluster_size);
                match other.and_then(|other| other.joined_to(&span)) {
                    Some(joined) => span = joined,
                    None => break,
                }
            }
            let len = usize::try_from(span.end - span.start).unwrap_or(0);
            self.bytes.resize(len, 0);
            self.start = span.start;
            let (name, host) = (&view.image.name, cluster.host);
            view.image
                .storage
                .read_padded(span.start, &mut self.bytes)
                .map_err(Error::io_with(|| format!("reading '{name}' at {host}")))?;
        }
        Ok(self.get(cluster).unwrap_or_default())
    }

    fn get(&self, cluster: &Cluster) -> Option<&[u8]> {
        let from = usize::try_from(cluster.host.0.checked_sub(self.start)?).ok()?;
        let len = usize::try_from(cluster.len).ok()?;
        self.bytes.get(from..)?.get(..len)
    }
}

/// The clusters decompressed last of which a part was asked for, by the place of their
/// compressed data.
#[derive(Debug, Default)]
pub(crate) struct ClusterCache {
    list: Mutex<VecDeque<(HostOffset, Arc<Vec<u8>>)>>,
}

impl ClusterCache {
    fn get(&self, host: HostOffset) -> Option<Arc<Vec<u8>>> {
        let mut list = self.lock();
        let at = list.iter().position(|(at, _)| *at == host)?;
        let found = list.remove(at)?;
        let bytes = Arc::clone(&found.1);
        list.push_front(found);
        Some(bytes)
    }

    fn insert(&self, host: HostOffset, bytes: &Arc<Vec<u8>>) {
        let mut list = self.lock();
        let most = KEPT.min(KEPT_BYTES / bytes.len().max(1)).max(1);
        list.retain(|(at, _)| *at != host);
        list.truncate(most - 1);
        list.push_front((host, Arc::clone(bytes)));
    }

    /// Forgets what was at `host`: something else is to be there.
    pub(super) fn forget(&self, host: HostOffset) {
        self.lock().retain(|(at, _)| *at != host);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(HostOffset, Arc<Vec<u8>>)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
