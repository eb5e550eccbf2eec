//! The result of `check` as qemu-img prints it.

use std::io::{self, Write};

use qcow2::check::{CheckReport, Fixed, RepairReport};

use crate::output::{Json, Tree};

/// What was repaired, as text.
pub(super) fn fixed(out: &mut impl Write, fixed: Fixed) -> io::Result<()> {
    writeln!(
        out,
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    \
         {} corruptions\n\nDouble checking the fixed image now...",
        fixed.leaks, fixed.corruptions
    )
}

/// As text.
pub(super) fn human(out: &mut impl Write, report: &CheckReport) -> io::Result<()> {
    let CheckReport {
        corruptions,
        leaks,
        check_errors,
        ..
    } = report;
    if *corruptions == 0 && *leaks == 0 && *check_errors == 0 {
        writeln!(out, "No errors were found on the image.")?;
    }
    if *corruptions > 0 {
        writeln!(
            out,
            "\n{corruptions} errors were found on the image.\nData may be corrupted, or further \
             writes to the image may corrupt it."
        )?;
    }
    if *leaks > 0 {
        writeln!(
            out,
            "\n{leaks} leaked clusters were found on the image.\nThis means waste of disk space, \
             but no harm to data."
        )?;
    }
    if *check_errors > 0 {
        writeln!(
            out,
            "\n{check_errors} internal errors have occurred during the check."
        )?;
    }
    let (total, allocated) = (report.total_clusters, report.allocated_clusters);
    if total > 0 && allocated > 0 {
        writeln!(
            out,
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            percent(allocated, total),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated),
        )?;
    }
    writeln!(out, "Image end offset: {}", report.image_end_offset.get())
}

#[allow(clippy::cast_precision_loss)] // two decimals are shown
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}

/// As JSON; `filename` as it was given. Numbers that are 0 are left out, as QEMU does.
/// With `bitmaps` the number of bitmaps that can't be used is told, also 0.
pub(super) fn json(
    out: &mut impl Write,
    outcome: &RepairReport,
    filename: &[u8],
    bitmaps: bool,
) -> io::Result<()> {
    let mut json = Json::new(out);
    let out = &mut json;
    out.object("")?;
    members(out, outcome, filename, bitmaps)?;
    out.end()
}

/// The members of the object.
pub(super) fn members(
    out: &mut impl Tree,
    outcome: &RepairReport,
    filename: &[u8],
    bitmaps: bool,
) -> io::Result<()> {
    let RepairReport { report, fixed } = outcome;
    out.number("image-end-offset", report.image_end_offset.get().into())?;
    some(out, "compressed-clusters", report.compressed_clusters)?;
    some(out, "total-clusters", report.total_clusters)?;
    some(out, "corruptions", report.corruptions)?;
    some(out, "corruptions-fixed", fixed.corruptions)?;
    out.number("check-errors", report.check_errors.into())?;
    some(out, "leaks", report.leaks)?;
    some(out, "leaks-fixed", fixed.leaks)?;
    some(out, "allocated-clusters", report.allocated_clusters)?;
    out.string("filename", filename)?;
    out.string("format", b"qcow2")?;
    some(out, "fragmented-clusters", report.fragmented_clusters)?;
    if bitmaps {
        out.number("unusable-bitmaps", report.unusable_bitmaps.into())?;
    }
    Ok(())
}

fn some(out: &mut impl Tree, key: &str, value: u64) -> io::Result<()> {
    match value {
        0 => Ok(()),
        value => out.number(key, value.into()),
    }
}
