//! The guest's disk of an encrypted image: read and written with a key.

use std::sync::OnceLock;

use qcow2::{crypt::Secret, format::HeaderArea, io::memory::MemoryStorage};

use super::{
    Input,
    disk::read_all_ways,
    image::image_seeds,
    written::{SCRIPT, written_with},
};
use crate::{ImageBytes, testdata};

/// Bytes of a LUKS header.
const LUKS: usize = 592;
/// Where it says how many iterations the digest of the master key takes; how many a key
/// slot takes, and how far the next slot is.
const ITERATIONS: (usize, usize, usize) = (164, 212, 48);
/// Iterations that are computed at most for each: as many as QEMU makes at least, and
/// more than in the seeds. The library's own limit lets minutes pass.
const MOST_ITERATIONS: u32 = 1000;
/// The method of encryption in an image's header: the old AES.
const AES: &[u8] = &[0, 0, 0, 1];
const METHOD: usize = 32;

/// The LUKS header of an image by QEMU, and the key material behind it: where it stands in
/// the image, and its bytes. Key material takes more bytes than all else, and a change to
/// it only makes the passphrase wrong; so it is no part of an input.
fn template() -> &'static (usize, Vec<u8>) {
    static TEMPLATE: OnceLock<(usize, Vec<u8>)> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let image = ImageBytes::load(&testdata::qcow2("luks.qcow2"));
        let storage = MemoryStorage::from_bytes(&image.bytes);
        let area = HeaderArea::read(&storage).unwrap();
        let place = area.extensions().encryption().unwrap().unwrap();
        let at = place.offset.get() as usize;
        (at, image.bytes[at..at + place.length as usize].to_vec())
    })
}

/// Takes `data` for a byte of flags, a LUKS header, a script and an image without the space
/// that its LUKS header and key material take. Reads the image's disk with the passphrase of
/// `testdata/`, and writes to it as the script says.
pub fn encrypted(data: &[u8]) {
    let Some((flags, data)) = data.split_first() else {
        return;
    };
    let Some((luks, data)) = data.split_at_checked(LUKS) else {
        return;
    };
    let Some((script, image)) = data.split_at_checked(SCRIPT) else {
        return;
    };
    let mut bytes = image.to_vec();
    if flags & 1 != 0 {
        let (at, area) = template();
        let rest = bytes.split_off(bytes.len().min(*at));
        bytes.resize(*at, 0);
        bytes.extend(area);
        if flags & 2 != 0 {
            bytes[*at..at + LUKS].copy_from_slice(&bounded(luks));
        }
        bytes.extend(rest);
    }
    let secret = Secret::new("sesame");
    read_all_ways(&bytes, Some(&secret));
    written_with(script, &bytes, Some(&secret));
}

/// The header with no more iterations than there is time for.
fn bounded(luks: &[u8]) -> Vec<u8> {
    let mut luks = luks.to_vec();
    let (digest, slots, next) = ITERATIONS;
    for at in [digest].into_iter().chain((0..8).map(|n| slots + n * next)) {
        let field: &mut [u8] = &mut luks[at..at + 4];
        let count = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
        field.copy_from_slice(&count.min(MOST_ITERATIONS).to_be_bytes());
    }
    luks
}

/// The encrypted images of `testdata/`, and all others with AES said to be in them.
pub(super) fn seeds() -> Vec<Input> {
    let (at, area) = template();
    let seed = |flags: u8, image: &[u8]| {
        let mut seed = vec![flags];
        seed.extend(&area[..LUKS]);
        // Write, zero, discard, flush, and look, here and there.
        seed.extend((0..SCRIPT as u32).map(|n| (n * 37 / 2) as u8));
        seed.extend(image);
        seed
    };
    let mut luks = ImageBytes::load(&testdata::qcow2("luks.qcow2")).bytes;
    luks.drain(at..&(at + area.len()));
    let aes = ImageBytes::load(&testdata::qcow2("aes.qcow2")).bytes;
    let mut seeds = vec![
        ("LUKS".into(), seed(1, &luks)),
        ("LUKS with its header".into(), seed(3, &luks)),
        ("AES".into(), seed(0, &aes)),
    ];
    for (name, mut image) in image_seeds() {
        if let Some(method) = image.get_mut(METHOD..METHOD + AES.len()) {
            method.copy_from_slice(AES);
            seeds.push((name, seed(0, &image)));
        }
    }
    seeds
}
