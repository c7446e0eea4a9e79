//! What an architecture offers: two traits, implemented by the type `Cpu` of its file.
//!
//! The values of single accesses are the low bits of a 64-bit register here; `raw` makes them of the caller's type.
//! Every function is unsafe by `raw`'s contract, for the pointer on the region's side. The portable file has one
//! condition more: nothing may revoke the mapping meanwhile.

use super::{AtomicPrimitive, Faulted, Primitive};
use core::ops::Range;

/// Single accesses. One that faults has no effect.
pub(super) trait Accesses {
    /// One load: the value's bits, zero-extended.
    unsafe fn load<T: Primitive>(p: *const T) -> Result<u64, Faulted>;

    /// One store of the bits that fit in a `T`.
    unsafe fn store<T: Primitive>(p: *mut T, value: u64) -> Result<(), Faulted>;

    /// Stores `new` if the memory holds `old`. Returns what it held, zero-extended or not. `old` is zero-extended.
    unsafe fn compare_exchange<T: AtomicPrimitive>(p: *mut T, old: u64, new: u64) -> Result<u64, Faulted>;

    /// Stores `value`. Returns the value before, zero-extended or not.
    unsafe fn swap<T: AtomicPrimitive>(p: *mut T, value: u64) -> Result<u64, Faulted>;

    /// Adds `value`, wrapping. Returns the value before, zero-extended or not.
    unsafe fn fetch_add<T: AtomicPrimitive>(p: *mut T, value: u64) -> Result<u64, Faulted>;
}

/// The bulk copies. The caller's buffer is valid for `len` bytes, which for the rounds is a multiple of `bulk::ROUND` and not
/// 0. All return how many bytes were done, in ascending order.
pub(super) trait Rounds {
    /// Out of a region. A load that faults leaves its whole round undone.
    unsafe fn rounds_out(dst: *mut u8, src: *const u8, len: usize) -> usize;

    /// Into a region, to an address that is a multiple of 32, or in one page. The count has what a faulting round had stored
    /// before.
    unsafe fn rounds_in(dst: *mut u8, src: *const u8, len: usize) -> usize;

    /// The lengths, in bytes, that `quick_out` and `quick_in` copy.
    const QUICK: Range<usize> = 0..0;

    /// The lengths among them that they copy in a few instructions, to be inlined.
    const QUICKEST: Range<usize> = 0..0;

    /// True if this machine has the two quick functions.
    fn is_quick() -> bool {
        false
    }

    /// Out of memory, with `len` in `QUICK`, on a machine where that is quick. The count may be short of the first byte that
    /// faults, and also where going on by words is faster. Bytes may be moved more than once.
    #[inline(always)]
    unsafe fn quick_out(_dst: *mut u8, _src: *const u8, _len: usize) -> usize {
        0
    }

    /// Into memory, in one page, as `quick_out`. The count has what was stored before the store that faults, as in
    /// `rounds_in`. Bytes that are stored more than once are the same each time.
    #[inline(always)]
    unsafe fn quick_in(_dst: *mut u8, _src: *const u8, _len: usize) -> usize {
        0
    }

    /// Out of memory, whatever `len` is, as `quick_out`. `None` where that is by the rounds, and before a call of `is_quick`.
    #[inline(always)]
    unsafe fn memory_out(_dst: *mut u8, _src: *const u8, _len: usize) -> Option<usize> {
        None
    }

    /// Into memory, as `memory_out` and `quick_in`.
    #[inline(always)]
    unsafe fn memory_in(_dst: *mut u8, _src: *const u8, _len: usize) -> Option<usize> {
        None
    }
}
