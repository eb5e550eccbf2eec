//! `info --output=json`: the keys in the order in which QEMU prints them.

use std::io;

use super::directory::Bitmaps;
use super::facts::{Encryption, Facts, FileFacts, Qcow2Facts, Snapshot};
use crate::output::Tree;

/// An image as an object.
pub(super) fn image(out: &mut impl Tree, facts: &Facts) -> io::Result<()> {
    out.object("")?;
    out.list("children")?;
    if let Some(file) = &facts.file {
        out.object("")?;
        out.string("name", b"file")?;
        child(out, file)?;
        out.end()?;
    }
    out.end()?;
    if let Some(format) = facts
        .backing
        .as_ref()
        .and_then(|backing| backing.format.as_ref())
    {
        out.string("backing-filename-format", format)?;
    }
    if !facts.snapshots.is_empty() {
        out.list("snapshots")?;
        for one in &facts.snapshots {
            snapshot(out, one)?;
        }
        out.end()?;
    }
    out.number("virtual-size", facts.virtual_size.into())?;
    out.string("filename", &facts.filename)?;
    if let Some(bytes) = facts.cluster_size {
        out.number("cluster-size", bytes.into())?;
    }
    out.string("format", facts.format.as_bytes())?;
    out.number("actual-size", facts.actual_size.into())?;
    if let Some(qcow2) = &facts.qcow2 {
        out.object("format-specific")?;
        out.string("type", b"qcow2")?;
        out.object("data")?;
        specific(out, qcow2)?;
        out.end()?;
        out.end()?;
    } else if facts.file.is_none() {
        nothing_specific(out)?;
    }
    if let Some(backing) = &facts.backing {
        out.string("full-backing-filename", &backing.full)?;
    }
    if facts.encrypted {
        out.flag("encrypted", true)?;
    }
    if let Some(backing) = &facts.backing {
        out.string("backing-filename", &backing.name)?;
    }
    out.flag("dirty-flag", facts.dirty)?;
    out.end()
}

fn child(out: &mut impl Tree, file: &FileFacts) -> io::Result<()> {
    out.object("info")?;
    out.list("children")?;
    out.end()?;
    out.number("virtual-size", file.length.into())?;
    out.string("filename", &file.filename)?;
    out.string("format", file.protocol.as_bytes())?;
    out.number("actual-size", file.actual_size.into())?;
    nothing_specific(out)?;
    out.flag("dirty-flag", false)?;
    out.end()
}

/// The own details of a file or device, of which there are none.
fn nothing_specific(out: &mut impl Tree) -> io::Result<()> {
    out.object("format-specific")?;
    out.string("type", b"file")?;
    out.object("data")?;
    out.end()?;
    out.end()
}

fn snapshot(out: &mut impl Tree, snapshot: &Snapshot) -> io::Result<()> {
    const NSEC_PER_SEC: u64 = 1_000_000_000;
    out.object("")?;
    if let Some(icount) = snapshot.icount {
        out.number("icount", icount.cast_signed().into())?;
    }
    out.number(
        "vm-clock-nsec",
        (snapshot.vm_clock_nsec % NSEC_PER_SEC).into(),
    )?;
    out.string("name", &snapshot.name)?;
    out.number("date-sec", snapshot.date.0.into())?;
    out.number("date-nsec", snapshot.date.1.into())?;
    out.number(
        "vm-clock-sec",
        (snapshot.vm_clock_nsec / NSEC_PER_SEC).into(),
    )?;
    out.string("id", &snapshot.id)?;
    out.number("vm-state-size", snapshot.vm_state_size.cast_signed().into())?;
    out.end()
}

/// The members of `format-specific.data`; as text, the lines below "Format specific
/// information".
pub(super) fn specific(out: &mut impl Tree, facts: &Qcow2Facts) -> io::Result<()> {
    if facts.version < 3 {
        out.string("compat", b"0.10")?;
        out.string("compression-type", facts.compression_type.as_bytes())?;
        out.number("refcount-bits", facts.refcount_bits.into())?;
        if let Some(encryption) = &facts.encryption {
            encrypt(out, encryption)?;
        }
        // Says so if there are bitmaps, which version 2 can't keep valid.
        drop(Bitmaps::of(&facts.image));
        return Ok(());
    }
    out.string("compat", b"1.1")?;
    out.string("compression-type", facts.compression_type.as_bytes())?;
    out.flag("lazy-refcounts", facts.lazy_refcounts)?;
    bitmaps(out, facts)?;
    out.number("refcount-bits", facts.refcount_bits.into())?;
    if let Some(name) = &facts.data_file {
        out.string("data-file", name)?;
    }
    if let Some(encryption) = &facts.encryption {
        encrypt(out, encryption)?;
    }
    if let Some(raw) = facts.data_file_raw {
        out.flag("data-file-raw", raw)?;
    }
    out.flag("corrupt", facts.corrupt)?;
    out.flag("extended-l2", facts.extended_l2)
}

fn bitmaps(out: &mut impl Tree, facts: &Qcow2Facts) -> io::Result<()> {
    let mut bitmaps = Bitmaps::of(&facts.image).peekable();
    if bitmaps.peek().is_none() {
        return Ok(());
    }
    out.list("bitmaps")?;
    for bitmap in bitmaps {
        out.object("")?;
        out.list("flags")?;
        for (set, name) in [(bitmap.in_use, "in-use"), (bitmap.auto, "auto")] {
            if set {
                out.string("", name.as_bytes())?;
            }
        }
        out.end()?;
        out.string("name", &bitmap.name)?;
        out.number("granularity", bitmap.granularity.into())?;
        out.end()?;
    }
    out.end()
}

fn encrypt(out: &mut impl Tree, encryption: &Encryption) -> io::Result<()> {
    out.object("encrypt")?;
    match encryption {
        Encryption::Aes => out.string("format", b"aes")?,
        Encryption::Luks(luks) => {
            out.string("ivgen-alg", luks.ivgen_alg.as_bytes())?;
            if let Some(hash) = &luks.ivgen_hash_alg {
                out.string("ivgen-hash-alg", hash.as_bytes())?;
            }
            out.flag("detached-header", false)?;
            out.string("hash-alg", luks.hash_alg.as_bytes())?;
            out.string("cipher-alg", luks.cipher_alg.as_bytes())?;
            out.string("uuid", &luks.uuid)?;
            out.string("format", b"luks")?;
            out.string("cipher-mode", luks.cipher_mode.as_bytes())?;
            out.list("slots")?;
            for slot in &luks.slots {
                out.object("")?;
                out.flag("active", slot.active.is_some())?;
                if let Some((iters, _)) = slot.active {
                    out.number("iters", iters.into())?;
                }
                out.number("key-offset", slot.key_offset.get().into())?;
                if let Some((_, stripes)) = slot.active {
                    out.number("stripes", stripes.into())?;
                }
                out.end()?;
            }
            out.end()?;
            out.number("payload-offset", luks.payload_offset.into())?;
            out.number("master-key-iters", luks.master_key_iters.into())?;
        }
    }
    out.end()
}
