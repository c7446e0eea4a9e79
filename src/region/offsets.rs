//! Offsets in bytes, in a mapping and in its region.

use std::ops::Add;

/// An offset in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InRegion(pub(crate) usize);

/// An offset in a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InMapping(pub(crate) usize);

impl InRegion {
    /// The start of the page of `size` bytes that contains it.
    pub(crate) fn page(self, size: usize) -> Self {
        Self(self.0 / size * size)
    }
}

/// The offset in the region of an offset in a mapping that starts here.
impl Add<InMapping> for InRegion {
    type Output = Self;

    fn add(self, offset: InMapping) -> Self {
        Self(self.0 + offset.0)
    }
}
