//! Addresses: guest and host, bytes and clusters, each a type of its own.
//!
//! Confusing a place on the guest's disk with a place in the image file is the
//! classic bug of this format, and so is confusing bytes with clusters. Turning
//! one into another always goes through [`Geometry`](crate::Geometry).

use std::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The plain number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// `self + by`, or `None` past 2^64.
            #[must_use]
            pub const fn checked_add(self, by: u64) -> Option<Self> {
                match self.0.checked_add(by) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(self, f)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A byte of the disk that the guest sees.
    GuestOffset
}
address! {
    /// A byte of the image file (or of the external data file).
    HostOffset
}
address! {
    /// The index of a cluster of the image file: byte offset divided by the cluster size.
    HostCluster
}
