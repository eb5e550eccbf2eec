//! Layered form to bitmap. Nothing is believed before its checksum fits, and nothing is
//! allocated for a number in the input, only for what has been read.

use alloc::vec::Vec;

use super::{HEADER, MAGIC, VERSION, checksum};
use crate::crc::Crc32c;
use crate::tree::Tree;
use crate::tree::kernel::{self, PAGE_WORDS};
use crate::tree::node::{Bits, Slot};
use crate::tree::span_bits;
use crate::{Error, Granularity, HBitmap, LayeredProblem, MAX_LEN, Result};

/// What a reader of the layered form accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest disk, in bytes.
    pub len: u64,
    /// The most memory that the bitmap may take, in bytes. Independently of this, memory
    /// is taken only for chunks that were read: at most 4 KiB for each.
    pub memory: u64,
}

impl Default for Limits {
    /// Any length, and 1 GiB of memory: twice the largest bitmap that QEMU stores.
    fn default() -> Self {
        Self {
            len: MAX_LEN,
            memory: 1 << 30,
        }
    }
}

/// Where the bytes come from.
trait Source {
    /// Fills `buf`; `false` if the input ends before.
    fn fill(&mut self, buf: &mut [u8]) -> Result<bool>;
}

impl Source for &[u8] {
    fn fill(&mut self, buf: &mut [u8]) -> Result<bool> {
        let Some((head, tail)) = self.split_at_checked(buf.len()) else {
            return Ok(false);
        };
        buf.copy_from_slice(head);
        *self = tail;
        Ok(true)
    }
}

#[cfg(feature = "std")]
struct Reader<R> {
    from: std::io::BufReader<R>,
    offset: u64,
}

#[cfg(feature = "std")]
impl<R: std::io::Read> Source for Reader<R> {
    fn fill(&mut self, buf: &mut [u8]) -> Result<bool> {
        match std::io::Read::read_exact(&mut self.from, buf) {
            Ok(()) => {
                self.offset += buf.len() as u64;
                Ok(true)
            }
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(Error::Io {
                offset: self.offset,
                source,
            }),
        }
    }
}

impl HBitmap {
    /// The bitmap with this layered form.
    ///
    /// # Errors
    /// [`Error::Layered`] with the byte at which the input is wrong.
    pub fn from_layered(bytes: &[u8], limits: &Limits) -> Result<Self> {
        read(&mut &*bytes, limits)
    }

    /// Reads a layered form up to the end of the input, which must be the end of the form
    /// as well. Reads are buffered.
    ///
    /// # Errors
    /// [`Error::Layered`] with the byte at which the input is wrong, [`Error::Io`].
    #[cfg(feature = "std")]
    pub fn read_layered(from: &mut impl std::io::Read, limits: &Limits) -> Result<Self> {
        read(
            &mut Reader {
                from: std::io::BufReader::new(from),
                offset: 0,
            },
            limits,
        )
    }
}

/// What has been read, and where.
struct Parser<'a, S> {
    source: &'a mut S,
    limits: &'a Limits,
    /// Start of the current chunk.
    start: u64,
    /// Bytes of the current chunk.
    chunk: Vec<u8>,
    /// Memory for what was read.
    memory: u64,
}

fn read<S: Source>(source: &mut S, limits: &Limits) -> Result<HBitmap> {
    let mut parser = Parser {
        source,
        limits,
        start: 0,
        chunk: Vec::new(),
        memory: 0,
    };
    let (mut bitmap, count) = parser.header()?;
    if count == bitmap.granules() {
        bitmap.set_all();
    } else if count != 0 {
        parser.levels(&mut bitmap.tree)?;
        if bitmap.count() != count {
            let found = bitmap.count();
            return Err(wrong_at(
                24,
                LayeredProblem::Count {
                    stored: count,
                    found,
                },
            ));
        }
    }
    parser.end()?;
    Ok(bitmap)
}

/// The byte at `offset` is wrong.
const fn wrong_at(offset: u64, problem: LayeredProblem) -> Error {
    Error::Layered { offset, problem }
}

impl<S: Source> Parser<'_, S> {
    /// The current chunk is wrong.
    const fn wrong(&self, problem: LayeredProblem) -> Error {
        wrong_at(self.start, problem)
    }

    /// Reads `N` more bytes of the current chunk.
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        if !self.source.fill(&mut bytes)? {
            return Err(self.wrong(LayeredProblem::Truncated));
        }
        self.chunk.extend(bytes);
        Ok(bytes)
    }

    fn take_u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    /// Ends the current chunk: its checksum must be `computed`.
    fn finish(&mut self, computed: u32) -> Result<()> {
        let stored = u32::from_le_bytes(self.take()?);
        if stored != computed {
            return Err(self.wrong(LayeredProblem::Checksum { stored, computed }));
        }
        Ok(())
    }

    /// The next chunk starts here.
    fn next(&mut self) {
        self.start += self.chunk.len() as u64;
        self.chunk.clear();
    }

    /// The clean bitmap and how many dirty granules it is to have.
    fn header(&mut self) -> Result<(HBitmap, u64)> {
        if self.take()? != MAGIC {
            return Err(self.wrong(LayeredProblem::Magic));
        }
        let version = u16::from_le_bytes(self.take()?);
        if version != VERSION {
            return Err(wrong_at(8, LayeredProblem::Version(version)));
        }
        let [bits] = self.take()?;
        let reserved: [u8; 5] = self.take()?;
        let (len, count) = (self.take_u64()?, self.take_u64()?);
        let mut crc = Crc32c::new();
        crc.update(&self.chunk);
        self.finish(crc.finish())?;
        debug_assert_eq!(self.chunk.len(), HEADER);

        if reserved != [0; 5] {
            return Err(wrong_at(11, LayeredProblem::Reserved));
        }
        let Ok(granularity) = Granularity::from_bits(u32::from(bits)) else {
            return Err(wrong_at(10, LayeredProblem::Granularity(bits)));
        };
        let Ok(bitmap) = HBitmap::new(len, granularity) else {
            return Err(wrong_at(16, LayeredProblem::Len(len)));
        };
        if len > self.limits.len {
            let limit = self.limits.len;
            return Err(wrong_at(16, LayeredProblem::Limit { found: len, limit }));
        }
        let granules = bitmap.granules();
        if count > granules {
            let problem = LayeredProblem::Count {
                stored: count,
                found: granules,
            };
            return Err(wrong_at(24, problem));
        }
        self.next();
        Ok((bitmap, count))
    }

    /// The chunks of all levels.
    fn levels(&mut self, tree: &mut Tree) -> Result<()> {
        if tree.height() == 0 {
            let slot = self.page(tree, 0)?;
            tree.set_root(slot);
            return Ok(());
        }
        let root = self.node(tree, tree.height(), 0)?;
        tree.set_root(Slot::At(root));
        // The nodes of the level above, and where they start.
        let mut above = Vec::from([(root, 0)]);
        for level in (0..tree.height()).rev() {
            let mut here = Vec::new();
            for (parent, base) in above {
                let node = tree.node(parent);
                for i in Bits(node.any & !node.full) {
                    let start = base + (u64::from(i) << span_bits(level));
                    let slot = if level == 0 {
                        self.page(tree, start)?
                    } else {
                        let id = self.node(tree, level, start)?;
                        here.push((id, start));
                        Slot::At(id)
                    };
                    tree.link(parent, i, slot);
                }
            }
            above = here;
        }
        Ok(())
    }

    /// A chunk of level 1 or above.
    fn node(&mut self, tree: &mut Tree, level: u32, base: u64) -> Result<u32> {
        let (any, full) = (self.take_u64()?, self.take_u64()?);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "there are nine levels at most"
        )]
        let crc = checksum(level as u8, base, &self.chunk);
        self.finish(crc)?;
        self.masks(any, full, tree.valid_kids(level, base))?;
        self.charge(288)?;
        self.next();
        Ok(tree.add_node(level, base, any, full))
    }

    /// A chunk of level 0.
    fn page(&mut self, tree: &mut Tree, base: u64) -> Result<Slot> {
        let [any, full] = self.take()?;
        let mut masks = [(0, 0); 8];
        for i in Bits(u64::from(any & !full)) {
            if let Some(m) = masks.get_mut(i as usize) {
                *m = (self.take_u64()?, self.take_u64()?);
            }
        }
        let mut words = [0; PAGE_WORDS];
        for (block, (any, full)) in words.as_chunks_mut::<64>().0.iter_mut().zip(&masks) {
            for j in Bits(any & !full) {
                if let Some(word) = block.get_mut(j as usize) {
                    *word = self.take_u64()?;
                }
            }
        }
        let crc = checksum(0, base, &self.chunk);
        self.finish(crc)?;

        let ones = tree.valid_page(base);
        let valid = |block: usize| {
            let words = ones.as_chunks::<64>().0.get(block).into_iter().flatten();
            words
                .enumerate()
                .fold(0, |m, (j, w)| m | u64::from(*w != 0) << j)
        };
        let blocks = (0..8).fold(0, |m, i| m | u64::from(valid(i) != 0) << i);
        self.masks(u64::from(any), u64::from(full), blocks)?;
        let parts = words
            .as_chunks_mut::<64>()
            .0
            .iter_mut()
            .zip(ones.as_chunks::<64>().0);
        for (i, ((block, ones), (some, all))) in parts.zip(masks).enumerate() {
            if full >> i & 1 != 0 {
                *block = *ones;
                continue;
            }
            if any >> i & 1 == 0 {
                continue;
            }
            self.masks(some, all, valid(i))?;
            for (j, (word, ones)) in block.iter_mut().zip(ones).enumerate() {
                if all >> j & 1 != 0 {
                    *word = *ones;
                } else if some >> j & 1 != 0 && (*word == 0 || word == ones || *word & !ones != 0) {
                    return Err(self.wrong(LayeredProblem::NotCanonical));
                }
            }
        }
        self.charge((64 + 10 * u64::from(kernel::nonzero(&words))).min(4096))?;
        self.next();
        Ok(tree.add_page(base, &words))
    }

    /// Two masks of something that is neither empty nor full.
    const fn masks(&self, any: u64, full: u64, valid: u64) -> Result<()> {
        if any == 0 || full == valid || any & !valid != 0 || full & !any != 0 {
            return Err(self.wrong(LayeredProblem::NotCanonical));
        }
        Ok(())
    }

    /// Counts memory against the limit.
    const fn charge(&mut self, bytes: u64) -> Result<()> {
        self.memory += bytes;
        if self.memory > self.limits.memory {
            let problem = LayeredProblem::Limit {
                found: self.memory,
                limit: self.limits.memory,
            };
            return Err(self.wrong(problem));
        }
        Ok(())
    }

    /// Nothing may follow.
    fn end(&mut self) -> Result<()> {
        if self.source.fill(&mut [0])? {
            return Err(self.wrong(LayeredProblem::TrailingData));
        }
        Ok(())
    }
}
