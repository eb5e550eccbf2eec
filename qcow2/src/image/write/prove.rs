//! The proof that a write can hit nothing but what it is meant for.
//!
//! A refcount of 0 says that a cluster is free, and a copied flag that it is ours alone;
//! in a damaged image both can be wrong. So all references are counted before anything
//! is written, and an image whose check finds more than leaked clusters isn't written.
//! From then on every refcount that changes is right because it was right before.

use crate::{
    Error, Image, Result,
    addr::HostOffset,
    check::{CheckOptions, Severity, check},
    format::L1Entry,
    table::Space,
};

/// Whether `image` can be written without harm.
///
/// # Errors
/// [`Error::Refused`] and [`Error::Unsupported`] if not; I/O errors.
pub(super) fn sound(image: &Image, space: &mut Space) -> Result<()> {
    let (name, header) = (&image.name, image.header());
    image.cipher()?;
    let mut first = None;
    let report = check(&image.metadata(), CheckOptions::default(), &mut |finding| {
        if matches!(
            finding.severity(),
            Severity::Corruption | Severity::CheckError
        ) {
            first.get_or_insert_with(|| finding.to_string());
        }
    })?;
    let errors = report.corruptions + report.check_errors;
    if errors > 0 {
        let first = first.unwrap_or_default();
        return Err(Error::Refused(format!(
            "'{name}' has {errors} errors and can't be written before it is repaired \
             (check -r all); the first: {first}"
        )));
    }
    // What a file that was cut off doesn't have reads as zeros, and must not pass for entries.
    let size = image.storage.size();
    let size = size.map_err(Error::io("asking for the size of the image"))?;
    let l1_end = header
        .l1_table_offset
        .0
        .saturating_add(u64::from(header.l1_size) * L1Entry::LEN);
    if l1_end > size {
        return Err(Error::corrupt(
            "L1 table",
            header.l1_table_offset,
            format!("the end of the file at {size}"),
            format!("a file of at least {l1_end} bytes"),
        ));
    }
    // Tables that are written in place. Refcount blocks were looked at by the check, L2
    // tables have their copied flags.
    let cluster_size = image.geometry().cluster_size();
    let refcount_bytes = u64::from(header.refcount_table_clusters) * cluster_size;
    let directory = image.bitmaps()?;
    let directory = directory
        .extension()
        .filter(|_| !directory.is_voided())
        .map_or((HostOffset(0), 0), |extension| {
            (extension.directory_offset, extension.directory_size)
        });
    let tables = [
        ("header", HostOffset(0), cluster_size),
        (
            "L1 table",
            header.l1_table_offset,
            u64::from(header.l1_size) * L1Entry::LEN,
        ),
        (
            "refcount table",
            header.refcount_table_offset,
            refcount_bytes,
        ),
        ("bitmap directory", directory.0, directory.1),
    ];
    for (table, offset, bytes) in tables {
        for index in 0..bytes.div_ceil(cluster_size) {
            let at = HostOffset(offset.0.saturating_add(index * cluster_size));
            let refcount = space.refcount(at)?;
            if refcount != 1 {
                return Err(Error::corrupt(
                    format!("refcount of the {table}'s cluster"),
                    at,
                    format!("{refcount}"),
                    "1 (repair the image before writing to it)",
                ));
            }
        }
    }
    Ok(())
}
