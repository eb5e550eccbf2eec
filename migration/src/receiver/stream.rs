//! A receiver and the stream that it takes.

use std::{
    io::Read,
    sync::{Mutex, PoisonError},
};

use super::Receiver;
use crate::{Result, StreamReader};

impl Receiver {
    /// Takes a stream to its end.
    ///
    /// # Errors
    /// Whatever ends it early. [`finish`](Self::finish) then gives what was complete.
    pub fn receive<R: Read>(&mut self, stream: &mut StreamReader<R>) -> Result<()> {
        loop {
            let offset = stream.offset();
            match stream.next()? {
                Some(item) => self.apply(&item, offset)?,
                None => return Ok(()),
            }
        }
    }

    /// The same with a receiver that others [`record`](Self::record) to meanwhile: the lock
    /// isn't held while the transport is waited for.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_shared<R: Read>(this: &Mutex<Self>, stream: &mut StreamReader<R>) -> Result<()> {
        loop {
            let offset = stream.offset();
            match stream.next()? {
                Some(item) => this
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .apply(&item, offset)?,
                None => return Ok(()),
            }
        }
    }
}
