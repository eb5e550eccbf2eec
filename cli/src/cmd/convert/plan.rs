//! What the target is to be: everything that is checked before anything is touched.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use qcow2::image::create::{CreateOptions, RawOptions, Version};

use super::{ConvertArgs, bitmaps, request, source::Sources, target::is_pipe};
use crate::{
    args::Context,
    cmd::{
        self,
        create::{Format, plan},
    },
    error::Failure,
    opts::{Driver, ImageSpec, Value, Values, parse_path},
};

/// What the target is to be.
#[derive(Debug)]
pub(super) struct Plan {
    /// As it was given.
    pub(super) name: OsString,
    /// What is being done, for messages.
    pub(super) doing: String,
    pub(super) compress: bool,
    pub(super) size: u64,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Qcow2 {
        path: PathBuf,
        options: Box<CreateOptions>,
        /// The file behind it, and its format.
        backing: Option<(OsString, String)>,
    },
    Raw {
        path: PathBuf,
        options: RawOptions,
    },
    /// Standard output: an image, or the disk as it is.
    Pipe(Option<Box<CreateOptions>>),
    /// It is there (`-n`).
    There {
        spec: Box<ImageSpec>,
        is_zero: bool,
        over_backing: bool,
    },
}
impl Plan {
    /// Checks what was asked for; nothing is touched.
    ///
    /// # Errors
    /// In qemu-img's words.
    pub(super) fn new(
        args: &ConvertArgs,
        sources: &Sources,
        name: &OsString,
        context: &Context,
    ) -> Result<Self, Failure> {
        let size = sources.disk().size();
        let given = args.target_format.clone();
        let format = given.clone().unwrap_or_else(|| "raw".into());
        let doing = format!("converting {format}");
        let mut values = None;
        let mut backing = args.backing.clone();
        if !args.no_create {
            let kind = Format::named(&format);
            let kind = kind.ok_or_else(|| format!("Unknown file format '{format}'"))?;
            let made = values.insert(options(args, kind, &format, size, name)?);
            backing = made.text("backing_file").map(ToOwned::to_owned);
        }
        let backing_format = match &values {
            Some(values) => values.text("backing_fmt").map(ToOwned::to_owned),
            None => args.backing_format.clone(),
        };
        if backing.is_some() && backing_format.is_none() && !args.no_create {
            return Err("Use of backing file requires explicit backing format".into());
        }
        if sources.are_several() && backing.is_some() {
            let text = "Having a backing file for the target makes no sense when concatenating \
                        multiple input images";
            return Err(text.into());
        }
        if args.compress {
            check_compression(&format, args, values.as_ref())?;
        }
        if args.bitmaps {
            bitmaps::check(sources, args.skip_broken_bitmaps)?;
        }
        request::check_target_cache(args)?;
        let what = match values {
            None => {
                cmd::exclusive(given.as_deref(), args.target_image_opts)?;
                let format = (!args.target_image_opts).then_some(format.as_str());
                let spec = cmd::image_spec(name, format, args.target_image_opts)?;
                What::There {
                    spec: Box::new(spec),
                    is_zero: args.target_is_zero,
                    over_backing: backing.is_some(),
                }
            }
            Some(values) if is_pipe(name) => {
                if args.compress || args.bitmaps || backing.is_some() {
                    let text = "What goes to a pipe can't be compressed, and has neither bitmaps \
                                nor a backing file";
                    return Err(text.into());
                }
                match Format::named(&format) {
                    Some(Format::Qcow2) => {
                        let options = plan::qcow2(&values, &context.secrets);
                        What::Pipe(Some(Box::new(options?)))
                    }
                    _ => What::Pipe(None),
                }
            }
            Some(values) => {
                let about = |text: String| failed(name, &doing, text);
                let path = PathBuf::from(parse_path(name).map_err(about)?.path);
                new_target(&values, path, &format, context, backing.zip(backing_format))
                    .map_err(about)?
            }
        };
        let keeps_bitmaps = match &what {
            What::Qcow2 { options, .. } => options.version == Version::V3,
            What::Raw { .. } | What::Pipe(_) => false,
            What::There { spec, .. } => spec.driver == Some(Driver::Qcow2),
        };
        if args.bitmaps && !keeps_bitmaps {
            let text = format!("Format driver '{format}' does not support bitmaps");
            return Err(text.into());
        }
        Ok(Self {
            name: name.clone(),
            doing,
            compress: args.compress,
            size,
            what,
        })
    }
}

/// What went wrong with the target called `name`.
pub(super) fn failed(name: &OsStr, doing: &str, message: String) -> Failure {
    let name = name.to_string_lossy();
    Failure::Message(format!("{name}: error while {doing}: {message}"))
}

/// The options of a new image.
fn options(
    args: &ConvertArgs,
    kind: Format,
    format: &str,
    size: u64,
    name: &OsStr,
) -> Result<Values, Failure> {
    let mut values = kind.schema(Some(name)).parse(&args.options.join(","))?;
    values.put("size", Value::Size(size));
    for (given, option, what) in [
        (&args.backing, "backing_file", "Backing file"),
        (&args.backing_format, "backing_fmt", "Backing file format"),
    ] {
        let Some(text) = given else { continue };
        if !values.accepts(option) {
            return Err(format!("{what} not supported for file format '{format}'").into());
        }
        values.put(option, Value::Text(text.clone()));
    }
    Ok(values)
}

fn check_compression(
    format: &str,
    args: &ConvertArgs,
    values: Option<&Values>,
) -> Result<(), Failure> {
    if !args.target_image_opts && Format::named(format) != Some(Format::Qcow2) {
        return Err("Compression not supported for this file format".into());
    }
    let Some(values) = values else {
        return Ok(());
    };
    if values.flag("encryption") || values.text("encrypt.format").is_some() {
        return Err("Compression and encryption not supported at the same time".into());
    }
    let preallocates = values
        .text("preallocation")
        .is_some_and(|mode| mode != "off");
    if preallocates {
        return Err("Compression and preallocation not supported at the same time".into());
    }
    Ok(())
}

fn new_target(
    values: &Values,
    path: PathBuf,
    format: &str,
    context: &Context,
    backing: Option<(String, String)>,
) -> Result<What, String> {
    match Format::named(format) {
        Some(Format::Qcow2) => Ok(What::Qcow2 {
            path,
            options: Box::new(plan::qcow2(values, &context.secrets)?),
            backing: backing.map(|(file, format)| (file.into(), format)),
        }),
        _ => Ok(What::Raw {
            path,
            options: plan::raw(values)?,
        }),
    }
}
