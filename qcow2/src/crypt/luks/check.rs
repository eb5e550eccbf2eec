//! What a LUKS header inside qcow2 must be for its key slots to be tried. The sentences
//! are QEMU's.

use super::{HEADER_AREA, MAX_ITERATIONS, STRIPES};
use crate::{
    Error, Geometry, Result,
    addr::HostOffset,
    format::{
        EncryptionHeader,
        luks::{LEN, LuksHeader},
    },
};

/// Bytes of the header before the first slot, and of a slot.
const SLOTS_AT: u64 = 208;
const SLOT_LEN: u64 = 48;
/// Bytes of the fields for names, which end with a zero.
const NAME: usize = 32;

fn fault(
    message: impl Into<String>,
    offset: HostOffset,
    found: impl Into<String>,
    allowed: impl Into<String>,
) -> Error {
    Error::Header {
        message: message.into(),
        source: Box::new(Error::corrupt("LUKS header", offset, found, allowed)),
    }
}

/// Something that isn't within the region of the LUKS header.
pub(super) fn outside(place: EncryptionHeader) -> Error {
    let found = format!("{} bytes", place.length);
    let message = "Request for data outside of extension header";
    fault(message, place.offset, found, "all that belongs to it")
}

/// Where the LUKS header is.
pub(super) fn place(place: EncryptionHeader, geometry: Geometry) -> Result<()> {
    let (offset, cluster_size) = (place.offset, geometry.cluster_size());
    if !geometry.is_aligned(offset) {
        let at = offset.0;
        let message = format!(
            "Encryption header offset '{at}' is not a multiple of cluster size '{cluster_size}'"
        );
        let allowed = format!("a multiple of {cluster_size}");
        return Err(fault(message, offset, format!("{offset}"), allowed));
    }
    if place.length < LEN as u64 {
        return Err(outside(place));
    }
    Ok(())
}

/// The header in `bytes`, which stand at `base` in the image.
pub(super) fn header(bytes: &[u8; LEN], base: HostOffset) -> Result<LuksHeader> {
    if !bytes.starts_with(b"LUKS\xba\xbe") {
        let message = "Volume is not in LUKS format";
        return Err(fault(message, base, "another magic", "\"LUKS\\xba\\xbe\""));
    }
    let version = u16::from_be_bytes([bytes[6], bytes[7]]);
    if version != 1 {
        let message = format!("LUKS version {version} is not supported");
        return Err(Error::Unsupported(message));
    }
    let header = LuksHeader::parse(bytes, base).map_err(|error| match error {
        // Nothing else is left that can be wrong.
        Error::Corrupt { offset, .. } => {
            let slot = (offset.0.saturating_sub(base.0 + SLOTS_AT)) / SLOT_LEN;
            let message = format!("Keyslot {slot} state (active/disable) is corrupted");
            let source = Box::new(error);
            Error::Header { message, source }
        }
        other => other,
    })?;
    for (name, what) in [
        (&header.cipher_name, "cipher name"),
        (&header.cipher_mode, "cipher mode"),
        (&header.hash, "hash spec"),
    ] {
        if name.len() >= NAME {
            let message = format!("LUKS header {what} is not NUL terminated");
            return Err(fault(message, base, "32 bytes", "31 bytes and a zero"));
        }
    }
    layout(&header, base)?;
    Ok(header)
}

/// Where key material is, and its numbers.
fn layout(header: &LuksHeader, base: HostOffset) -> Result<()> {
    let wrong = |message: String, found: u64, allowed: &str| {
        let found = format!("{found}");
        Err(fault(message, base, found, allowed))
    };
    let payload = header.payload_offset;
    if payload < HEADER_AREA {
        let message = "LUKS payload is overlapping with the header".into();
        return wrong(message, payload, "an offset behind the header");
    }
    if header.master_key_iterations == 0 {
        let message = "LUKS key iteration count is zero".into();
        return wrong(message, 0, "1 or more iterations");
    }
    let len = u64::from(header.key_bytes) * u64::from(STRIPES);
    let len = len.next_multiple_of(super::SECTOR);
    for (number, slot) in header.slots.iter().enumerate() {
        let (start, end) = (slot.key_offset, slot.key_offset.saturating_add(len));
        if slot.stripes != STRIPES {
            // As QEMU prints it, with a sign.
            let stripes = slot.stripes.cast_signed();
            let message = format!("Keyslot {number} is corrupted (stripes {stripes} != {STRIPES})");
            return wrong(message, slot.stripes.into(), "4000 stripes");
        }
        if start < HEADER_AREA {
            let message = format!("Keyslot {number} is overlapping with the LUKS header");
            return wrong(message, start, "key material behind the header");
        }
        if slot.active && slot.iterations == 0 {
            let message = format!("Keyslot {number} iteration count is zero");
            return wrong(message, 0, "1 or more iterations");
        }
        if end > payload {
            let message = format!("Keyslot {number} is overlapping with the encrypted payload");
            return wrong(message, start, "key material before the payload");
        }
        for (other, behind) in header.slots.iter().enumerate().skip(number + 1) {
            let apart = end <= behind.key_offset || behind.key_offset.saturating_add(len) <= start;
            if !apart {
                let message =
                    format!("Keyslots {number} and {other} are overlapping in the header");
                return wrong(message, behind.key_offset, "key material of its own");
            }
        }
    }
    Ok(())
}

/// How much has to be computed to try all slots.
pub(super) fn iterations(header: &LuksHeader) -> Result<()> {
    let active = header.slots.iter().filter(|slot| slot.active);
    let all = active
        .map(|slot| u64::from(slot.iterations) + u64::from(header.master_key_iterations))
        .sum::<u64>();
    if all <= MAX_ITERATIONS {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "the key slots of the LUKS header take {all} iterations of PBKDF2, more than \
         {MAX_ITERATIONS}"
    )))
}
