//! From a name on the command line to an open image, and the words for what goes wrong.

use std::{
    ffi::OsStr,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use qcow2::{
    BackingPolicy, DataFilePolicy, Error, Image, OpenOptions,
    check::{Fixed, RepairEvent},
    format::{CryptMethod, HeaderArea},
    io::{Access, FileStorage, LockMode, Locking, Storage},
};

use crate::{
    error::{chain, os_text},
    opts::{Backing, Driver, ImageSpec, Protocol},
    output::escape_control,
    progname,
};

/// What an image is opened for; decides which locks are taken and which other files are
/// opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Its metadata is looked at.
    Info,
    /// Its disk's size or its bitmaps are read.
    Read,
    /// It is checked: also images that can't be used otherwise are opened.
    Check,
    /// As that, and repaired.
    Repair,
    /// Its bitmaps are edited.
    Edit,
    /// As that, and its disk is read, with the files that it is based on.
    EditAndRead,
}

impl Use {
    fn access(self) -> Access {
        match self {
            Self::Info | Self::Read | Self::Check => Access::ReadOnly,
            Self::Repair | Self::Edit | Self::EditAndRead => Access::ReadWrite,
        }
    }

    fn lock(self) -> LockMode {
        match self {
            Self::Info => LockMode::Info,
            Self::Read | Self::Check => LockMode::Read,
            Self::Repair | Self::Edit | Self::EditAndRead => LockMode::ReadWrite,
        }
    }

    /// Who only looks at metadata has no use for the guest's data.
    fn data_file(self, spec: &ImageSpec) -> DataFilePolicy {
        match (self, &spec.data_file) {
            (Self::Edit | Self::EditAndRead, Some(named)) => {
                DataFilePolicy::At(named.path.clone().into())
            }
            (Self::Edit | Self::EditAndRead, None) => DataFilePolicy::Follow,
            _ => DataFilePolicy::Leave,
        }
    }

    fn backing(self, spec: &ImageSpec) -> BackingPolicy {
        match (self, spec.backing) {
            (Self::EditAndRead, Backing::Header) => BackingPolicy::Follow,
            (Self::EditAndRead, Backing::Nothing) => BackingPolicy::Ignore,
            _ => BackingPolicy::Deny,
        }
    }
}

/// An open image and the file that it is in.
#[derive(Debug)]
pub(crate) struct Opened {
    /// How the file was opened.
    pub(crate) protocol: Protocol,
    /// Bytes in the file, in whole sectors of 512 as QEMU counts them.
    pub(crate) length: u64,
    /// Bytes that the file takes up.
    pub(crate) allocated: u64,
    /// What the bytes are.
    pub(crate) content: Content,
}

/// What the bytes of a file are.
#[derive(Debug)]
pub(crate) enum Content {
    /// A qcow2 image.
    Qcow2(Box<Image>),
    /// A qcow2 image opened for [`Use::Check`] or [`Use::Repair`].
    Checkable(Box<Checkable>),
    /// A disk as it is.
    Raw,
    /// The file itself, without a format.
    File,
}

/// A qcow2 image of which only the header is known to be usable.
#[derive(Debug)]
pub(crate) struct Checkable {
    /// The file.
    pub(crate) file: FileStorage,
    /// Its first cluster.
    pub(crate) area: HeaderArea,
}

impl Checkable {
    fn new(file: FileStorage) -> qcow2::Result<Self> {
        let area = HeaderArea::read_for_check(&file)?;
        area.check_features()?;
        area.check_encryption()?;
        Ok(Self { file, area })
    }
}

impl Opened {
    /// The format's name.
    pub(crate) fn format(&self) -> &'static str {
        match self.content {
            Content::Qcow2(_) | Content::Checkable(_) => "qcow2",
            Content::Raw => "raw",
            Content::File => self.protocol_name(),
        }
    }

    /// The protocol's name.
    pub(crate) fn protocol_name(&self) -> &'static str {
        match self.protocol {
            Protocol::File => "file",
            Protocol::HostDevice => "host_device",
        }
    }

    /// The image, if it is a qcow2 one.
    pub(crate) fn into_qcow2(self) -> Option<Image> {
        match self.content {
            Content::Qcow2(image) => Some(*image),
            Content::Checkable(_) | Content::Raw | Content::File => None,
        }
    }

    /// Bytes of the disk, in whole sectors as QEMU counts them.
    pub(crate) fn virtual_size(&self) -> u64 {
        match &self.content {
            Content::Qcow2(image) => image.virtual_size() / SECTOR * SECTOR,
            Content::Checkable(image) => image.area.header().size / SECTOR * SECTOR,
            Content::Raw | Content::File => self.length,
        }
    }
}

/// QEMU counts disks and files in sectors.
const SECTOR: u64 = 512;

/// Opens an image. Of other files only the data file is opened, and that for
/// [`Use::Edit`] alone; all that belong to it for [`Use::EditAndRead`].
///
/// # Errors
/// What qemu-img prints after `Could not open 'name': `.
pub(crate) fn open(spec: &ImageSpec, what_for: Use) -> Result<Opened, String> {
    let access = what_for.access();
    if access == Access::ReadWrite && spec.read_only {
        return Err("Block node is read-only".into());
    }
    let lock = match spec.force_share {
        Some(true) => LockMode::None,
        _ => what_for.lock(),
    };
    let path = Path::new(&spec.file.path);
    let failed = |e: Error| words(&e, path);
    let file = FileStorage::open(path, access, lock).map_err(failed)?;
    if what_for != Use::Info && file.locking() == Locking::Unsupported {
        progname::warning(format_args!(
            "'{}' can't be locked: other users of it are not noticed",
            spec.given.to_string_lossy()
        ));
    }
    let system = |e: io::Error| os_text(&e);
    let protocol = protocol(&file, path, spec)?;
    let size = file.size().map_err(system)?;
    let length = size.checked_next_multiple_of(SECTOR).unwrap_or(size);
    let allocated = file.allocated_bytes().map_err(system)?;
    let driver = match spec.driver {
        Some(driver) => driver,
        None => probe(&file)?,
    };
    if driver == Driver::Qcow2 {
        check_encrypt_options(&file, spec)?;
    }
    let content = match driver {
        Driver::Qcow2 if matches!(what_for, Use::Check | Use::Repair) => {
            Content::Checkable(Box::new(Checkable::new(file).map_err(failed)?))
        }
        Driver::Qcow2 => {
            let options = OpenOptions::new()
                .writable(access == Access::ReadWrite)
                .lock(lock)
                .data_file(what_for.data_file(spec))
                .backing(what_for.backing(spec))
                .on_repair(tell_repair(&spec.given));
            Content::Qcow2(Box::new(options.open_file(file).map_err(failed)?))
        }
        Driver::Raw => Content::Raw,
        Driver::Protocol(_) => Content::File,
    };
    Ok(Opened {
        protocol,
        length,
        allocated,
        content,
    })
}

/// Prints what is repaired in a dirty image when it is opened for writing: in place of
/// qemu-img all that it prints, otherwise one line when it is done.
pub(crate) fn tell_repair(given: &OsStr) -> impl Fn(&RepairEvent<'_>) + Send + Sync + 'static {
    let given = given.to_string_lossy().into_owned();
    let done = AtomicBool::new(false);
    move |event| match event {
        RepairEvent::DoubleCheck(fixed) => {
            done.store(true, Ordering::Relaxed);
            if !progname::is_qemu_img() {
                let Fixed { leaks, corruptions } = fixed;
                progname::warning(format_args!(
                    "'{given}' was not closed properly; {leaks} leaked clusters and \
                     {corruptions} corruptions were repaired"
                ));
            }
        }
        // A second check is none of qemu-img's here.
        _ if done.load(Ordering::Relaxed) || !progname::is_qemu_img() => {}
        event if event.names_the_program() => progname::error(event),
        event => {
            let _ = writeln!(io::stderr(), "{event}");
        }
    }
}

/// Whether a qcow2 image is encrypted, and that the options of encryption go with that.
///
/// # Errors
/// `encrypt.format` isn't what the header says, or there is no such option.
pub(crate) fn check_encrypt_options(file: &FileStorage, spec: &ImageSpec) -> Result<bool, String> {
    // What is wrong with the header is told when it is opened.
    let Ok(area) = HeaderArea::read(file) else {
        return Ok(false);
    };
    let found = match area.header().crypt_method {
        CryptMethod::Aes => "aes",
        CryptMethod::Luks => "luks",
        CryptMethod::None => {
            // Other options aren't looked at.
            return match &spec.encrypt_format {
                None => Ok(false),
                Some(given) => Err(format!(
                    "No encryption in image header, but options specified format '{given}'"
                )),
            };
        }
    };
    if let Some(given) = spec.encrypt_format.as_ref().filter(|given| *given != found) {
        return Err(format!(
            "Header reported '{found}' encryption format but options specify '{given}'"
        ));
    }
    match &spec.encrypt_unexpected {
        None => Ok(true),
        Some(name) => Err(format!("Parameter '{name}' is unexpected")),
    }
}

/// How the file was opened, if that is how it was asked for.
pub(crate) fn protocol(
    file: &FileStorage,
    path: &Path,
    spec: &ImageSpec,
) -> Result<Protocol, String> {
    let asked = match spec.driver {
        Some(Driver::Protocol(protocol)) => Some(protocol),
        _ => spec.file.protocol,
    };
    let path = path.display();
    match (asked, file.is_block_device()) {
        (Some(Protocol::File), true) => Err(format!(
            "'file' driver requires '{path}' to be a regular file"
        )),
        (Some(Protocol::HostDevice), false) => Err(format!(
            "'host_device' driver requires '{path}' to be either a character or block device"
        )),
        (_, true) => Ok(Protocol::HostDevice),
        (_, false) => Ok(Protocol::File),
    }
}

/// The format, found out from the first bytes. Formats that only qemu-img knows are
/// refused rather than taken for raw disks, which would show a guest's view of nothing.
pub(crate) fn probe(file: &FileStorage) -> Result<Driver, String> {
    let mut head = [0; 512];
    file.read_padded(0, &mut head)
        .map_err(|e| format!("Could not read the image: {}", os_text(&e)))?;
    let version = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let other = match () {
        () if head.starts_with(b"QFI\xfb") && version >= 2 => return Ok(Driver::Qcow2),
        () if head.starts_with(b"QFI\xfb") && version == 1 => "qcow",
        () if head.starts_with(b"LUKS\xba\xbe\0\x01") => "luks",
        () if head.starts_with(b"KDMV") || head.starts_with(b"COWD") => "vmdk",
        () if head.starts_with(b"conectix") => "vpc",
        () if head.starts_with(b"vhdxfile") => "vhdx",
        () if head.starts_with(b"QED\0") => "qed",
        () if head.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]) => "vdi",
        () if head.starts_with(b"WithoutFreeSpace") || head.starts_with(b"WithouFreSpacExt") => {
            "parallels"
        }
        () => return Ok(Driver::Raw),
    };
    Err(format!(
        "Image is in {other} format, which is not supported (-f raw reads it as it is)"
    ))
}

/// The message of an error of the library, with nothing in it that could move the cursor.
pub(crate) fn words(error: &Error, path: &Path) -> String {
    match error {
        Error::Locked { permission, holder } => {
            let mut text = format!(
                "Failed to get {permission} lock\nIs another process using the image [{}]?",
                path.display()
            );
            if let Some(holder) = holder.as_ref().filter(|_| !progname::is_qemu_img()) {
                text.push_str(&format!("\nIt is held by {}.", escape_control(holder)));
            }
            text
        }
        Error::Io { .. } | Error::NoSpace { .. } => escape_control(&chain(error)).into_owned(),
        // The names of features stand in the image.
        Error::Unsupported(text) => escape_control(text).into_owned(),
        other => lines_escaped(&other.to_string()),
    }
}

/// Escapes each line; the line ends are ours.
fn lines_escaped(text: &str) -> String {
    text.split('\n')
        .map(escape_control)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A name out of an image up to a zero byte, where QEMU's strings end.
pub(crate) fn until_zero(name: &[u8]) -> &[u8] {
    name.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Bytes as a name of the file system.
pub(crate) fn os_str(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}
