//! Tables in memory: refcounts on demand, and the allocator over them; L1 tables, and
//! L2 tables as they are asked for.

mod allocator;
mod bounds;
mod l1;
mod l2_cache;
mod l2_dirty;
mod refcounts;
mod space;

pub(crate) use allocator::{Allocator, Plan, Run, TableChange};
pub(crate) use bounds::{Bounds, FileEnd};
pub(crate) use l1::L1Table;
pub(crate) use l2_cache::{L2Cache, SLICE};
pub(crate) use l2_dirty::{DirtySlices, slice_size};
pub use refcounts::Refcounts;
pub(crate) use refcounts::refcount_zero_in_use;
pub(crate) use space::Space;
