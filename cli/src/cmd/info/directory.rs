//! The bitmap directory, read entry by entry: it may be 64 MiB of names, and memory must
//! not follow that.

use qcow2::{
    Image,
    addr::HostOffset,
    format::{Autoclear, BitmapDirectory, BitmapFlags, BitmapsExtension},
};

use crate::{
    image::{until_zero, words},
    output::{Escaped, escape_control},
    progname,
};

/// Bytes of an entry before its extra data and its name.
const FIXED_BYTES: u64 = 24;
/// Extra data up to this length is looked at; QEMU knows none at all.
const MAX_EXTRA_BYTES: u64 = 4096;
/// Bytes that are read at once, more than the longest entry without extra data.
const WINDOW_BYTES: u64 = 1 << 18;
/// Warnings that are printed one by one.
const MAX_WARNINGS: u32 = 50;

/// A bitmap in the directory.
#[derive(Debug)]
pub(super) struct Bitmap {
    /// Its name.
    pub(super) name: Vec<u8>,
    /// Bytes of the disk for each bit.
    pub(super) granularity: u64,
    /// Whether it was not stored back by whoever used it last.
    pub(super) in_use: bool,
    /// Whether it records writes.
    pub(super) auto: bool,
}

/// The bitmaps of an image, in order. What is wrong with one, or with the directory, is
/// said on standard error: one bad bitmap doesn't make an image unreadable.
pub(super) struct Bitmaps<'a> {
    image: &'a Image,
    /// Where the next entry is, and where the directory ends.
    at: u64,
    end: u64,
    /// Entries that should still come.
    left: u32,
    window: Vec<u8>,
    window_at: u64,
    warnings: u32,
}

impl<'a> Bitmaps<'a> {
    /// The directory that the header names; empty if there is none, if its bitmaps are
    /// void, or if it can't be where the header says.
    pub(super) fn of(image: &'a Image) -> Self {
        let mut bitmaps = Self {
            image,
            at: 0,
            end: 0,
            left: 0,
            window: Vec::new(),
            window_at: 0,
            warnings: 0,
        };
        let area = image.header_area();
        let extension = match area.extensions().bitmaps() {
            Ok(None) => return bitmaps,
            Ok(Some(extension)) => Ok(extension),
            Err(e) => Err(e),
        };
        let header = area.header();
        if !header.autoclear_features.contains(Autoclear::BITMAPS) {
            progname::voided_bitmaps(header.version);
            return bitmaps;
        }
        let checked = extension.and_then(|e| e.check(image.geometry()).map(|()| e));
        match checked {
            Ok(extension) => bitmaps.begin(&extension),
            Err(e) => bitmaps.warn(words(&e, image.name().as_ref())),
        }
        bitmaps
    }

    fn begin(&mut self, extension: &BitmapsExtension) {
        self.at = extension.directory_offset.get();
        self.end = self.at.saturating_add(extension.directory_size);
        match self.image.storage().size() {
            Ok(size) if self.end <= size => self.left = extension.nb_bitmaps,
            Ok(_) => self.warn("The bitmap directory is beyond the end of the file".into()),
            Err(e) => self.warn(format!("The bitmap directory can't be read: {e}")),
        }
    }

    fn warn(&mut self, text: String) {
        self.warnings += 1;
        if self.warnings <= MAX_WARNINGS {
            progname::warning(text);
        }
    }

    /// `length` bytes at `at`, at most a window full.
    fn bytes(&mut self, at: u64, length: u64) -> Option<&[u8]> {
        let window_end = self.window_at + self.window.len() as u64;
        if at < self.window_at || at.checked_add(length)? > window_end {
            let bytes = WINDOW_BYTES.min(self.end.checked_sub(at)?);
            self.window.resize(usize::try_from(bytes).ok()?, 0);
            self.window_at = at;
            let read = self.image.storage().read_padded(at, &mut self.window);
            if read.is_err() {
                self.window.clear();
            }
        }
        let start = usize::try_from(at - self.window_at).ok()?;
        self.window
            .get(start..)?
            .get(..usize::try_from(length).ok()?)
    }

    /// The next entry, and how many bytes it takes; `None` if there is no whole one.
    fn entry(&mut self) -> Option<(Bitmap, u64)> {
        let at = self.at;
        let fixed: [u8; 24] = self.bytes(at, FIXED_BYTES)?.try_into().ok()?;
        let name_bytes = u64::from(u16::from_be_bytes([fixed[18], fixed[19]]));
        let extra_bytes = u64::from(u32::from_be_bytes([
            fixed[20], fixed[21], fixed[22], fixed[23],
        ]));
        let length = (FIXED_BYTES + extra_bytes + name_bytes).next_multiple_of(8);
        if at.checked_add(length)? > self.end {
            return None;
        }
        // The library takes entries apart; extra data that nobody knows it need not see.
        let mut flat = fixed.to_vec();
        if extra_bytes > MAX_EXTRA_BYTES {
            flat.truncate(20);
            flat.extend([0; 4]);
        } else {
            flat.extend(self.bytes(at + FIXED_BYTES, extra_bytes)?);
        }
        flat.extend(self.bytes(at + FIXED_BYTES + extra_bytes, name_bytes)?);
        flat.resize(flat.len().next_multiple_of(8), 0);
        let mut directory = BitmapDirectory::parse(&flat, HostOffset(at), 1);
        let entry = directory.entries.pop()?;
        let in_use = entry.flags.contains(BitmapFlags::IN_USE);
        let name = until_zero(&entry.name).to_vec();
        let unusable = |problem: String| {
            let name = Escaped(&name);
            format!("Bitmap '{name}' can't be used: {problem}")
        };
        if extra_bytes > MAX_EXTRA_BYTES {
            self.warn(unusable(format!(
                "it has {extra_bytes} bytes of extra data"
            )));
        } else if !in_use {
            let (geometry, size) = (self.image.geometry(), self.image.virtual_size());
            if let Err(e) = entry.check(geometry, size, HostOffset(at)) {
                self.warn(unusable(escape_control(&e.to_string()).into_owned()));
            }
        }
        let granularity = 1_u64.checked_shl(entry.granularity_bits.into());
        let bitmap = Bitmap {
            granularity: granularity.unwrap_or(0),
            in_use,
            auto: entry.flags.contains(BitmapFlags::AUTO),
            name,
        };
        Some((bitmap, length))
    }
}

impl Iterator for Bitmaps<'_> {
    type Item = Bitmap;

    fn next(&mut self) -> Option<Bitmap> {
        self.left = self.left.checked_sub(1)?;
        let Some((bitmap, length)) = self.entry() else {
            self.left = 0;
            self.warn("Broken bitmap directory: what follows is not shown".into());
            return None;
        };
        self.at += length;
        if self.left == 0 && self.at < self.end {
            let bytes = self.end - self.at;
            self.warn(format!(
                "The bitmap directory has {bytes} bytes after its last entry"
            ));
        }
        Some(bitmap)
    }
}

impl Drop for Bitmaps<'_> {
    fn drop(&mut self) {
        if let Some(more) = self
            .warnings
            .checked_sub(MAX_WARNINGS)
            .filter(|more| *more > 0)
        {
            progname::warning(format_args!("{more} more warnings about bitmaps"));
        }
    }
}
