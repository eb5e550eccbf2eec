//! Writing the frame of a stream.

use std::io::Write;

use super::{Command, SectionKind, code};
use crate::{Error, Output, Result};

/// Writes a stream: its header, sections with footers, commands, and its end. The content
/// of a section goes to [`content`](Self::content).
///
/// Bytes are collected before the transport gets them; [`flush`](Self::flush) when the
/// other side is to see them.
#[derive(Debug)]
pub struct StreamWriter<W> {
    out: Output<W>,
    /// The id of the section that is open.
    open: Option<u32>,
}

impl<W: Write> StreamWriter<W> {
    /// Begins a stream for machines whose type starts with `machine`: empty for any.
    /// Writes header and CONFIGURATION.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name with a NUL or of 2^32 bytes; [`Error::Write`].
    pub fn new(out: W, machine: &str) -> Result<Self> {
        let len = u32::try_from(machine.len())
            .ok()
            .filter(|_| !machine.contains('\0'))
            .ok_or_else(|| Error::Refused("no stream can carry this machine name".into()))?;
        let mut out = Output::new(out);
        out.put(&code::MAGIC)?;
        out.put(&code::VERSION.to_be_bytes())?;
        out.put(&[code::CONFIGURATION])?;
        out.put(&len.to_be_bytes())?;
        out.put(machine.as_bytes())?;
        Ok(Self { out, open: None })
    }

    /// Bytes of the stream so far.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.out.offset()
    }

    /// Begins a section. Name, instance and version are written only for START and FULL.
    ///
    /// # Errors
    /// [`Error::Refused`] within another section, for id 0 (QEMU takes it for none), and
    /// for a name that isn't of 1 to 255 bytes; [`Error::Write`].
    pub fn begin(
        &mut self,
        kind: SectionKind,
        id: u32,
        name: &str,
        instance: u32,
        version: u32,
    ) -> Result<()> {
        self.between("a section")?;
        let len = u8::try_from(name.len())
            .ok()
            .filter(|len| *len != 0 && id != 0)
            .ok_or_else(|| {
                Error::Refused(format!(
                    "section '{}' of id {id}: allowed are names of 1 to 255 bytes and ids from 1",
                    name.escape_debug()
                ))
            })?;
        self.out.put(&[kind.to_byte()])?;
        self.out.put(&id.to_be_bytes())?;
        if matches!(kind, SectionKind::Start | SectionKind::Full) {
            self.out.put(&[len])?;
            self.out.put(name.as_bytes())?;
            self.out.put(&instance.to_be_bytes())?;
            self.out.put(&version.to_be_bytes())?;
        }
        self.open = Some(id);
        Ok(())
    }

    /// Where the content of the open section goes.
    pub const fn content(&mut self) -> &mut Output<W> {
        &mut self.out
    }

    /// Ends the open section with its footer.
    ///
    /// # Errors
    /// [`Error::Refused`] if none is open; [`Error::Write`].
    pub fn end(&mut self) -> Result<()> {
        let Some(id) = self.open.take() else {
            return Err(Error::Refused("no section is open".into()));
        };
        self.out.put(&[code::FOOTER])?;
        self.out.put(&id.to_be_bytes())
    }

    /// A COMMAND between sections.
    ///
    /// # Errors
    /// [`Error::Refused`] within a section, for [`Command::PACKAGED`] (that is
    /// [`packaged`](Self::packaged)'s), and for arguments above 65535 bytes;
    /// [`Error::Write`].
    pub fn command(&mut self, number: u16, argument: &[u8]) -> Result<()> {
        self.between("a command")?;
        if number == Command::PACKAGED {
            return Err(Error::Refused(
                "PACKAGED needs the stream that follows it".into(),
            ));
        }
        let command = Command { number, argument };
        let bytes = command.encode()?;
        self.out.put(&bytes)
    }

    /// The command PACKAGED with a nested stream of commands: LISTEN and RUN, by which
    /// postcopy switches over.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn packaged(&mut self, nested: &[Command<'_>]) -> Result<()> {
        self.between("a command")?;
        let mut bytes = Vec::new();
        for command in nested {
            bytes.extend(command.encode()?);
        }
        let len = u32::try_from(bytes.len())
            .map_err(|_| Error::Refused("a package is too long".into()))?;
        let package = Command {
            number: Command::PACKAGED,
            argument: &len.to_be_bytes(),
        };
        self.out.put(&package.encode()?)?;
        self.out.put(&bytes)
    }

    /// Gives the transport all that was written so far, and flushes it.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush()
    }

    /// Ends the stream, flushes the transport and gives it back. With `describe` an empty
    /// VMDESCRIPTION follows the EOF, for which QEMU looks.
    ///
    /// # Errors
    /// [`Error::Refused`] within a section; [`Error::Write`].
    pub fn finish(mut self, describe: bool) -> Result<W> {
        self.between("the end of the stream")?;
        self.out.put(&[code::EOF])?;
        if describe {
            let text = b"{}";
            self.out.put(&[code::VMDESCRIPTION, 0, 0, 0, 2])?;
            self.out.put(text)?;
        }
        self.out.into_inner()
    }

    fn between(&self, what: &str) -> Result<()> {
        match self.open {
            None => Ok(()),
            Some(id) => Err(Error::Refused(format!(
                "{what} can't be within section {id}"
            ))),
        }
    }
}

impl Command<'_> {
    /// The bytes of the command.
    fn encode(&self) -> Result<Vec<u8>> {
        let len = u16::try_from(self.argument.len()).map_err(|_| {
            Error::Refused(format!(
                "an argument of {} bytes for a command: allowed are 65535",
                self.argument.len()
            ))
        })?;
        let mut bytes = vec![code::COMMAND];
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(self.argument);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_stream() {
        let w = StreamWriter::new(Vec::new(), "").unwrap();
        let bytes = w.finish(true).unwrap();
        assert_eq!(bytes, b"QEVM\0\0\0\x03\x07\0\0\0\0\0\x06\0\0\0\x02{}");
    }

    #[test]
    fn sections_and_commands() {
        let mut w = StreamWriter::new(Vec::new(), "none").unwrap();
        assert_eq!(w.offset(), 0x11);
        w.command(Command::POSTCOPY_ADVISE, &[]).unwrap();
        w.begin(SectionKind::Start, 2, "dirty-bitmap", 0, 1)
            .unwrap();
        w.content().put(&[1]).unwrap();
        w.end().unwrap();
        w.command(Command::PING, &[0, 0, 0, 1]).unwrap();
        let plain = |number| Command {
            number,
            argument: &[],
        };
        w.packaged(&[
            plain(Command::POSTCOPY_LISTEN),
            plain(Command::POSTCOPY_RUN),
        ])
        .unwrap();
        w.begin(SectionKind::End, 2, "dirty-bitmap", 0, 1).unwrap();
        w.content().put(&[1]).unwrap();
        w.end().unwrap();
        let bytes = w.finish(false).unwrap();
        let want: &[&[u8]] = &[
            b"QEVM\0\0\0\x03\x07\0\0\0\x04none\x08\0\x03\0\0",
            b"\x01\0\0\0\x02\x0cdirty-bitmap\0\0\0\0\0\0\0\x01\x01\x7e\0\0\0\x02",
            b"\x08\0\x02\0\x04\0\0\0\x01",
            b"\x08\0\x07\0\x04\0\0\0\x0a\x08\0\x04\0\0\x08\0\x05\0\0",
            b"\x03\0\0\0\x02\x01\x7e\0\0\0\x02\0",
        ];
        assert_eq!(bytes, want.concat());
    }

    #[test]
    fn what_no_stream_can_have_is_refused() {
        assert!(StreamWriter::new(Vec::new(), "a\0b").is_err());
        let mut w = StreamWriter::new(Vec::new(), "").unwrap();
        assert!(w.end().is_err());
        assert!(w.begin(SectionKind::Full, 0, "x", 0, 1).is_err());
        assert!(w.begin(SectionKind::Full, 1, "", 0, 1).is_err());
        assert!(
            w.begin(SectionKind::Full, 1, &"x".repeat(256), 0, 1)
                .is_err()
        );
        assert!(w.command(Command::PACKAGED, &[0; 4]).is_err());
        assert!(w.command(Command::PING, &[0; 65536]).is_err());
        assert_eq!(w.offset(), 13);
        w.begin(SectionKind::Full, 1, "x", 0, 1).unwrap();
        assert!(w.begin(SectionKind::Full, 2, "y", 0, 1).is_err());
        assert!(w.command(Command::PING, &[0; 4]).is_err());
        assert!(w.packaged(&[]).is_err());
        assert!(w.finish(true).is_err());
    }
}
