//! Reading the guest's disk: adjoining clusters in one read, wherever they come from.

use super::{
    compressed::CompressedData,
    extents::{Keep, Mapped, Stretch, View},
};
use crate::{Error, Result, addr::HostOffset, disk::bad};

impl View<'_> {
    /// Fills `out` from `offset` on; all of it is within the disk.
    ///
    /// # Errors
    /// As [`Disk::read`](crate::disk::Disk::read).
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(out.len() as u64);
        let (mut at, mut rest) = (offset, out);
        let (mut stretches, mut compressed) = (Vec::new(), CompressedData::default());
        while at < end {
            stretches.clear();
            self.stretches(at..end, Keep::Yes, &mut stretches)?;
            let mut left = stretches.as_slice();
            while let Some((stretch, behind)) = left.split_first() {
                let length = usize::try_from(stretch.length).unwrap_or(usize::MAX);
                let (part, others) = rest.split_at_mut_checked(length).unwrap_or_default();
                let filled = match stretch.mapped {
                    Mapped::Zero { .. } => {
                        part.fill(0);
                        Ok(())
                    }
                    Mapped::Unallocated { .. } => self.fill_from_backing(stretch, part),
                    Mapped::Data { host } => self.fill_from_file(host, part),
                    Mapped::Compressed { .. } => self.fill_cluster(left, &mut compressed, part),
                };
                filled.map_err(|error| match error {
                    // The backing file knows better how far it goes.
                    guest @ Error::Guest { .. } => guest,
                    other => bad(stretch.start, stretch.length, other),
                })?;
                at = stretch.end();
                (rest, left) = (others, behind);
            }
        }
        Ok(())
    }

    fn fill_from_file(&self, host: HostOffset, out: &mut [u8]) -> Result<()> {
        self.check_readable()?;
        let storage = self.image.data_storage()?;
        // A last cluster that isn't written to its end ends in zeros.
        storage.read_padded(host.0, out).map_err(Error::io(format!(
            "reading '{}' at {host}",
            self.image.name
        )))
    }

    /// # Errors
    /// [`Error::Unsupported`] if what is stored is encrypted.
    pub(super) fn check_readable(&self) -> Result<()> {
        if !self.is_encrypted() {
            return Ok(());
        }
        let name = &self.image.name;
        Err(Error::Unsupported(format!("'{name}' is encrypted")))
    }

    /// What the backing file lacks are zeros.
    fn fill_from_backing(&self, stretch: &Stretch, out: &mut [u8]) -> Result<()> {
        let backing = self.image.open_backing()?;
        let size = backing.map_or(0, |backing| backing.size());
        let inside = size.saturating_sub(stretch.start).min(stretch.length);
        let inside = usize::try_from(inside).unwrap_or(usize::MAX);
        let (part, beyond) = out.split_at_mut_checked(inside).unwrap_or_default();
        beyond.fill(0);
        match backing {
            Some(backing) if !part.is_empty() => backing.read(stretch.start, part),
            _ => Ok(()),
        }
    }
}
