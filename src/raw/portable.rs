//! Plain volatile and atomic accesses, for architectures without a recovery file.
//!
//! A plain access cannot be skipped when it faults, so none is made where it could be revoked: mappings access the owner's
//! view under the read side of the memory lock (`locked.rs`). One cause of a fault remains, memory that the file itself
//! does not give: [`OwnerView::given`](crate::OwnerView) makes sure of that first.
#![expect(unsafe_code, reason = "plain accesses through raw pointers")]
// UNSAFETY: volatile and atomic accesses within `raw`'s contract while nothing is revoked.

use super::{AtomicPrimitive, Faulted, Primitive};
// Not from `crate::sync`: this is device memory, which is not part of the model.
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};
use nix::libc::ucontext_t;

/// A fault is a signal: the caller makes sure that no access faults.
pub(crate) const RECOVERABLE: bool = false;

/// Nothing recovers.
///
/// # Safety
///
/// None; the signature is that of the other architectures.
pub(crate) unsafe fn recover(_address: usize, _context: *mut ucontext_t) -> bool {
    false
}

/// One load.
///
/// # Safety
///
/// `raw`'s contract, and the mapping can't be revoked meanwhile.
#[inline(always)]
pub(crate) unsafe fn load<T: Primitive>(p: *const T) -> Result<T, Faulted> {
    // SAFETY: the caller's contract; volatile, as the device side, a guest and other processes may write the memory.
    Ok(unsafe { p.read_volatile() })
}

/// One store.
///
/// # Safety
///
/// `raw`'s contract, and the mapping can't be revoked meanwhile.
#[inline(always)]
pub(crate) unsafe fn store<T: Primitive>(p: *mut T, value: T) -> Result<(), Faulted> {
    // SAFETY: the caller's contract; volatile, as the device side, a guest and other processes may use the memory.
    unsafe { p.write_volatile(value) };
    Ok(())
}

/// Does `$body` with `$atomic` bound to the atomic at `$p`.
macro_rules! with_atomic {
    ($ty:ty, $p:expr, |$atomic:ident| $body:expr) => {
        match <$ty>::SIZE {
            1 => with_atomic!(AtomicU8, u8, $p, $atomic, $body),
            2 => with_atomic!(AtomicU16, u16, $p, $atomic, $body),
            4 => with_atomic!(AtomicU32, u32, $p, $atomic, $body),
            _ => with_atomic!(AtomicU64, u64, $p, $atomic, $body),
        }
    };
    ($kind:ident, $int:ident, $p:expr, $atomic:ident, $body:expr) => {{
        // SAFETY: the caller's contract: aligned and reachable; all other users of the memory are atomic or volatile.
        let $atomic = unsafe { $kind::from_ptr($p.cast::<$int>()) };
        $body
    }};
}

/// Stores `new` if the memory holds `old`; otherwise `Ok(Err(what it holds))`.
///
/// # Safety
///
/// `raw`'s contract, and the mapping can't be revoked meanwhile.
#[inline]
pub(crate) unsafe fn compare_exchange<T: AtomicPrimitive>(p: *mut T, old: T, new: T) -> Result<Result<T, T>, Faulted> {
    use super::primitive::sealed::Bits;
    let (old, new) = (old.to_bits(), new.to_bits());
    Ok(with_atomic!(T, p, |atomic| {
        match atomic.compare_exchange(Bits::from_bits(old), Bits::from_bits(new), SeqCst, SeqCst) {
            Ok(before) => Ok(T::from_bits(before.to_bits())),
            Err(before) => Err(T::from_bits(before.to_bits())),
        }
    }))
}

/// Stores `value`; returns the value before.
///
/// # Safety
///
/// `raw`'s contract, and the mapping can't be revoked meanwhile.
#[inline]
pub(crate) unsafe fn swap<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
    use super::primitive::sealed::Bits;
    Ok(with_atomic!(T, p, |atomic| T::from_bits(atomic.swap(Bits::from_bits(value.to_bits()), SeqCst).to_bits())))
}

/// Adds `value`, wrapping around; returns the value before.
///
/// # Safety
///
/// `raw`'s contract, and the mapping can't be revoked meanwhile.
#[inline]
pub(crate) unsafe fn fetch_add<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
    use super::primitive::sealed::Bits;
    Ok(with_atomic!(T, p, |atomic| T::from_bits(atomic.fetch_add(Bits::from_bits(value.to_bits()), SeqCst).to_bits())))
}

/// Nothing to unroll: bulk copies go by words, here.
///
/// # Safety
///
/// None; the signature is that of the other architectures.
pub(crate) unsafe fn rounds_out(_dst: *mut u8, _src: *const u8, _len: usize) -> usize {
    0
}

/// Nothing to unroll.
///
/// # Safety
///
/// None; the signature is that of the other architectures.
pub(crate) unsafe fn rounds_in(_dst: *mut u8, _src: *const u8, _len: usize) -> usize {
    0
}

/// There are no tables.
pub(crate) fn keep_loaded() {}
