//! Plain volatile and atomic accesses, for architectures without a recovery file.
//!
//! A plain access cannot be skipped when it faults, so none is made where it could be revoked: mappings access the owner's
//! view under the read side of the memory lock (`locked.rs`). One cause of a fault remains, memory that the file itself
//! does not give: [`OwnerView::given`](crate::OwnerView) makes sure of that first.
#![expect(unsafe_code, reason = "plain accesses through raw pointers")]
// UNSAFETY: volatile and atomic accesses within `raw`'s contract while nothing is revoked.

use super::contract::{Accesses, Rounds};
use super::primitive::sealed::Bits;
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

/// There are no tables.
pub(crate) fn keep_loaded() {}

/// The compiler's own accesses.
pub(super) enum Cpu {}

/// Does `$body` with `$atomic` bound to the atomic at `$p`; what comes out is the bits.
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
        Ok($body.to_bits())
    }};
}

impl Accesses for Cpu {
    #[inline(always)]
    unsafe fn load<T: Primitive>(p: *const T) -> Result<u64, Faulted> {
        // SAFETY: the caller's contract; volatile, as anyone may write the memory.
        let value = unsafe { p.read_volatile() };
        Ok(value.to_bits())
    }

    #[inline(always)]
    unsafe fn store<T: Primitive>(p: *mut T, value: u64) -> Result<(), Faulted> {
        // SAFETY: the caller's contract; volatile, as anyone may use the memory.
        unsafe { p.write_volatile(T::from_bits(value)) };
        Ok(())
    }

    #[inline]
    unsafe fn compare_exchange<T: AtomicPrimitive>(p: *mut T, old: u64, new: u64) -> Result<u64, Faulted> {
        with_atomic!(T, p, |atomic| {
            let exchanged = atomic.compare_exchange(Bits::from_bits(old), Bits::from_bits(new), SeqCst, SeqCst);
            exchanged.unwrap_or_else(|before| before)
        })
    }

    #[inline]
    unsafe fn swap<T: AtomicPrimitive>(p: *mut T, value: u64) -> Result<u64, Faulted> {
        with_atomic!(T, p, |atomic| atomic.swap(Bits::from_bits(value), SeqCst))
    }

    #[inline]
    unsafe fn fetch_add<T: AtomicPrimitive>(p: *mut T, value: u64) -> Result<u64, Faulted> {
        with_atomic!(T, p, |atomic| atomic.fetch_add(Bits::from_bits(value), SeqCst))
    }
}

/// Nothing to unroll: bulk copies go by words, here.
impl Rounds for Cpu {
    unsafe fn rounds_out(_dst: *mut u8, _src: *const u8, _len: usize) -> usize {
        0
    }

    unsafe fn rounds_in(_dst: *mut u8, _src: *const u8, _len: usize) -> usize {
        0
    }
}
