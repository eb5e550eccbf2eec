//! `bitmap --dump`: what is dirty in one bitmap.

use std::{
    io::{self, IsTerminal, Write},
    ops::Range,
};

use hbitmap::HBitmap;
use qcow2::{
    Error, Image,
    bitmap::{Bitmap, BitmapError, BitmapState},
};

use super::{
    DumpForm, Target,
    list::{flags, open_to_read, share},
    zeroes::Zeroes,
};
use crate::{
    error::{Failure, chain},
    exit::Exit,
    output::{self, Json, Tree, escape_control},
    progname,
    size::Human,
};

/// Bytes of linear form that are written at a time.
const PIECE: u64 = 1 << 20;

/// Prints the bitmap called `name`.
pub(super) fn run(
    target: &Target,
    name: &str,
    form: DumpForm,
    with_zeroes: bool,
) -> Result<Exit, Failure> {
    let not_found = || {
        Error::from(BitmapError::NotFound {
            name: name.to_owned(),
        })
    };
    let Some(image) = open_to_read(target)?.into_qcow2() else {
        return Err(chain(&not_found()).into());
    };
    let failed = |e: Error| Failure::Message(chain(&e));
    let bitmaps = image.bitmaps().map_err(failed)?;
    let bitmap = bitmaps.find(&image, name.as_bytes()).map_err(failed)?;
    let bits = if bitmap.state().is_valid() {
        Some(bitmap.load())
    } else {
        None
    };
    let (state, bits) = match bits {
        None => (bitmap.state(), None),
        Some(Ok(bits)) => (bitmap.state(), Some(bits)),
        Some(Err(e @ Error::Io { .. })) => return Err(failed(e)),
        Some(Err(e)) => (BitmapState::Corrupt(chain(&e)), None),
    };
    let zeroes = match with_zeroes && bits.is_some() {
        true => Some(Zeroes::open(target)?),
        false => None,
    };
    let zeroes = zeroes.as_ref();
    if form == DumpForm::Json {
        let dump = Dump {
            file: &target.file.to_string_lossy(),
            image: &image,
            bitmap,
            state,
            zeroes,
        };
        dump.json(bits.as_ref())?;
        return Ok(Exit::Success);
    }
    let Some(bits) = bits else {
        return Err(not_valid(name, &state));
    };
    if matches!(form, DumpForm::Raw | DumpForm::Layered) && io::stdout().is_terminal() {
        return Err("the bits would go to a terminal: send them into a file or a pipe".into());
    }
    match form {
        DumpForm::Human => {
            let dump = Dump {
                file: &target.file.to_string_lossy(),
                image: &image,
                bitmap,
                state,
                zeroes,
            };
            dump.human(&bits)?;
        }
        DumpForm::Ranges => ranges(&bits, zeroes)?,
        DumpForm::Raw => raw(&bits)?,
        DumpForm::Layered => {
            let mut out = output::stdout();
            bits.write_layered(&mut out).map_err(layered_failure)?;
            out.flush()?;
        }
        DumpForm::Json => {}
    }
    Ok(Exit::Success)
}

/// A closed pipe behind the layered form is a closed pipe like any other.
fn layered_failure(error: hbitmap::Error) -> Failure {
    match error {
        hbitmap::Error::Io { source, .. } => Failure::Output(source),
        e => Failure::Message(chain(&e)),
    }
}

/// Why there is nothing to print.
fn not_valid(name: &str, state: &BitmapState) -> Failure {
    let reason = match state {
        BitmapState::Live => {
            "is in use by a program that has the image open: the bits in the \
                              file are from before it was opened"
        }
        BitmapState::Corrupt(reason) => {
            return Failure::Message(format!("Bitmap '{name}' cannot be used: {reason}"));
        }
        _ => "is inconsistent and cannot be used",
    };
    Failure::Message(format!("Bitmap '{name}' {reason}"))
}

/// A bitmap to be printed with what belongs to it.
struct Dump<'a> {
    file: &'a str,
    image: &'a Image,
    bitmap: Bitmap<'a>,
    state: BitmapState,
    zeroes: Option<&'a Zeroes>,
}

impl Dump<'_> {
    fn human(&self, bits: &HBitmap) -> io::Result<()> {
        let mut out = output::stdout();
        let (size, dirty) = (self.image.virtual_size(), bits.dirty_bytes());
        let granularity = bits.granularity().bytes();
        writeln!(out, "image: {}", escape_control(self.file))?;
        writeln!(out, "virtual size: {} ({size} bytes)", Human(size))?;
        writeln!(out, "bitmap: {}", escape_control(&self.bitmap.name_lossy()))?;
        writeln!(out, "state: {}", self.state.word())?;
        writeln!(
            out,
            "granularity: {} ({granularity} bytes)",
            Human(granularity)
        )?;
        let (count, share) = (bits.count(), share(dirty, size));
        writeln!(
            out,
            "dirty: {} ({dirty} bytes) in {count} granules, {share}",
            Human(dirty)
        )?;
        writeln!(out, "sha256: {}", hex(&bits.sha256()))?;
        writeln!(out, "crc32c: {:08x}", bits.crc32c())?;
        if dirty > 0 {
            write!(out, "\n{:>20} {:>20}", "Offset", "Length")?;
            let content = if self.zeroes.is_some() {
                " Content"
            } else {
                ""
            };
            writeln!(out, "{content}")?;
        }
        for_each(bits, self.zeroes, |Range { start, end }, zero| {
            let content = zero.map_or("", |zero| if zero { " zeros" } else { " data" });
            writeln!(out, "{start:>20} {:>20}{content}", end - start)
        })?;
        out.flush()
    }

    fn json(&self, bits: Option<&HBitmap>) -> io::Result<()> {
        let mut json = Json::new(output::stdout());
        json.object("")?;
        json.string("filename", self.file.as_bytes())?;
        json.string("name", self.bitmap.name())?;
        json.number("virtual-size", self.image.virtual_size().into())?;
        json.number("granularity", self.bitmap.granularity().unwrap_or(0).into())?;
        json.string("state", self.state.word().as_bytes())?;
        json.list("flags")?;
        for flag in flags(&self.bitmap) {
            json.string("", flag.as_bytes())?;
        }
        json.end()?;
        if let BitmapState::Corrupt(reason) = &self.state {
            progname::warning(format_args!(
                "bitmap '{}': {reason}",
                self.bitmap.name_lossy()
            ));
        }
        match bits {
            Some(bits) => json_bits(&mut json, bits, self.zeroes)?,
            None => {
                for key in ["dirty-count", "dirty-bytes", "sha256", "crc32c", "extents"] {
                    json.null(key)?;
                }
            }
        }
        json.end()?;
        json.into_inner().flush()
    }
}

fn json_bits<W: Write>(
    json: &mut Json<W>,
    bits: &HBitmap,
    zeroes: Option<&Zeroes>,
) -> io::Result<()> {
    json.number("dirty-count", bits.count().into())?;
    json.number("dirty-bytes", bits.dirty_bytes().into())?;
    json.string("sha256", hex(&bits.sha256()).as_bytes())?;
    json.string("crc32c", format!("{:08x}", bits.crc32c()).as_bytes())?;
    json.list("extents")?;
    json_extents(json, bits, zeroes)?;
    json.end()
}

/// Calls `each` with what is dirty, in order: with its ranges, or with the parts of them of
/// which it is known whether they are zeros.
fn for_each(
    bits: &HBitmap,
    zeroes: Option<&Zeroes>,
    mut each: impl FnMut(Range<u64>, Option<bool>) -> io::Result<()>,
) -> io::Result<()> {
    match zeroes {
        None => bits.ranges().try_for_each(|range| each(range, None)),
        Some(zeroes) => zeroes.for_each(bits, |part| each(part.range, Some(part.zero))),
    }
}

/// `{"offset": …, "length": …}` for each dirty range, in an open list.
pub(crate) fn extents<W: Write>(json: &mut Json<W>, bits: &HBitmap) -> io::Result<()> {
    json_extents(json, bits, None)
}

fn json_extents<W: Write>(
    json: &mut Json<W>,
    bits: &HBitmap,
    zeroes: Option<&Zeroes>,
) -> io::Result<()> {
    let (mut extent, mut number) = (Vec::with_capacity(64), itoa::Buffer::new());
    for_each(bits, zeroes, |range, zero| {
        extent.clear();
        extent.extend(b"{\"offset\": ");
        extent.extend(number.format(range.start).as_bytes());
        extent.extend(b", \"length\": ");
        extent.extend(number.format(range.end - range.start).as_bytes());
        if let Some(zero) = zero {
            extent.extend(b", \"zero\": ");
            extent.extend(zero.to_string().as_bytes());
        }
        extent.push(b'}');
        json.literal("", &extent)
    })
}

/// `offset length` a line, in decimal; if it is known, `zeros` or `data` behind them.
fn ranges(bits: &HBitmap, zeroes: Option<&Zeroes>) -> io::Result<()> {
    let mut out = output::stdout();
    let (mut line, mut number) = (Vec::with_capacity(48), itoa::Buffer::new());
    for_each(bits, zeroes, |range, zero| {
        line.clear();
        line.extend(number.format(range.start).as_bytes());
        line.push(b' ');
        line.extend(number.format(range.end - range.start).as_bytes());
        if let Some(zero) = zero {
            line.extend(if zero { &b" zeros"[..] } else { b" data" });
        }
        line.push(b'\n');
        out.write_all(&line)
    })?;
    out.flush()
}

/// The bits as an image stores them, in whole words of 64: what the SHA-256 is over.
fn raw(bits: &HBitmap) -> Result<(), Failure> {
    let mut out = output::stdout();
    let step = (PIECE * 8).saturating_mul(bits.granularity().bytes());
    let mut buffer = Vec::new();
    let mut start = 0;
    while start < bits.len() {
        let end = start.saturating_add(step).min(bits.len());
        let failed = |e: hbitmap::Error| Failure::Message(chain(&e));
        buffer.resize(bits.linear_size(start..end).map_err(failed)?, 0);
        bits.write_linear(start..end, &mut buffer).map_err(failed)?;
        out.write_all(&buffer)?;
        start = end;
    }
    Ok(out.flush()?)
}

/// A digest as text.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
