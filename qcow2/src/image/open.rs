//! [`OpenOptions`]: from a path to an [`Image`]. Nothing is written, and no file is
//! opened but the image itself and, where the caller says so, its data file.

use std::{
    ffi::OsStr,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    backing::{BackingPolicy, Chain},
    guest::{Backing, Guest},
};
use crate::{
    Error, Image, Result,
    check::{CheckOptions, Fixed, Repair, RepairEvent, repair},
    crypt::Secrets,
    format::{HeaderArea, Incompatible},
    io::{Access, FileStorage, LockMode, Storage},
};

/// What may be done about an external data file, whose name is in the image's header
/// and so in the hand of whoever made the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataFilePolicy {
    /// It isn't opened. All that needs only metadata works; the default.
    #[default]
    Leave,
    /// The file that the header names is opened if it is a plain name: no protocol, no
    /// `json:`. As for QEMU a relative one counts from the working directory.
    Follow,
    /// This file is opened, whatever the header says.
    At(PathBuf),
}

/// Who is told what is repaired on opening.
#[derive(Clone)]
pub(super) struct Told(Arc<dyn Fn(&RepairEvent<'_>) + Send + Sync>);

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

/// How to open an image.
///
/// ```no_run
/// let image = qcow2::OpenOptions::new().open("disk.qcow2")?;
/// for bitmap in image.bitmaps()?.iter(&image) {
///     println!("{}: {}", bitmap.name_lossy(), bitmap.state().word());
/// }
/// # Ok::<(), qcow2::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub(super) writable: bool,
    pub(super) lock: Option<LockMode>,
    pub(super) data_file: DataFilePolicy,
    pub(super) backing: BackingPolicy,
    /// Where files named by images may be; anywhere if this is empty.
    pub(super) allowed: Vec<PathBuf>,
    pub(super) metadata_only: bool,
    pub(super) on_repair: Option<Told>,
    pub(super) secrets: Secrets,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenOptions {
    /// Read-only, with the locks of a reader, no data file, no backing file.
    #[must_use]
    pub fn new() -> Self {
        Self {
            writable: false,
            lock: None,
            data_file: DataFilePolicy::Leave,
            backing: BackingPolicy::Deny,
            allowed: Vec::new(),
            metadata_only: false,
            on_repair: None,
            secrets: Secrets::default(),
        }
    }

    /// Opens for writing too, and takes a writer's locks. An image with the dirty bit,
    /// whose refcounts may be out of date, is repaired first, as QEMU does; see
    /// [`on_repair`](Self::on_repair) and [`Image::repaired`].
    #[must_use]
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// Takes these locks instead of those that follow from the access. An image that
    /// is opened without locks can't be written.
    #[must_use]
    pub fn lock(mut self, mode: LockMode) -> Self {
        self.lock = Some(mode);
        self
    }

    /// What to do about an external data file.
    #[must_use]
    pub fn data_file(mut self, policy: DataFilePolicy) -> Self {
        self.data_file = policy;
        self
    }

    /// What to do about a backing file.
    #[must_use]
    pub fn backing(mut self, policy: BackingPolicy) -> Self {
        self.backing = policy;
        self
    }

    /// Files that images name are only opened if they are in `dir` or below, or in
    /// another directory for which this was said. Links are followed first.
    #[must_use]
    pub fn allow_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.allowed.push(dir.into());
        self
    }

    /// Opens images too whose unknown features forbid to use them, to look at their
    /// header. Such an image can't be written, whatever [`writable`](Self::writable) says.
    #[must_use]
    pub fn metadata_only(mut self, metadata_only: bool) -> Self {
        self.metadata_only = metadata_only;
        self
    }

    /// Tells `tell` what is found and repaired when an image with the dirty bit is opened
    /// for writing, as [`repair`] does.
    #[must_use]
    pub fn on_repair(mut self, tell: impl Fn(&RepairEvent<'_>) + Send + Sync + 'static) -> Self {
        self.on_repair = Some(Told(Arc::new(tell)));
        self
    }

    /// The secret of an encrypted image, without which its guest data can't be read. It is
    /// tried when the image is opened; other images have no use for it.
    #[cfg(feature = "encryption")]
    #[must_use]
    pub fn secret(self, secret: crate::crypt::Secret) -> Self {
        self.backing_secret(0, secret)
    }

    /// The secret of the image `depth` steps down the chain: 1 is the backing file.
    #[cfg(feature = "encryption")]
    #[must_use]
    pub fn backing_secret(mut self, depth: usize, secret: crate::crypt::Secret) -> Self {
        self.secrets.set(depth, secret);
        self
    }

    /// Whether images of the chain that are encrypted, and whose secret isn't given, are
    /// refused. Without this they are opened for all that needs no guest data.
    #[cfg(feature = "encryption")]
    #[must_use]
    pub fn secrets_required(mut self, required: bool) -> Self {
        self.secrets.required = required;
        self
    }

    /// The locks that will be taken.
    pub(super) fn lock_mode(&self) -> LockMode {
        let usual = if self.writable {
            LockMode::ReadWrite
        } else {
            LockMode::Read
        };
        self.lock.unwrap_or(usual)
    }

    /// Opens the image at `path`: locks first, then the header.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Locked`], I/O errors; [`Error::NotQcow2`],
    /// [`Error::Header`] and [`Error::Unsupported`] for what the header says;
    /// [`Error::InvalidPassword`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Image> {
        let path = path.as_ref();
        let access = if self.writable {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        };
        self.open_file(FileStorage::open(path, access, self.lock_mode())?)
    }

    /// Opens the image in a file that is open already, with its locks as they are.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::Refused`] for writing with a reader's locks.
    pub fn open_file(&self, file: FileStorage) -> Result<Image> {
        self.open_in_chain(file, &mut Chain::default())
    }

    /// Opens the image in `storage`, called `name` in messages. Data file and
    /// backing file aren't looked at.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for opening and locking.
    pub fn open_storage(&self, name: &str, storage: Arc<dyn Storage>) -> Result<Image> {
        let mut area = HeaderArea::read(&*storage)?;
        if !self.metadata_only || self.writable {
            area.check_features()?;
            area.check_encryption()?;
            area.check_backing_format()?;
        }
        let cipher = match self.metadata_only {
            true => None,
            false => self.secrets.cipher(&*storage, &area)?,
        };
        let mut repaired = None;
        if self.writable {
            check_writable(&area, self.lock_mode())?;
            repaired = self.repair_dirty(&*storage, &mut area)?;
        }
        let mut guest = Guest::new(area.header());
        guest.cipher = cipher;
        if self.backing == BackingPolicy::Ignore {
            guest.backing = Backing::Nothing;
        }
        Ok(Image {
            name: name.to_owned(),
            storage,
            area,
            writable: self.writable,
            has_writer: false,
            repaired,
            data_file: None,
            guest,
        })
    }

    /// Brings the refcounts of an image up to date that a program with lazy refcounts has
    /// left without closing it. `None` if there is nothing to do.
    fn repair_dirty(&self, storage: &dyn Storage, area: &mut HeaderArea) -> Result<Option<Fixed>> {
        if !is_dirty(area) {
            return Ok(None);
        }
        let mut tell = |event: RepairEvent<'_>| {
            if let Some(told) = &self.on_repair {
                told.0(&event);
            }
        };
        let outcome = repair(
            storage,
            area,
            Repair::All,
            CheckOptions::default(),
            &mut tell,
        );
        let outcome = outcome.map_err(|failed| {
            Error::Refused(format!("Could not repair dirty image: {}", failed.reason))
        })?;
        if is_dirty(area) {
            let text = "Could not repair dirty image: its refcounts can't be put right";
            return Err(Error::Refused(text.into()));
        }
        Ok(Some(outcome.fixed))
    }

    /// Opens the external data file where the policy says so, for writing if the image is.
    pub(super) fn open_data_file(&self, image: &Image) -> Result<Option<Arc<dyn Storage>>> {
        if !image.header().has_data_file() {
            return Ok(None);
        }
        let lock = self.lock_mode();
        let access = match self.writable {
            true => Access::ReadWrite,
            false => Access::ReadOnly,
        };
        let file = match &self.data_file {
            DataFilePolicy::Leave => return Ok(None),
            DataFilePolicy::At(path) => FileStorage::open(path, access, lock)?,
            DataFilePolicy::Follow => {
                let name = image
                    .header_area()
                    .extensions()
                    .data_file()
                    .ok_or_else(|| {
                        Error::Refused("the image has a data file, but not its name".into())
                    })?;
                self.open_allowed(&plain_name(name)?, access, lock)?
            }
        };
        Ok(Some(Arc::new(file)))
    }
}

/// Writing must not make matters worse.
fn check_writable(area: &HeaderArea, lock: LockMode) -> Result<()> {
    if !matches!(lock, LockMode::ReadWrite | LockMode::Create) {
        return Err(Error::Refused(
            "an image is not written without a writer's locks".into(),
        ));
    }
    let features = area.header().incompatible_features;
    if features.contains(Incompatible::CORRUPT) {
        let text = "qcow2: Image is corrupt; cannot be opened read/write";
        return Err(Error::Refused(text.into()));
    }
    Ok(())
}

fn is_dirty(area: &HeaderArea) -> bool {
    let features = area.header().incompatible_features;
    features.contains(Incompatible::DIRTY)
}

/// The file that a name out of the header of the image at `image` means: plain names
/// only, relative ones from the image's directory, as backing files are named.
///
/// # Errors
/// [`Error::Refused`] for `json:`, a protocol, an empty name or one with a zero byte.
pub fn relative_to(image: &Path, name: &[u8]) -> Result<PathBuf> {
    Ok(image
        .parent()
        .unwrap_or(Path::new(""))
        .join(plain_name(name)?))
}

fn plain_name(name: &[u8]) -> Result<PathBuf> {
    let until_slash = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    if name.is_empty() || name.contains(&0) || until_slash.contains(&b':') {
        return Err(Error::Refused(format!(
            "the image names the file '{}', and only plain file names are followed",
            name.escape_ascii()
        )));
    }
    Ok(OsStr::from_bytes(name).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_followed() {
        let image = Path::new("dir/disk.qcow2");
        let to = |name: &str| relative_to(image, name.as_bytes());
        assert_eq!(to("data.raw").unwrap(), Path::new("dir/data.raw"));
        assert_eq!(to("/abs/data.raw").unwrap(), Path::new("/abs/data.raw"));
        assert_eq!(to("./odd:name").unwrap(), Path::new("dir/./odd:name"));
        for refused in ["json:{}", "nbd://host/x", "file:x", "", "a\0b", "x:y/z"] {
            assert!(to(refused).is_err(), "{refused}");
        }
    }
}
