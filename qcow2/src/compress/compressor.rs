//! [`Compressor`]: from a cluster of the guest's disk to the bytes of a compressed one.

use std::sync::{Mutex, PoisonError};

use super::{MAX_IDLE, noise::is_noise, zlib, zstd};
use crate::{Error, Result, format::CompressionType};

/// Compresses clusters for an image, for many threads at once.
#[derive(Debug)]
pub(crate) struct Compressor {
    kind: CompressionType,
    idle: Mutex<Vec<Context>>,
}

/// What a codec needs for one cluster, and can use again for the next.
enum Context {
    Zlib(Box<zlib::Deflate>),
    Zstd(zstd::Compress),
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Zlib(_) => "Zlib",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl Compressor {
    /// For clusters compressed with `kind`.
    pub(crate) fn new(kind: CompressionType) -> Self {
        Self {
            kind,
            idle: Mutex::default(),
        }
    }

    /// Compresses `cluster`, which is a whole one (the last of a disk is filled up with
    /// zeros), into `out`, whatever is in that; false if it would not become smaller, so
    /// that it is better stored as it is.
    ///
    /// # Errors
    /// As [`compress_into`](Self::compress_into).
    pub(crate) fn compress(&self, cluster: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        out.resize(Self::room(cluster.len()), 0);
        let made = self.compress_into(cluster, out)?;
        out.truncate(made.unwrap_or(0));
        Ok(made.is_some())
    }

    /// Bytes that [`compress_into`](Self::compress_into) needs room for, so that a cluster
    /// of `len` bytes is compressed to the end, larger as it may be: no stream is begun
    /// anew that ran out of room before.
    pub(crate) const fn room(len: usize) -> usize {
        // What zlib says of its worst case.
        len.saturating_add(len / 8 + len / 64 + 64)
    }

    /// Compresses `cluster` into the front of `out`, which has [`room`](Self::room): how
    /// many bytes that takes, or `None` if they aren't fewer than those of the cluster.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is no memory for it.
    pub(crate) fn compress_into(&self, cluster: &[u8], out: &mut [u8]) -> Result<Option<usize>> {
        // zstd finds out by itself, as fast.
        if self.kind == CompressionType::Zlib && is_noise(cluster) {
            return Ok(None);
        }
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let refused = |what: String| Error::Refused(format!("compressing a cluster: {what}"));
        let mut context = match (kept, self.kind) {
            (Some(context), _) => context,
            (None, CompressionType::Zlib) => Context::Zlib(Box::new(zlib::Deflate::new())),
            (None, CompressionType::Zstd) => Context::Zstd(zstd::Compress::new().map_err(refused)?),
        };
        let made = match &mut context {
            Context::Zlib(context) => context.compress(cluster, out),
            Context::Zstd(context) => context.compress(cluster, out),
        };
        let made = made.map_err(refused)?;
        let mut idle = idle();
        if idle.len() < MAX_IDLE {
            idle.push(context);
        }
        Ok(made.filter(|made| *made < cluster.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::{
        Decompressor,
        tests::{noise, text},
    };

    #[test]
    fn what_is_compressed_is_decompressed() {
        for kind in [CompressionType::Zlib, CompressionType::Zstd] {
            let (there, back) = (Compressor::new(kind), Decompressor::new(kind));
            let mut packed = vec![9; 7];
            for bits in 9..=21 {
                let len = 1 << bits;
                for cluster in [text(len), vec![0; len], vec![255; len]] {
                    assert!(there.compress(&cluster, &mut packed).unwrap(), "{bits}");
                    assert!(packed.len() < len, "{bits}");
                    let mut out = vec![1; len];
                    back.decompress(&packed, &mut out).unwrap();
                    assert!(out == cluster, "{kind:?}, {bits}");
                }
                assert!(!there.compress(&noise(len), &mut packed).unwrap(), "{bits}");
                assert!(packed.is_empty());
            }
        }
    }

    #[test]
    fn there_is_room_for_what_becomes_larger() {
        for len in (9..=21).map(|bits| 1 << bits) {
            // Without matches, but for some that are as far as the window reaches.
            let mut some = noise(len);
            for at in (4000..len).step_by(4096) {
                some.copy_within(at - 3900..at - 3890, at);
            }
            for cluster in [noise(len), some] {
                let mut out = vec![0; Compressor::room(len)];
                let made = zlib::Deflate::new().compress(&cluster, &mut out);
                assert!(made.unwrap().is_some(), "{len}");
                let made = zstd::Compress::new().unwrap().compress(&cluster, &mut out);
                assert!(made.unwrap().is_some(), "{len}");
            }
        }
    }

    #[test]
    fn many_threads_share_a_compressor() {
        let compressor = Compressor::new(CompressionType::Zlib);
        let (text, mut first) = (text(65536), Vec::new());
        assert!(compressor.compress(&text, &mut first).unwrap());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut out = Vec::new();
                    for _ in 0..20 {
                        assert!(compressor.compress(&text, &mut out).unwrap());
                        assert_eq!(out, first, "the same each time");
                    }
                });
            }
        });
    }
}
