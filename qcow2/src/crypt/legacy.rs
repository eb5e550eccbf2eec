//! The old AES of qcow2 (crypt method 1): the secret's first 16 bytes are the key.
//!
//! It is weak: the vector of a sector is its number on the disk, which shows where data
//! is the same, and nothing tells a wrong key.

use zeroize::Zeroizing;

use super::{
    Secret,
    cipher::{CipherSpec, Counted, DataCipher},
};
use crate::Result;

/// The cipher with `secret`; bytes that it lacks are zeros.
pub(super) fn cipher(secret: &Secret) -> Result<DataCipher> {
    let mut key = Zeroizing::new([0; 16]);
    for (to, from) in key.iter_mut().zip(secret.bytes()) {
        *to = *from;
    }
    Ok(DataCipher {
        sectors: CipherSpec::LEGACY.with_key(&*key)?,
        counted: Counted::Guest,
    })
}
