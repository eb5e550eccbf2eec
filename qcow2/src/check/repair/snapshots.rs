//! The snapshot table with the extra data that a version 3 image must have.

use crate::{
    check::{
        report::CheckFailed,
        walk::{Metadata, for_each_snapshot},
    },
    format::snapshot::{MAX_TABLE_BYTES, Snapshot},
};

/// Extra data as QEMU writes it: VM state size, virtual disk size, instruction count.
const EXTRA_DATA: usize = 24;
/// What an entry must have of it.
const REQUIRED: usize = 16;

/// A snapshot table to be written.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) bytes: Vec<u8>,
}

/// The snapshot table with every entry completed; complete ones stay byte for byte.
pub(super) fn completed(metadata: &Metadata<'_>) -> Result<Table, CheckFailed> {
    let mut table = Vec::new();
    for_each_snapshot(metadata, |_, snapshot| {
        complete(snapshot, metadata.header.size).encode(&mut table);
        match table.len() as u64 > MAX_TABLE_BYTES {
            true => Err(CheckFailed::because("File too large")),
            false => Ok(()),
        }
    })?;
    Ok(Table { bytes: table })
}

/// Fields that are there in part are taken to be absent.
fn complete(mut snapshot: Snapshot, disk_size: u64) -> Snapshot {
    if snapshot.extra.len() >= REQUIRED {
        return snapshot;
    }
    let vm_state_size = snapshot.vm_state_size();
    let fields = [vm_state_size, disk_size, u64::MAX];
    snapshot.extra = fields
        .iter()
        .flat_map(|field| field.to_be_bytes())
        .collect();
    debug_assert_eq!(snapshot.extra.len(), EXTRA_DATA);
    snapshot.padded()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_there_are_kept() {
        let with = |extra: &[u8]| Snapshot {
            vm_state_size_32: 7,
            extra: extra.to_vec(),
            id: b"1".to_vec(),
            ..Snapshot::default()
        };
        let none = complete(with(&[]), 1 << 30);
        assert_eq!((none.vm_state_size(), none.disk_size()), (7, Some(1 << 30)));
        assert_eq!(none.icount(), None);
        let half = complete(with(&[0, 0, 0, 1, 0, 0, 0, 0, 9, 9]), 512);
        assert_eq!(
            (half.vm_state_size(), half.disk_size()),
            (1 << 32, Some(512))
        );
        let whole = with(&[1; 20]).padded();
        assert_eq!(complete(whole.clone(), 512), whole);
        let mut bytes = Vec::new();
        none.encode(&mut bytes);
        assert_eq!(bytes.len() % 8, 0);
    }
}
