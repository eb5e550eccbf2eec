//! What a stream may make us hold in memory.

/// Bounds on what a reader or receiver keeps. A stream that needs more is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bitmaps in a stream. As many as a qcow2 image may hold.
    pub bitmaps: usize,
    /// Bytes of memory that the bits of all bitmaps together may take. Bits take memory
    /// only where they are mixed, so this is also a bound on what a stream has to send.
    pub memory: usize,
    /// Bytes of the VMDESCRIPTION and of the machine's name that are looked at. QEMU's own
    /// descriptions have a few hundred KiB at most.
    pub description: usize,
    /// Subsections of the configuration, and entries of a list within them.
    pub subsections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bitmaps: 65_535,
            memory: 2 << 30,
            description: 16 << 20,
            subsections: 256,
        }
    }
}
