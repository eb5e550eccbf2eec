//! A new LUKS header with one key slot.

use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::{HEADER_AREA, MAX_ITERATIONS, STRIPES};
use crate::{
    Error, Result,
    addr::HostOffset,
    crypt::{Secret, af, cipher::CipherSpec, hash::Hash},
    format::luks::{LuksHeader, LuksSlot, SALT, SLOTS},
    io::Storage,
};

/// Key material begins at multiples of this in the header's region.
const ALIGN: u64 = 4096;
/// Iterations at least, however short the time.
const MIN_ITERATIONS: u64 = 1000;
/// The master key's digest may take this part of a slot's time.
const DIGEST_PART: u32 = 8;

/// How a new image is encrypted with LUKS, in qemu-img's words. The default is QEMU's:
/// `aes-256`, `xts`, `plain64`, `sha256`, two seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksOptions {
    /// The passphrase of the first key slot.
    pub secret: Secret,
    /// Cipher and bits of its key: `aes-128`, `serpent-192`, `twofish-256`, …
    pub cipher_alg: String,
    /// `xts`, `cbc`, `ctr`, `ecb`.
    pub cipher_mode: String,
    /// `plain64`, `plain`, `essiv`.
    pub ivgen_alg: String,
    /// The hash of `essiv`.
    pub ivgen_hash_alg: Option<String>,
    /// The hash of key derivation: `sha1`, `sha224`, `sha256`, `sha384`, `sha512`,
    /// `ripemd160`.
    pub hash_alg: String,
    /// How long the derivation of a key from the passphrase is to take on this machine.
    pub iter_time: Duration,
}

impl LuksOptions {
    /// QEMU's defaults, with this passphrase.
    #[must_use]
    pub fn new(secret: Secret) -> Self {
        Self {
            secret,
            cipher_alg: "aes-256".into(),
            cipher_mode: "xts".into(),
            ivgen_alg: "plain64".into(),
            ivgen_hash_alg: None,
            hash_alg: "sha256".into(),
            iter_time: Duration::from_secs(2),
        }
    }

    /// What the header will say of cipher, mode and hash.
    fn names(&self) -> Result<Names> {
        let unfit = || {
            let name = &self.cipher_alg;
            Error::Unsupported(format!("Algorithm '{name}' not supported"))
        };
        let (cipher, bits) = self.cipher_alg.rsplit_once('-').ok_or_else(unfit)?;
        let bits: u32 = bits.parse().map_err(|_| unfit())?;
        let keys = if self.cipher_mode == "xts" { 2 } else { 1 };
        let key_bytes = bits / 8 * keys;
        let mut mode = format!("{}-{}", self.cipher_mode, self.ivgen_alg);
        if self.ivgen_alg == "essiv" {
            let hash = self.ivgen_hash_alg.as_deref().unwrap_or("sha256");
            mode = format!("{mode}:{hash}");
        }
        let key_len = usize::try_from(key_bytes).unwrap_or(usize::MAX);
        let spec = CipherSpec::named(cipher.as_bytes(), mode.as_bytes(), key_len)?;
        // Whether there is a cipher for every part.
        spec.with_key(&vec![0; key_len])?;
        let hash = Hash::named(self.hash_alg.as_bytes()).ok_or_else(|| {
            let name = &self.hash_alg;
            Error::Unsupported(format!("Hash algorithm '{name}' not supported"))
        })?;
        let material = u64::from(key_bytes) * u64::from(STRIPES);
        if !material.is_multiple_of(crate::crypt::SECTOR) {
            // QEMU ends where it meets one.
            return Err(Error::Unsupported(format!(
                "Algorithm '{}' only goes with cipher mode 'xts'",
                self.cipher_alg
            )));
        }
        Ok(Names {
            cipher: cipher.into(),
            mode: mode.into(),
            spec,
            hash,
            key_bytes,
            slot_len: material.next_multiple_of(ALIGN),
        })
    }

    /// Bytes of the header with all of its key slots.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a cipher, mode or hash that there isn't.
    pub(in crate::crypt) fn region_len(&self) -> Result<u64> {
        Ok(HEADER_AREA + SLOTS as u64 * self.names()?.slot_len)
    }

    /// Makes a random key and writes header and key material to the region that begins at
    /// `base`, of which all is zeros.
    ///
    /// # Errors
    /// As [`region_len`](Self::region_len); [`Error::Refused`] if the time allows too many
    /// iterations; I/O errors, also of the system's random numbers.
    pub(in crate::crypt) fn write(&self, storage: &dyn Storage, base: HostOffset) -> Result<()> {
        let names = self.names()?;
        let key_len = names.spec.key_len();
        let mut key = Zeroizing::new(vec![0; key_len]);
        random(&mut key)?;
        let per_second = iterations_per_second(names.hash, key_len);
        let mut header = LuksHeader {
            cipher_name: names.cipher.clone(),
            cipher_mode: names.mode.clone(),
            hash: self.hash_alg.clone().into(),
            payload_offset: self.region_len()?,
            key_bytes: names.key_bytes,
            master_key_digest: [0; 20],
            master_key_salt: salt()?,
            master_key_iterations: iterations(per_second, self.iter_time / DIGEST_PART)?,
            uuid: uuid()?,
            slots: [LuksSlot::default(); SLOTS],
        };
        names.hash.pbkdf2(
            &key,
            &header.master_key_salt,
            header.master_key_iterations,
            &mut header.master_key_digest,
        );
        for (number, slot) in (0..).zip(&mut header.slots) {
            slot.key_offset = HEADER_AREA + number * names.slot_len;
            slot.stripes = STRIPES;
        }
        let [first, ..] = &mut header.slots;
        first.active = true;
        first.salt = salt()?;
        first.iterations = iterations(per_second, self.iter_time)?;
        let mut slot_key = Zeroizing::new(vec![0; key_len]);
        let password = self.secret.bytes();
        names
            .hash
            .pbkdf2(password, &first.salt, first.iterations, &mut slot_key);
        let mut stripes = Zeroizing::new(vec![0; key_len * STRIPES as usize]);
        random(&mut stripes)?;
        af::split(&mut stripes, &key, names.hash);
        names.spec.with_key(&slot_key)?.encrypt(0, &mut stripes);
        let put = |at: u64, bytes: &[u8]| {
            let written = storage.write_all_at(base.0.saturating_add(at), bytes);
            written.map_err(Error::io("writing the LUKS header"))
        };
        put(first.key_offset, &stripes)?;
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        put(0, &bytes)
    }
}

struct Names {
    cipher: Vec<u8>,
    mode: Vec<u8>,
    spec: CipherSpec,
    hash: Hash,
    key_bytes: u32,
    slot_len: u64,
}

fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes)
        .map_err(|e| Error::io("reading random numbers")(std::io::Error::other(e)))
}

fn salt() -> Result<[u8; SALT]> {
    let mut salt = [0; SALT];
    random(&mut salt)?;
    Ok(salt)
}

/// A random UUID (version 4) as text.
fn uuid() -> Result<Vec<u8>> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    let number = u128::from_be_bytes(bytes);
    let number = number & !(0xf << 76 | 0b11 << 62) | 4 << 76 | 0b10 << 62;
    let digits = format!("{number:032x}");
    let mut text = String::with_capacity(36);
    for (at, digit) in digits.chars().enumerate() {
        if matches!(at, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        text.push(digit);
    }
    Ok(text.into())
}

/// How many iterations this machine makes in a second, when nothing else keeps it busy:
/// the fastest of some short runs.
fn iterations_per_second(hash: Hash, key_len: usize) -> u64 {
    let mut out = Zeroizing::new(vec![0; key_len]);
    let mut run = |iterations: u32| {
        let start = Instant::now();
        hash.pbkdf2(b"password", &[0; SALT], iterations, &mut out);
        start.elapsed().max(Duration::from_nanos(1))
    };
    let mut count: u32 = 1 << 8;
    while run(count) < Duration::from_millis(1) && count < 1 << 24 {
        count *= 2;
    }
    // So short that some of them are not interrupted.
    let fastest = (0..20).map(|_| run(count)).min().unwrap_or_default();
    let per_second = u128::from(count) * 1_000_000_000 / fastest.as_nanos().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

fn iterations(per_second: u64, time: Duration) -> Result<u32> {
    let count = u128::from(per_second) * time.as_millis() / 1000;
    let count = u64::try_from(count).unwrap_or(u64::MAX).max(MIN_ITERATIONS);
    // An image that has so many for each slot would not be opened again.
    if count > MAX_ITERATIONS / SLOTS as u64 {
        let text =
            format!("PBKDF iterations {count} too large to scale: Numerical result out of range");
        return Err(Error::Refused(text));
    }
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}
