//! The `a=b,c=d` language of `-o`, `--image-opts` and `--object`.

mod image;
mod keyval;
mod object;
mod schema;
mod snapshot;

pub(crate) use image::{Backing, Driver, ImageSpec, Protocol, Reference, parse_path};
pub(crate) use keyval::{Pair, asks_for_help, is_list, split};
pub(crate) use object::{Secret, add_secret, define};
pub(crate) use schema::{Item, Kind, Schema, Value, Values};
pub(crate) use snapshot::SnapshotParam;
