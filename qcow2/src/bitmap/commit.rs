//! Makes an edit true, in the order that docs/crash-order.md tells:
//!
//! 1. bits, tables and the new directory into clusters that nothing refers to, and
//!    the refcounts of those; sync
//! 2. where refcount blocks were added: their entries in the refcount table; sync
//! 3. the header, which from then on names the new directory; sync
//! 4. the refcounts of clusters that only the old state used; sync
//!
//! Stopped before step 3 the image is as before, after it as after, with leaked
//! clusters at most. Nothing is rolled back once step 2 has begun, because a failed
//! sync leaves it open what the disk holds.

use std::collections::HashSet;

use crate::{
    Error, Geometry, Image, Result,
    addr::{HostCluster, HostOffset},
    bitmap::{
        edit::open_bits,
        slot::Slot,
        stored::table_len,
        writer::{ClusterWriter, needs_cluster},
    },
    check::Watch,
    format::{BitmapDirectoryEntry, BitmapsExtension},
    table::{Allocator, Plan, Run, TableChange, refcount_zero_in_use},
};

/// Writes the directory of `slots` and the bits that change, and frees what only
/// the old state used.
pub(super) fn commit(
    image: &mut Image,
    mut slots: Vec<Slot>,
    removed: Vec<BitmapDirectoryEntry>,
) -> Result<()> {
    let directory = Space::of_bytes(
        image.geometry(),
        slots
            .iter()
            .map(|slot| slot.entry.encoded_len() as u64)
            .sum(),
    );
    let mut needs = Needs::default();
    needs.add(directory);
    for slot in &slots {
        needs.add_bits(image.geometry(), slot)?;
    }
    let mut garbage = Garbage::collect(image, &slots, &removed)?;

    let storage = std::sync::Arc::clone(image.storage());
    let old_size = storage
        .size()
        .map_err(Error::io("asking for the size of the image"))?;
    let mut allocator = Allocator::new(&*storage, image.header())?;
    let plan = allocator.plan(needs.singles, &needs.runs)?;
    garbage.prove(image, &mut allocator, &plan)?;

    let written = write_new_state(image, &mut allocator, plan, &mut slots, &mut garbage);
    let extension = match written {
        Ok(extension) => extension,
        Err(e) => {
            // Nothing refers to what was written yet, and no refcount counts it.
            if storage.can_grow() {
                let _ = storage.set_len(old_size);
            }
            return Err(e);
        }
    };

    let sync = || storage.sync().map_err(Error::io("syncing the image"));
    allocator.write_blocks()?;
    sync()?;
    let moved = match allocator.write_table()? {
        TableChange::None => None,
        TableChange::InPlace => {
            sync()?;
            None
        }
        TableChange::Moved(moved) => {
            sync()?;
            image.switch_refcount_table(moved.offset, moved.clusters)?;
            Some(moved)
        }
    };
    image.switch_bitmaps(extension)?;

    if let Some(moved) = moved {
        allocator.release_old_table(moved)?;
    }
    for cluster in garbage.into_clusters() {
        allocator.release(cluster)?;
    }
    allocator.write_blocks()?;
    sync()
}

/// Step 1 without the refcounts: returns what the header is to say.
fn write_new_state(
    image: &Image,
    allocator: &mut Allocator<'_>,
    plan: Plan,
    slots: &mut [Slot],
    garbage: &mut Garbage,
) -> Result<Option<BitmapsExtension>> {
    allocator.adopt(&plan)?;
    let mut space = Supply {
        singles: plan.singles.into_iter(),
        runs: plan.runs.into_iter(),
    };
    let geometry = image.geometry();
    // The demand was put in the same order: the directory, then table by table.
    let bytes = slots
        .iter()
        .map(|slot| slot.entry.encoded_len() as u64)
        .sum();
    let directory_run = space.take(Space::of_bytes(geometry, bytes))?;
    let mut writer = ClusterWriter::new(image.storage(), geometry);
    for slot in slots.iter_mut() {
        let Some(content) = slot.new_content() else {
            continue;
        };
        let entries = table_len(geometry, content.granularity(), content.len());
        let table_run = space.take(Space::of_bytes(geometry, entries * 8))?;
        let mut take = || {
            let cluster = space.take(Space::Single)?.first;
            allocator.claim(cluster)?;
            allocator.offset(cluster)
        };
        let table = writer.write_bits(content, &mut take)?;
        for &offset in &table.kept {
            garbage.keep(geometry.host_cluster(offset));
        }
        let offset = allocator.offset(table_run.first)?;
        table_run
            .iter()
            .try_for_each(|cluster| allocator.claim(cluster))?;
        writer.write_padded(offset, &table.to_bytes())?;
        slot.entry.table_offset = offset;
        slot.entry.table_size = u32::try_from(entries).unwrap_or(u32::MAX);
    }
    if slots.is_empty() {
        return Ok(None);
    }
    let mut directory = Vec::new();
    for slot in slots.iter() {
        slot.entry.encode(&mut directory);
    }
    let offset = allocator.offset(directory_run.first)?;
    directory_run
        .iter()
        .try_for_each(|cluster| allocator.claim(cluster))?;
    writer.write_padded(offset, &directory)?;
    writer.flush()?;
    Ok(Some(BitmapsExtension {
        nb_bitmaps: u32::try_from(slots.len()).unwrap_or(u32::MAX),
        directory_size: directory.len() as u64,
        directory_offset: offset,
        reserved: 0,
    }))
}

/// A demand for space in the file.
#[derive(Clone, Copy)]
enum Space {
    /// Any cluster.
    Single,
    /// So many clusters in a row; 0 is no demand.
    Row(u64),
}

impl Space {
    fn of_bytes(geometry: Geometry, bytes: u64) -> Self {
        match geometry.clusters_for(bytes) {
            1 => Self::Single,
            clusters => Self::Row(clusters),
        }
    }
}

/// What an edit needs at most.
#[derive(Default)]
struct Needs {
    singles: u64,
    runs: Vec<u64>,
}

impl Needs {
    fn add(&mut self, space: Space) {
        match space {
            Space::Single => self.singles += 1,
            Space::Row(0) => {}
            Space::Row(clusters) => self.runs.push(clusters),
        }
    }

    /// The table of a bitmap whose bits change, and those bits.
    fn add_bits(&mut self, geometry: Geometry, slot: &Slot) -> Result<()> {
        let Some(content) = slot.new_content() else {
            return Ok(());
        };
        let entries = table_len(geometry, content.granularity(), content.len());
        self.add(Space::of_bytes(geometry, entries * 8));
        for index in 0..entries {
            if needs_cluster(geometry, content, index) {
                self.singles += 1;
            }
        }
        Ok(())
    }
}

/// The clusters of a plan as they are used up, in the order of the demand.
struct Supply {
    singles: std::vec::IntoIter<HostCluster>,
    runs: std::vec::IntoIter<Run>,
}

impl Supply {
    fn take(&mut self, space: Space) -> Result<Run> {
        let run = match space {
            Space::Single => self.singles.next().map(|first| Run { first, clusters: 1 }),
            Space::Row(0) => Some(Run {
                first: HostCluster(0),
                clusters: 0,
            }),
            Space::Row(_) => self.runs.next(),
        };
        run.ok_or_else(|| Error::Refused("more clusters were needed than planned".into()))
    }
}

/// Clusters that the old state uses and the new one may not.
#[derive(Debug, Default)]
struct Garbage {
    clusters: HashSet<HostCluster>,
    /// Those of bitmaps that go altogether; a doubtful one is left alone rather
    /// than in the way, so that a broken bitmap can always be removed.
    of_removed: HashSet<HostCluster>,
}

impl Garbage {
    fn collect(image: &Image, slots: &[Slot], removed: &[BitmapDirectoryEntry]) -> Result<Self> {
        let mut garbage = Self::default();
        let geometry = image.geometry();
        let bitmaps = image.bitmaps()?;
        if let Some(extension) = bitmaps.extension().filter(|_| !bitmaps.is_voided()) {
            let first = geometry.host_cluster(extension.directory_offset);
            let clusters = geometry.clusters_for(extension.directory_size);
            garbage.clusters.extend(Run { first, clusters }.iter());
        }
        for entry in slots.iter().filter_map(Slot::replaced_entry) {
            garbage.clusters.extend(open_bits(image, entry)?.clusters());
        }
        for entry in removed {
            // Where the table makes no sense, its clusters are left to `check`.
            if let Ok(bits) = open_bits(image, entry) {
                garbage.of_removed.extend(bits.clusters());
            }
        }
        Ok(garbage)
    }

    /// Proves by a walk over every reference in the image that nothing refers to
    /// the plan's clusters, that the refcounts of the garbage are right, and that the
    /// refcount structures which are to change are nothing else besides.
    fn prove(&mut self, image: &Image, allocator: &mut Allocator<'_>, plan: &Plan) -> Result<()> {
        let geometry = image.geometry();
        let watched = plan.clusters().chain(self.clusters.iter().copied());
        let watched = watched.chain(self.of_removed.iter().copied());
        let old = self.clusters.iter().chain(&self.of_removed).copied();
        let touched = allocator.touched(plan, old)?;
        let watch = Watch::count(image, watched.chain(touched.iter().copied()))?;
        if let Some(by) = watch.in_header() {
            return Err(Error::corrupt(
                "header",
                HostOffset(0),
                format!("{by:?} refers to its cluster"),
                "the header alone (repair the image before writing to it)",
            ));
        }
        if let Some(cluster) = plan
            .clusters()
            .find(|cluster| watch.references(*cluster) > 0)
        {
            return Err(refcount_zero_in_use(geometry, cluster));
        }
        let wrong = |cluster: HostCluster, stored, counted, allowed| {
            Error::corrupt(
                format!("refcount of cluster {}", cluster.0),
                geometry.host_offset(cluster).unwrap_or_default(),
                format!("{stored}, with {counted} references to the cluster"),
                format!("{allowed} (repair the image before writing to it)"),
            )
        };
        for cluster in touched {
            let (stored, counted) = (allocator.refcount(cluster)?, watch.references(cluster));
            if stored == 0 || counted != 1 {
                let allowed = "at least 1, with one reference to a refcount structure";
                return Err(wrong(cluster, stored, counted, allowed));
            }
        }
        for &cluster in &self.clusters {
            let (stored, counted) = (allocator.refcount(cluster)?, watch.references(cluster));
            if stored < counted.max(1) {
                let allowed = "no less than the references";
                return Err(wrong(cluster, stored, counted, allowed));
            }
        }
        let mut doubtful = Vec::new();
        for &cluster in &self.of_removed {
            let stored = allocator.refcount(cluster)?;
            if stored == 0 || stored < watch.references(cluster) {
                doubtful.push(cluster);
            }
        }
        for cluster in doubtful {
            self.of_removed.remove(&cluster);
        }
        Ok(())
    }

    /// The new state uses this cluster too.
    fn keep(&mut self, cluster: HostCluster) {
        self.clusters.remove(&cluster);
    }

    fn into_clusters(self) -> impl Iterator<Item = HostCluster> {
        let mut clusters: Vec<_> = self.clusters.into_iter().chain(self.of_removed).collect();
        clusters.sort_unstable();
        clusters.into_iter()
    }
}
