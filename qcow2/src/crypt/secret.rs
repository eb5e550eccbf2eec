//! [`Secret`]: a passphrase or key, and to which image of a chain it belongs.

use zeroize::Zeroizing;

use super::{DataCipher, legacy, luks};
use crate::{
    Error, Result,
    format::{CryptMethod, HeaderArea},
    io::Storage,
};

/// The passphrase of a LUKS image, or the key of one with the old AES. Its bytes are
/// overwritten when it is dropped, and are not in `Debug` output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// A secret of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

/// The secrets of a chain of images, the first one's first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Secrets {
    list: Vec<Option<Secret>>,
    /// Encrypted images whose secret is missing aren't opened.
    pub(crate) required: bool,
}

impl Secrets {
    /// Keeps the secret of the image `depth` steps down the chain.
    pub(crate) fn set(&mut self, depth: usize, secret: Secret) {
        // A chain has an end (`MAX_CHAIN`), and so has this.
        let depth = depth.min(crate::image::MAX_CHAIN);
        if self.list.len() <= depth {
            self.list.resize(depth + 1, None);
        }
        if let Some(place) = self.list.get_mut(depth) {
            *place = Some(secret);
        }
    }

    /// The cipher of the first image; `None` if it isn't encrypted, or there is no secret
    /// for it.
    ///
    /// # Errors
    /// [`Error::InvalidPassword`] if the secret is another image's; [`Error::Refused`] if
    /// there is none and it is required; [`Error::Unsupported`] and [`Error::Header`] for
    /// what stands in the image; I/O errors.
    pub(crate) fn cipher(
        &self,
        storage: &dyn Storage,
        area: &HeaderArea,
    ) -> Result<Option<DataCipher>> {
        let method = area.header().crypt_method;
        let Some(Some(secret)) = self.list.first() else {
            return match self.required && method != CryptMethod::None {
                true => Err(Error::Refused(
                    "Parameter 'encrypt.key-secret' is required for cipher".into(),
                )),
                false => Ok(None),
            };
        };
        match method {
            CryptMethod::None => Ok(None),
            CryptMethod::Aes => Ok(Some(legacy::cipher(secret)?)),
            CryptMethod::Luks => luks::unlock(storage, area, secret).map(Some),
        }
    }

    /// Those of the images behind the first.
    pub(crate) fn behind(&self) -> Self {
        Self {
            list: self.list.get(1..).unwrap_or_default().to_vec(),
            required: self.required,
        }
    }
}
