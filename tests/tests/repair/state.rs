//! An image in the eyes of those who use it, for comparison.

use std::collections::{BTreeMap, BTreeSet};

use qcow2::{
    Geometry,
    addr::HostOffset,
    check::{
        CheckOptions, CopiedFlag, Finding, Metadata, Referrer, Severity, Visitor, check, walk,
    },
    format::{HeaderArea, L1Entry, L2Entry, Snapshot, SubclusterBitmap, l2},
    io::{Storage, memory::MemoryStorage},
};

pub(crate) fn u64_at(bytes: &[u8], at: u64) -> u64 {
    let at = usize::try_from(at).unwrap();
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// What a guest cluster holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// These bytes, or bytes of a data file or beyond the end.
    Bytes(Vec<u8>),
    /// Nothing that can be read: the entry.
    Invalid(u64),
    /// What was metadata in the first place.
    Alias,
}

type Disk = BTreeMap<u64, (u64, Content)>;

/// What matters of an image.
#[derive(Debug)]
pub(crate) struct State {
    /// The disk, and that of each snapshot by its ID.
    disks: BTreeMap<Vec<u8>, Disk>,
    /// Clusters with a refcount that is too low.
    low: BTreeSet<u64>,
    /// Active entries with the copied flag whose cluster is referred to elsewhere.
    shared: BTreeSet<u64>,
    /// Other damage.
    damage: BTreeSet<String>,
    /// Clusters of metadata.
    metadata: BTreeSet<u64>,
    /// Something is metadata in two ways, so that a change of the one changes the other.
    tangled: bool,
}

fn with_metadata<T>(storage: &MemoryStorage, with: impl FnOnce(&Metadata<'_>) -> T) -> T {
    let area = HeaderArea::read_for_check(storage).unwrap();
    with(&Metadata {
        storage,
        header: area.header(),
        extensions: area.extensions(),
        geometry: area.header().geometry(),
    })
}

/// Clusters of metadata, and whether one is metadata in two ways.
struct Clusters {
    geometry: Geometry,
    references: BTreeMap<u64, u64>,
    copied: BTreeSet<u64>,
    owner: BTreeMap<u64, Referrer>,
    tangled: bool,
    ranges: BTreeSet<(u64, u64)>,
}

impl Visitor for Clusters {
    fn reference(&mut self, by: Referrer, offset: HostOffset, bytes: u64, times: u64) {
        let first = self.geometry.host_cluster(offset).get();
        for cluster in first
            ..self
                .geometry
                .clusters_for(offset.get().saturating_add(bytes))
        {
            if cluster - first < 1 << 16 {
                *self.references.entry(cluster).or_default() += times;
            }
        }
        let by = match by {
            Referrer::Data { .. } | Referrer::Compressed { .. } | Referrer::BitmapData(_) => {
                return;
            }
            Referrer::L2Table { .. } => Referrer::L2Table { active: true },
            by => by,
        };
        if bytes == 0 || bytes > 1 << 40 || offset.get() > 1 << 40 {
            return;
        }
        self.ranges.insert((offset.get(), bytes));
        let last = self
            .geometry
            .host_cluster(HostOffset(offset.get() + bytes - 1));
        for cluster in self.geometry.host_cluster(offset).get()..=last.get() {
            let known = self.owner.insert(cluster, by);
            let unaligned = !self.geometry.is_aligned(offset);
            self.tangled |= known.is_some_and(|known| known != by) || unaligned;
        }
    }

    fn problem(&mut self, _: Finding) {}

    fn copied(&mut self, flag: CopiedFlag) {
        if flag.copied && !flag.in_data_file {
            self.copied.insert(flag.offset.get());
        }
    }
}

impl Clusters {
    fn shared(&self) -> impl Iterator<Item = u64> {
        self.copied.iter().copied().filter(|offset| {
            let cluster = self.geometry.host_cluster(HostOffset(*offset));
            self.references
                .get(&cluster.get())
                .is_some_and(|times| *times > 1)
        })
    }
}

fn clusters(metadata: &Metadata<'_>) -> Clusters {
    let mut clusters = Clusters {
        geometry: metadata.geometry,
        references: BTreeMap::new(),
        copied: BTreeSet::new(),
        owner: BTreeMap::new(),
        tangled: false,
        ranges: BTreeSet::new(),
    };
    let _ = walk(metadata, &mut clusters);
    clusters
}

/// Where the metadata of a sound image is, but for the header.
pub(crate) fn places(storage: &MemoryStorage) -> Vec<(u64, u64)> {
    let ranges = with_metadata(storage, |metadata| clusters(metadata).ranges);
    ranges.into_iter().filter(|(at, _)| *at != 0).collect()
}

impl State {
    pub(crate) fn of(storage: &MemoryStorage) -> Self {
        with_metadata(storage, |metadata| Self::of_metadata(storage, metadata))
    }

    fn of_metadata(storage: &MemoryStorage, metadata: &Metadata<'_>) -> Self {
        let clusters = clusters(metadata);
        let mut state = Self {
            disks: BTreeMap::new(),
            low: BTreeSet::new(),
            shared: clusters.shared().collect(),
            damage: BTreeSet::new(),
            metadata: clusters.owner.keys().copied().collect(),
            tangled: clusters.tangled,
        };
        let checked = check(
            metadata,
            CheckOptions::default(),
            &mut |finding| match finding {
                _ if finding.severity() == Severity::Leak => {}
                Finding::RefcountWrong { cluster, .. }
                | Finding::RefcountUnreadable { cluster } => {
                    state.low.insert(*cluster);
                }
                Finding::L1Copied { .. } | Finding::L2Copied { .. } => {}
                finding => {
                    // Copied flags may change.
                    let numbers = finding.numbers();
                    let numbers: Vec<_> = numbers.iter().map(|(_, n)| n & !(1 << 63)).collect();
                    state
                        .damage
                        .insert(format!("{} {numbers:x?}", finding.kind()));
                }
            },
        );
        if let Err(failed) = checked {
            state.damage.insert(failed.to_string());
        }
        let header = metadata.header;
        state.disk(
            storage,
            metadata,
            b"",
            header.l1_table_offset,
            header.l1_size,
        );
        if header.check_snapshot_table().is_ok() && header.nb_snapshots < 1000 {
            let mut table = vec![0; 1 << 16];
            storage
                .read_padded(header.snapshots_offset.get(), &mut table)
                .unwrap();
            let mut rest = table.as_slice();
            for index in 0..header.nb_snapshots as usize {
                let Ok((left, snapshot)) = Snapshot::parse(rest, header.snapshots_offset, index)
                else {
                    break;
                };
                rest = left;
                let (offset, entries) = (snapshot.l1_table_offset, snapshot.l1_size);
                state.disk(storage, metadata, &snapshot.id, offset, entries);
            }
        }
        state
    }

    fn disk(
        &mut self,
        storage: &MemoryStorage,
        metadata: &Metadata<'_>,
        id: &[u8],
        offset: HostOffset,
        entries: u32,
    ) {
        let geometry = metadata.geometry;
        let size = usize::try_from(geometry.cluster_size()).unwrap();
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            if at < 1 << 40 {
                storage.read_padded(at, &mut bytes).unwrap();
            }
            bytes
        };
        let mut disk = Disk::new();
        let entries = (entries as usize).min(1 << 12);
        for (l1_index, word) in (0..).zip(read(offset.get(), entries * 8).as_chunks().0) {
            let Some(table) = L1Entry(u64::from_be_bytes(*word)).l2_table() else {
                continue;
            };
            if !geometry.is_aligned(table) {
                continue;
            }
            let table = read(table.get(), size);
            let mut each = |index: usize, entry: L2Entry, bitmap: SubclusterBitmap| {
                if (entry.0, bitmap.0) == (0, 0) {
                    return;
                }
                let guest = l1_index * geometry.l2_entries() + index as u64;
                let content = self.content(metadata, entry, bitmap, &read);
                disk.insert(guest, (bitmap.0, content));
            };
            if geometry.extended_l2() {
                for (index, entry) in l2::extended_entries(&table).enumerate() {
                    each(index, entry.entry, entry.bitmap);
                }
            } else {
                for (index, entry) in l2::entries(&table).enumerate() {
                    each(index, entry, SubclusterBitmap(0));
                }
            }
        }
        // Clusters that read as zeros either way.
        disk.retain(|_, (bitmap, content)| *bitmap != 0 || *content != Content::Bytes(Vec::new()));
        self.disks.insert(id.to_vec(), disk);
    }

    fn content(
        &self,
        metadata: &Metadata<'_>,
        entry: L2Entry,
        bitmap: SubclusterBitmap,
        read: &impl Fn(u64, usize) -> Vec<u8>,
    ) -> Content {
        let geometry = metadata.geometry;
        let size = usize::try_from(geometry.cluster_size()).unwrap();
        let (host, len) = match entry.is_compressed() {
            true => {
                let (host, len) = entry.compressed_range(geometry);
                (Some(host), usize::try_from(len).unwrap())
            }
            false => (entry.host(metadata.header.has_data_file()), size),
        };
        let zeros = match geometry.extended_l2() {
            true => bitmap.allocated() == 0,
            false => entry.reads_as_zeros(),
        };
        match host {
            Some(_) if metadata.header.has_data_file() => {
                Content::Invalid(entry.0 & !(1 << 63) | u64::from(zeros) << 63)
            }
            _ if zeros && !entry.is_compressed() => Content::Bytes(Vec::new()),
            None => Content::Bytes(Vec::new()),
            Some(host) if !entry.is_compressed() && !geometry.is_aligned(host) => {
                Content::Invalid(entry.0 & !(1 << 63))
            }
            Some(host) => {
                let first = geometry.host_cluster(host).get();
                let end = geometry.clusters_for(host.get() + len as u64);
                if (first..end).any(|cluster| self.metadata.contains(&cluster)) {
                    return Content::Alias;
                }
                Content::Bytes(read(host.get(), len))
            }
        }
    }

    /// `self` was before, `after` is now.
    pub(crate) fn assert_no_worse(&self, after: &Self, name: &str) {
        if self.tangled {
            // What a change does to the other of the two can't be foreseen.
            return;
        }
        for (id, disk) in &self.disks {
            let now = after
                .disks
                .get(id)
                .unwrap_or_else(|| panic!("{name}: {id:?} is gone"));
            for (guest, was) in disk {
                // What was metadata, or is taken for data beyond the end, is nobody's data.
                if was.1 == Content::Alias {
                    continue;
                }
                let is = now.get(guest);
                let alias = is.is_some_and(|is| is.1 == Content::Alias);
                assert!(
                    is == Some(was) && !alias,
                    "{name}: cluster {guest} of {id:?}: {is:?}"
                );
            }
            for guest in now.keys() {
                assert!(
                    disk.contains_key(guest),
                    "{name}: cluster {guest} of {id:?} is new"
                );
            }
        }
        let new = |now: &BTreeSet<u64>, was: &BTreeSet<u64>| -> Vec<u64> {
            now.difference(was).copied().collect()
        };
        let low = new(&after.low, &self.low);
        assert!(low.is_empty(), "{name}: refcounts are too low: {low:?}");
        let shared = new(&after.shared, &self.shared);
        assert!(shared.is_empty(), "{name}: shared, but copied: {shared:x?}");
        let damage: Vec<_> = after.damage.difference(&self.damage).collect();
        assert!(damage.is_empty(), "{name}: {damage:#?}");
    }
}

/// Numbers at random.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    /// Overwrites some number in the metadata with one near what could stand there.
    pub(crate) fn damage(&mut self, storage: &MemoryStorage, places: &[(u64, u64)]) {
        let length = storage.size().unwrap();
        let mut header = [0; 24];
        storage.read_padded(0, &mut header).unwrap();
        let cluster = 1_u64 << header[23];
        let (start, len) = places[usize::try_from(self.below(places.len() as u64)).unwrap()];
        let span = match self.below(3) {
            0 => len,
            _ => len.min(128),
        };
        let at = (start + self.below(span.max(8) / 8) * 8).min(length - 8);
        let mut old = [0; 8];
        storage.read_padded(at, &mut old).unwrap();
        let old = u64::from_be_bytes(old);
        let clusters = length / cluster + 2;
        let value = match self.below(12) {
            0 => old ^ 1 << self.below(64),
            1 => old ^ 1 << self.below(10),
            2 => old ^ 1 << 63,
            3 => old ^ 1 << 62,
            4 => old.wrapping_add(512),
            5 => old.wrapping_add(cluster),
            6 => old.wrapping_sub(cluster),
            7 => (1 << 63) | (self.below(clusters) * cluster),
            8 => 1 << 62 | self.below(clusters * cluster) | self.below(256) << 54,
            9 => self.below(clusters) * cluster + self.below(4),
            10 => self.below(1 << 20) << self.below(44),
            _ => 0,
        };
        storage.write_all_at(at, &value.to_be_bytes()).unwrap();
    }
}
