//! Tables in memory: refcounts on demand, and the allocator over them.

mod allocator;
mod refcounts;

pub(crate) use allocator::{Allocator, Plan, Run, TableChange};
pub use refcounts::Refcounts;
pub(crate) use refcounts::refcount_zero_in_use;
