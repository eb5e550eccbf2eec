//! Checks an image and prints what was found: `check IMAGE`.

use std::process::ExitCode;

use qcow2::{
    check::{CheckOptions, Metadata, check},
    format::HeaderArea,
    io::{Access, FileStorage, LockMode},
};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("which image?")?;
    let storage = FileStorage::open(path, Access::ReadOnly, LockMode::Read)?;
    let area = HeaderArea::read_for_check(&storage)?;
    let metadata = Metadata {
        storage: &storage,
        header: area.header(),
        extensions: area.extensions(),
        geometry: area.header().geometry(),
    };
    let report = check(&metadata, CheckOptions { bitmaps: true }, &mut |finding| {
        println!("{finding}");
    })?;
    println!("{report:#?}");
    Ok(match report.corruptions {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(2),
    })
}
