//! A small NBD client: what a backup program does to learn what is dirty.
//!
//! Fixed newstyle, structured replies and meta contexts over a Unix socket; one
//! request at a time. Errors of the server are panics, as befits a test.

use std::{
    io::{Read, Write},
    ops::Range,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;

const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_BLOCK_STATUS: u16 = 7;

const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_IS_ERROR: u16 = 0x8000;

/// A connection that has chosen an export.
#[derive(Debug)]
pub struct Nbd {
    stream: UnixStream,
    size: u64,
    contexts: Vec<(u32, String)>,
}

impl Nbd {
    /// Connects and asks for `export` with the meta contexts named.
    ///
    /// # Panics
    /// When the server has no such export or does not offer one of the contexts.
    #[must_use]
    pub fn connect(socket: &Path, export: &str, contexts: &[&str]) -> Self {
        let stream = connect_patiently(socket);
        let mut nbd = Self {
            stream,
            size: 0,
            contexts: Vec::new(),
        };
        assert_eq!(&nbd.take::<16>(), b"NBDMAGICIHAVEOPT");
        let flags = u16::from_be_bytes(nbd.take());
        assert_eq!(flags & 1, 1, "the server is not fixed newstyle");
        nbd.send(&3_u32.to_be_bytes()); // fixed newstyle, no zero padding

        nbd.option(OPT_STRUCTURED_REPLY, &[]);
        nbd.expect_ack();
        nbd.set_contexts(export, contexts);
        nbd.go(export);
        nbd
    }

    fn set_contexts(&mut self, export: &str, contexts: &[&str]) {
        let mut data = named(export);
        data.extend((contexts.len() as u32).to_be_bytes());
        for context in contexts {
            data.extend(named(context));
        }
        self.option(OPT_SET_META_CONTEXT, &data);
        loop {
            let (kind, reply) = self.option_reply();
            match kind {
                REP_ACK => break,
                REP_META_CONTEXT => {
                    let id = u32::from_be_bytes(reply[..4].try_into().unwrap());
                    let name = String::from_utf8(reply[4..].to_vec()).unwrap();
                    self.contexts.push((id, name));
                }
                other => panic!("meta contexts {contexts:?}: reply {other:#x}"),
            }
        }
        for context in contexts {
            assert!(
                self.contexts.iter().any(|(_, name)| name == context),
                "the export does not offer {context}"
            );
        }
    }

    fn go(&mut self, export: &str) {
        let mut data = named(export);
        data.extend(0_u16.to_be_bytes());
        self.option(OPT_GO, &data);
        loop {
            let (kind, reply) = self.option_reply();
            match kind {
                REP_ACK => return,
                REP_INFO if reply[..2] == [0, 0] => {
                    self.size = u64::from_be_bytes(reply[2..10].try_into().unwrap());
                }
                REP_INFO => {}
                other => panic!("export {export}: reply {other:#x}"),
            }
        }
    }

    /// Bytes of the export.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Ranges of the whole disk, in order, each with its flags in `context`; neighbours
    /// with the same flags are one range.
    #[must_use]
    pub fn status(&mut self, context: &str) -> Vec<(Range<u64>, u32)> {
        let id = self.contexts.iter().find(|(_, name)| name == context);
        let id = id
            .unwrap_or_else(|| panic!("{context} was not asked for"))
            .0;
        let mut out: Vec<(Range<u64>, u32)> = Vec::new();
        let mut at = 0;
        while at < self.size {
            let ask = (self.size - at).min(1 << 30);
            self.request(CMD_BLOCK_STATUS, at, ask as u32, &[]);
            let before = at;
            for (length, flags) in self.extents(id) {
                let end = (at + u64::from(length)).min(self.size);
                match out.last_mut() {
                    Some((last, f)) if *f == flags && last.end == at => last.end = end,
                    _ => out.push((at..end, flags)),
                }
                at = end;
            }
            assert!(at > before, "block status made no progress at {at}");
        }
        out
    }

    /// What the dirty bitmap `name` says is dirty; `qemu:dirty-bitmap:NAME` must be
    /// among the contexts.
    #[must_use]
    pub fn dirty(&mut self, name: &str) -> Vec<Range<u64>> {
        let status = self.status(&format!("qemu:dirty-bitmap:{name}"));
        let dirty = status.into_iter().filter(|(_, flags)| flags & 1 == 1);
        dirty.map(|(range, _)| range).collect()
    }

    /// Writes `length` bytes of `byte`.
    pub fn write(&mut self, offset: u64, length: u32, byte: u8) {
        self.request(CMD_WRITE, offset, length, &vec![byte; length as usize]);
        self.extents(0);
    }

    /// Makes the range read as zeros.
    pub fn zero(&mut self, offset: u64, length: u32) {
        self.request(CMD_WRITE_ZEROES, offset, length, &[]);
        self.extents(0);
    }

    /// Discards the range.
    pub fn trim(&mut self, offset: u64, length: u32) {
        self.request(CMD_TRIM, offset, length, &[]);
        self.extents(0);
    }

    /// Waits until everything written is on stable storage.
    pub fn flush(&mut self) {
        self.request(CMD_FLUSH, 0, 0, &[]);
        self.extents(0);
    }

    // -- the wire

    fn request(&mut self, kind: u16, offset: u64, length: u32, data: &[u8]) {
        let mut message = 0x2560_9513_u32.to_be_bytes().to_vec();
        message.extend(0_u16.to_be_bytes());
        message.extend(kind.to_be_bytes());
        message.extend(0_u64.to_be_bytes());
        message.extend(offset.to_be_bytes());
        message.extend(length.to_be_bytes());
        message.extend(data);
        self.send(&message);
    }

    /// Reads one reply to its end; the (length, flags) pairs of the context `id`.
    fn extents(&mut self, id: u32) -> Vec<(u32, u32)> {
        let mut out = Vec::new();
        loop {
            match u32::from_be_bytes(self.take()) {
                0x6744_6698 => {
                    let error = u32::from_be_bytes(self.take());
                    self.take::<8>();
                    assert_eq!(error, 0, "the server answered with an error");
                    return out;
                }
                0x668e_33ef => {}
                other => panic!("reply magic {other:#x}"),
            }
            let flags = u16::from_be_bytes(self.take());
            let kind = u16::from_be_bytes(self.take());
            self.take::<8>();
            let length = u32::from_be_bytes(self.take());
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data).unwrap();
            assert_eq!(
                kind & CHUNK_IS_ERROR,
                0,
                "the server answered with an error: {}",
                String::from_utf8_lossy(data.get(6..).unwrap_or_default())
            );
            let word = |four: &[u8]| u32::from_be_bytes(four.try_into().unwrap());
            if kind == CHUNK_BLOCK_STATUS && word(&data[..4]) == id {
                let pairs = data[4..].chunks_exact(8);
                out.extend(pairs.map(|pair| (word(&pair[..4]), word(&pair[4..]))));
            }
            if flags & 1 == 1 {
                return out;
            }
        }
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        let mut message = b"IHAVEOPT".to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.send(&message);
    }

    fn option_reply(&mut self) -> (u32, Vec<u8>) {
        assert_eq!(u64::from_be_bytes(self.take()), 0x0003_e889_0455_65a9);
        self.take::<4>();
        let kind = u32::from_be_bytes(self.take());
        let mut data = vec![0; u32::from_be_bytes(self.take()) as usize];
        self.stream.read_exact(&mut data).unwrap();
        (kind, data)
    }

    fn expect_ack(&mut self) {
        assert_eq!(self.option_reply().0, REP_ACK);
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        // A farewell only: a server that has gone already needs none.
        let mut message = 0x2560_9513_u32.to_be_bytes().to_vec();
        message.extend([0; 2]);
        message.extend(CMD_DISC.to_be_bytes());
        message.extend([0; 20]);
        let _ = self.stream.write_all(&message);
    }
}

/// A length in front of a text.
fn named(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u32).to_be_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

fn connect_patiently(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                let limit = Some(Duration::from_secs(60));
                stream.set_read_timeout(limit).unwrap();
                return stream;
            }
            Err(e) if Instant::now() > deadline => panic!("{}: {e}", socket.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
