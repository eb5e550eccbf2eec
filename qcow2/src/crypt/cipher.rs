//! [`DataCipher`], and ciphers by their names in the LUKS header.

use aes::{Aes128, Aes192, Aes256};
use cipher::KeyInit;
use serpent::Serpent;
use twofish::Twofish;
use zeroize::Zeroizing;

use super::{
    SECTOR,
    hash::Hash,
    iv::IvGenerator,
    modes::{Block, Cipher128, Mode, SectorCipher, Sectors},
};
use crate::{Error, Result, addr::HostOffset};

/// Where a sector is counted from for its initialization vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// On the guest's disk.
    Guest,
    /// In the file that holds the guest's data.
    Host,
}

/// What an image's guest data is encrypted with.
#[derive(Debug)]
pub(crate) struct DataCipher {
    pub(super) sectors: Box<dyn SectorCipher>,
    pub(super) counted: Counted,
}

impl DataCipher {
    fn first(&self, guest: u64, host: HostOffset) -> u64 {
        let at = match self.counted {
            Counted::Guest => guest,
            Counted::Host => host.0,
        };
        at / SECTOR
    }

    /// Decrypts whole sectors: those that begin at `guest` on the disk, and at `host` in
    /// the file.
    pub(crate) fn decrypt(&self, guest: u64, host: HostOffset, data: &mut [u8]) {
        self.sectors.decrypt(self.first(guest, host), data);
    }

    /// Encrypts whole sectors, likewise.
    pub(crate) fn encrypt(&self, guest: u64, host: HostOffset, data: &mut [u8]) {
        self.sectors.encrypt(self.first(guest, host), data);
    }
}

/// A block cipher, whose blocks have nothing to do with each other.
pub(super) trait OneBlock: std::fmt::Debug + Send + Sync {
    fn encrypt(&self, block: &mut Block);
    fn encrypt_all(&self, blocks: &mut [Block]);
}

struct Alone<C>(C);

impl<C> std::fmt::Debug for Alone<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alone").finish_non_exhaustive()
    }
}

impl<C: Cipher128> OneBlock for Alone<C> {
    fn encrypt(&self, block: &mut Block) {
        self.0.encrypt_block(block);
    }

    fn encrypt_all(&self, blocks: &mut [Block]) {
        self.0.encrypt_blocks(blocks);
    }
}

/// A family of block ciphers; its members differ in the length of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Aes,
    Serpent,
    Twofish,
}

impl Family {
    /// As QEMU's messages call it.
    const fn title(self) -> &'static str {
        match self {
            Self::Aes => "AES",
            Self::Serpent => "Serpent",
            Self::Twofish => "Twofish",
        }
    }

    /// The member that takes `key`, made into something by `what`.
    fn with<W: With>(self, key: &[u8], what: W) -> Option<W::Made> {
        Some(match (self, key.len()) {
            (Self::Aes, 16) => what.with(Aes128::new_from_slice(key).ok()?),
            (Self::Aes, 24) => what.with(Aes192::new_from_slice(key).ok()?),
            (Self::Aes, 32) => what.with(Aes256::new_from_slice(key).ok()?),
            (Self::Serpent, 16 | 24 | 32) => what.with(Serpent::new_from_slice(key).ok()?),
            (Self::Twofish, 16 | 24 | 32) => what.with(Twofish::new_from_slice(key).ok()?),
            _ => return None,
        })
    }
}

/// What is made of a cipher whose type is only known here.
trait With {
    type Made;
    fn with<C: Cipher128 + 'static>(self, cipher: C) -> Self::Made;
}

struct MakeOne;

impl With for MakeOne {
    type Made = Box<dyn OneBlock>;
    fn with<C: Cipher128 + 'static>(self, cipher: C) -> Self::Made {
        Box::new(Alone(cipher))
    }
}

struct MakeSectors {
    mode: Mode,
    iv: IvGenerator,
}

impl With for MakeSectors {
    type Made = Box<dyn SectorCipher>;
    fn with<C: Cipher128 + 'static>(self, cipher: C) -> Self::Made {
        let Self { mode, iv } = self;
        Box::new(Sectors { cipher, mode, iv })
    }
}

/// The modes by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModeName {
    Ecb,
    Cbc,
    Ctr,
    Xts,
}

/// The generators by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IvName {
    Plain,
    Plain64,
    Essiv(Hash),
}

/// Cipher, mode and generator as the names in a LUKS header say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CipherSpec {
    family: Family,
    mode: ModeName,
    iv: IvName,
    key_len: usize,
}

impl CipherSpec {
    /// The old AES: 128 bits, CBC.
    pub(super) const LEGACY: Self = Self {
        family: Family::Aes,
        mode: ModeName::Cbc,
        iv: IvName::Plain64,
        key_len: 16,
    };

    /// Reads the names and the key's length; the mode is such as `xts-plain64`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] in QEMU's words.
    pub(super) fn named(cipher: &[u8], mode: &[u8], key_len: usize) -> Result<Self> {
        let refused = |text: String| Err(Error::Unsupported(text));
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let unfit = |cipher: &[u8], len: usize| {
            let cipher = shown(cipher);
            format!("Algorithm '{cipher}' with key size {len} bytes not supported")
        };
        let Some(dash) = mode.iter().position(|b| *b == b'-') else {
            let mode = shown(mode);
            return refused(format!("Unexpected cipher mode string format '{mode}'"));
        };
        let (mode, iv) = mode.split_at_checked(dash).unwrap_or_default();
        let iv = iv.get(1..).unwrap_or_default();
        let (iv, hash) = match iv.iter().position(|b| *b == b':') {
            Some(at) => (
                iv.get(..at).unwrap_or_default(),
                Some(iv.get(at + 1..).unwrap_or_default()),
            ),
            None => (iv, None),
        };
        let hash = match hash {
            None => None,
            Some(name) => match Hash::named(name) {
                Some(hash) => Some(hash),
                None => {
                    let name = shown(name);
                    return refused(format!("Hash algorithm '{name}' not supported"));
                }
            },
        };
        let mode = match mode {
            b"ecb" => ModeName::Ecb,
            b"cbc" => ModeName::Cbc,
            b"ctr" => ModeName::Ctr,
            b"xts" => ModeName::Xts,
            other => {
                let other = shown(other);
                return refused(format!("Cipher mode '{other}' not supported"));
            }
        };
        let single = match mode {
            ModeName::Xts => key_len / 2,
            _ => key_len,
        };
        let odd = mode == ModeName::Xts && !key_len.is_multiple_of(2);
        let family = match (cipher, single) {
            (other, len) if odd => return refused(unfit(other, len)),
            (b"aes", 16 | 24 | 32) => Family::Aes,
            (b"serpent", 16 | 24 | 32) => Family::Serpent,
            (b"twofish", 16 | 24 | 32) => Family::Twofish,
            (other, len) => return refused(unfit(other, len)),
        };
        let iv = match (iv, hash) {
            (b"plain", _) => IvName::Plain,
            (b"plain64", _) => IvName::Plain64,
            (b"essiv", Some(hash)) => IvName::Essiv(hash),
            (b"essiv", None) => return refused("Missing IV generator hash specification".into()),
            (other, _) => {
                let other = shown(other);
                return refused(format!("IV generator '{other}' not supported"));
            }
        };
        Ok(Self {
            family,
            mode,
            iv,
            key_len,
        })
    }

    /// Bytes of the key.
    pub(super) const fn key_len(self) -> usize {
        self.key_len
    }

    /// The cipher with `key`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is none that takes a key of that length.
    pub(super) fn with_key(self, key: &[u8]) -> Result<Box<dyn SectorCipher>> {
        let unfit = || {
            let len = key.len();
            Error::Unsupported(format!("no cipher of the image takes a key of {len} bytes"))
        };
        let (data_key, tweak_key) = match self.mode {
            ModeName::Xts => key.split_at_checked(key.len() / 2).ok_or_else(unfit)?,
            _ => (key, &[][..]),
        };
        let mode = match self.mode {
            ModeName::Ecb => Mode::Ecb,
            ModeName::Cbc => Mode::Cbc,
            ModeName::Ctr => Mode::Ctr,
            ModeName::Xts => Mode::Xts(self.family.with(tweak_key, MakeOne).ok_or_else(unfit)?),
        };
        let iv = match self.iv {
            IvName::Plain => IvGenerator::Plain,
            IvName::Plain64 => IvGenerator::Plain64,
            IvName::Essiv(hash) => {
                let mut salt = Zeroizing::new(vec![0; hash.len()]);
                hash.digest(&[key], &mut salt);
                let cipher = self.family.with(&salt, MakeOne).ok_or_else(|| {
                    let (family, len) = (self.family.title(), salt.len());
                    Error::Unsupported(format!("No {family} cipher with key size {len} available"))
                })?;
                IvGenerator::Essiv(cipher)
            }
        };
        let made = self.family.with(data_key, MakeSectors { mode, iv });
        made.ok_or_else(unfit)
    }
}
