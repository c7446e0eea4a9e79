//! Typed accesses of a mapping: the fast paths.
//!
//! UNSAFETY: accesses region memory by address, inside a mapping that `&self` keeps. A device, a guest, other processes and
//! the mapping's revocation write or take the memory at any time; the accesses are made for that.
#![expect(unsafe_code, reason = "accesses memory by address")]

use super::AccessKind;
use super::slow::{Next, Tried, Tries};
use crate::raw::{self, AtomicPrimitive, Medium, Primitive};
use crate::region::access_error::{AccessError, CopyError};
use crate::region::mapping::Mapping;
use std::sync::atomic::Ordering;

/// Instead of how many bytes were copied at once: none were tried. No buffer is as long.
const UNTRIED: usize = usize::MAX;

macro_rules! read_modify_write {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        ///
        /// # Blocking
        /// As [`read`](Self::read).
        ///
        /// # Errors
        /// As [`write`](Self::write). Under [`OnDisabled::AllOnes`](crate::OnDisabled) it finds all-ones and stores
        /// nothing.
        ///
        /// # Signal safety
        /// As [`read`](Self::read).
        pub fn $name<T: AtomicPrimitive>(&self, offset: usize, value: T) -> Result<T, AccessError> {
            // SAFETY: as in `compare_exchange`.
            let found = self.attempt::<T, _>(offset, AccessKind::Store, Tried::Not, |at| unsafe { raw::$name(at, value) })?;
            Ok(found.unwrap_or(T::ALL_ONES))
        }
    )* };
}

impl Mapping {
    /// One load, never torn, never a signal. `offset` is in bytes, a multiple of the size of `T`.
    ///
    /// ```
    /// use revocable_mmio::AccessError;
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// assert_eq!(mapping.read::<u64>(8)?, 0);
    /// region.disable()?;
    /// assert_eq!(mapping.read::<u64>(8), Err(AccessError::Disabled { offset: 8 })); // under OnDisabled::AllOnes: Ok(u64::MAX)
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// Waits while the region is busy, and under [`OnDisabled::Block`](crate::OnDisabled::Block) while it is disabled. Where it would wait for the
    /// calling thread itself, it returns [`AccessError::Reentrant`].
    ///
    /// # Errors
    /// [`AccessError::Disabled`] or [`AccessError::Gone`] while the region is revoked (under
    /// [`OnDisabled::AllOnes`](crate::OnDisabled) it is no error). [`AccessError::OutOfBounds`],
    /// [`AccessError::Misaligned`] and [`AccessError::Protected`] for an access that the mapping never allows.
    /// [`AccessError::NoMemory`] if the file was truncated. [`AccessError::Reentrant`],
    /// [`AccessError::WouldDeadlock`] and [`AccessError::Forked`] in place of a wait that would not end: make the
    /// access later, or elsewhere.
    ///
    /// # Signal safety
    /// Async-signal-safe; [`signal`](crate::signal) tells what it may wait for there.
    #[inline]
    pub fn read<T: Primitive>(&self, offset: usize) -> Result<T, AccessError> {
        if self.admits::<T>(offset, AccessKind::Load) {
            // SAFETY: inside the mapping, aligned; see the module's UNSAFETY.
            if let Ok(value) = unsafe { raw::load(self.at::<T>(offset)) } {
                return Ok(value);
            }
        }
        self.read_slow(offset)
    }

    /// One store, never torn, never a signal. `offset` is in bytes, a multiple of the size of `T`. On an error the memory
    /// is unchanged.
    ///
    /// ```
    /// use revocable_mmio::AccessError;
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// mapping.write(8, 1_u64)?;
    /// region.disable()?;
    /// assert_eq!(mapping.write(8, 2_u64), Err(AccessError::Disabled { offset: 8 }));
    /// region.enable()?;
    /// assert_eq!(mapping.read::<u64>(8)?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As [`read`](Self::read).
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`AccessError::ReadOnly`] through a read-only mapping. A store that fails is not
    /// made.
    ///
    /// # Signal safety
    /// Async-signal-safe; [`signal`](crate::signal) tells what it may wait for there.
    #[inline]
    pub fn write<T: Primitive>(&self, offset: usize, value: T) -> Result<(), AccessError> {
        if self.admits::<T>(offset, AccessKind::Store) {
            // SAFETY: as in `read`; the mapping is writable.
            if unsafe { raw::store(self.at::<T>(offset), value) }.is_ok() {
                return Ok(());
            }
        }
        self.write_slow(offset, value)
    }

    /// Compares and exchanges, as [`std::sync::atomic::AtomicU64::compare_exchange`] with `SeqCst` does: `Ok(Ok(old))`
    /// if it stored, `Ok(Err(found))` if not.
    ///
    /// ```
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// assert_eq!(mapping.compare_exchange(0, 0_u32, 1)?, Ok(0)); // it stored
    /// assert_eq!(mapping.compare_exchange(0, 0_u32, 2)?, Err(1)); // it found 1
    /// assert_eq!(mapping.swap(0, 6_u32)?, 1);
    /// assert_eq!(mapping.fetch_add(0, 1_u32)?, 6);
    /// assert_eq!(mapping.fetch_or(0, 8_u32)?, 7);
    /// assert_eq!(mapping.fetch_and(0, 3_u32)?, 15);
    /// assert_eq!(mapping.fetch_xor(0, 1_u32)?, 3);
    /// assert_eq!(mapping.read::<u32>(0)?, 2);
    /// region.disable()?;
    /// assert!(mapping.fetch_add(0, 1_u32).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As [`read`](Self::read).
    ///
    /// # Errors
    /// As [`write`](Self::write). Under [`OnDisabled::AllOnes`](crate::OnDisabled) it finds all-ones and stores
    /// nothing. On aarch64 it may be no error to find another value where [`protect`](Self::protect) allows loads only: nothing
    /// is stored then.
    ///
    /// # Signal safety
    /// Async-signal-safe; [`signal`](crate::signal) tells what it may wait for there.
    pub fn compare_exchange<T: AtomicPrimitive>(
        &self,
        offset: usize,
        current: T,
        new: T,
    ) -> Result<Result<T, T>, AccessError> {
        // SAFETY: `attempt` calls this with an address that it has checked; see the module's UNSAFETY.
        let found = self.attempt::<T, _>(offset, AccessKind::Store, Tried::Not, |at| unsafe {
            raw::compare_exchange(at, current, new)
        })?;
        Ok(found.unwrap_or(Err(T::ALL_ONES)))
    }

    read_modify_write! {
        /// Stores `value`; returns the value before.
        swap;
        /// Adds `value`, wrapping around; returns the value before.
        fetch_add;
        /// Sets the bits of `value`; returns the value before.
        fetch_or;
        /// Keeps only the bits of `value`; returns the value before.
        fetch_and;
        /// Flips the bits of `value`; returns the value before.
        fetch_xor;
    }

    /// Copies out of the mapping. This is not one access: other writers may come in between.
    ///
    /// ```
    /// use revocable_mmio::{AccessError, CopyError};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// let mut block = [0; 512];
    /// mapping.read_slice(4096, &mut block)?;
    /// region.disable()?;
    /// let refused = CopyError { done: 0, error: AccessError::Disabled { offset: 4096 } };
    /// assert_eq!(mapping.read_slice(4096, &mut block), Err(refused));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As [`read`](Self::read).
    ///
    /// # Errors
    /// [`CopyError`] says how many bytes were done, and none beyond them were.
    ///
    /// # Signal safety
    /// Async-signal-safe; [`signal`](crate::signal) tells what it may wait for there.
    #[inline]
    pub fn read_slice(&self, offset: usize, into: &mut [u8]) -> Result<(), CopyError> {
        let mut begun = UNTRIED;
        if self.fits(offset, into.len(), AccessKind::Load) {
            // SAFETY: inside the mapping; the buffer is the caller's, exclusively. See the module's UNSAFETY.
            begun = unsafe { raw::begin_out(into.as_mut_ptr(), self.at(offset), into.len(), self.medium()) };
        }
        if begun == into.len() { Ok(()) } else { self.read_slice_slow(offset, into, begun) }
    }

    #[cold]
    fn read_slice_slow(&self, offset: usize, into: &mut [u8], begun: usize) -> Result<(), CopyError> {
        if !raw::RECOVERABLE {
            return self.read_slice_locked(offset, into);
        }
        let (buffer, len) = (into.as_mut_ptr(), into.len());
        let tried = (begun != UNTRIED).then(|| {
            // SAFETY: as in `read_slice`, which has copied `begun` bytes of them.
            unsafe { raw::end_out(buffer, self.at(offset), len, self.medium(), begun) }
        });
        let copied = self.bulk(offset, len, AccessKind::Load, tried, |done| {
            // SAFETY: `bulk` has checked the range; the buffer is the caller's, exclusively.
            unsafe { raw::copy_out(buffer.wrapping_add(done), self.at(offset + done), len - done, self.medium()) }
        })?;
        into[copied..].fill(0xff);
        Ok(())
    }

    /// Copies into the mapping. This is not one access: other writers may come in between, and as `memcpy` does, a copy of more
    /// than 64 bytes may store some of them twice (never to a device's file).
    ///
    /// ```
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// mapping.fill(0, 0, 4096)?;
    /// mapping.write_slice(64, b"descriptor")?;
    /// region.disable()?;
    /// assert_eq!(mapping.write_slice(64, b"lost").map_err(|e| e.done), Err(0)); // no byte of it
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As [`read`](Self::read).
    ///
    /// # Errors
    /// [`CopyError`] says how many bytes were done, and none beyond them were.
    ///
    /// # Signal safety
    /// Async-signal-safe; [`signal`](crate::signal) tells what it may wait for there.
    #[inline]
    pub fn write_slice(&self, offset: usize, from: &[u8]) -> Result<(), CopyError> {
        let mut begun = UNTRIED;
        if self.fits(offset, from.len(), AccessKind::Store) {
            // SAFETY: inside the mapping, which is writable; the buffer is the caller's and not written meanwhile. See the
            // module's UNSAFETY.
            begun = unsafe { raw::begin_in(self.at(offset), from.as_ptr(), from.len(), self.medium()) };
        }
        if begun == from.len() { Ok(()) } else { self.write_slice_slow(offset, from, begun) }
    }

    #[cold]
    fn write_slice_slow(&self, offset: usize, from: &[u8], begun: usize) -> Result<(), CopyError> {
        if !raw::RECOVERABLE {
            return self.write_slice_locked(offset, from);
        }
        let (buffer, len) = (from.as_ptr(), from.len());
        let tried = (begun != UNTRIED).then(|| {
            // SAFETY: as in `write_slice`, which has copied `begun` bytes of them.
            unsafe { raw::end_in(self.at(offset), buffer, len, self.medium(), begun) }
        });
        self.bulk(offset, len, AccessKind::Store, tried, |done| {
            // SAFETY: `bulk` has checked the range; the buffer is the caller's and not written meanwhile.
            unsafe { raw::copy_in(self.at(offset + done), buffer.wrapping_add(done), len - done, self.medium()) }
        })
        .map(drop)
    }

    /// Sets `len` bytes to `byte`.
    ///
    /// # Blocking
    /// As [`read`](Self::read).
    ///
    /// # Errors
    /// [`CopyError`] says how many bytes were done, and none beyond them were.
    ///
    /// # Signal safety
    /// Async-signal-safe; [`signal`](crate::signal) tells what it may wait for there.
    pub fn fill(&self, offset: usize, byte: u8, len: usize) -> Result<(), CopyError> {
        if !raw::RECOVERABLE {
            return self.fill_locked(offset, byte, len);
        }
        self.bulk(offset, len, AccessKind::Store, None, |done| {
            // SAFETY: `bulk` has checked the range.
            unsafe { raw::fill(self.at::<u8>(offset + done), byte, len - done, self.medium()) }
        })
        .map(drop)
    }

    #[inline(always)]
    pub(super) fn at<T>(&self, offset: usize) -> *mut T {
        self.served.view.range.as_ptr().wrapping_add(offset).cast()
    }

    /// What a copy is from or to.
    #[inline(always)]
    pub(super) fn medium(&self) -> Medium {
        self.served.medium
    }

    /// The offset below which accesses may be tried at once, as far as is known: 0, or a multiple of the page size up to the
    /// mapping's length.
    #[inline(always)]
    fn limit(&self, kind: AccessKind) -> usize {
        let limit = match kind {
            AccessKind::Load => &self.served.load_limit,
            AccessKind::Store => &self.served.store_limit,
        };
        // Relaxed: a hint. The page tables refuse an access that is let through too early or too late.
        limit.load(Ordering::Relaxed)
    }

    /// True if accesses may be tried at once, as far as is known. If not, the access looks at the state first: an access
    /// that waits in a page fault cannot be refused, and in a signal handler it may wait for its own thread.
    #[inline]
    pub(crate) fn is_open(&self, kind: AccessKind) -> bool {
        self.limit(kind) != 0
    }

    /// True if this access may be tried at once. An aligned offset below the limit leaves room for any `T`.
    #[inline]
    pub(super) fn admits<T: Primitive>(&self, offset: usize, kind: AccessKind) -> bool {
        raw::RECOVERABLE && offset < self.limit(kind) && offset % size_of::<T>() == 0
    }

    /// True if a copy of `len` bytes may be tried at once, without a look at the state: a revoked range faults.
    #[inline(always)]
    fn fits(&self, offset: usize, len: usize, kind: AccessKind) -> bool {
        // A copy of no bytes is left to the slow path, which knows whether it is allowed.
        raw::RECOVERABLE && self.limit(kind).checked_sub(offset).is_some_and(|room| len.wrapping_sub(1) < room)
    }

    /// A copy or fill of `len` bytes of which a first try, if there was one, has done so many; `step(done)` goes on from there
    /// and returns how much it did. Returns how many bytes were done before an Unsupported Request; `len` if there was none.
    fn bulk(
        &self,
        offset: usize,
        len: usize,
        kind: AccessKind,
        mut tried: Option<usize>,
        step: impl Fn(usize) -> usize,
    ) -> Result<usize, CopyError> {
        let served = &self.served;
        self.check_slice(offset, len, kind)?;
        let mut done = 0;
        if len > 0 && tried.is_none() && !self.is_open(kind) {
            if let Next::Unsupported = served.admit(offset).map_err(|error| CopyError { done, error })? {
                return Ok(done);
            }
        }
        let mut tries = Tries::new(served);
        while done < len {
            let moved = tried.take().unwrap_or_else(|| step(done));
            done += moved;
            if done == len {
                break;
            }
            if moved > 0 {
                tries = Tries::new(served);
            }
            let early = |error| CopyError { done, error };
            let at = offset + done;
            if let Next::Unsupported = served.admit(at).map_err(early)? {
                return Ok(done);
            }
            if let Next::Unsupported = served.after_fault(at, &mut tries).map_err(early)? {
                return Ok(done);
            }
        }
        Ok(len)
    }

    pub(super) fn check_slice(&self, offset: usize, len: usize, kind: AccessKind) -> Result<(), CopyError> {
        let early = |error| Err(CopyError { done: 0, error });
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return early(AccessError::OutOfBounds { offset, size: len, len: self.len() });
        }
        if kind == AccessKind::Store && !self.is_writable() {
            return early(AccessError::ReadOnly { offset });
        }
        Ok(())
    }
}
