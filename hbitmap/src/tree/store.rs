//! Memory for pages, zeroed: from the allocator, or in huge pages where that is possible
//! and worth it.
//!
//! The first touch of 32 MiB costs ten times more in pages of 4 KiB than in pages of
//! 2 MiB, and random access to it misses the processor's address cache less.

use alloc::vec;
use alloc::vec::Vec;

use super::kernel::{PAGE_WORDS, PageWords};

/// Pages that make up a huge page.
#[cfg(all(feature = "std", target_os = "linux"))]
const HUGE: usize = 512;

/// Zeroed pages.
#[derive(Debug)]
pub(crate) enum Store {
    Heap(Vec<u64>),
    #[cfg(all(feature = "std", target_os = "linux"))]
    Huge(memmap2::MmapMut),
}

impl Store {
    pub(crate) fn new(pages: usize) -> Self {
        #[cfg(all(feature = "std", target_os = "linux"))]
        if pages == HUGE
            && let Ok(map) = memmap2::MmapMut::map_anon(pages * PAGE_WORDS * 8)
            && bytemuck::try_cast_slice::<u8, u64>(&map).is_ok()
        {
            // Without huge pages it is as good as the allocator's memory.
            let _ = map.advise(memmap2::Advice::HugePage);
            return Self::Huge(map);
        }
        Self::Heap(vec![0; pages * PAGE_WORDS])
    }

    /// A copy of the first `pages` pages, with room for as many as this one has.
    pub(crate) fn copy(&self, pages: usize) -> Self {
        let mut new = Self::new(self.pages().len());
        new.pages_mut()[..pages].copy_from_slice(&self.pages()[..pages]);
        new
    }

    #[inline]
    pub(crate) fn pages(&self) -> &[PageWords] {
        let words = match self {
            Self::Heap(words) => words,
            #[cfg(all(feature = "std", target_os = "linux"))]
            Self::Huge(map) => bytemuck::try_cast_slice(map).unwrap_or_default(),
        };
        words.as_chunks().0
    }

    #[inline]
    pub(crate) fn pages_mut(&mut self) -> &mut [PageWords] {
        let words = match self {
            Self::Heap(words) => words,
            #[cfg(all(feature = "std", target_os = "linux"))]
            Self::Huge(map) => bytemuck::try_cast_slice_mut(map).unwrap_or_default(),
        };
        words.as_chunks_mut().0
    }
}
