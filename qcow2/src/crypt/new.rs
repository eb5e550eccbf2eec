//! [`Encryption`]: how a new image is to be encrypted.

use super::{LuksOptions, Secret, legacy};
use crate::{Result, addr::HostOffset, format::CryptMethod, io::Storage};

/// How a new image is to be encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// With LUKS.
    Luks(LuksOptions),
    /// With the old AES, which is weak; QEMU's system emulators don't use such images.
    Aes(Secret),
}

impl Encryption {
    /// The method that the header names.
    pub(crate) fn method(&self) -> CryptMethod {
        match self {
            Self::Luks(_) => CryptMethod::Luks,
            Self::Aes(_) => CryptMethod::Aes,
        }
    }

    /// What the image can be opened with.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        match self {
            Self::Luks(options) => &options.secret,
            Self::Aes(secret) => secret,
        }
    }

    /// Bytes that the image holds of its own for it.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for what isn't offered.
    pub(crate) fn region_len(&self) -> Result<u64> {
        match self {
            Self::Luks(options) => options.region_len(),
            Self::Aes(secret) => legacy::cipher(secret).map(|_| 0),
        }
    }

    /// Writes them at `base`, where zeros are.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn write(&self, storage: &dyn Storage, base: HostOffset) -> Result<()> {
        match self {
            Self::Luks(options) => options.write(storage, base),
            Self::Aes(_) => Ok(()),
        }
    }
}
