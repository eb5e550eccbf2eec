//! Bitmaps through a stream between two threads: what goes from image to image takes the
//! same way as what goes from machine to machine.

use std::{
    cell::RefCell,
    io::{self, PipeReader, PipeWriter},
    thread,
};

use hbitmap::{DirtyBitmap, HBitmap, State};
use migration::{
    AliasMap, Error, Limits, Node, Outgoing, Receiver, Sender, SenderOptions, StreamReader, Style,
};

use crate::error::{Failure, chain};

/// What the one node is called on the wire.
const NODE: &str = "n";

/// Sends bitmaps over a disk of `len` bytes, bits and whether they record, and receives
/// them, in their order. On the wire they have numbers for names, as what an image may call
/// a bitmap isn't always fit for a stream.
///
/// # Errors
/// One of the two halves refuses; what arrived isn't what was sent.
pub(super) fn through_a_pipe(
    bitmaps: Vec<(HBitmap, bool)>,
    len: u64,
) -> Result<Vec<(HBitmap, bool)>, Failure> {
    let count = bitmaps.len();
    let (input, output) = io::pipe()?;
    let (sent, received) = thread::scope(|scope| {
        let sender = scope.spawn(move || send(bitmaps, output));
        let received = receive(input, len, count);
        (sender.join(), received)
    });
    let failed = |e: Error| Failure::Message(format!("the bitmaps can't be sent: {}", chain(&e)));
    match sent {
        // A receiver that gives up breaks the sender's pipe: its reason counts.
        Ok(Err(Error::Write { .. })) if received.is_err() => {}
        Ok(Err(e)) => return Err(failed(e)),
        Err(_) => return Err("the bitmaps can't be sent".into()),
        Ok(Ok(())) => {}
    }
    received
}

fn send(bitmaps: Vec<(HBitmap, bool)>, output: PipeWriter) -> Result<(), Error> {
    let mut outgoing = Vec::with_capacity(bitmaps.len());
    for (number, (bits, recording)) in bitmaps.into_iter().enumerate() {
        let name = number.to_string();
        let mut bitmap = DirtyBitmap::new(&name, bits);
        bitmap.set_persistent(true);
        if !recording {
            bitmap.disable()?;
        }
        outgoing.push(Outgoing::new(NODE, name, RefCell::new(bitmap)));
    }
    let options = SenderOptions {
        style: Style::Compact,
        ..SenderOptions::default()
    };
    Sender::begin(output, outgoing, options)?.complete()?;
    Ok(())
}

fn receive(input: PipeReader, len: u64, count: usize) -> Result<Vec<(HBitmap, bool)>, Failure> {
    // What is sent is in memory already.
    let mut limits = Limits::default();
    limits.bitmaps = count;
    limits.memory = usize::MAX;
    let node = Node::new(NODE, len);
    let mut receiver = Receiver::new(vec![node], AliasMap::identity(), limits);
    let mut stream = StreamReader::with_limits(input, limits);
    let ended = receiver.receive(&mut stream);
    ended.map_err(|e| format!("the bitmaps can't be received: {}", chain(&e)))?;
    let outcome = receiver.finish();
    if let Some(lost) = outcome.lost.first() {
        return Err(format!("a bitmap can't be received: {}", lost.reason).into());
    }
    let mut received: Vec<Option<(HBitmap, bool)>> = (0..count).map(|_| None).collect();
    for bitmap in outcome.complete {
        let number = bitmap.bitmap_alias.parse().ok();
        if let Some(place) = number.and_then(|number: usize| received.get_mut(number)) {
            let recording = bitmap.bitmap.state() == State::Recording;
            *place = Some((bitmap.bitmap.into_bits(), recording));
        }
    }
    let all: Option<Vec<_>> = received.into_iter().collect();
    all.ok_or_else(|| "a bitmap didn't arrive".into())
}
