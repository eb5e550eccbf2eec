//! `migrate-bitmaps SRC DST`: through a stream in memory, as between two machines.

use std::{
    ffi::OsStr,
    io::{self, Write},
    sync::Arc,
};

use qcow2::{Error, Image, bitmap::Bitmap};

use super::{
    images::{self, Loaded},
    report::Facts,
    request::{Direct, Rename},
    store::{self, New},
    transfer,
};
use crate::{
    cmd::bitmap::Digests,
    error::{Failure, chain},
    exit::Exit,
    image::Use,
    output::{self, Escaped, Form, Json, Tree},
};

/// A bitmap that has gone from one image to the other.
struct Moved {
    name: Vec<u8>,
    new_name: Vec<u8>,
    source: Facts,
    target: Facts,
}

/// Does it.
pub(super) fn run(request: &Direct) -> Result<Exit, Failure> {
    let names = [&request.source, &request.destination];
    images::refuse_same_file(names.into_iter().map(|name| name.as_os_str()))?;
    let source_use = if request.remove_source {
        Use::Edit
    } else {
        Use::Read
    };
    let mut source = images::open(&request.source, source_use, images::NO_BITMAPS)?;
    let mut target = images::open(&request.destination, Use::Edit, images::HOLDS_NONE)?;
    let (from, to) = (source.virtual_size(), target.virtual_size());
    if from != to {
        return Err(request.different_sizes(from, to));
    }
    let loaded = request.load(&source)?;
    let mut moved = Vec::with_capacity(loaded.len());
    let mut sent = Vec::with_capacity(loaded.len());
    for (bitmap, new_name) in loaded {
        let facts = Facts::of(&bitmap.bits, bitmap.recording, &mut Digests::of_images());
        moved.push(Moved {
            source: facts.clone(),
            target: facts,
            name: bitmap.name,
            new_name,
        });
        sent.push((bitmap.bits, bitmap.recording));
    }
    let received = transfer::through_a_pipe(sent, to)?;
    let new: Vec<New> = moved
        .iter()
        .zip(received)
        .map(|(moved, (bits, recording))| New {
            name: moved.new_name.clone(),
            bits: Arc::new(bits),
            recording,
        })
        .collect();
    store::warn_of_void(&target);
    let edit = store::prepare(&mut target, &new, request.force);
    let committed = edit.and_then(|edit| edit.commit());
    committed.map_err(|e| request.refusal(&e))?;
    let facts = store::read_back(&target, new.iter(), &mut Digests::of_images());
    let facts = facts.map_err(|e| request.refusal(&e))?;
    for (moved, facts) in moved.iter_mut().zip(facts) {
        moved.target = facts;
        if moved.target != moved.source {
            let name = Escaped(&moved.name);
            return Err(format!("bitmap '{name}' arrived different from the source").into());
        }
    }
    if request.remove_source {
        let text = |e: Error| Failure::Message(chain(&e));
        let mut edit = source.edit_bitmaps().map_err(text)?;
        for bitmap in &moved {
            edit.remove(&bitmap.name).map_err(text)?;
        }
        edit.commit().map_err(text)?;
    }
    match request.form {
        Form::Human => human(request, &moved)?,
        Form::Json => json(request, &moved)?,
    }
    Ok(Exit::Success)
}

impl Direct {
    /// The bitmaps to move, with their names in the destination.
    fn load(&self, source: &Image) -> Result<Vec<(Loaded, Vec<u8>)>, Failure> {
        let shown = self.source.to_string_lossy();
        let bitmaps = images::bitmaps(&shown, source)?;
        let all = self.bitmaps.is_empty();
        let mut chosen: Vec<(Bitmap<'_>, Vec<u8>)> = Vec::new();
        if all {
            for bitmap in bitmaps.iter(source) {
                chosen.push((bitmap, bitmap.name().to_vec()));
            }
        }
        for Rename { from, to } in &self.bitmaps {
            let bitmap = bitmaps.find(source, from.as_bytes());
            let bitmap = bitmap.map_err(|e| format!("'{shown}': {}", chain(&e)))?;
            chosen.push((bitmap, to.clone().into()));
        }
        images::refuse_inconsistent(&shown, chosen.iter().map(|(bitmap, _)| bitmap), all)?;
        let load = |(bitmap, name)| Ok((images::load(&shown, &bitmap, all)?, name));
        chosen.into_iter().map(load).collect()
    }

    fn different_sizes(&self, from: u64, to: u64) -> Failure {
        Failure::Message(format!(
            "The disks differ in size: '{}' has {from} bytes, '{}' {to}; a bitmap only fits a \
             disk of the same size",
            self.source.to_string_lossy(),
            self.destination.to_string_lossy()
        ))
    }

    /// Why the destination doesn't take them.
    fn refusal(&self, error: &Error) -> Failure {
        Failure::Message(store::words(&self.destination.to_string_lossy(), error))
    }
}

fn human(request: &Direct, moved: &[Moved]) -> io::Result<()> {
    let mut out = output::stdout();
    let verb = if request.remove_source {
        "moved"
    } else {
        "copied"
    };
    if moved.is_empty() {
        writeln!(out, "no bitmaps {verb}: the source has none")?;
    }
    for bitmap in moved {
        write!(out, "{verb} {}", Escaped(&bitmap.name))?;
        if bitmap.name != bitmap.new_name {
            write!(out, " as {}", Escaped(&bitmap.new_name))?;
        }
        bitmap.target.human(&mut out)?;
        bitmap.source.human_digest("source sha256", &mut out)?;
        bitmap.target.human_digest("target sha256", &mut out)?;
    }
    out.flush()
}

fn json(request: &Direct, moved: &[Moved]) -> io::Result<()> {
    let mut json = Json::new(output::stdout());
    json.object("")?;
    json.string("source", bytes(&request.source))?;
    json.string("target", bytes(&request.destination))?;
    json.flag("source-removed", request.remove_source)?;
    json.list("bitmaps")?;
    for bitmap in moved {
        json.object("")?;
        json.string("name", &bitmap.name)?;
        json.string("new-name", &bitmap.new_name)?;
        bitmap.target.json(&mut json)?;
        bitmap.source.json_digest("source-sha256", &mut json)?;
        bitmap.target.json_digest("target-sha256", &mut json)?;
        json.end()?;
    }
    json.end()?;
    json.end()?;
    json.into_inner().flush()
}

fn bytes(name: &OsStr) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(name)
}
