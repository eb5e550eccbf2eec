//! Reads what `info` tells out of an open image.

use qcow2::{
    Image,
    addr::HostOffset,
    format::{
        Autoclear, Compatible, CryptMethod, ExtensionType, Incompatible, LuksHeader, luks,
        snapshot::{FIXED_LEN, MAX_TABLE_BYTES, QEMU_MAX_EXTRA_DATA, entry_len},
    },
};

use super::facts::{BackingName, Encryption, Facts, FileFacts, Luks, Qcow2Facts, Slot, Snapshot};
use crate::{
    cmd::beside,
    error::os_text,
    image::{Content, Opened, os_str, until_zero, words},
    opts::ImageSpec,
    progname,
};

/// QEMU keeps a snapshot's id and name in fields of this many bytes, less one.
const ID_BYTES: usize = 127;
const NAME_BYTES: usize = 255;

/// And the backing format in one of this many.
const FORMAT_BYTES: usize = 16;

/// Everything about an image.
///
/// # Errors
/// What qemu-img prints after `Could not open 'name': `.
pub(super) fn facts(spec: &ImageSpec, opened: Opened) -> Result<Facts, String> {
    use std::os::unix::ffi::OsStrExt;
    let filename = spec.file.path.as_bytes().to_vec();
    let file = match opened.content {
        Content::File => None,
        _ => Some(FileFacts {
            filename: filename.clone(),
            protocol: opened.protocol_name(),
            length: opened.length,
            actual_size: opened.allocated,
        }),
    };
    let mut facts = Facts {
        filename,
        format: opened.format(),
        virtual_size: opened.virtual_size(),
        actual_size: opened.allocated,
        encrypted: false,
        cluster_size: None,
        dirty: false,
        backing: None,
        snapshots: Vec::new(),
        qcow2: None,
        file,
    };
    if let Content::Qcow2(image) = opened.content {
        let format_bytes = image
            .header_area()
            .extensions()
            .backing_format()
            .map_or(0, <[u8]>::len);
        if format_bytes >= FORMAT_BYTES {
            return Err(format!(
                "ERROR: ext_backing_format: len={format_bytes} too large (>={FORMAT_BYTES})"
            ));
        }
        let header = image.header();
        facts.encrypted = header.crypt_method != CryptMethod::None;
        facts.cluster_size = Some(image.geometry().cluster_size());
        facts.dirty = header.incompatible_features.contains(Incompatible::DIRTY);
        facts.backing = backing(spec, &image);
        facts.snapshots = snapshots(spec, &image)?;
        facts.qcow2 = Some(qcow2_facts(spec, image)?);
    }
    Ok(facts)
}

fn backing(spec: &ImageSpec, image: &Image) -> Option<BackingName> {
    use std::os::unix::ffi::OsStrExt;
    let area = image.header_area();
    let name = until_zero(area.header().backing_file.as_ref()?).to_vec();
    if name.is_empty() {
        return None;
    }
    let full = beside(&spec.file.path, &name).as_bytes().to_vec();
    let format = area
        .extensions()
        .backing_format()
        .map(until_zero)
        .filter(|format| !format.is_empty());
    Some(BackingName {
        name,
        full,
        format: format.map(<[u8]>::to_vec),
    })
}

fn snapshots(spec: &ImageSpec, image: &Image) -> Result<Vec<Snapshot>, String> {
    let cut = |text: &[u8], bytes: usize| {
        let text = text.get(..bytes).unwrap_or(text);
        until_zero(text).to_vec()
    };
    let snapshot = |stored: qcow2::format::Snapshot| Snapshot {
        id: cut(&stored.id, ID_BYTES),
        name: cut(&stored.name, NAME_BYTES),
        vm_state_size: stored.vm_state_size(),
        date: (stored.date_seconds, stored.date_nanoseconds),
        vm_clock_nsec: stored.vm_clock,
        icount: stored.icount(),
    };
    let header = image.header();
    let mut list = Vec::new();
    let mut at = header.snapshots_offset.get();
    let end = at.saturating_add(MAX_TABLE_BYTES);
    for index in 0..header.nb_snapshots {
        let mut fixed = [0; FIXED_LEN];
        read(image, at, &mut fixed)?;
        let extra = u32::from_be_bytes([fixed[36], fixed[37], fixed[38], fixed[39]]);
        if extra > QEMU_MAX_EXTRA_DATA {
            return Err(format!(
                "Too much extra metadata in snapshot table entry {index}\nYou can force-remove \
                 this extra metadata with {} check -r all",
                progname::short()
            ));
        }
        let length = entry_len(&fixed).unwrap_or(u64::MAX);
        if at.saturating_add(length) > end {
            return Err(format!(
                "Snapshot table is too big\nYou can force-remove all {} overhanging snapshots with \
                 {} check -r all",
                header.nb_snapshots - index,
                progname::short()
            ));
        }
        let mut entry = vec![0; usize::try_from(length).unwrap_or(0)];
        read(image, at, &mut entry)?;
        let number = usize::try_from(index).unwrap_or(usize::MAX);
        let parsed = qcow2::format::Snapshot::parse(&entry, HostOffset(at), number);
        let (_, stored) = parsed.map_err(|e| words(&e, spec.file.path.as_ref()))?;
        list.push(snapshot(stored));
        at += length;
    }
    Ok(list)
}

/// Reads metadata; what lies past the end of the file reads as zeros.
fn read(image: &Image, at: u64, out: &mut [u8]) -> Result<(), String> {
    let read = image.storage().read_padded(at, out);
    read.map_err(|e| format!("Failed to read metadata at {at:#x}: {}", os_text(&e)))
}

fn qcow2_facts(spec: &ImageSpec, image: Box<Image>) -> Result<Qcow2Facts, String> {
    let header = image.header();
    let area = image.header_area();
    let incompatible = |feature| header.incompatible_features.contains(feature);
    let encryption = match header.crypt_method {
        CryptMethod::None => None,
        CryptMethod::Aes => Some(Encryption::Aes),
        CryptMethod::Luks => Some(Encryption::Luks(luks_facts(spec, &image)?)),
    };
    let facts = Qcow2Facts {
        version: header.version,
        compression_type: header.compression_type.name(),
        lazy_refcounts: header
            .compatible_features
            .contains(Compatible::LAZY_REFCOUNTS),
        refcount_bits: image.geometry().refcount_bits(),
        corrupt: incompatible(Incompatible::CORRUPT),
        extended_l2: incompatible(Incompatible::EXTENDED_L2),
        data_file: area
            .extensions()
            .data_file()
            .map(|name| until_zero(name).to_vec()),
        data_file_raw: incompatible(Incompatible::DATA_FILE)
            .then(|| header.autoclear_features.contains(Autoclear::DATA_FILE_RAW)),
        encryption,
        image,
    };
    Ok(facts)
}

fn luks_facts(spec: &ImageSpec, image: &Image) -> Result<Luks, String> {
    let path = spec.file.path.as_ref();
    let area = image.header_area();
    let size = area
        .extensions()
        .get(ExtensionType::ENCRYPTION)
        .map_or(0, <[u8]>::len);
    if size != 16 {
        return Err(format!(
            "CRYPTO header extension size {size}, but expected size 16"
        ));
    }
    let extension = area
        .extensions()
        .encryption()
        .map_err(|e| words(&e, path))?;
    let offset = extension.map_or(0, |extension| extension.offset.get());
    let cluster_size = image.geometry().cluster_size();
    if !offset.is_multiple_of(cluster_size) {
        return Err(format!(
            "Encryption header offset '{offset}' is not a multiple of cluster size '{cluster_size}'"
        ));
    }
    let mut bytes = [0; luks::LEN];
    read(image, offset, &mut bytes)?;
    let header = LuksHeader::parse(&bytes, HostOffset(offset)).map_err(|e| words(&e, path))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Luks {
        ivgen_alg: text(header.ivgen()),
        ivgen_hash_alg: header.ivgen_hash().map(text),
        hash_alg: text(&header.hash),
        cipher_alg: header.cipher_alg(),
        cipher_mode: text(header.mode()),
        uuid: header.uuid.clone(),
        payload_offset: header.payload_offset,
        master_key_iters: header.master_key_iterations,
        slots: header
            .slots
            .iter()
            .map(|slot| Slot {
                active: slot.active.then_some((slot.iterations, slot.stripes)),
                key_offset: HostOffset(slot.key_offset),
            })
            .collect(),
    })
}

/// The image behind this one, as its header names it; `None` at the end of the chain.
///
/// # Errors
/// A name with a protocol, or `json:`: only plain files are followed.
pub(super) fn next_in_chain(facts: &Facts) -> Result<Option<ImageSpec>, String> {
    let Some(backing) = &facts.backing else {
        return Ok(None);
    };
    let name = os_str(&backing.full);
    if backing.full.starts_with(b"json:") {
        return Err("A json: name out of an image is not followed".into());
    }
    let format = backing
        .format
        .as_ref()
        .map(|format| String::from_utf8_lossy(format));
    ImageSpec::from_name(name, format.as_deref()).map(Some)
}
