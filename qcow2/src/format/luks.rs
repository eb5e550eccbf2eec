//! The LUKS header (version 1) of an encrypted image. It stands where the encryption
//! header extension says.
//!
//! ```text
//!   0  magic "LUKS\xba\xbe"     108  key_bytes
//!   6  version, 16 bits         112  master key digest, 20 bytes
//!   8  cipher_name[32]          132  its salt, 32 bytes
//!  40  cipher_mode[32]          164  its iterations
//!  72  hash_spec[32]            168  uuid[40]
//! 104  payload_offset, sectors  208  8 key slots of 48 bytes
//!
//! slot   0  active 0x00ac71f3 or 0x0000dead    40  key material offset, sectors
//!        4  iterations                         44  stripes
//!        8  salt, 32 bytes
//! ```
//! Source: "LUKS On-Disk Format Specification Version 1.2.3".

use nom::{
    Parser,
    bytes::complete::{tag, take},
    combinator::map_res,
    error::context,
    number::complete::{be_u16, be_u32},
};

use super::parse::{Bad, Parse, run};
use crate::{Result, addr::HostOffset};

/// Bytes of the header.
pub const LEN: usize = 592;
/// Key slots.
pub const SLOTS: usize = 8;
const MAGIC: &[u8] = b"LUKS\xba\xbe";
const SLOT_ACTIVE: u32 = 0x00ac_71f3;
const SLOT_DISABLED: u32 = 0x0000_dead;
/// Offsets are in sectors of 512 bytes, whatever the disk's are.
const SECTOR: u64 = 512;

/// Bytes of a salt.
pub const SALT: usize = 32;
/// Bytes of the master key's digest.
pub const DIGEST: usize = 20;

/// The header. Names are bytes of the image, to be escaped before printing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksHeader {
    /// Cipher, such as `aes`.
    pub cipher_name: Vec<u8>,
    /// Mode, IV generator and its hash, such as `xts-plain64` or `cbc-essiv:sha256`.
    pub cipher_mode: Vec<u8>,
    /// Hash of key derivation, such as `sha256`.
    pub hash: Vec<u8>,
    /// Where the payload would start, in bytes; without meaning inside qcow2.
    pub payload_offset: u64,
    /// Bytes of the master key.
    pub key_bytes: u32,
    /// Digest of the master key: PBKDF2 with [`hash`](Self::hash) over it.
    pub master_key_digest: [u8; DIGEST],
    /// The digest's salt.
    pub master_key_salt: [u8; SALT],
    /// Iterations of the master key's digest.
    pub master_key_iterations: u32,
    /// UUID as text.
    pub uuid: Vec<u8>,
    /// The key slots.
    pub slots: [LuksSlot; SLOTS],
}

/// A key slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LuksSlot {
    /// Whether it holds a key.
    pub active: bool,
    /// Iterations of key derivation.
    pub iterations: u32,
    /// Salt of key derivation.
    pub salt: [u8; SALT],
    /// Where the key material is, in bytes from the start of the LUKS header.
    pub key_offset: u64,
    /// Stripes of the anti-forensic splitting.
    pub stripes: u32,
}

/// A text field, padded with zeros.
fn text<'a>(
    field: &'static str,
    len: usize,
) -> impl Parser<&'a [u8], Output = Vec<u8>, Error = super::parse::Located<'a>> {
    context(
        field,
        take(len).map(|bytes: &[u8]| bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()),
    )
}

/// Bytes as they are.
fn array<'a, const N: usize>(
    field: &'static str,
) -> impl Parser<&'a [u8], Output = [u8; N], Error = super::parse::Located<'a>> {
    context(
        field,
        take(N).map(|bytes: &[u8]| bytes.first_chunk().copied().unwrap_or([0; N])),
    )
}

fn version_1(version: u16) -> Result<(), Bad> {
    if version == 1 {
        Ok(())
    } else {
        Err(Bad::new(version, "1"))
    }
}

fn slot_state(raw: u32) -> Result<bool, Bad> {
    match raw {
        SLOT_ACTIVE => Ok(true),
        SLOT_DISABLED => Ok(false),
        other => Err(Bad::new(
            format!("{other:#x}"),
            "0xac71f3 (active) or 0xdead (disabled)",
        )),
    }
}

fn slot(input: &[u8]) -> Parse<'_, LuksSlot> {
    let (rest, active) = context("key slot state", map_res(be_u32, slot_state)).parse(input)?;
    let (rest, iterations) = context("key slot iterations", be_u32).parse(rest)?;
    let (rest, salt) = array("key slot salt").parse(rest)?;
    let (rest, key_offset) = context("key material offset", be_u32).parse(rest)?;
    let (rest, stripes) = context("stripes", be_u32).parse(rest)?;
    let key_offset = u64::from(key_offset) * SECTOR;
    Ok((
        rest,
        LuksSlot {
            active,
            iterations,
            salt,
            key_offset,
            stripes,
        },
    ))
}

fn header(input: &[u8]) -> Parse<'_, LuksHeader> {
    let (rest, _) = context("magic", tag(MAGIC)).parse(input)?;
    let (rest, ()) = context("version", map_res(be_u16, version_1)).parse(rest)?;
    let (rest, cipher_name) = text("cipher_name", 32).parse(rest)?;
    let (rest, cipher_mode) = text("cipher_mode", 32).parse(rest)?;
    let (rest, hash) = text("hash_spec", 32).parse(rest)?;
    let (rest, payload_offset) = context("payload_offset", be_u32).parse(rest)?;
    let (rest, key_bytes) = context("key_bytes", be_u32).parse(rest)?;
    let (rest, master_key_digest) = array("master key digest").parse(rest)?;
    let (rest, master_key_salt) = array("master key salt").parse(rest)?;
    let (rest, master_key_iterations) = context("master key iterations", be_u32).parse(rest)?;
    let (mut rest, uuid) = text("uuid", 40).parse(rest)?;
    let mut slots = [LuksSlot::default(); SLOTS];
    for target in &mut slots {
        (rest, *target) = slot(rest)?;
    }
    let header = LuksHeader {
        cipher_name,
        cipher_mode,
        hash,
        payload_offset: u64::from(payload_offset) * SECTOR,
        key_bytes,
        master_key_digest,
        master_key_salt,
        master_key_iterations,
        uuid,
        slots,
    };
    Ok((rest, header))
}

impl LuksHeader {
    /// The header in the first 592 bytes of `bytes`, which stand at `base` in the image.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] for another magic or version, an impossible slot
    /// state, or too few bytes.
    pub fn parse(bytes: &[u8], base: HostOffset) -> Result<Self> {
        run("LUKS header", base, bytes, header).map(|(_, header)| header)
    }

    /// Appends the header's bytes; names that are too long are cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let text = |out: &mut Vec<u8>, text: &[u8], len: usize| {
            let end = out.len() + len;
            out.extend(text.iter().take(len));
            out.resize(end, 0);
        };
        let sectors = |offset: u64| u32::try_from(offset / SECTOR).unwrap_or(u32::MAX);
        out.extend(MAGIC);
        out.extend(1_u16.to_be_bytes());
        text(out, &self.cipher_name, 32);
        text(out, &self.cipher_mode, 32);
        text(out, &self.hash, 32);
        out.extend(sectors(self.payload_offset).to_be_bytes());
        out.extend(self.key_bytes.to_be_bytes());
        out.extend(self.master_key_digest);
        out.extend(self.master_key_salt);
        out.extend(self.master_key_iterations.to_be_bytes());
        text(out, &self.uuid, 40);
        for slot in &self.slots {
            let state = match slot.active {
                true => SLOT_ACTIVE,
                false => SLOT_DISABLED,
            };
            out.extend(state.to_be_bytes());
            out.extend(slot.iterations.to_be_bytes());
            out.extend(slot.salt);
            out.extend(sectors(slot.key_offset).to_be_bytes());
            out.extend(slot.stripes.to_be_bytes());
        }
    }

    /// Cipher and key length in bits as QEMU names them, such as `aes-256`: in mode
    /// `xts` half of the key is used for the tweak.
    #[must_use]
    pub fn cipher_alg(&self) -> String {
        let bits = u64::from(self.key_bytes) * 8;
        let bits = if self.mode() == b"xts" {
            bits / 2
        } else {
            bits
        };
        format!("{}-{bits}", self.cipher_name.escape_ascii())
    }

    /// The cipher mode alone, such as `xts`.
    #[must_use]
    pub fn mode(&self) -> &[u8] {
        self.cipher_mode
            .split(|b| *b == b'-')
            .next()
            .unwrap_or_default()
    }

    /// The IV generator, such as `plain64`; empty if there is none.
    #[must_use]
    pub fn ivgen(&self) -> &[u8] {
        let rest = self
            .cipher_mode
            .get(self.mode().len() + 1..)
            .unwrap_or_default();
        rest.split(|b| *b == b':').next().unwrap_or_default()
    }

    /// The IV generator's hash, such as `sha256`, where one is named.
    #[must_use]
    pub fn ivgen_hash(&self) -> Option<&[u8]> {
        let colon = self.cipher_mode.iter().position(|b| *b == b':')?;
        self.cipher_mode.get(colon + 1..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::from(b"LUKS\xba\xbe\0\x01");
        let text = |bytes: &mut Vec<u8>, text: &[u8], len| {
            let end = bytes.len() + len;
            bytes.extend(text);
            bytes.resize(end, 0);
        };
        text(&mut bytes, b"aes", 32);
        text(&mut bytes, b"cbc-essiv:sha256", 32);
        text(&mut bytes, b"sha1", 32);
        bytes.extend([0, 0, 0x0f, 0xc8, 0, 0, 0, 32]);
        text(&mut bytes, b"", 52);
        bytes.extend([0, 0, 0x1c, 0xe1]);
        text(&mut bytes, b"0b53fd56-a356-49f8-94ce-bff0614bd7c8", 40);
        for slot in 0..8 {
            bytes.extend(if slot == 0 {
                [0, 0xac, 0x71, 0xf3]
            } else {
                [0, 0, 0xde, 0xad]
            });
            text(&mut bytes, &[0, 0, 0x92, 0x9e], 36);
            bytes.extend([0, 0, 2, 8 * slot, 0, 0, 0x0f, 0xa0]);
        }
        bytes
    }

    #[test]
    fn fixed_bytes() {
        let header = LuksHeader::parse(&sample(), HostOffset(0x40000)).unwrap();
        let mut again = Vec::new();
        header.encode(&mut again);
        assert_eq!(again, sample());
        assert_eq!(header.cipher_alg(), "aes-256");
        assert_eq!(
            (header.mode(), header.ivgen()),
            (&b"cbc"[..], &b"essiv"[..])
        );
        assert_eq!(
            (header.ivgen_hash(), &header.hash[..]),
            (Some(&b"sha256"[..]), &b"sha1"[..])
        );
        assert_eq!(
            (header.payload_offset, header.master_key_iterations),
            (0xfc8 * 512, 7393)
        );
        assert_eq!(header.uuid, b"0b53fd56-a356-49f8-94ce-bff0614bd7c8");
        let first = LuksSlot {
            active: true,
            iterations: 37534,
            salt: [0; SALT],
            key_offset: 0x200 * 512,
            stripes: 4000,
        };
        assert_eq!(header.slots[0], first);
        assert_eq!(
            (header.slots[7].active, header.slots[7].key_offset),
            (false, 0x238 * 512)
        );
    }

    #[test]
    fn xts_uses_half_the_key() {
        let mut header = LuksHeader::parse(&sample(), HostOffset(0)).unwrap();
        (header.cipher_mode, header.key_bytes) = (b"xts-plain64".to_vec(), 64);
        assert_eq!(header.cipher_alg(), "aes-256");
        assert_eq!(
            (header.ivgen(), header.ivgen_hash()),
            (&b"plain64"[..], None)
        );
        header.cipher_mode = b"ecb".to_vec();
        assert_eq!((header.mode(), header.ivgen()), (&b"ecb"[..], &b""[..]));
    }

    #[test]
    fn cut_or_damaged_is_refused() {
        let bytes = sample();
        assert_eq!(bytes.len(), LEN);
        for end in 0..bytes.len() {
            let error = LuksHeader::parse(&bytes[..end], HostOffset(0)).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{end}");
        }
        for (at, field) in [(0, "magic"), (7, "version"), (208, "key slot state")] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            let error = LuksHeader::parse(&damaged, HostOffset(0))
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with(&format!("LUKS header, field {field}")),
                "{error}"
            );
        }
    }
}
