//! Actions on a bitmap: all of the command line's, or none.

use qcow2::{
    Error, Image,
    bitmap::{Bitmap, BitmapEdit, BitmapError, Bitmaps},
};

use super::{Action, BitmapArgs, from_compare};
use crate::{
    cmd,
    error::{Failure, chain},
    exit::Exit,
    image::Use,
    progname,
};

/// Carries the actions out.
pub(super) fn run(args: &BitmapArgs) -> Result<Exit, Failure> {
    let target = &args.target;
    let spec = cmd::image_spec(&target.file, target.format.as_deref(), target.image_opts)?;
    let compares = |action: &Action| matches!(action, Action::FromCompare(_));
    let what_for = match args.actions.iter().any(compares) {
        true => Use::EditAndRead,
        false => Use::Edit,
    };
    let image = cmd::open(&spec, what_for)?.into_qcow2();
    let source = match &args.source_file {
        Some(file) => {
            let spec = cmd::image_spec(file, args.source_format.as_deref(), false)?;
            Some(cmd::open(&spec, Use::Read)?.into_qcow2())
        }
        None => None,
    };
    let Some(mut image) = image else {
        return Err(on_raw(args));
    };
    let name = image.name().to_owned();
    let version = image.header().version;
    let mut edit = image
        .edit_bitmaps()
        .map_err(|e| Failure::Message(chain(&e)))?;
    if edit.drops_void_bitmaps() {
        progname::voided_bitmaps(version);
    }
    for action in &args.actions {
        act(&mut edit, args, action, source.as_ref())
            .map_err(|e| failed(args, action, &name, &e))?;
        if let Action::FromCompare(old) = action {
            from_compare::fill(&mut edit, args, old)?;
        }
    }
    edit.commit().map_err(|e| Failure::Message(chain(&e)))?;
    Ok(Exit::Success)
}

fn act(
    edit: &mut BitmapEdit<'_>,
    args: &BitmapArgs,
    action: &Action,
    source: Option<&Option<Image>>,
) -> Result<(), Error> {
    let name = args.bitmap.as_bytes();
    match action {
        Action::Add | Action::FromCompare(_) => {
            let granularity = args.granularity.filter(|bytes| *bytes != 0);
            edit.add(
                name,
                granularity.unwrap_or(edit.default_granularity()),
                true,
            )
        }
        Action::Remove => edit.remove(name),
        Action::Clear => edit.clear(name),
        Action::Enable => edit.set_enabled(name, true),
        Action::Disable => edit.set_enabled(name, false),
        Action::Merge(origin) => match source {
            None => edit.merge(name, origin.as_bytes()),
            Some(Some(image)) => {
                let bitmaps = image.bitmaps()?;
                edit.merge_from(name, &origin_of(image, &bitmaps, origin)?)
            }
            Some(None) => Err(not_found(origin)),
        },
    }
}

/// The bitmap called `name` in the image of `-b`; a void one counts as not there.
fn origin_of<'a>(image: &'a Image, bitmaps: &'a Bitmaps, name: &str) -> Result<Bitmap<'a>, Error> {
    if bitmaps.is_voided() {
        return Err(not_found(name));
    }
    bitmaps.find(image, name.as_bytes())
}

fn not_found(name: &str) -> Error {
    BitmapError::NotFound {
        name: name.to_owned(),
    }
    .into()
}

/// `Operation add on bitmap b failed: …`.
fn failed(args: &BitmapArgs, action: &Action, image: &str, error: &Error) -> Failure {
    let (word, bitmap) = (action.word(), &args.bitmap);
    let mut text = format!("Operation {word} on bitmap {bitmap} failed: ");
    match error {
        Error::Bitmap(e) if e.is_about_storing() => {
            text += &format!("Can't make bitmap '{bitmap}' persistent in '{image}': {e}");
        }
        Error::Bitmap(e @ BitmapError::Inconsistent { name }) => {
            text += &e.to_string();
            text += "\n";
            text += &match progname::is_qemu_img() {
                true => "Try block-dirty-bitmap-remove to delete this bitmap from disk".to_owned(),
                false => format!("Its bits can't be relied on: remove '{name}' with --remove"),
            };
        }
        e => text += &chain(e),
    }
    Failure::Message(text)
}

/// What a raw image has to say to the first action.
fn on_raw(args: &BitmapArgs) -> Failure {
    let shown = args.target.file.to_string_lossy();
    let Some(action) = args.actions.first() else {
        return Failure::Message("no action".into());
    };
    let (word, bitmap) = (action.word(), &args.bitmap);
    let text = match action {
        Action::Add | Action::FromCompare(_) => {
            format!("Can't store persistent bitmaps to '{shown}': Operation not supported")
        }
        _ => not_found(bitmap).to_string(),
    };
    Failure::Message(format!(
        "Operation {word} on bitmap {bitmap} failed: {text}"
    ))
}
