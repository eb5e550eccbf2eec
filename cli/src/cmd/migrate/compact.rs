//! The smallest stream: one FULL section, in which bitmap follows bitmap.

use std::{cell::RefCell, io::Write};

use hbitmap::{DirtyBitmap, State};
use migration::{
    BitmapFlags, ChunkWriter, Outgoing, Result, SectionKind, StreamWriter, write_compact,
};

/// Writes the bitmaps, which are at rest.
///
/// # Errors
/// Those of [`StreamWriter`] and [`write_compact`].
pub(super) fn send<W: Write>(
    out: W,
    bitmaps: &[Outgoing<RefCell<DirtyBitmap>>],
    machine: &str,
) -> Result<W> {
    let mut stream = StreamWriter::new(out, machine)?;
    let mut chunks = ChunkWriter::new();
    stream.begin(SectionKind::Full, 1, "dirty-bitmap", 0, 1)?;
    let w = stream.content();
    let mut left = bitmaps.len();
    if left == 0 {
        chunks.end_of_list(w)?;
    }
    for Outgoing {
        node, name, source, ..
    } in bitmaps
    {
        let bitmap = source.borrow();
        let flags = BitmapFlags {
            enabled: bitmap.state() == State::Recording,
            persistent: bitmap.is_persistent(),
        };
        let bits = bitmap.bits();
        chunks.start(w, node, name, bits.granularity(), flags)?;
        write_compact(w, &mut chunks, node, name, bits)?;
        left -= 1;
        if left == 0 {
            chunks.complete_last(w, node, name)?;
        } else {
            chunks.complete(w, node, name)?;
        }
    }
    stream.end()?;
    stream.finish(false)
}
