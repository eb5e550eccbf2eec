//! Where a stream comes from: standard input or a file; and the reader over it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, IsTerminal, Read, Seek, SeekFrom, Write},
    os::fd::AsFd,
};

use migration::{Limits, StreamReader, VmDescription};

use crate::{
    error::{Failure, os_text},
    output::Progress,
};

/// Bytes of a stream's end beyond its description that are looked at for it.
const BEFORE_DESCRIPTION: u64 = 64;

/// An open input.
#[derive(Debug)]
pub(crate) struct Input {
    file: File,
    /// Bytes in it, if it is a file and not a pipe.
    len: Option<u64>,
    name: Option<OsString>,
    /// Where what is read is kept.
    spool: Option<File>,
}

/// A stream that was read once, to be read again.
#[derive(Debug)]
pub(crate) struct Again {
    file: File,
    start: u64,
    name: Option<OsString>,
}

impl Again {
    /// The same stream from its beginning.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn open(mut self) -> io::Result<Input> {
        self.file.seek(SeekFrom::Start(self.start))?;
        Ok(Input {
            len: Some(self.file.metadata()?.len()),
            file: self.file,
            name: self.name,
            spool: None,
        })
    }
}

impl Input {
    /// Opens FILE, or standard input.
    ///
    /// # Errors
    /// It can't be opened; it is a terminal or a directory.
    pub(crate) fn open(name: Option<&OsStr>) -> Result<Self, Failure> {
        let file = match name {
            None => File::from(io::stdin().as_fd().try_clone_to_owned()?),
            Some(name) => File::open(name).map_err(|e| {
                let (name, reason) = (name.to_string_lossy(), os_text(&e));
                Failure::Message(format!("Could not open '{name}': {reason}"))
            })?,
        };
        let shown = name.map_or("standard input".into(), |name| {
            format!("'{}'", name.to_string_lossy())
        });
        if file.is_terminal() {
            return Err(format!(
                "the stream is expected on {shown}, which is a terminal: give a file or a pipe"
            )
            .into());
        }
        let metadata = file.metadata();
        let metadata = metadata.map_err(|e| format!("{shown}: {}", os_text(&e)))?;
        if metadata.is_dir() {
            return Err(format!("{shown} is a directory, not a stream").into());
        }
        Ok(Self {
            len: metadata.is_file().then_some(metadata.len()),
            file,
            name: name.map(ToOwned::to_owned),
            spool: None,
        })
    }

    /// Has what is read be read again: a file from where it is now, a pipe from a file
    /// without a name in the directory for temporary files, which takes as much space as
    /// the stream is long.
    ///
    /// # Errors
    /// I/O errors.
    pub(crate) fn twice(mut self) -> io::Result<(Self, Again)> {
        let (file, start) = match self.len {
            Some(_) => (self.file.try_clone()?, self.file.stream_position()?),
            None => {
                let spool = tempfile::tempfile()?;
                self.spool = Some(spool.try_clone()?);
                (spool, 0)
            }
        };
        let name = self.name.clone();
        Ok((self, Again { file, start, name }))
    }

    /// The file's name; `-` for standard input.
    pub(crate) fn name(&self) -> &OsStr {
        self.name.as_deref().unwrap_or(OsStr::new("-"))
    }

    /// The reader of the stream, with the default limits. Of a file it knows the
    /// description at the end, so that it can read past the states of devices. With
    /// `progress` it shows how far it is.
    ///
    /// # Errors
    /// The end can't be read.
    pub(crate) fn reader(mut self, progress: bool) -> Result<StreamReader<impl Read>, Failure> {
        let limits = Limits::default();
        let most = BEFORE_DESCRIPTION.saturating_add(limits.description as u64);
        let tail = self.tail(most).map_err(|e| {
            let name = self.name().to_string_lossy();
            format!("Could not read '{name}': {}", os_text(&e))
        })?;
        let description = tail.and_then(|tail| VmDescription::from_tail(&tail));
        let progress = if progress {
            Progress::new(self.len)
        } else {
            Progress::none()
        };
        let stream = StreamReader::with_limits(progress.reader(self), limits);
        Ok(stream.describe(description.unwrap_or_default()))
    }

    /// The last bytes of a file, `most` at most; `None` if it is a pipe. The place to read
    /// from stays where it is.
    ///
    /// # Errors
    /// I/O errors.
    fn tail(&mut self, most: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(len) = self.len else {
            return Ok(None);
        };
        let place = self.file.stream_position()?;
        let start = len.saturating_sub(most).max(place);
        self.file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        (&mut self.file).take(most).read_to_end(&mut tail)?;
        self.file.seek(SeekFrom::Start(place))?;
        Ok(Some(tail))
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read(buffer)?;
        if let Some(spool) = &mut self.spool {
            let read = buffer.get(..bytes).unwrap_or_default();
            spool.write_all(read).map_err(|e| {
                let text = format!("keeping the stream in a temporary file: {}", os_text(&e));
                io::Error::new(e.kind(), text)
            })?;
        }
        Ok(bytes)
    }
}
