//! `check --findings`: what a repair would have to do, as JSON.

use std::io::{self, Write};

use qcow2::check::{CheckOptions, Finding, Fixed, Repair, RepairReport, dry_run};

use super::{failed, metadata, report, unless_closed};
use crate::{
    error::Failure,
    image::Checkable,
    output::{self, Json, Tree},
};

/// Checks the image and prints one object, its findings as they are made.
pub(super) fn print(
    image: &Checkable,
    options: CheckOptions,
    filename: &[u8],
) -> Result<RepairReport, Failure> {
    let mut out = output::stdout();
    let mut json = Json::new(&mut out);
    let mut written = json.object("").and_then(|()| json.list("findings"));
    let checked = dry_run(&metadata(image), options, &mut |finding, remedy| {
        if written.is_ok() {
            written = print_one(&mut json, finding, remedy);
        }
    });
    let outcome = checked.map(|report| RepairReport {
        report,
        fixed: Fixed::default(),
    });
    if written.is_ok() {
        written = json.end().and_then(|()| match &outcome {
            Ok(outcome) => report::members(&mut json, outcome, filename, options.bitmaps),
            Err(failed) => {
                json.string("error", failed.to_string().as_bytes())?;
                json.string("filename", filename)?;
                json.string("format", b"qcow2")
            }
        });
    }
    if written.is_ok() {
        written = json.end();
    }
    unless_closed(written.and_then(|()| out.flush()))?;
    outcome.map_err(failed)
}

fn print_one(out: &mut impl Tree, finding: &Finding, remedy: Option<Repair>) -> io::Result<()> {
    out.object("")?;
    out.string("kind", finding.kind().as_bytes())?;
    out.string("severity", finding.severity().word().as_bytes())?;
    if let Some(remedy) = remedy {
        let word: &[u8] = match remedy {
            Repair::Leaks => b"leaks",
            Repair::All => b"all",
        };
        out.string("repair", word)?;
    }
    for (key, number) in finding.numbers() {
        match key {
            // All 64 bits mean something, and not all readers of JSON have as many.
            "entry" => out.string(key, format!("{number:#x}").as_bytes())?,
            _ => out.number(key, number.into())?,
        }
    }
    if let Some(name) = finding.name() {
        out.string("name", name)?;
    }
    out.string("message", finding.to_string().as_bytes())?;
    out.end()
}
