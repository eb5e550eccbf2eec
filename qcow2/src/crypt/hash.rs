//! Hashes by their names in the LUKS header, and PBKDF2 with them.

use pbkdf2::pbkdf2_hmac;
use ripemd::Ripemd160;
use sha1::{Digest, Sha1};
use sha2::{Sha224, Sha256, Sha384, Sha512};

/// A hash of key derivation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
}

impl Hash {
    /// The hash that LUKS calls `name`; `None` if it isn't offered.
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"sha1" => Self::Sha1,
            b"sha224" => Self::Sha224,
            b"sha256" => Self::Sha256,
            b"sha384" => Self::Sha384,
            b"sha512" => Self::Sha512,
            b"ripemd160" => Self::Ripemd160,
            _ => return None,
        })
    }

    /// Bytes of a digest.
    pub(super) const fn len(self) -> usize {
        match self {
            Self::Sha1 | Self::Ripemd160 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Writes the digest of `parts`, one behind the other, over the first bytes of `out`,
    /// or as much of it as there is room for.
    pub(super) fn digest(self, parts: &[&[u8]], out: &mut [u8]) {
        match self {
            Self::Sha1 => digest::<Sha1>(parts, out),
            Self::Sha224 => digest::<Sha224>(parts, out),
            Self::Sha256 => digest::<Sha256>(parts, out),
            Self::Sha384 => digest::<Sha384>(parts, out),
            Self::Sha512 => digest::<Sha512>(parts, out),
            Self::Ripemd160 => digest::<Ripemd160>(parts, out),
        }
    }

    /// Fills `out` with PBKDF2 of `password`.
    pub(super) fn pbkdf2(self, password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
        match self {
            Self::Sha1 => pbkdf2_hmac::<Sha1>(password, salt, iterations, out),
            Self::Sha224 => pbkdf2_hmac::<Sha224>(password, salt, iterations, out),
            Self::Sha256 => pbkdf2_hmac::<Sha256>(password, salt, iterations, out),
            Self::Sha384 => pbkdf2_hmac::<Sha384>(password, salt, iterations, out),
            Self::Sha512 => pbkdf2_hmac::<Sha512>(password, salt, iterations, out),
            Self::Ripemd160 => pbkdf2_hmac::<Ripemd160>(password, salt, iterations, out),
        }
    }
}

fn digest<D: Digest>(parts: &[&[u8]], out: &mut [u8]) {
    let mut state = D::new();
    for part in parts {
        state.update(part);
    }
    for (to, from) in out.iter_mut().zip(state.finalize()) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::tests::hex;

    #[test]
    fn digests_have_the_length_that_is_said() {
        for (name, digest) in [
            ("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (
                "sha224",
                "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
            ),
            (
                "sha256",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            ("ripemd160", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
        ] {
            let hash = Hash::named(name.as_bytes()).unwrap();
            let mut out = vec![0; hash.len()];
            hash.digest(&[b"a", b"", b"bc"], &mut out);
            assert_eq!(out, hex(digest), "{name}");
        }
        for (hash, len) in [(Hash::Sha384, 48), (Hash::Sha512, 64)] {
            let mut out = vec![0; len + 1];
            hash.digest(&[b"abc"], &mut out);
            assert!(hash.len() == len && out[len - 4..len] != [0; 4] && out[len] == 0);
        }
        assert_eq!(Hash::named(b"SHA256"), None);
    }

    /// RFC 6070, RFC 7914.
    #[test]
    fn pbkdf2_of_the_standards() {
        let mut out = [0; 20];
        Hash::Sha1.pbkdf2(b"password", b"salt", 4096, &mut out);
        assert_eq!(out[..], hex("4b007901b765489abead49d926f721d065a429c1"));
        let mut out = [0; 25];
        let salt = b"saltSALTsaltSALTsaltSALTsaltSALTsalt";
        Hash::Sha1.pbkdf2(b"passwordPASSWORDpassword", salt, 4096, &mut out);
        let expected = "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038";
        assert_eq!(out[..], hex(expected));
        let mut out = [0; 64];
        Hash::Sha256.pbkdf2(b"passwd", b"salt", 1, &mut out);
        let expected = "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc\
                        49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783";
        assert_eq!(out[..], hex(expected));
    }
}
