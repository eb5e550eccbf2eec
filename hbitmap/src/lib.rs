//! Hierarchical dirty bitmaps.
