//! The sources: opened, the snapshot chosen, one behind the other.

use std::{ffi::OsString, ops::Range, sync::Arc};

use qcow2::{
    Image,
    convert::{Concat, Part},
    disk::Disk,
};

use super::ConvertArgs;
use crate::{
    cmd,
    disk::{self, Source},
    error::Failure,
    opts::SnapshotParam,
};

/// What is copied.
#[derive(Debug)]
pub(super) struct Sources {
    /// The images with their names.
    images: Vec<(OsString, Source)>,
    disk: Arc<dyn Disk>,
}

impl Sources {
    /// Opens them.
    ///
    /// # Errors
    /// In qemu-img's words.
    pub(super) fn open(
        args: &ConvertArgs,
        files: &[OsString],
        snapshot: Option<&SnapshotParam>,
    ) -> Result<Self, Failure> {
        let image_opts = args.image_opts || args.source_image_opts;
        let format = args.source_format.as_deref();
        let mut images = Vec::with_capacity(files.len());
        for file in files {
            cmd::exclusive(format, image_opts)?;
            let mut spec = cmd::image_spec(file, format, image_opts)?;
            cmd::share(&mut spec, args.force_share)?;
            images.push((file.clone(), disk::open_source(&spec)?));
        }
        let mut disks: Vec<_> = images.iter().map(|(_, source)| source.disk()).collect();
        match snapshot {
            Some(SnapshotParam::IdOrName(_)) if images.len() > 1 => {
                return Err("No support for concatenating multiple snapshot".into());
            }
            // Of several images only the first is taken as its snapshot has it.
            Some(which) => {
                if let (Some((_, first)), Some(disk)) = (images.first(), disks.first_mut()) {
                    *disk = first.snapshot(which)?;
                }
            }
            None => {}
        }
        let disk = match disks.as_slice() {
            [only] => Arc::clone(only),
            _ => Arc::new(Concat::new(disks).map_err(|e| e.to_string())?),
        };
        Ok(Self { images, disk })
    }

    /// The disk that they make.
    pub(super) fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.disk)
    }

    /// Leaves nothing of the disk but `range`.
    pub(super) fn take_part(&mut self, range: Range<u64>) {
        if range != (0..self.disk.size()) {
            self.disk = Arc::new(Part::new(self.disk(), range));
        }
    }

    pub(super) fn are_several(&self) -> bool {
        self.images.len() > 1
    }

    /// Those that are qcow2 images, with their names.
    pub(super) fn qcow2(&self) -> impl Iterator<Item = (&OsString, &Arc<Image>)> {
        self.images
            .iter()
            .filter_map(|(name, source)| match source {
                Source::Qcow2(image) => Some((name, image)),
                Source::Raw(_) => None,
            })
    }
}
