//! `migrate-bitmaps --emit`: the bitmaps of images as a migration stream.

use std::{
    cell::RefCell,
    ffi::OsStr,
    io::{self, BufWriter, Write},
};

use hbitmap::DirtyBitmap;
use migration::{Outgoing, Sender, SenderOptions, Style, Wire};
use qcow2::{
    Image,
    bitmap::{Bitmap, BitmapError},
};

use super::{
    images::{self, Loaded},
    names::{NamedImage, Plan},
    report::Facts,
    request::Emit,
    sink::Sink,
};
use crate::{
    cmd::bitmap::Digests,
    error::{Failure, chain},
    exit::Exit,
    image::Use,
    output::{Escaped, Form, Json, Progress, Tree, counted, escape_control},
    progname,
};

/// A bitmap that goes, and what is told of it.
struct Emitted {
    name: Vec<u8>,
    wire: Wire,
    persistent: bool,
    facts: Facts,
}

/// An image with what goes of it.
struct Part<'a> {
    image: &'a NamedImage,
    bitmaps: Vec<Emitted>,
}

/// Does it.
pub(super) fn run(request: &Emit) -> Result<Exit, Failure> {
    let plan = request.names.plan()?;
    let files = plan.images.iter().map(|image| image.file.as_os_str());
    images::refuse_same_file(files.clone())?;
    let mut parts = Vec::with_capacity(plan.images.len());
    let mut outgoing = Vec::new();
    // Kept open for their locks: they must not change before the stream is out.
    let mut open = Vec::with_capacity(plan.images.len());
    for named in &plan.images {
        let image = images::open(&named.file, Use::Read, images::NO_BITMAPS)?;
        let (sent, told) = gather(&plan, named, &image)?;
        outgoing.extend(sent);
        parts.push(told);
        open.push(image);
    }
    let to = request.to.as_deref();
    let sink = Sink::open(to, files)?;
    let standard = sink.is_standard_output();
    let (style, describe) = match request.compact {
        true => (Style::Compact, false),
        // QEMU looks for the description.
        false => (Style::Qemu, true),
    };
    let options = SenderOptions {
        // Without a name any machine loads it.
        machine: request.machine.clone().unwrap_or_default(),
        style,
        describe,
        ..SenderOptions::default()
    };
    let failed = |e: migration::Error| match e {
        migration::Error::Write { source, .. } => Sink::failure(to, source),
        e => Failure::Message(escape_control(&chain(&e)).into_owned()),
    };
    let progress = Progress::new(None);
    let output = progress.writer(sink);
    let sender = Sender::begin(output, outgoing, options).map_err(failed)?;
    let output = sender.complete().map_err(failed)?;
    let bytes = output.into_inner().finish()?;
    let told = if standard {
        tell(request, &plan, &parts, bytes, io::stderr().lock())
    } else {
        tell(request, &plan, &parts, bytes, io::stdout().lock())
    };
    match told {
        // The stream is out: who closed standard error doesn't want to know.
        Err(_) if standard => Ok(Exit::Success),
        told => Ok(told.map(|()| Exit::Success)?),
    }
}

type Sent = Vec<Outgoing<RefCell<DirtyBitmap>>>;

/// The bitmaps of one image that go, newest first, as QEMU sends them.
fn gather<'a>(
    plan: &Plan,
    named: &'a NamedImage,
    image: &Image,
) -> Result<(Sent, Part<'a>), Failure> {
    let shown = named.file.to_string_lossy();
    let stored = images::bitmaps(&shown, image)?;
    let all: Vec<Bitmap<'_>> = stored.iter(image).collect();
    for (node, name) in &plan.picked {
        if *node == named.node && !all.iter().any(|bitmap| bitmap.name() == name.as_bytes()) {
            let name = name.clone();
            return Err(format!("'{shown}': {}", BitmapError::NotFound { name }).into());
        }
    }
    let mut chosen = Vec::new();
    for bitmap in all.iter().rev() {
        if let Some(wire) = wire(plan, named, &shown, bitmap)? {
            chosen.push((bitmap, wire));
        }
    }
    let inconsistent = chosen.iter().map(|(bitmap, _)| *bitmap);
    images::refuse_inconsistent(&shown, inconsistent, !plan.selective)?;
    let mut sent = Vec::new();
    let mut bitmaps = Vec::new();
    for (bitmap, wire) in chosen {
        let Loaded {
            name,
            bits,
            recording,
        } = images::load(&shown, bitmap, !plan.selective)?;
        let facts = Facts::of(&bits, recording, &mut Digests::of_images());
        let persistent = wire.persistent.unwrap_or(true);
        let mut dirty = DirtyBitmap::new(&wire.bitmap, bits);
        dirty.set_persistent(persistent);
        if !recording {
            dirty.disable().map_err(|e| chain(&e))?;
        }
        sent.push(Outgoing::mapped(wire.clone(), RefCell::new(dirty)));
        bitmaps.push(Emitted {
            name,
            wire,
            persistent,
            facts,
        });
    }
    if bitmaps.is_empty() {
        let why = match all.is_empty() {
            true => "has no bitmaps",
            false => "has no bitmaps that are to be sent",
        };
        progname::warning(format_args!("'{shown}' {why}"));
    }
    let part = Part {
        image: named,
        bitmaps,
    };
    Ok((sent, part))
}

/// What a bitmap is called in the stream; `None` if it is left out.
fn wire(
    plan: &Plan,
    named: &NamedImage,
    shown: &str,
    bitmap: &Bitmap<'_>,
) -> Result<Option<Wire>, Failure> {
    const MOST: usize = 255;
    let no_alias = |why: &str| {
        let name = Escaped(bitmap.name());
        Err(format!("'{shown}': bitmap '{name}' {why}").into())
    };
    let Ok(name) = std::str::from_utf8(bitmap.name()) else {
        return match plan.selective {
            true => Ok(None),
            false => no_alias(
                "has a name that is not valid UTF-8, which no stream can carry: send the others \
                 with --bitmap",
            ),
        };
    };
    let Some(wire) = plan.map.outgoing(&named.node, name) else {
        return Ok(None);
    };
    if wire.bitmap.len() > MOST || wire.bitmap.contains('\0') {
        return no_alias(&format!(
            "has a name that no stream can carry ({} bytes; allowed are {MOST}, and no NUL): give \
             it an alias with --bitmap NAME=ALIAS",
            wire.bitmap.len()
        ));
    }
    Ok(Some(wire))
}

fn tell(
    request: &Emit,
    plan: &Plan,
    parts: &[Part<'_>],
    bytes: u64,
    out: impl Write,
) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    match request.form {
        Form::Human => human(parts, bytes, &mut out)?,
        Form::Json => json(request, plan, parts, bytes, &mut out)?,
    }
    out.flush()
}

fn human(parts: &[Part<'_>], bytes: u64, out: &mut impl Write) -> io::Result<()> {
    let mut count = 0;
    for part in parts {
        for bitmap in &part.bitmaps {
            let file = part.image.file.to_string_lossy();
            write!(
                out,
                "sent {} of {} as {}/{}",
                Escaped(&bitmap.name),
                escape_control(&file),
                bitmap.wire.node,
                escape_control(&bitmap.wire.bitmap)
            )?;
            if !bitmap.persistent {
                write!(out, " (transient)")?;
            }
            bitmap.facts.human(out)?;
            bitmap.facts.human_digest("sha256", out)?;
            count += 1;
        }
    }
    writeln!(
        out,
        "{} in a stream of {}",
        counted(count, "bitmap"),
        counted(bytes, "byte")
    )
}

fn json(
    request: &Emit,
    plan: &Plan,
    parts: &[Part<'_>],
    bytes: u64,
    out: &mut impl Write,
) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let to = request.to.as_deref().unwrap_or(OsStr::new("-"));
    let mut json = Json::new(out);
    json.object("")?;
    json.string("stream", to.as_bytes())?;
    json.number("stream-bytes", bytes.into())?;
    json.list("images")?;
    for part in parts {
        json.object("")?;
        json.string("filename", part.image.file.as_bytes())?;
        json.string("node", part.image.node.as_bytes())?;
        let alias = plan.map.nodes().find(|(node, _)| *node == part.image.node);
        match alias {
            Some((_, alias)) => json.string("node-alias", alias.as_bytes())?,
            None => json.null("node-alias")?,
        }
        json.list("bitmaps")?;
        for bitmap in &part.bitmaps {
            json.object("")?;
            json.string("name", &bitmap.name)?;
            json.string("alias", bitmap.wire.bitmap.as_bytes())?;
            json.flag("persistent", bitmap.persistent)?;
            bitmap.facts.json(&mut json)?;
            bitmap.facts.json_digest("sha256", &mut json)?;
            json.end()?;
        }
        json.end()?;
        json.end()?;
    }
    json.end()?;
    json.end()?;
    json.into_inner().flush()
}
