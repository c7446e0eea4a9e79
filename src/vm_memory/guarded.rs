//! The bitmap of a region, whose slices keep the region enabled.
//!
//! vm-memory's own accesses go by address, through slices of memory. The only part of such a slice that a region chooses is
//! its bitmap: so that is where the guard is.

use crate::access::guard::Access;
use ::vm_memory::bitmap::{BS, Bitmap, BitmapSlice, WithBitmapSlice};
use std::rc::Rc;

/// The bitmap of a [`RevocableRegion`](super::RevocableRegion): the one it was made with, and for slices of memory a guard
/// of the mapping.
///
/// Only a region has one: vm-memory's `IommuMemory` puts the slices of a bitmap of its own, of this type, in place of those
/// that have guards, and its slices would outlive the region's enabled state.
///
/// ```compile_fail,E0277
/// fn make<T: Default>() -> T {
///     T::default()
/// }
/// let bitmap: revocable_mmio::vm_memory::Guarded<()> = make();
/// ```
#[derive(Debug)]
pub struct Guarded<B>(pub(super) B);

/// A slice of a [`Guarded`] bitmap. The one in a slice of memory keeps its region enabled, like an
/// [`Access`](crate::Access), as do all slices that are made of it.
#[derive(Clone, Debug)]
pub struct GuardedSlice<'a, S> {
    bitmap: S,
    guard: Option<Rc<Access<'a>>>,
}

impl<'a, S> GuardedSlice<'a, S> {
    pub(super) fn new(bitmap: S, guard: Option<Access<'a>>) -> Self {
        Self { bitmap, guard: guard.map(Rc::new) }
    }
}

impl<'a, B: Bitmap> WithBitmapSlice<'a> for Guarded<B> {
    type S = GuardedSlice<'a, BS<'a, B>>;
}

impl<B: Bitmap> Bitmap for Guarded<B> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.0.mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> BS<'_, Self> {
        GuardedSlice::new(self.0.slice_at(offset), None)
    }
}

impl<'a, S: BitmapSlice> WithBitmapSlice<'_> for GuardedSlice<'a, S> {
    type S = GuardedSlice<'a, S>;
}

impl<S: BitmapSlice> BitmapSlice for GuardedSlice<'_, S> {}

impl<S: BitmapSlice> Bitmap for GuardedSlice<'_, S> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.bitmap.mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.bitmap.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { bitmap: self.bitmap.slice_at(offset), guard: self.guard.clone() }
    }
}
