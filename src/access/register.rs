//! Registers: an offset that was checked once.

use super::AccessKind;
use crate::raw::Primitive;
use crate::raw::{self, Faulted};
use crate::region::access_error::AccessError;
use crate::region::access_error::check;
use crate::region::mapping::Mapping;
use std::fmt;

/// One register of a mapping. Bounds and alignment are checked when it is made, so a read is one load.
///
/// `Copy`, and tied to its mapping: a driver's register block is a struct of these.
pub struct Register<'m, T> {
    at: *mut T,
    mapping: &'m Mapping,
}

// UNSAFETY: the pointer is only ever used for the accesses that the mapping itself offers to every thread.
#[expect(unsafe_code, reason = "a raw pointer is not Send and Sync by itself")]
// SAFETY: as above; `Mapping` is Send and Sync.
unsafe impl<T: Primitive> Send for Register<'_, T> {}
#[expect(unsafe_code, reason = "a raw pointer is not Send and Sync by itself")]
// SAFETY: as for Send.
unsafe impl<T: Primitive> Sync for Register<'_, T> {}

impl<T> Clone for Register<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Register<'_, T> {}

impl Mapping {
    /// The register at `offset`, in bytes, a multiple of the size of `T`.
    ///
    /// # Errors
    /// Out of bounds or misaligned.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn register<T: Primitive>(&self, offset: usize) -> Result<Register<'_, T>, AccessError> {
        check::<T>(offset, self.len())?;
        Ok(Register { at: self.as_ptr().wrapping_add(offset).cast(), mapping: self })
    }
}

impl<T: Primitive> Register<'_, T> {
    /// One load.
    ///
    /// # Blocking
    /// As [`Mapping::read`].
    ///
    /// # Errors
    /// See [`AccessError`].
    ///
    /// # Signal safety
    /// Async-signal-safe; [`signal`](crate::signal) tells what it may wait for there.
    #[inline]
    pub fn read(&self) -> Result<T, AccessError> {
        if raw::RECOVERABLE && self.mapping.is_open(AccessKind::Load) {
            #[expect(unsafe_code, reason = "UNSAFETY: a recoverable access inside the mapping")]
            // SAFETY: `register` checked the address, and the mapping lives. A device, a guest, other processes and a
            // revocation may write or take the memory meanwhile; the access is made for that.
            let loaded = unsafe { raw::load(self.at) };
            if let Ok(value) = loaded {
                return Ok(value);
            }
        }
        self.mapping.read_slow(self.offset())
    }

    /// One store.
    ///
    /// # Blocking
    /// As [`Mapping::write`].
    ///
    /// # Errors
    /// See [`AccessError`].
    ///
    /// # Signal safety
    /// Async-signal-safe; [`signal`](crate::signal) tells what it may wait for there.
    #[inline]
    pub fn write(&self, value: T) -> Result<(), AccessError> {
        if raw::RECOVERABLE && self.mapping.is_open(AccessKind::Store) {
            #[expect(unsafe_code, reason = "UNSAFETY: a recoverable access inside the mapping")]
            // SAFETY: as in `read`; the mapping is writable.
            let stored: Result<(), Faulted> = unsafe { raw::store(self.at, value) };
            if stored.is_ok() {
                return Ok(());
            }
        }
        self.mapping.write_slow(self.offset(), value)
    }

    /// The register's offset in the mapping, in bytes.
    pub fn offset(&self) -> usize {
        self.at.addr() - self.mapping.as_ptr().addr()
    }
}

impl<T> fmt::Debug for Register<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Register").field("at", &self.at).field("bytes", &size_of::<T>()).finish()
    }
}
