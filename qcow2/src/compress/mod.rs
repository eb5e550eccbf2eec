//! Compressed clusters: from the bytes in the file to a cluster of the guest's disk, and
//! the other way ([`Compressor`]).
//!
//! The compressed data's length is known in whole sectors only, so that what is behind
//! its end is ignored. What comes out is a cluster, never more: as for QEMU, output that
//! would go on is cut off, and too little of it is an error.

mod compressor;
mod noise;
mod packed;
mod zlib;
mod zstd;

use std::sync::{Mutex, PoisonError};

use crate::format::CompressionType;
pub(crate) use compressor::Compressor;
pub(crate) use packed::Packed;

/// Contexts that are kept for the next cluster; more threads than this make their own.
const MAX_IDLE: usize = 64;

/// Decompresses the clusters of an image, for many threads at once.
#[derive(Debug)]
pub(crate) struct Decompressor {
    kind: CompressionType,
    idle: Mutex<Vec<Context>>,
}

/// What a codec needs for one cluster, and can use again for the next.
enum Context {
    Zlib(zlib::Context),
    Zstd(zstd::Context),
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Zlib(_) => "Zlib",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl Decompressor {
    /// For clusters compressed with `kind`.
    pub(crate) fn new(kind: CompressionType) -> Self {
        Self {
            kind,
            idle: Mutex::default(),
        }
    }

    /// Fills `out`, a cluster, from `input`.
    ///
    /// # Errors
    /// What is wrong with the input.
    pub(crate) fn decompress(&self, input: &[u8], out: &mut [u8]) -> Result<(), String> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut context = match (kept, self.kind) {
            (Some(context), _) => context,
            (None, CompressionType::Zlib) => Context::Zlib(zlib::Context::new()),
            (None, CompressionType::Zstd) => Context::Zstd(zstd::Context::new()?),
        };
        let result = match &mut context {
            Context::Zlib(context) => context.decompress(input, out),
            Context::Zstd(context) => context.decompress(input, out),
        };
        let mut idle = idle();
        if idle.len() < MAX_IDLE {
            idle.push(context);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cluster of text that compresses.
    pub(super) fn text(len: usize) -> Vec<u8> {
        (0..len)
            .map(|i| b"qcow2 \n"[(i * i / 300 + i) % 7])
            .collect()
    }

    /// Bytes that no codec makes smaller.
    pub(super) fn noise(len: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect()
    }

    #[test]
    fn many_threads_share_a_decompressor() {
        let text = text(65536);
        let decompressor = Decompressor::new(CompressionType::Zlib);
        let stream = zlib::tests::deflate(&text);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let mut out = vec![0; text.len()];
                        decompressor.decompress(&stream, &mut out).unwrap();
                        assert_eq!(out, text);
                        assert!(decompressor.decompress(&text, &mut out).is_err());
                    }
                });
            }
        });
    }
}
