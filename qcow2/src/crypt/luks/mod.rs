//! LUKS version 1 inside qcow2 (crypt method 2): from a passphrase to the master key.
//!
//! The header and the key material of its eight slots are a region of the image file of
//! their own; offsets in them count from its start. Guest data isn't behind them as in a
//! LUKS volume, but in the image's clusters.

mod check;
mod create;
#[cfg(test)]
mod tests;

use zeroize::Zeroizing;

pub use create::LuksOptions;

use super::{
    SECTOR, Secret, af,
    cipher::{CipherSpec, Counted, DataCipher},
    hash::Hash,
};
use crate::{
    Error, Result,
    addr::HostOffset,
    format::{
        EncryptionHeader, HeaderArea,
        luks::{DIGEST, LEN, LuksHeader, LuksSlot},
    },
    io::Storage,
};

/// Stripes of every key slot, by the specification.
const STRIPES: u32 = 4000;
/// Bytes before the first key material: the header, and what QEMU leaves free after it.
const HEADER_AREA: u64 = 4096;
/// PBKDF2 iterations that are computed for an image at most, all key slots together.
/// QEMU makes them take two seconds each, which is less than 2^24 on the machines of
/// today; 2^28 take some minutes, and a header could say 2^35.
const MAX_ITERATIONS: u64 = 1 << 28;

/// The cipher of an image's guest data.
///
/// # Errors
/// [`Error::InvalidPassword`]; [`Error::Header`] and [`Error::Unsupported`] for what the
/// LUKS header says; I/O errors.
pub(super) fn unlock(
    storage: &dyn Storage,
    area: &HeaderArea,
    secret: &Secret,
) -> Result<DataCipher> {
    let Some(place) = area.extensions().encryption()? else {
        let text = "Missing CRYPTO header for crypt method 2";
        return Err(Error::Unsupported(text.into()));
    };
    check::place(place, area.header().geometry())?;
    let volume = Volume::read(storage, place)?;
    for slot in volume.header.slots.iter().filter(|slot| slot.active) {
        if let Some(key) = volume.open_slot(slot, secret)? {
            return Ok(DataCipher {
                sectors: volume.cipher.with_key(&key)?,
                counted: Counted::Host,
            });
        }
    }
    Err(Error::InvalidPassword)
}

/// A LUKS header that can be used.
#[derive(Debug)]
struct Volume<'a> {
    storage: &'a dyn Storage,
    place: EncryptionHeader,
    header: LuksHeader,
    cipher: CipherSpec,
    hash: Hash,
}

impl<'a> Volume<'a> {
    fn read(storage: &'a dyn Storage, place: EncryptionHeader) -> Result<Self> {
        let mut bytes = [0; LEN];
        let read = storage.read_padded(place.offset.0, &mut bytes);
        read.map_err(Error::io("Could not read encryption header"))?;
        let header = check::header(&bytes, place.offset)?;
        let Some(hash) = Hash::named(&header.hash) else {
            let name = String::from_utf8_lossy(&header.hash);
            let text = format!("Hash algorithm '{name}' not supported");
            return Err(Error::Unsupported(text));
        };
        let key_len = usize::try_from(header.key_bytes).unwrap_or(usize::MAX);
        let cipher = CipherSpec::named(&header.cipher_name, &header.cipher_mode, key_len)?;
        check::iterations(&header)?;
        Ok(Self {
            storage,
            place,
            header,
            cipher,
            hash,
        })
    }

    /// The master key, if `secret` is the passphrase of `slot`.
    fn open_slot(&self, slot: &LuksSlot, secret: &Secret) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let key_len = self.cipher.key_len();
        let mut slot_key = Zeroizing::new(vec![0; key_len]);
        self.hash
            .pbkdf2(secret.bytes(), &slot.salt, slot.iterations, &mut slot_key);
        let mut stripes = self.key_material(slot)?;
        let cipher = self.cipher.with_key(&slot_key)?;
        cipher.decrypt(0, &mut stripes);
        stripes.truncate(self.material_len());
        let key = af::merge(&stripes, key_len, self.hash);
        let fits = self.digest(&key) == self.header.master_key_digest;
        Ok(fits.then_some(key))
    }

    fn digest(&self, key: &[u8]) -> [u8; DIGEST] {
        let header = &self.header;
        let (salt, iterations) = (&header.master_key_salt, header.master_key_iterations);
        let mut digest = [0; DIGEST];
        self.hash.pbkdf2(key, salt, iterations, &mut digest);
        digest
    }

    /// Bytes of a slot's key material: less than 256 KiB, as no key has more than 64.
    fn material_len(&self) -> usize {
        self.cipher.key_len() * STRIPES as usize
    }

    /// The key material, as stored; whole sectors.
    fn key_material(&self, slot: &LuksSlot) -> Result<Zeroizing<Vec<u8>>> {
        let sector = usize::try_from(SECTOR).unwrap_or(usize::MAX);
        let len = self.material_len().next_multiple_of(sector);
        let end = slot.key_offset.saturating_add(self.material_len() as u64);
        if end > self.place.length {
            return Err(check::outside(self.place));
        }
        let at = HostOffset(self.place.offset.0.saturating_add(slot.key_offset));
        let mut bytes = Zeroizing::new(vec![0; len]);
        let read = self.storage.read_padded(at.0, &mut bytes);
        read.map_err(Error::io_with(|| format!("reading key material at {at}")))?;
        Ok(bytes)
    }
}
