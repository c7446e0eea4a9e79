//! Single recoverable accesses: their contract, and the code that all architectures share.
//!
//! Each architecture offers the same few accesses (`contract.rs`): one instruction each, listed in the recovery table
//! (`table.rs`). A fault in one of them returns [`Faulted`] instead of raising a signal. On architectures without a file of
//! their own, accesses are plain (`portable.rs`), [`RECOVERABLE`] is false, and mappings make accesses under the read side of the
//! memory lock (`locked.rs`).
//!
//! # Safety of every access here
//!
//! The pointer is aligned for its type and lies in a range that this crate mapped and over which nothing else is mapped.
//! The range may be revoked, in any way, at any time. Other threads, the device side, a guest and other processes may write
//! the memory at any time: no reference to it exists, and each access is a single one. The *caller's* buffers of the bulk
//! functions are ordinary memory, outside of every region.
//!
//! Like a volatile access, an access orders nothing else: a driver that reads memory after a register needs a fence.
#![expect(unsafe_code, reason = "raw accesses through pointers; see the module's documentation for the contract")]
// UNSAFETY: forwards the contract in the module's documentation to the architecture's instructions.

mod bulk;
mod contract;
mod primitive;
pub mod signal;
#[cfg(all(test, not(revocable_model)))]
mod test_memory;
#[cfg(all(test, not(revocable_model)))]
mod tests;

use arch::Cpu;
pub(crate) use arch::{RECOVERABLE, keep_loaded, recover};
pub(crate) use bulk::{Medium, begin_in, begin_out, copy_in, copy_out, end_in, end_out};
use contract::Accesses;
pub use primitive::{AtomicPrimitive, Primitive};

// Only here is an architecture chosen; its file is `arch` to the others.

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(any(revocable_portable, miri))))]
mod x86_64;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(any(revocable_portable, miri))))]
use x86_64 as arch;

#[cfg(all(target_arch = "aarch64", target_pointer_width = "64", not(any(revocable_portable, miri))))]
mod aarch64;
#[cfg(all(target_arch = "aarch64", target_pointer_width = "64", not(any(revocable_portable, miri))))]
use aarch64 as arch;

#[cfg(not(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64",
    not(any(revocable_portable, miri))
)))]
mod portable;
#[cfg(not(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64",
    not(any(revocable_portable, miri))
)))]
use portable as arch;

// For the architectures with recoverable accesses.
#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64",
    not(any(revocable_portable, miri))
))]
mod table;

/// The access faulted: the memory is revoked or missing. The access had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faulted;

/// One load.
///
/// # Safety
///
/// The module's contract.
#[inline(always)]
pub(crate) unsafe fn load<T: Primitive>(p: *const T) -> Result<T, Faulted> {
    // SAFETY: the module's contract, from the caller.
    unsafe { Cpu::load(p) }.map(T::from_bits)
}

/// One store.
///
/// # Safety
///
/// The module's contract.
#[inline(always)]
pub(crate) unsafe fn store<T: Primitive>(p: *mut T, value: T) -> Result<(), Faulted> {
    // SAFETY: the module's contract, from the caller.
    unsafe { Cpu::store(p, value.to_bits()) }
}

/// Stores `new` if the memory holds `old`; otherwise `Ok(Err(what it holds))`.
///
/// # Safety
///
/// The module's contract.
#[inline(always)]
pub(crate) unsafe fn compare_exchange<T: AtomicPrimitive>(p: *mut T, old: T, new: T) -> Result<Result<T, T>, Faulted> {
    let new = new.to_bits();
    // SAFETY: the module's contract, from the caller.
    let before = T::from_bits(unsafe { Cpu::compare_exchange(p, old.to_bits(), new) }?);
    Ok(if before == old { Ok(before) } else { Err(before) })
}

/// Stores `value`; the value before.
///
/// # Safety
///
/// The module's contract.
#[inline(always)]
pub(crate) unsafe fn swap<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
    // SAFETY: the module's contract, from the caller.
    unsafe { Cpu::swap(p, value.to_bits()) }.map(T::from_bits)
}

/// Adds `value`, wrapping; the value before.
///
/// # Safety
///
/// The module's contract.
#[inline(always)]
pub(crate) unsafe fn fetch_add<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
    // SAFETY: the module's contract, from the caller.
    unsafe { Cpu::fetch_add(p, value.to_bits()) }.map(T::from_bits)
}

/// Sets the bits of `value`; the value before.
///
/// # Safety
///
/// The module's contract.
#[inline]
pub(crate) unsafe fn fetch_or<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
    // SAFETY: the caller's contract, passed on.
    unsafe { fetch_update(p, |old| old | value.to_bits()) }
}

/// Keeps only the bits of `value`; returns the value before.
///
/// # Safety
///
/// The module's contract.
#[inline]
pub(crate) unsafe fn fetch_and<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
    // SAFETY: the caller's contract, passed on.
    unsafe { fetch_update(p, |old| old & value.to_bits()) }
}

/// Flips the bits of `value`; returns the value before.
///
/// # Safety
///
/// The module's contract.
#[inline]
pub(crate) unsafe fn fetch_xor<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
    // SAFETY: the caller's contract, passed on.
    unsafe { fetch_update(p, |old| old ^ value.to_bits()) }
}

/// A compare-exchange loop: x86 has no instruction for these operations that returns the old value.
///
/// # Safety
///
/// The module's contract.
#[inline]
unsafe fn fetch_update<T: AtomicPrimitive>(p: *mut T, new: impl Fn(u64) -> u64) -> Result<T, Faulted> {
    // SAFETY: the module's contract, from the caller.
    let mut old = unsafe { load(p.cast_const()) }?;
    loop {
        // SAFETY: the module's contract, from the caller.
        match unsafe { compare_exchange(p, old, T::from_bits(new(old.to_bits()))) }? {
            Ok(old) => return Ok(old),
            Err(current) => old = current,
        }
    }
}

/// Stores `byte` `len` times, in ascending order; returns how many stores came before the first that faulted.
///
/// # Safety
///
/// The module's contract, for all `len` bytes.
pub(crate) unsafe fn fill(region_dst: *mut u8, byte: u8, len: usize, medium: Medium) -> usize {
    // Large enough that the loop costs nothing, small enough for the first-level cache and for a small stack.
    let pattern = [byte; 1024];
    let mut done = 0;
    while done < len {
        let part = pattern.len().min(len - done);
        // SAFETY: the module's contract, from the caller; `pattern` has `part` bytes.
        let stored = unsafe { copy_in(region_dst.wrapping_add(done), pattern.as_ptr(), part, medium) };
        done += stored;
        if stored < part {
            break;
        }
    }
    done
}
