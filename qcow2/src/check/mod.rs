//! Checking.

mod watch;

pub(crate) use watch::Watch;
