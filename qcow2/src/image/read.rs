//! Reading the guest's disk: adjoining clusters in one read, wherever they come from.

use super::{
    compressed::CompressedData,
    extents::{Keep, Mapped, Stretch, View},
};
use crate::{Error, Result, addr::HostOffset, crypt, disk::bad};

impl View<'_> {
    /// Fills `out` from `offset` on; all of it is within the disk.
    ///
    /// # Errors
    /// As [`Disk::read`](crate::disk::Disk::read).
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(out.len() as u64);
        if let Some(stored) = self.stored_at(&(offset..end)) {
            let filled = self.fill_from_file(offset, stored.host, out);
            return filled.map_err(|error| bad(offset, out.len() as u64, error));
        }
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
                    Mapped::Data { host } => self.fill_from_file(stretch.start, host, part),
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

    /// Fills `out` with what begins at `host` in the file and at `guest` on the disk.
    fn fill_from_file(&self, guest: u64, host: HostOffset, out: &mut [u8]) -> Result<()> {
        let Some(cipher) = self.image.cipher()? else {
            return self.read_stored(host, out);
        };
        let sector = usize::try_from(crypt::SECTOR).unwrap_or(usize::MAX);
        let skip = guest % crypt::SECTOR;
        if skip == 0 && out.len().is_multiple_of(sector) {
            self.read_stored(host, out)?;
            cipher.decrypt(guest, host, out);
            return Ok(());
        }
        // Only whole sectors can be decrypted. A cluster consists of them.
        let (guest, host) = (guest - skip, HostOffset(host.0.saturating_sub(skip)));
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut whole = vec![0; skip.saturating_add(out.len()).next_multiple_of(sector)];
        self.read_stored(host, &mut whole)?;
        cipher.decrypt(guest, host, &mut whole);
        for (to, from) in out.iter_mut().zip(whole.iter().skip(skip)) {
            *to = *from;
        }
        Ok(())
    }

    fn read_stored(&self, host: HostOffset, out: &mut [u8]) -> Result<()> {
        let storage = self.image.data_storage()?;
        // A last cluster that isn't written to its end ends in zeros.
        storage.read_padded(host.0, out).map_err(Error::io_with(|| {
            format!("reading '{}' at {host}", self.image.name)
        }))
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
