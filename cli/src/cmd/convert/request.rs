//! What the options ask for, and which of them go together, in qemu-img's words and order.

use qcow2::convert::ConvertOptions;

use super::ConvertArgs;
use crate::{cmd, error::Failure, getopt::Occurrence, size};

/// The largest `-S`.
const MAX_SPARSE: u64 = 16 << 20;

/// The options that aren't about files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) options: ConvertOptions,
    /// The target is to be on stable storage.
    pub(super) durable: bool,
}

/// Values that are refused as they are met.
pub(super) fn accept(met: &Occurrence) -> Result<(), Failure> {
    let Some(value) = &met.value else {
        return Ok(());
    };
    let text = value.to_string_lossy();
    match met.id.as_str() {
        "sparse_size" => sparse(&text).map(drop),
        "rate" => rate(&text).map(drop),
        "parallel" => {
            let digits = text.trim_start();
            let digits = digits.strip_prefix('+').unwrap_or(digits);
            let what = "Invalid number of coroutines specified";
            match digits.parse::<i64>() {
                Ok(1..=16) => Ok(()),
                Ok(_) => Err(format!("{what}. Must be between 1 and 16.").into()),
                Err(_) => Err(format!("{what}: '{text}'.").into()),
            }
        }
        _ => Ok(()),
    }
}

fn sparse(text: &str) -> Result<u64, Failure> {
    let what = "buffer size for sparse output";
    let bytes = size::parse_operand(what, text)?;
    if bytes % 512 != 0 || bytes > MAX_SPARSE {
        return Err(format!(
            "Invalid {what} specified. Valid sizes are multiples of 512 up to {MAX_SPARSE}. \
             Select 0 to disable sparse detection (fully allocates output)."
        )
        .into());
    }
    Ok(bytes)
}

fn rate(text: &str) -> Result<u64, Failure> {
    Ok(size::parse_operand("rate limit", text)?)
}

impl Request {
    pub(super) fn new(args: &ConvertArgs) -> Result<Self, Failure> {
        let offload = |why: &str| format!("Cannot enable copy offloading when {why} is used");
        if args.copy_range_offloading {
            if args.salvage {
                return Err("Cannot use copy offloading in salvaging mode".into());
            }
            if args.sparse_size.is_some() {
                return Err(offload("-S").into());
            }
            if args.compress {
                return Err(offload("-c").into());
            }
        }
        if args.skip_broken_bitmaps && !args.bitmaps {
            return Err("Use of --skip-broken-bitmaps requires --bitmaps".into());
        }
        if args.target_image_opts && !args.no_create {
            return Err("--target-image-opts requires use of -n flag".into());
        }
        if args.no_create && !args.options.is_empty() {
            return Err("-o has no effect when skipping image creation".into());
        }
        if args.target_is_zero && !args.no_create {
            return Err("--target-is-zero requires use of -n flag".into());
        }
        let mut options = ConvertOptions {
            salvage: args.salvage,
            ..ConvertOptions::default()
        };
        if let Some(text) = &args.sparse_size {
            options.sparse = sparse(text)?;
        }
        options.rate = args.rate.as_deref().map(rate).transpose()?;
        Ok(Self {
            options,
            durable: args.target_cache.as_deref() != Some("unsafe"),
        })
    }
}

/// `-t`
pub(super) fn check_target_cache(args: &ConvertArgs) -> Result<(), Failure> {
    match args.target_cache.as_deref() {
        Some(mode) if !cmd::is_cache_mode(mode) => {
            Err(format!("Invalid cache option: {mode}").into())
        }
        _ => Ok(()),
    }
}
