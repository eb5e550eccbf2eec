//! Raw deflate, without zlib's header, which the spec calls type 0.
//!
//! Writers use a window of 12 bits, as QEMU's readers ask for no more; here the largest,
//! 15 bits, is read.

use flate2::{Decompress, FlushDecompress, Status};
use zlib_rs::{DeflateConfig, DeflateFlush, Method, Strategy};

/// Bits of the window that is written: QEMU's readers have no larger one.
const WINDOW_BITS: i32 = 12;
/// What streams are written with.
///
/// They are no larger than those of zlib's level 6, which QEMU writes, whatever the data.
/// This library's levels up to 8 look for matches of four bytes and more: that costs 2 to
/// 3 % on programs and libraries, where a window of 12 bits has many of three. Symbols for
/// blocks as large as QEMU's (`mem_level`) save some of the blocks' headers.
const CONFIG: DeflateConfig = DeflateConfig {
    level: 9,
    method: Method::Deflated,
    window_bits: -WINDOW_BITS,
    mem_level: 9,
    strategy: Strategy::Default,
};

/// The state of inflating.
pub(super) struct Context(Decompress);

impl Context {
    pub(super) fn new() -> Self {
        Self(Decompress::new(false))
    }

    /// Fills `out` from `input`.
    pub(super) fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<(), String> {
        let stream = &mut self.0;
        stream.reset(false);
        let status = stream
            .decompress(input, out, FlushDecompress::Finish)
            .map_err(|e| format!("no deflate stream ({e})"))?;
        let made = usize::try_from(stream.total_out()).unwrap_or(0);
        match status {
            _ if made == out.len() => Ok(()),
            Status::StreamEnd => Err(format!("a deflate stream of {made} bytes only")),
            Status::Ok | Status::BufError => {
                Err(format!("a deflate stream cut after {made} bytes"))
            }
        }
    }
}

/// The state of deflating.
pub(super) struct Deflate(zlib_rs::Deflate);

impl Deflate {
    pub(super) fn new() -> Self {
        Self(zlib_rs::Deflate::new_with_config(CONFIG))
    }

    /// Compresses `input` into `out`; how many bytes that takes, `None` if there isn't
    /// room for them.
    pub(super) fn compress(
        &mut self,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Option<usize>, String> {
        let status = self.0.compress(input, out, DeflateFlush::Finish);
        let made = usize::try_from(self.0.total_out()).ok();
        if let Ok(zlib_rs::Status::StreamEnd) = status {
            self.0.reset();
            return Ok(made);
        }
        // The library doesn't always bear that such a stream is reset.
        *self = Self::new();
        match status {
            Ok(_) => Ok(None),
            Err(error) => Err(error.as_str().into()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;
    use crate::compress::tests::text;

    /// Raw deflate of `bytes`, with the largest window.
    pub(in crate::compress) fn deflate(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 100);
        Compress::new(Compression::default(), false)
            .compress_vec(bytes, &mut out, FlushCompress::Finish)
            .unwrap();
        out
    }

    #[test]
    fn what_follows_the_stream_is_ignored() {
        let text = text(65536);
        let mut stream = deflate(&text);
        stream.extend([0xff; 511]);
        let mut out = vec![0; text.len()];
        Context::new().decompress(&stream, &mut out).unwrap();
        assert_eq!(out, text);
    }

    #[test]
    fn a_window_of_12_bits_is_enough_for_what_is_written() {
        let text: Vec<u8> = text(40_000).into_iter().cycle().take(1 << 21).collect();
        let mut stream = vec![0; text.len()];
        let len = Deflate::new().compress(&text, &mut stream).unwrap();
        let mut out = vec![0; text.len()];
        let mut small = Decompress::new_with_window_bits(false, 12);
        let status = small.decompress(&stream[..len.unwrap()], &mut out, FlushDecompress::Finish);
        assert!(matches!(status, Ok(Status::StreamEnd)));
        assert!(out == text);
        assert_eq!(Deflate::new().compress(&text, &mut [0; 100]), Ok(None));
    }

    #[test]
    fn a_stream_that_ran_out_of_room_leaves_nothing_behind() {
        let (text, mut deflate) = (text(65536), Deflate::new());
        let mut expected = vec![0; 65536];
        let len = Deflate::new().compress(&text, &mut expected).unwrap();
        for room in 0..len.unwrap() {
            assert_eq!(
                deflate.compress(&text, &mut vec![0; room]),
                Ok(None),
                "{room}"
            );
            let mut out = vec![0; 65536];
            assert_eq!(deflate.compress(&text, &mut out), Ok(len), "{room}");
            assert!(out == expected, "{room}");
        }
    }

    #[test]
    fn output_is_a_cluster_no_less_and_no_more() {
        let stream = deflate(&text(70000));
        let mut context = Context::new();
        let mut out = vec![0; 65536];
        context.decompress(&stream, &mut out).unwrap();
        assert_eq!(out, text(70000)[..65536]);
        let bomb = deflate(&vec![0; 64 << 20]);
        context.decompress(&bomb, &mut out).unwrap();
        assert_eq!(out, [0; 65536]);
        let error = context.decompress(&stream, &mut [0; 70001]).unwrap_err();
        assert_eq!(error, "a deflate stream of 70000 bytes only");
    }

    #[test]
    fn cut_or_damaged_streams_are_errors() {
        let text = text(4096);
        let stream = deflate(&text);
        let mut context = Context::new();
        let mut out = vec![0; text.len()];
        for end in 0..stream.len() - 4 {
            assert!(
                context.decompress(&stream[..end], &mut out).is_err(),
                "{end}"
            );
        }
        let error = context.decompress(&[], &mut out).unwrap_err();
        assert_eq!(error, "a deflate stream cut after 0 bytes");
        for byte in 0..=255 {
            // Anything but a panic.
            let _ = context.decompress(&[byte; 300], &mut out);
        }
        context.decompress(&stream, &mut out).unwrap();
        assert_eq!(out, text);
    }
}
