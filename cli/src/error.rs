//! What ends a command early, and how it reads on standard error.

use std::io;

use crate::exit::Exit;

/// Why a command failed. Everything but [`Failure::Hinted`] and [`Failure::Option`] is
/// printed as `name: message`; the exit code is 1 unless said otherwise.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A message.
    Message(String),
    /// A mistake in the arguments: a message, and where to read about them.
    Hinted(String),
    /// A mistake in an option word itself, in getopt's form.
    Option(String),
    /// The format has no such operation (exit code 63, from `check`).
    Unsupported(String),
    /// A message and the exit code that goes with it.
    Coded(String, Exit),
    /// Standard output could not be written.
    Output(io::Error),
}

impl Failure {
    /// This failure with another exit code than 1, if it is a plain message.
    pub(crate) fn with(self, exit: Exit) -> Self {
        match self {
            Self::Message(text) => Self::Coded(text, exit),
            other => other,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Message(message)
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        Self::Message(message.into())
    }
}

/// The system's words for an I/O error, without Rust's "(os error 2)".
pub(crate) fn os_text(error: &io::Error) -> String {
    let text = error.to_string();
    match (error.raw_os_error(), text.rfind(" (os error ")) {
        (Some(_), Some(at)) => text.get(..at).unwrap_or(&text).to_owned(),
        _ => text,
    }
}

/// An error with its causes, joined by `: `.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = match error.downcast_ref::<io::Error>() {
            Some(error) => os_text(error),
            None => error.to_string(),
        };
        text.push_str(": ");
        text.push_str(&next);
        cause = error.source();
    }
    text
}
