//! Copies out of and into the owner's view.
#![expect(unsafe_code, reason = "accesses memory by address")]
// UNSAFETY: as in `owner.rs`: addresses inside the view, by recoverable accesses.

use super::OwnerView;
use crate::raw::{self, Medium};
use crate::region::access_error::{AccessError, CopyError};
use crate::region::offsets::InRegion;

impl OwnerView {
    /// What a copy is from or to.
    fn medium(&self) -> Medium {
        Medium::of(self.of_device)
    }

    /// Copies out of the region.
    ///
    /// # Errors
    /// Out of bounds (nothing is done), or no memory at some offset.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn read_slice(&self, offset: usize, into: &mut [u8]) -> Result<(), CopyError> {
        let given = self.check_slice(offset, into.len())?;
        // SAFETY: inside the view as just checked; `into` is the caller's exclusive buffer.
        let done = self.copy(offset, given, |at, from, len| unsafe {
            raw::copy_out(into[from..].as_mut_ptr(), at, len, self.medium())
        });
        finished(done, into.len(), offset)
    }

    /// Copies into the region.
    ///
    /// # Errors
    /// Out of bounds or a region that can be read only (nothing is done), or no memory at some offset.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn write_slice(&self, offset: usize, from: &[u8]) -> Result<(), CopyError> {
        let given = self.check_slice(offset, from.len())?;
        self.check_writable(offset).map_err(|error| CopyError { done: 0, error })?;
        // SAFETY: inside the view as just checked; `from` is not written meanwhile.
        let done = self.copy(offset, given, |at, done, len| unsafe {
            raw::copy_in(at, from[done..].as_ptr(), len, self.medium())
        });
        finished(done, from.len(), offset)
    }

    /// Sets `len` bytes to `byte`.
    ///
    /// # Errors
    /// Out of bounds or a region that can be read only (nothing is done), or no memory at some offset.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn fill(&self, offset: usize, byte: u8, len: usize) -> Result<(), CopyError> {
        let given = self.check_slice(offset, len)?;
        self.check_writable(offset).map_err(|error| CopyError { done: 0, error })?;
        // SAFETY: inside the view as just checked.
        let done = self.copy(offset, given, |at, _, len| unsafe { raw::fill(at, byte, len, self.medium()) });
        finished(done, len, offset)
    }

    /// Copies `len` bytes by a call that gets an address, how many bytes are done, and how many are left, and returns how
    /// many more it has done.
    fn copy(&self, offset: usize, len: usize, mut part: impl FnMut(*mut u8, usize, usize) -> usize) -> usize {
        let mut done = 0;
        self.steady(
            || {
                done += part(self.at(InRegion(offset + done)), done, len - done);
                done
            },
            |done| *done == len,
        )
    }

    /// Checks a copy's bounds, and returns how many bytes of it may be accessed.
    fn check_slice(&self, offset: usize, size: usize) -> Result<usize, CopyError> {
        let fits = offset.checked_add(size).is_some_and(|end| end <= self.len());
        let error = AccessError::OutOfBounds { offset, size, len: self.len() };
        if fits { Ok(self.given(InRegion(offset), size)) } else { Err(CopyError { done: 0, error }) }
    }
}

fn finished(done: usize, len: usize, offset: usize) -> Result<(), CopyError> {
    if done == len { Ok(()) } else { Err(CopyError { done, error: AccessError::NoMemory { offset: offset + done } }) }
}
