//! zstd, which the spec calls type 1: frames, one after the other until the cluster is
//! full; QEMU writes one.
//!
//! A frame is decompressed at once, into the cluster itself, so that the window that its
//! header asks for costs nothing, however large.

use zstd_safe::{CCtx, DCtx, ErrorCode, find_frame_compressed_size, get_error_name};

/// The level that QEMU writes with, the library's default.
const LEVEL: i32 = 3;

/// The state of decompressing.
pub(super) struct Context(DCtx<'static>);

impl Context {
    pub(super) fn new() -> Result<Self, String> {
        let context = DCtx::try_create().ok_or("no memory for decompressing")?;
        Ok(Self(context))
    }

    /// Fills `out` from `input`.
    pub(super) fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> Result<(), String> {
        let (mut rest, mut made) = (input, 0);
        while let Some(room) = out.get_mut(made..).filter(|room| !room.is_empty()) {
            if rest.is_empty() {
                return Err(format!("zstd frames of {made} bytes only"));
            }
            let len = find_frame_compressed_size(rest).map_err(|code| words(made, code))?;
            let (frame, behind) = rest.split_at_checked(len).unwrap_or((rest, &[]));
            made += self
                .0
                .decompress(room, frame)
                .map_err(|code| words(made, code))?;
            rest = behind;
        }
        Ok(())
    }
}

/// The state of compressing.
pub(super) struct Compress(CCtx<'static>);

impl Compress {
    pub(super) fn new() -> Result<Self, String> {
        let context = CCtx::try_create().ok_or("no memory for compressing")?;
        Ok(Self(context))
    }

    /// Compresses `input` into `out`, as one frame; how many bytes that takes, `None` if
    /// there isn't room for them.
    pub(super) fn compress(
        &mut self,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<Option<usize>, String> {
        // Nothing else can go wrong with one call: there is memory, or no room.
        Ok(self.0.compress(out, input, LEVEL).ok())
    }
}

fn words(made: usize, code: ErrorCode) -> String {
    let reason = get_error_name(code);
    format!("no zstd frame after {made} bytes ({reason})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::tests::text;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
        zstd_safe::compress(&mut out, bytes, 3).unwrap();
        out
    }

    #[test]
    fn frames_fill_a_cluster_and_the_rest_is_ignored() {
        let text = text(65536);
        let mut out = vec![0; text.len()];
        let mut context = Context::new().unwrap();
        let mut input = frame(&text);
        input.extend([0xff; 511]);
        context.decompress(&input, &mut out).unwrap();
        assert_eq!(out, text);
        let mut two = frame(&text[..1000]);
        two.extend(frame(&text[1000..]));
        out.fill(0);
        context.decompress(&two, &mut out).unwrap();
        assert_eq!(out, text);
    }

    #[test]
    fn too_little_too_much_and_cut_frames_are_errors() {
        let text = text(4096);
        let stream = frame(&text);
        let mut context = Context::new().unwrap();
        let mut out = vec![0; text.len()];
        for end in 0..stream.len() {
            assert!(
                context.decompress(&stream[..end], &mut out).is_err(),
                "{end}"
            );
        }
        let error = context.decompress(&stream, &mut [0; 5000]).unwrap_err();
        assert_eq!(error, "zstd frames of 4096 bytes only");
        assert!(
            context
                .decompress(&frame(&vec![0; 64 << 20]), &mut out)
                .is_err()
        );
        for byte in 0..=255 {
            let _ = context.decompress(&[byte; 300], &mut out);
        }
        context.decompress(&stream, &mut out).unwrap();
        assert_eq!(out, text);
    }
}
