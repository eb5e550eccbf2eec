//! The sections that this crate knows: their content is parsed.

/// The sections whose content is known. They may come in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Ram,
    DirtyBitmap,
    Block,
}

/// The ids of those that were started.
#[derive(Debug, Default)]
pub(crate) struct Started {
    ram: Option<u32>,
    dirty_bitmap: Option<u32>,
    block: Option<u32>,
}

impl Known {
    pub(crate) const ALL: [Self; 3] = [Self::Ram, Self::DirtyBitmap, Self::Block];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::DirtyBitmap => "dirty-bitmap",
            Self::Block => "block",
        }
    }

    /// The only one; of its instances, that is 0.
    pub(crate) const fn version(self) -> u32 {
        match self {
            Self::Ram => 4,
            Self::DirtyBitmap | Self::Block => 1,
        }
    }
}

impl Started {
    /// The id that a section was started with last, as PARTs carry it.
    pub(crate) const fn id(&mut self, known: Known) -> &mut Option<u32> {
        match known {
            Known::Ram => &mut self.ram,
            Known::DirtyBitmap => &mut self.dirty_bitmap,
            Known::Block => &mut self.block,
        }
    }

    /// Which section an id belongs to.
    pub(crate) fn find(&mut self, id: u32) -> Option<Known> {
        Known::ALL
            .into_iter()
            .find(|known| *self.id(*known) == Some(id))
    }
}
