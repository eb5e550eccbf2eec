//! `bitmap --list`: a line for each bitmap.

use std::io::Write;

use qcow2::{
    Error, Image,
    bitmap::{Bitmap, BitmapState},
    format::BitmapFlags,
};

use super::Target;
use crate::{
    cmd,
    error::{Failure, chain},
    exit::Exit,
    image::{Content, Opened, Use},
    output::{self, Json, Tree, escape_control},
    progname,
    size::Human,
};

/// One bitmap as it is listed.
struct Row {
    name: Vec<u8>,
    state: BitmapState,
    granularity: u64,
    flags: Vec<&'static str>,
    /// Dirty granules and the bytes they cover, where the bits can be relied on.
    dirty: Option<(u64, u64)>,
}

/// Opens the image to be read, for `--list` and `--dump`.
pub(super) fn open_to_read(target: &Target) -> Result<Opened, Failure> {
    let mut spec = cmd::image_spec(&target.file, target.format.as_deref(), target.image_opts)?;
    cmd::share(&mut spec, target.force_share)?;
    cmd::open(&spec, Use::Read)
}

/// The flags of a bitmap as `info` names them.
pub(super) fn flags(bitmap: &Bitmap<'_>) -> Vec<&'static str> {
    let named = [(BitmapFlags::IN_USE, "in-use"), (BitmapFlags::AUTO, "auto")];
    let set = named
        .iter()
        .filter(|(flag, _)| bitmap.entry().flags.contains(*flag));
    set.map(|(_, name)| *name).collect()
}

/// Prints the table.
pub(super) fn run(target: &Target, json: bool) -> Result<Exit, Failure> {
    let opened = open_to_read(target)?;
    let ((rows, fault), size) = match &opened.content {
        Content::Qcow2(image) => (rows(image)?, image.virtual_size()),
        _ => ((Vec::new(), None), opened.virtual_size()),
    };
    let file = target.file.to_string_lossy();
    if json {
        print_json(&file, size, &rows)?
    } else {
        print_table(size, &rows)?
    }
    match fault {
        Some(fault) => Err(format!("The list is not complete: {fault}").into()),
        None => Ok(Exit::Success),
    }
}

/// The bitmaps, and what kept more from being read.
fn rows(image: &Image) -> Result<(Vec<Row>, Option<String>), Failure> {
    let bitmaps = image.bitmaps().map_err(|e| chain(&e))?;
    if bitmaps.is_voided() {
        progname::warning(
            "the image was written by a program that doesn't keep bitmaps: all of them are void",
        );
    }
    let fault = bitmaps.fault().map(|fault| chain(fault));
    let rows: Result<_, _> = bitmaps.iter(image).map(|bitmap| row(&bitmap)).collect();
    Ok((rows?, fault))
}

fn row(bitmap: &Bitmap<'_>) -> Result<Row, Failure> {
    let mut state = bitmap.state();
    let mut dirty = None;
    if state.is_valid() {
        match bitmap.load() {
            Ok(bits) => dirty = Some((bits.count(), bits.dirty_bytes())),
            Err(e @ Error::Io { .. }) => return Err(chain(&e).into()),
            Err(e) => state = BitmapState::Corrupt(chain(&e)),
        }
    }
    if let BitmapState::Corrupt(reason) = &state {
        let name = bitmap.name_lossy();
        progname::warning(format_args!("bitmap '{}': {reason}", escape_control(&name)));
    }
    Ok(Row {
        name: bitmap.name().to_vec(),
        state,
        granularity: bitmap.granularity().unwrap_or(0),
        flags: flags(bitmap),
        dirty,
    })
}

fn print_table(size: u64, rows: &[Row]) -> Result<(), Failure> {
    let mut cells = vec![["NAME", "STATE", "GRANULARITY", "DIRTY", "SHARE"].map(str::to_owned)];
    for row in rows {
        let name = String::from_utf8_lossy(&row.name);
        let (dirty, share) = match row.dirty {
            Some((_, bytes)) => (Human(bytes).to_string(), share(bytes, size)),
            None => ("-".into(), "-".into()),
        };
        let name = escape_control(&name).into_owned();
        let granularity = Human(row.granularity).to_string();
        cells.push([name, row.state.word().into(), granularity, dirty, share]);
    }
    let mut widths = [0; 5];
    for line in &cells {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = output::stdout();
    for line in &cells {
        let [name, state, granularity, dirty, share] = line;
        let [w0, w1, w2, w3, w4] = widths;
        writeln!(
            out,
            "{name:w0$}  {state:w1$}  {granularity:>w2$}  {dirty:>w3$}  {share:>w4$}"
        )?;
    }
    Ok(out.flush()?)
}

/// Per cent of the disk with two places; what is dirty at all is not shown as nothing.
pub(super) fn share(bytes: u64, size: u64) -> String {
    if size == 0 {
        return "-".into();
    }
    let hundredths = u128::from(bytes) * 10_000 / u128::from(size);
    if hundredths == 0 && bytes > 0 {
        return "<0.01%".into();
    }
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

fn print_json(file: &str, size: u64, rows: &[Row]) -> Result<(), Failure> {
    let mut json = Json::new(output::stdout());
    json.object("")?;
    json.string("filename", file.as_bytes())?;
    json.number("virtual-size", size.into())?;
    json.list("bitmaps")?;
    for row in rows {
        json.object("")?;
        json.string("name", &row.name)?;
        json.number("granularity", row.granularity.into())?;
        json.string("state", row.state.word().as_bytes())?;
        json.list("flags")?;
        for flag in &row.flags {
            json.string("", flag.as_bytes())?;
        }
        json.end()?;
        match row.dirty {
            Some((count, bytes)) => {
                json.number("dirty-count", count.into())?;
                json.number("dirty-bytes", bytes.into())?;
            }
            None => {
                json.null("dirty-count")?;
                json.null("dirty-bytes")?;
            }
        }
        json.end()?;
    }
    json.end()?;
    json.end()?;
    Ok(json.into_inner().flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_never_rounded_to_nothing() {
        assert_eq!(share(0, 100), "0.00%");
        assert_eq!(share(1, 1 << 40), "<0.01%");
        assert_eq!(share(1 << 39, 1 << 40), "50.00%");
        assert_eq!(share(u64::MAX, u64::MAX), "100.00%");
        assert_eq!(share(0, 0), "-");
    }
}
