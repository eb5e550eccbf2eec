//! Chains that end in one file.

use std::sync::Mutex;

use super::*;
use crate::{disk::DiskSource, io::FileId};

/// Which disks were read, and from where on.
type Reads = Arc<Mutex<Vec<(&'static str, u64)>>>;

/// A layer: what it has itself, and what is behind it.
#[derive(Debug)]
struct Layer {
    name: &'static str,
    /// Data of its own, which ends with a block of 64 KiB; all the rest is behind it.
    own: Vec<(Range<u64>, u8)>,
    behind: Option<Arc<dyn Disk>>,
    source: Option<DiskSource>,
    reads: Reads,
}

const LAYER_SIZE: u64 = 4 << 20;

impl Disk for Layer {
    fn name(&self) -> &str {
        self.name
    }

    fn size(&self) -> u64 {
        LAYER_SIZE
    }

    fn query(&self, range: Range<u64>, out: &mut Vec<Extent>) -> Result<()> {
        let end = (range.start / 65536 + 1) * 65536;
        let range = range.start..end.min(range.end);
        if self.own.iter().any(|(own, _)| own.contains(&range.start)) {
            out.push(Extent::new(range, ExtentKind::Data));
            return Ok(());
        }
        let mut answer = Vec::new();
        match &self.behind {
            Some(behind) => behind.query(range, &mut answer)?,
            None => answer.push(Extent::new(range, ExtentKind::Unallocated)),
        }
        let deeper = u32::from(self.behind.is_some());
        out.extend(answer.into_iter().map(|extent| Extent {
            depth: extent.depth + deeper,
            ..extent
        }));
        Ok(())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.reads.lock().unwrap().push((self.name, offset));
        for (at, byte) in (offset..).zip(out) {
            let own = self.own.iter().find(|(own, _)| own.contains(&at));
            match (own, &self.behind) {
                (Some((_, value)), _) => *byte = *value,
                (None, Some(behind)) => behind.read(at, std::slice::from_mut(byte))?,
                (None, None) => *byte = 0,
            }
        }
        Ok(())
    }

    fn file(&self) -> Option<&Arc<dyn Storage>> {
        None
    }

    fn backing(&self) -> Option<&Arc<dyn Disk>> {
        self.behind.as_ref()
    }

    fn source(&self) -> Option<DiskSource> {
        self.source
    }
}

#[test]
fn what_both_have_from_one_file_is_not_read() {
    let reads = Reads::default();
    let source = |inode| {
        let id = FileId::new(1, inode);
        Some(DiskSource {
            image: id,
            data: id,
            qcow2: true,
        })
    };
    let layer = |name, own, behind, source| Layer {
        name,
        own,
        behind,
        source,
        reads: Arc::clone(&reads),
    };
    let block = 65536;
    let base = |source| -> Option<Arc<dyn Disk>> {
        Some(Arc::new(layer(
            "base",
            vec![(0..32 * block, 7)],
            None,
            source,
        )))
    };
    // One chain has a layer more, with nothing in it; what is written anew is the same in
    // one block and differs in another.
    let between: Arc<dyn Disk> = Arc::new(layer("between", Vec::new(), base(source(5)), source(4)));
    let one = layer("one", vec![(0..block, 7)], base(source(5)), source(1));
    let two = layer(
        "two",
        vec![(3 * block..4 * block, 8), (40 * block..41 * block, 9)],
        Some(between),
        source(2),
    );
    let dirty = |one: &Layer, two: &Layer| {
        reads.lock().unwrap().clear();
        let granularity = hbitmap::Granularity::from_bytes(block).unwrap();
        let marks = SharedTracker::new(LAYER_SIZE, granularity).unwrap();
        differences(one, two, &marks, &mut |_| {}).unwrap();
        let ranges: Vec<_> = marks.snapshot().unwrap().ranges().collect();
        assert_eq!(ranges, [3 * block..4 * block, 40 * block..41 * block]);
        let mut reads = reads.lock().unwrap().clone();
        reads.retain(|(name, _)| *name != "base" && *name != "between");
        reads.sort_unstable();
        reads
    };
    assert_eq!(
        dirty(&one, &two),
        [
            ("one", 0),
            ("one", 3 * block),
            ("two", 0),
            ("two", 3 * block),
            ("two", 40 * block)
        ]
    );
    // Other files, or ones of which nothing is known, are read.
    for other in [source(6), None] {
        let one = layer("one", vec![(0..block, 7)], base(other), source(1));
        assert!(dirty(&one, &two).len() > 15);
    }
}
