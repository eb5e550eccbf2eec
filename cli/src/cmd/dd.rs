//! `dd`: blocks of one image into a new one.

use std::{ffi::OsString, ops::Range};

use clap::Args;

use crate::{
    args::{Context, Run},
    cmd::convert::{ConvertArgs, copy_part},
    error::Failure,
    exit::Exit,
    size,
};

/// Bytes of a block, unless `bs=` says otherwise.
const BLOCK: u64 = 512;
/// The largest block.
const MAX_BLOCK: u64 = i32::MAX as u64;

/// Copy blocks of an image into a new one
///
/// The target gets its name when it is complete.
#[derive(Debug, Args)]
#[command(
    override_usage = "qimg dd [-f FMT | --image-opts] [-O FMT] [-U] [bs=SIZE] [count=BLOCKS] [skip=BLOCKS]\n         \
                      if=INPUT of=OUTPUT",
    after_long_help = "\
Operands:
  if=INPUT      the image to read
  of=OUTPUT     the image to make
  bs=SIZE       bytes of a block (512); k, M, G, T, P and E multiply
  count=BLOCKS  look at no more than the first so many blocks
  skip=BLOCKS   leave out the first so many of them

Examples:
  qimg dd -O qcow2 if=disk.raw of=disk.qcow2
  The second mebibyte:
      qimg dd bs=1M count=2 skip=1 if=disk.qcow2 of=part.raw

Exit code: 0 done, 1 failed."
)]
pub(crate) struct DdArgs {
    /// The format of INPUT (otherwise found out from its first bytes)
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// INPUT is a list such as driver=qcow2,file.filename=disk.qcow2
    #[arg(long)]
    image_opts: bool,

    /// The format of OUTPUT: raw (the default) or qcow2
    #[arg(short = 'O', long, value_name = "FMT")]
    output_format: Option<String>,

    /// Read without locks, from an image that another process may be writing
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Define a secret: secret,id=NAME,file=FILE
    #[arg(long, value_name = "OBJDEF", action = clap::ArgAction::Append)]
    object: Vec<String>,

    /// NAME=VALUE
    #[arg(value_name = "OPERAND", num_args = 0..)]
    operands: Vec<OsString>,
}

/// What the operands say.
#[derive(Debug, Default)]
struct Operands {
    input: Option<String>,
    output: Option<String>,
    block: Option<u64>,
    count: Option<u64>,
    skip: u64,
}

impl Operands {
    fn parse(words: &[OsString]) -> Result<Self, Failure> {
        let mut operands = Self::default();
        for word in words {
            let word = word.to_str().ok_or("An operand is no text")?;
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let unknown = || Failure::from(format!("unrecognized operand {name}"));
            if !word.contains('=') {
                return Err(unknown());
            }
            match name {
                "if" => operands.input = Some(value.into()),
                "of" => operands.output = Some(value.into()),
                "bs" => {
                    let bytes = size::parse_within("bs", value, 1..=MAX_BLOCK)?;
                    operands.block = Some(bytes);
                }
                "count" => operands.count = Some(size::parse_operand("count", value)?),
                "skip" => operands.skip = size::parse_operand("skip", value)?,
                _ => return Err(unknown()),
            }
        }
        Ok(operands)
    }

    /// The bytes that are copied of a disk of `size` bytes, and whether there are as many as
    /// are left out.
    fn range(&self, size: u64) -> (Range<u64>, bool) {
        let block = self.block.unwrap_or(BLOCK);
        let end = match self.count {
            Some(count) => count.saturating_mul(block).min(size),
            None => size,
        };
        match self.skip.checked_mul(block) {
            Some(start) if start <= end => (start..end, true),
            _ => (end..end, false),
        }
    }
}

impl Run for DdArgs {
    const NAME: &'static str = "dd";

    fn run(self, context: Context) -> Result<Exit, Failure> {
        let operands = Operands::parse(&self.operands)?;
        let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
            return Err("Must specify both input and output files".into());
        };
        let convert = ConvertArgs::for_dd(
            self.format,
            self.image_opts,
            self.output_format,
            self.force_share,
            [input.into(), output.into()],
        );
        copy_part(&convert, &context, |size| operands.range(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operands(words: &[&str]) -> Result<Operands, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Operands::parse(&words).map_err(|failure| match failure {
            Failure::Message(text) => text,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn count_is_of_the_first_blocks_and_skip_of_those() {
        let range = |words: &[&str], size| operands(words).unwrap().range(size);
        assert_eq!(range(&[], 1000), (0..1000, true));
        assert_eq!(range(&["bs=100", "count=3"], 1000), (0..300, true));
        assert_eq!(
            range(&["bs=1k", "count=3", "skip=2"], 1 << 20),
            (2048..3072, true)
        );
        assert_eq!(range(&["count=1", "skip=2"], 4096), (512..512, false));
        assert_eq!(range(&["skip=2"], 1000), (1000..1000, false));
        let huge = i64::MAX.to_string();
        let (skip, count) = (format!("skip={huge}"), format!("count={huge}"));
        assert_eq!(range(&["bs=1M", &skip], 1000), (1000..1000, false));
        assert_eq!(range(&["bs=1M", &count], 1000), (0..1000, true));
    }

    #[test]
    fn what_is_no_operand_is_refused() {
        assert_eq!(operands(&["foo"]).unwrap_err(), "unrecognized operand foo");
        assert_eq!(
            operands(&["conv=notrunc"]).unwrap_err(),
            "unrecognized operand conv"
        );
        assert_eq!(
            operands(&["bs=0"]).unwrap_err(),
            "Invalid bs specified. Must be between 1 and 2147483647."
        );
        assert_eq!(
            operands(&["skip=x"]).unwrap_err(),
            "Invalid skip specified: 'x'."
        );
    }
}
