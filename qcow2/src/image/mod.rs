//! [`Image`]: an open qcow2 image.

mod backing;
pub mod build;
mod compressed;
pub mod create;
mod entries;
mod extents;
mod guest;
pub(crate) mod header_switch;
mod holes;
mod open;
mod read;
mod snapshots;
mod stored_at;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

pub use backing::{BackingPolicy, MAX_CHAIN};
pub use open::{DataFilePolicy, OpenOptions, relative_to};
pub use snapshots::SnapshotDisk;
pub use write::GuestWriter;
pub(crate) use write::Pieces;

use crate::{
    Error, Geometry, Result,
    addr::HostOffset,
    bitmap::{BitmapEdit, Bitmaps},
    check::{Fixed, Metadata},
    format::{Autoclear, BitmapsExtension, Header, HeaderArea, Incompatible},
    io::Storage,
};

/// An open qcow2 image: its storage and its header, checked.
///
/// Everything else is read when it is asked for.
#[derive(Debug)]
pub struct Image {
    /// How the image is called in messages.
    name: String,
    storage: Arc<dyn Storage>,
    area: HeaderArea,
    writable: bool,
    /// Another process has the image open for writing (seen while opening without
    /// locks; with locks there can be none).
    has_writer: bool,
    /// What had to be repaired when it was opened for writing.
    repaired: Option<Fixed>,
    /// The external data file, if the caller had it opened.
    data_file: Option<Arc<dyn Storage>>,
    /// For reading the guest's disk.
    guest: guest::Guest,
}

impl Image {
    /// How the image is called in messages: its path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        self.area.header()
    }

    /// The header with its extensions and the backing file's name.
    #[must_use]
    pub fn header_area(&self) -> &HeaderArea {
        &self.area
    }

    /// The shapes of the image's tables.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.header().geometry()
    }

    /// Bytes of the disk that the guest sees.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.header().size
    }

    /// Where the image's bytes are.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The external data file, if the image has one and it was opened.
    #[must_use]
    pub fn data_file(&self) -> Option<&Arc<dyn Storage>> {
        self.data_file.as_ref()
    }

    /// Whether another process has the image open for writing. Only told of an
    /// image that was opened without locks.
    #[must_use]
    pub fn has_writer(&self) -> bool {
        self.has_writer
    }

    /// What was repaired when the image was opened for writing: one with the dirty bit,
    /// which a program with lazy refcounts had not closed. `None` if it had not that bit.
    #[must_use]
    pub fn repaired(&self) -> Option<Fixed> {
        self.repaired
    }

    /// What a [`check`](crate::check::check) or a [`walk`](crate::check::walk) over
    /// every reference needs.
    #[must_use]
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata {
            storage: &*self.storage,
            header: self.area.header(),
            extensions: self.area.extensions(),
            geometry: self.geometry(),
        }
    }

    /// The bitmap directory; empty if the image has none. Of a damaged one this is the
    /// part before the damage, and [`Bitmaps::fault`] says what is wrong.
    ///
    /// # Errors
    /// I/O errors.
    pub fn bitmaps(&self) -> Result<Bitmaps> {
        Bitmaps::read(&*self.storage, &self.area)
    }

    /// The bits of the bitmap called `name`.
    ///
    /// # Errors
    /// As [`Bitmap::load`](crate::bitmap::Bitmap::load), and that there is none.
    pub fn load_bitmap(&self, name: &str) -> Result<hbitmap::HBitmap> {
        self.bitmaps()?.find(self, name.as_bytes())?.load()
    }

    /// Starts an edit of the stored bitmaps.
    ///
    /// # Errors
    /// The image isn't writable, is corrupt or dirty, or its directory is corrupt.
    pub fn edit_bitmaps(&mut self) -> Result<BitmapEdit<'_>> {
        BitmapEdit::new(self)
    }

    /// The image with its guest's disk open for writing.
    ///
    /// # Errors
    /// As [`GuestWriter::new`].
    pub fn into_writer(self) -> Result<GuestWriter> {
        GuestWriter::new(self)
    }

    /// # Errors
    /// [`Error::Refused`] if the image was not opened for writing.
    pub(crate) fn require_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "'{}' was opened read-only",
            self.name
        )))
    }

    /// Has the header name another refcount table, which is on stable storage.
    pub(crate) fn switch_refcount_table(&mut self, at: HostOffset, clusters: u32) -> Result<()> {
        let mut next = self.area.clone();
        let header = next.header_mut();
        header.refcount_table_offset = at;
        header.refcount_table_clusters = clusters;
        self.switch_header(next)
    }

    /// Has the header name another bitmap directory, which is on stable storage; or
    /// none.
    pub(crate) fn switch_bitmaps(&mut self, extension: Option<BitmapsExtension>) -> Result<()> {
        let mut next = self.area.clone();
        next.set_bitmaps_extension(extension)?;
        let header = next.header_mut();
        header.autoclear_features = match extension {
            Some(_) => header.autoclear_features.with(Autoclear::BITMAPS),
            None => header.autoclear_features.without(Autoclear::BITMAPS),
        };
        self.switch_header(next)
    }

    /// Clears the autoclear bits that this crate doesn't know, as whoever writes the
    /// image must; with `dirty` sets the bit that says that refcounts may be wrong.
    pub(crate) fn mark_written(&mut self, dirty: bool) -> Result<()> {
        let mut next = self.area.clone();
        let header = next.header_mut();
        let features = header.autoclear_features;
        header.autoclear_features = features.without(features.unknown());
        if dirty {
            let features = &mut header.incompatible_features;
            *features = features.with(Incompatible::DIRTY);
        }
        self.switch_header(next)
    }

    /// Clears the bit that says that refcounts may be wrong: they are right, on stable
    /// storage.
    pub(crate) fn mark_clean(&mut self) -> Result<()> {
        let mut next = self.area.clone();
        let features = &mut next.header_mut().incompatible_features;
        *features = features.without(Incompatible::DIRTY);
        self.switch_header(next)
    }

    fn switch_header(&mut self, next: HeaderArea) -> Result<()> {
        header_switch::switch(&*self.storage, &self.area, &next)?;
        self.area = next;
        Ok(())
    }
}
