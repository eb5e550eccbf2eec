//! Commands between the sections.

use std::io::Read;

use super::Command;
use crate::{
    Result,
    error::{invalid, unsupported},
    input::Input,
};

/// Takes a command behind its byte 08: its number, and the length of its argument, which
/// are the bytes that were taken last.
pub(crate) fn read<R: Read>(input: &mut Input<R>, offset: u64) -> Result<(u16, usize)> {
    let number = input.be16("a command")?;
    let len = input.be16("a command")?;
    let name = Command {
        number,
        argument: &[],
    }
    .name();
    let allowed: Option<u16> = match number {
        0 => {
            return Err(invalid(offset, "COMMAND", "number 0", "numbers from 1"));
        }
        Command::POSTCOPY_ADVISE if len != 0 => return postcopy_ram(offset),
        Command::POSTCOPY_RAM_DISCARD | Command::POSTCOPY_RESUME | Command::RECV_BITMAP => {
            return postcopy_ram(offset);
        }
        Command::ENABLE_COLO => {
            return Err(unsupported(
                offset,
                "a COLO stream",
                "it has no end at which bitmaps would be complete",
            ));
        }
        Command::PING | Command::PACKAGED => Some(4),
        // What a newer QEMU may bring has a length, and so can be read past.
        _ => name.is_some().then_some(0),
    };
    if allowed.is_some_and(|allowed| allowed != len) {
        return Err(invalid(
            offset,
            format!("COMMAND {}", name.unwrap_or_default()),
            format_args!("an argument of {len} bytes"),
            format_args!("{}", allowed.unwrap_or_default()),
        ));
    }
    let len = usize::from(len);
    input.take(len, "the argument of a command")?;
    Ok((number, len))
}

fn postcopy_ram<T>(offset: u64) -> Result<T> {
    Err(unsupported(
        offset,
        "a stream with postcopy of RAM",
        "its pages come in a form of their own, and in part on other channels",
    ))
}
