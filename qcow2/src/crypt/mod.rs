//! Encrypted images: guest data is encrypted sector by sector, metadata never.
//!
//! ```text
//! secret ──► luks    key slot: PBKDF2 ──► decrypted key material ──► af: master key
//!   │          (crypt method 2)                    checked by its digest │
//!   └──► legacy  the secret's bytes are the key (crypt method 1)         │
//!                                        └──────► DataCipher ◄───────────┘
//! ```
//!
//! `DataCipher` decrypts and encrypts sectors of 512 bytes. The initialization vector
//! of a sector is made of where it is: with LUKS in the file, with the old AES on the
//! guest's disk.
//!
//! Without the feature `encryption` only the type is there, and nobody can make one: the
//! metadata of encrypted images can be used, their guest data can't be read.

#[cfg(feature = "encryption")]
mod af;
#[cfg(feature = "encryption")]
mod cipher;
#[cfg(feature = "encryption")]
mod hash;
#[cfg(feature = "encryption")]
mod iv;
#[cfg(feature = "encryption")]
mod legacy;
#[cfg(feature = "encryption")]
mod luks;
#[cfg(feature = "encryption")]
mod modes;
#[cfg(feature = "encryption")]
mod new;
#[cfg(feature = "encryption")]
mod secret;
#[cfg(all(test, feature = "encryption"))]
mod tests;

#[cfg(not(feature = "encryption"))]
mod without;

#[cfg(feature = "encryption")]
pub(crate) use self::{cipher::DataCipher, secret::Secrets};
#[cfg(feature = "encryption")]
pub use self::{luks::LuksOptions, new::Encryption, secret::Secret};
#[cfg(not(feature = "encryption"))]
pub use without::Encryption;
#[cfg(not(feature = "encryption"))]
pub(crate) use without::{DataCipher, Secrets};

/// Bytes that are encrypted together, whatever the guest's sectors are.
pub(crate) const SECTOR: u64 = 512;
