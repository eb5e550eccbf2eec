//! The target: made or opened as planned, filled, and given its name.

use std::{ffi::OsStr, io::IsTerminal as _, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

use qcow2::{
    Error, Image, OpenOptions,
    convert::Target,
    disk::{Disk, DiskMut, RawDisk},
    image::{
        GuestWriter,
        build::Builder,
        create::{CreateOptions, Preallocation, RawOptions, create_in, empty},
    },
    io::{LockMode, NewFile, Storage},
};

use super::plan::{Plan, What, failed as not_made};
use crate::{
    cmd::{self, beside},
    disk::{self, Writable},
    error::{Failure, chain, os_text},
    image,
    opts::ImageSpec,
    progname,
};

impl Plan {
    /// Makes or opens it.
    ///
    /// # Errors
    /// In qemu-img's words.
    pub(super) fn open(self) -> Result<Opened, Failure> {
        let about = |path: &Path| {
            let (name, doing, path) = (self.name.clone(), self.doing.clone(), path.to_owned());
            move |error: Error| not_made(&name, &doing, image::words(&error, &path))
        };
        match self.what {
            What::Qcow2 {
                path,
                options,
                backing,
            } => {
                options.validate().map_err(about(&path))?;
                let base = match &backing {
                    None => None,
                    Some((file, format)) => Some(open_base(&self.name, file, format)?),
                };
                let mut data_file = None;
                if let Some(name) = options.data_file.as_deref() {
                    let name = Path::new(OsStr::from_bytes(name));
                    let file = NewFile::create(name).map_err(about(name))?;
                    clear(&file, self.size, &RawOptions::default()).map_err(about(name))?;
                    data_file = Some(file);
                }
                let file = NewFile::create(&path).map_err(about(&path))?;
                if options.nocow {
                    // As for create: where it isn't known it isn't missed.
                    file.storage().set_no_copy_on_write().ok();
                }
                let storage = Arc::clone(file.storage()) as Arc<dyn Storage>;
                let data = data_file.as_ref();
                let data = data.map(|file| Arc::clone(file.storage()) as Arc<dyn Storage>);
                if options.encryption.is_some() {
                    let disk = encrypted(storage, data, &options, base.as_ref());
                    return Ok(Opened::Encrypted {
                        disk: Box::new(disk.map_err(about(&path))?),
                        // Zeros in preallocated clusters are something else when decrypted.
                        is_zero: options.preallocation == Preallocation::Off && base.is_none(),
                        base,
                        file,
                        data_file,
                    });
                }
                let builder = Builder::new(storage, data, *options, self.compress);
                Ok(Opened::Qcow2 {
                    builder: Box::new(builder.map_err(about(&path))?),
                    base,
                    file,
                    data_file,
                })
            }
            What::Raw { path, options } => {
                let file = NewFile::create(&path).map_err(about(&path))?;
                if options.nocow {
                    file.storage().set_no_copy_on_write().ok();
                }
                let is_zero = clear(&file, self.size, &options).map_err(about(&path))?;
                let storage = Arc::clone(file.storage());
                let reserved = match options.preallocation {
                    Preallocation::Off | Preallocation::Metadata => Ok(()),
                    Preallocation::Falloc => storage.allocate(0..self.size),
                    Preallocation::Full => storage.write_zeros(0..self.size),
                };
                reserved.map_err(|e| not_made(&self.name, &self.doing, os_text(&e)))?;
                let disk = RawDisk::new_writable(&path.to_string_lossy(), storage);
                Ok(Opened::Raw {
                    disk: disk.map_err(about(&path))?,
                    is_zero,
                    file,
                })
            }
            What::Pipe(options) => {
                if std::io::stdout().is_terminal() {
                    return Err("An image is not written to a terminal".into());
                }
                Ok(Opened::Pipe(options))
            }
            What::There {
                spec,
                is_zero,
                over_backing,
            } => {
                let disk = disk::open_writable(&spec)?;
                match &disk {
                    Writable::Raw(_) if self.compress => {
                        return Err("Compression not supported for this file format".into());
                    }
                    // Compressed clusters would lie open in it, as qemu-img leaves them.
                    Writable::Qcow2(image) if self.compress && image.is_encrypted() => {
                        let text = "Compression and encryption not supported at the same time";
                        return Err(text.into());
                    }
                    _ => {}
                }
                if disk.disk().size() < self.size {
                    return Err("output file is smaller than input file".into());
                }
                Ok(Opened::There {
                    disk,
                    is_zero,
                    over_backing,
                    compress: self.compress,
                })
            }
        }
    }
}

/// An encrypted image, made empty and opened to be filled.
fn encrypted(
    storage: Arc<dyn Storage>,
    data_file: Option<Arc<dyn Storage>>,
    options: &CreateOptions,
    base: Option<&Arc<dyn Disk>>,
) -> qcow2::Result<GuestWriter> {
    create_in(&*storage, data_file.as_deref(), options)?;
    let mut open = OpenOptions::new().writable(true).lock(LockMode::ReadWrite);
    if let Some(encryption) = &options.encryption {
        open = open.secret(encryption.secret().clone());
    }
    let mut image = open.open_storage("the target", storage)?;
    if let Some(data_file) = data_file {
        image = image.with_data_file(data_file);
    }
    if let Some(base) = base {
        image = image.with_backing(Arc::clone(base));
    }
    image.into_writer()
}

/// The disk behind the target called `name`.
fn open_base(name: &OsStr, file: &OsStr, format: &str) -> Result<Arc<dyn Disk>, Failure> {
    let failed = |message: String| {
        cmd::open_failure(name, format!("Could not open backing file: {message}"))
    };
    let path = beside(name, file.as_bytes());
    let spec = ImageSpec::from_name(&path, Some(format)).map_err(failed)?;
    let source = disk::open_named(&spec).map_err(failed)?;
    Ok(source.disk())
}

/// Has a new file read as zeros, `size` bytes of them; whether it does. A device is large
/// enough, and no longer what it was.
fn clear(file: &NewFile, size: u64, options: &RawOptions) -> qcow2::Result<bool> {
    let storage = file.storage();
    options.check_target(&**storage, size)?;
    let resizing = || Error::io("setting the target's length");
    if !storage.can_grow() {
        empty(&**storage)?;
        return Ok(false);
    }
    if file.is_in_place() {
        storage.set_len(0).map_err(resizing())?;
    }
    storage.set_len(size).map_err(resizing())?;
    Ok(true)
}

/// Whether the target is standard output. For qemu-img it is a file of that name.
pub(super) fn is_pipe(name: &OsStr) -> bool {
    name == "-" && !progname::is_qemu_img()
}

/// A target that can be filled.
#[derive(Debug)]
pub(super) enum Opened {
    Pipe(Option<Box<CreateOptions>>),
    Qcow2 {
        builder: Box<Builder>,
        base: Option<Arc<dyn Disk>>,
        file: NewFile,
        data_file: Option<NewFile>,
    },
    Encrypted {
        disk: Box<GuestWriter>,
        is_zero: bool,
        base: Option<Arc<dyn Disk>>,
        file: NewFile,
        data_file: Option<NewFile>,
    },
    Raw {
        disk: RawDisk,
        is_zero: bool,
        file: NewFile,
    },
    There {
        disk: Writable,
        is_zero: bool,
        over_backing: bool,
        compress: bool,
    },
}

/// A target that holds the disk.
#[derive(Debug)]
pub(super) enum Written {
    /// It has its name.
    There,
    /// An image that was there, and can still be changed.
    Image(Box<Image>),
    /// It has no name yet.
    New {
        file: NewFile,
        data_file: Option<NewFile>,
    },
}

fn failed(error: &Error) -> Failure {
    Failure::Message(chain(error))
}

impl Opened {
    /// Has `copy` fill it.
    ///
    /// # Errors
    /// Those of `copy`, and of completing it.
    pub(super) fn fill(
        self,
        copy: impl FnOnce(Target<'_>) -> Result<(), Failure>,
        durable: bool,
    ) -> Result<Written, Failure> {
        match self {
            // It isn't filled here.
            Self::Pipe(_) => Ok(Written::There),
            Self::Qcow2 {
                builder,
                base,
                file,
                data_file,
            } => {
                copy(Target::New {
                    builder: &builder,
                    base: base.as_deref(),
                })?;
                builder.finish(durable).map_err(|e| failed(&e))?;
                Ok(Written::New { file, data_file })
            }
            Self::Encrypted {
                disk,
                is_zero,
                base,
                file,
                data_file,
            } => {
                copy(Target::Disk {
                    disk: &*disk,
                    is_zero,
                    base: base.as_deref(),
                })?;
                disk.close().map_err(|e| failed(&e))?;
                Ok(Written::New { file, data_file })
            }
            Self::Raw {
                disk,
                is_zero,
                file,
            } => {
                copy(Target::Disk {
                    disk: &disk,
                    is_zero,
                    base: None,
                })?;
                if durable {
                    disk.flush().map_err(|e| failed(&e))?;
                }
                Ok(Written::New {
                    file,
                    data_file: None,
                })
            }
            Self::There {
                disk,
                is_zero,
                over_backing,
                compress,
            } => {
                let writable = disk.disk();
                let base = writable.backing().filter(|_| over_backing).cloned();
                let base = base.as_deref();
                copy(match &disk {
                    Writable::Qcow2(writer) if compress => Target::Compressed {
                        writer,
                        is_zero,
                        base,
                    },
                    _ => Target::Disk {
                        disk: writable,
                        is_zero,
                        base,
                    },
                })?;
                match disk {
                    Writable::Raw(disk) => {
                        if durable {
                            disk.flush().map_err(|e| failed(&e))?;
                        }
                        Ok(Written::There)
                    }
                    Writable::Qcow2(writer) => {
                        let image = writer.close().map_err(|e| failed(&e))?;
                        Ok(Written::Image(Box::new(image)))
                    }
                }
            }
        }
    }
}

impl Written {
    /// Has `edit` change the image, which is one.
    ///
    /// # Errors
    /// Those of `edit`.
    pub(super) fn edit(
        self,
        edit: impl FnOnce(&mut Image) -> Result<(), String>,
    ) -> Result<Self, Failure> {
        match self {
            Self::There => Err("The target is no image".into()),
            Self::Image(mut image) => {
                edit(&mut image)?;
                Ok(Self::Image(image))
            }
            Self::New { file, data_file } => {
                let storage = Arc::clone(file.storage()) as Arc<dyn Storage>;
                let options = OpenOptions::new().writable(true);
                let image = options.open_storage("the target", storage);
                let mut image = image.map_err(|e| failed(&e))?;
                if let Some(data_file) = &data_file {
                    image = image.with_data_file(Arc::clone(data_file.storage()) as _);
                }
                edit(&mut image)?;
                Ok(Self::New { file, data_file })
            }
        }
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn finish(self, durable: bool) -> Result<(), Failure> {
        let Self::New { file, data_file } = self else {
            return Ok(());
        };
        if let Some(data_file) = data_file {
            data_file.publish(durable).map_err(|e| failed(&e))?;
        }
        file.publish(durable).map_err(|e| failed(&e))
    }
}
