//! Runs the example of that name. It is a program of its own and not a list of tests, since
//! it starts itself again.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::ExitCode;

#[path = "../examples/unix_socket.rs"]
mod example;

fn main() -> ExitCode {
    example::main()
}
