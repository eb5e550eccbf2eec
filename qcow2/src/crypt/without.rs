//! What stands in for encryption where it was not compiled in.

use crate::{
    Result,
    addr::HostOffset,
    format::{CryptMethod, HeaderArea},
    io::Storage,
};

/// Keys to images: there can be none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Secrets(());

impl Secrets {
    /// The cipher of an image: none.
    pub(crate) fn cipher(self, _: &dyn Storage, _: &HeaderArea) -> Result<Option<DataCipher>> {
        Ok(None)
    }

    /// Those of the images behind the first.
    pub(crate) fn behind(self) -> Self {
        self
    }
}

/// A cipher of guest data: there can be none.
#[derive(Debug)]
pub(crate) enum DataCipher {}

impl DataCipher {
    /// As with the feature.
    pub(crate) fn decrypt(&self, _: u64, _: HostOffset, _: &mut [u8]) {
        match *self {}
    }

    /// As with the feature.
    pub(crate) fn encrypt(&self, _: u64, _: HostOffset, _: &mut [u8]) {
        match *self {}
    }
}

/// How a new image is to be encrypted: it can't be, without the feature `encryption`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {}

impl Encryption {
    /// As with the feature.
    pub(crate) fn method(&self) -> CryptMethod {
        match *self {}
    }

    /// As with the feature.
    pub(crate) fn region_len(&self) -> Result<u64> {
        match *self {}
    }

    /// As with the feature.
    pub(crate) fn write(&self, _: &dyn Storage, _: HostOffset) -> Result<()> {
        match *self {}
    }
}
