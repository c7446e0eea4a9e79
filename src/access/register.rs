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
///
/// ```
/// use revocable_mmio::{AccessError, Mapping, Register};
///
/// struct Timer<'m> {
///     control: Register<'m, u32>,
///     count: Register<'m, u64>,
/// }
///
/// impl<'m> Timer<'m> {
///     fn new(bar: &'m Mapping) -> Result<Self, AccessError> {
///         Ok(Self { control: bar.register(0x0)?, count: bar.register(0x8)? }) // checked once, here
///     }
/// }
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// let timer = Timer::new(&mapping)?;
/// timer.control.write(1)?;
/// assert_eq!((timer.control.read()?, timer.count.offset()), (1, 8));
///
/// region.disable()?;
/// assert!(matches!(timer.count.read(), Err(AccessError::Disabled { offset: 8 })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    /// ```
    /// use revocable_mmio::AccessError;
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// let doorbell = mapping.register::<u32>(0x1000)?;
    /// doorbell.write(1)?;
    /// assert!(matches!(mapping.register::<u32>(0x1002), Err(AccessError::Misaligned { offset: 0x1002, align: 4 })));
    /// assert!(matches!(mapping.register::<u32>(mapping.len()), Err(AccessError::OutOfBounds { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    /// As [`Mapping::read`], except bounds and alignment, which were checked before.
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
    /// As [`Mapping::write`], except bounds and alignment, which were checked before.
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
