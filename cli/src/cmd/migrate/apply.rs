//! `migrate-bitmaps --apply`: the bitmaps of a migration stream into images.
//!
//! The stream is read to its end first; then every image gets its edit; only when all of
//! them stand is the first one written.

use migration::Node;
use qcow2::{Error, Image, bitmap::BitmapEdit};

use super::{
    applied::{Arrived, Sorted, Told},
    images,
    incoming::{self, Incoming},
    names::{NamedImage, Plan},
    request::Apply,
    store::{self, New},
};
use crate::{
    cmd::{bitmap::Digests, stream::Input},
    error::{Failure, chain},
    exit::Exit,
    image::Use,
    output::escape_control,
    progname,
};

/// Does it.
pub(super) fn run(request: &Apply) -> Result<Exit, Failure> {
    let plan = request.names.plan()?;
    let input = Input::open(request.from.as_deref())?;
    let mut images = open(&plan)?;
    let nodes = plan.images.iter().zip(&images);
    let nodes: Result<Vec<Node>, Failure> = nodes
        .map(|(named, image)| node(named, image, request.force))
        .collect();
    let Incoming { outcome, fault } = incoming::read(&plan, nodes?, input)?;
    let fault = match fault {
        Some(e) => Some(chain(&e)),
        None if !outcome.whole => Some(
            "devices of a virtual machine follow the bitmaps, and it can't be told whether the \
             stream is whole: it may be cut off"
                .to_owned(),
        ),
        None => None,
    };
    let mut sorted = Sorted::new(&plan, outcome.complete, &outcome.lost);
    if !request.partial && (fault.is_some() || sorted.losses() > 0) {
        sorted.warn();
        return Err(refused(fault.as_deref()));
    }
    let edits = prepare(request, &plan, &mut images, &mut sorted)?;
    commit(&plan, edits)?;
    let mut digests = Digests::of_a_stream();
    for ((named, image), part) in plan.images.iter().zip(&images).zip(&mut sorted.parts) {
        let new = part.iter().map(|bitmap| &bitmap.new);
        let facts = store::read_back(image, new, &mut digests);
        for (bitmap, facts) in part.iter_mut().zip(facts.map_err(|e| named.failure(&e))?) {
            bitmap.stored = Some(facts);
        }
    }
    sorted.warn();
    if let Some(fault) = &fault {
        progname::error(format_args!(
            "the stream is damaged: {}",
            escape_control(fault)
        ));
    }
    let told = Told {
        request,
        plan: &plan,
        sorted: &sorted,
        machine: outcome.machine.as_deref(),
        fault: fault.as_deref(),
    };
    told.print()?;
    if fault.is_some() || sorted.losses() > 0 {
        return Ok(Exit::Failed);
    }
    Ok(Exit::Success)
}

/// Opens the images for writing: no other program may come in between.
fn open(plan: &Plan) -> Result<Vec<Image>, Failure> {
    let files = plan.images.iter().map(|image| image.file.as_os_str());
    images::refuse_same_file(files)?;
    let open = |named: &NamedImage| {
        let image = images::open(&named.file, Use::Edit, images::HOLDS_NONE)?;
        if image.header().version < 3 {
            let shown = named.file.to_string_lossy();
            let text = format!("'{shown}' is a qcow2 v2 image, which can't hold bitmaps");
            return Err(Failure::Message(text));
        }
        Ok(image)
    };
    plan.images.iter().map(open).collect()
}

/// What the receiver has to know of an image.
fn node(named: &NamedImage, image: &Image, force: bool) -> Result<Node, Failure> {
    let shown = named.file.to_string_lossy();
    let mut node = Node::new(&named.node, image.virtual_size());
    let bitmaps = images::bitmaps(&shown, image)?;
    for bitmap in bitmaps.iter(image) {
        // What the stream brings is valid UTF-8: other names can't clash with it.
        if let Ok(name) = std::str::from_utf8(bitmap.name())
            && !store::gives_way(&bitmap.state(), force)
        {
            node = node.taken(name);
        }
    }
    Ok(node)
}

/// Makes an edit for each image that gets bitmaps.
fn prepare<'i>(
    request: &Apply,
    plan: &'i Plan,
    images: &'i mut [Image],
    sorted: &mut Sorted,
) -> Result<Vec<(&'i NamedImage, BitmapEdit<'i>)>, Failure> {
    let mut edits = Vec::new();
    let mut lost = Vec::new();
    let parts = sorted.parts.iter_mut();
    for ((named, image), part) in plan.images.iter().zip(images).zip(parts) {
        let failed = |e: Error| named.failure(&e);
        // Without one, a bitmap that was to be replaced stays, and others may not fit.
        loop {
            let refused = match request.partial {
                true => store::refused(image, &new(part), request.force).map_err(failed)?,
                false => Vec::new(),
            };
            if refused.is_empty() {
                break;
            }
            // From the back, so that places stay what they are.
            for (place, e) in refused.into_iter().rev() {
                lost.push((part.remove(place).alias, chain(&e)));
            }
        }
        if part.is_empty() {
            continue;
        }
        store::warn_of_void(image);
        let edit = store::prepare(image, &new(part), request.force).map_err(failed)?;
        edits.push((named, edit));
    }
    for (alias, why) in lost {
        sorted.lose(alias, why);
    }
    Ok(edits)
}

fn new(part: &[Arrived]) -> Vec<New> {
    part.iter().map(|bitmap| bitmap.new.clone()).collect()
}

/// Writes one image after the other.
fn commit(plan: &Plan, edits: Vec<(&NamedImage, BitmapEdit<'_>)>) -> Result<(), Failure> {
    let mut done: Vec<String> = Vec::new();
    for (named, edit) in edits {
        if let Err(e) = edit.commit() {
            let Failure::Message(mut text) = named.failure(&e) else {
                return Err(named.failure(&e));
            };
            if !done.is_empty() {
                text.push_str("; the bitmaps are stored in ");
                text.push_str(&done.join(", "));
            }
            return Err(text.into());
        }
        if plan.images.len() > 1 {
            done.push(format!("'{}'", named.file.to_string_lossy()));
        }
    }
    Ok(())
}

impl NamedImage {
    fn failure(&self, error: &Error) -> Failure {
        Failure::Message(store::words(&self.file.to_string_lossy(), error))
    }
}

/// Why nothing was stored.
fn refused(fault: Option<&str>) -> Failure {
    let partial = "nothing was stored; --partial stores the bitmaps that are complete";
    Failure::Message(match fault {
        Some(fault) => format!("{}: {partial}", escape_control(fault)),
        None => partial.into(),
    })
}
