//! Accesses on architectures whose accesses do not recover: under the read side of the memory lock, through the owner's view.
//!
//! An access on a caller's behalf ([`Mapping::read_with`]) is made in the same way, here for a caller that waits. No
//! revocation comes in between, so there is no fault to recover from; the price is the lock, which a revocation waits for.
//!
//! A copy takes the lock for each of its parts, and touches the caller's buffer only between them: the buffer may fault for as
//! long as it likes, also into a mapping of the same region.
#![expect(unsafe_code, reason = "raw accesses to regions")]
// UNSAFETY: accesses to addresses that `under_lock` keeps mapped.

use super::AccessKind;
use crate::protocol::caller::Caller;
use crate::protocol::fault::FaultFlags;
use crate::raw::{self, Faulted};
use crate::region::access_error::{AccessError, CopyError};
use crate::region::mapping::Mapping;
use crate::sys::map::Prot;

/// The longest part of a copy, in bytes. A part crosses no page boundary, so its memory is there as a whole or not at all.
const PART: usize = 4096;

impl Mapping {
    /// Runs `access` on `len` bytes at `offset`, which are in the mapping, once the region is enabled. `None` means an
    /// Unsupported Request.
    pub(super) fn locked<R>(
        &self,
        offset: usize,
        len: usize,
        kind: AccessKind,
        access: impl FnMut(*mut u8) -> Result<R, Faulted>,
    ) -> Result<Option<R>, AccessError> {
        let needed = if kind == AccessKind::Load { Prot::Read } else { Prot::ReadWrite };
        let done = self.under_lock(offset, len, needed, &Caller::new(FaultFlags::WAIT), access);
        if matches!(done, Ok(None) | Err(AccessError::Disabled { .. })) {
            self.served.region.protocol.gate.turn_away();
        }
        done
    }

    /// See [`read_slice`](Self::read_slice).
    pub(super) fn read_slice_locked(&self, offset: usize, into: &mut [u8]) -> Result<(), CopyError> {
        let mut part = [0; PART];
        let copied = self.parts(offset, into.len(), AccessKind::Load, |done, len| {
            let copy = |from: *mut u8| {
                // SAFETY: the address that `under_lock` gives, of `len` bytes; `part` has as many, and is local.
                all(unsafe { raw::copy_out(part.as_mut_ptr(), from, len, self.medium()) }, len)
            };
            let copied = self.locked(offset + done, len, AccessKind::Load, copy)?;
            if copied.is_some() {
                into[done..done + len].copy_from_slice(&part[..len]);
            }
            Ok(copied)
        })?;
        into[copied..].fill(0xff);
        Ok(())
    }

    /// See [`write_slice`](Self::write_slice).
    pub(super) fn write_slice_locked(&self, offset: usize, from: &[u8]) -> Result<(), CopyError> {
        let mut part = [0; PART];
        let written = self.parts(offset, from.len(), AccessKind::Store, |done, len| {
            part[..len].copy_from_slice(&from[done..done + len]);
            self.locked(offset + done, len, AccessKind::Store, |to| {
                // SAFETY: the address that `under_lock` gives, of `len` bytes; `part` has as many, and is local.
                all(unsafe { raw::copy_in(to, part.as_ptr(), len, self.medium()) }, len)
            })
        });
        written.map(drop)
    }

    /// See [`fill`](Self::fill).
    pub(super) fn fill_locked(&self, offset: usize, byte: u8, len: usize) -> Result<(), CopyError> {
        let filled = self.parts(offset, len, AccessKind::Store, |done, len| {
            self.locked(offset + done, len, AccessKind::Store, |to| {
                // SAFETY: the address that `under_lock` gives, of `len` bytes.
                all(unsafe { raw::fill(to, byte, len, self.medium()) }, len)
            })
        });
        filled.map(drop)
    }

    /// Copies or fills by parts: `part(done, len)` does `len` bytes after the first `done`. Returns how many bytes were
    /// done before an Unsupported Request; `len` if there was none.
    fn parts(
        &self,
        offset: usize,
        len: usize,
        kind: AccessKind,
        mut part: impl FnMut(usize, usize) -> Result<Option<()>, AccessError>,
    ) -> Result<usize, CopyError> {
        self.check_slice(offset, len, kind)?;
        let mut done = 0;
        while done < len {
            let rest = PART - (offset + done) % PART;
            let next = rest.min(len - done);
            match part(done, next) {
                Ok(Some(())) => done += next,
                Ok(None) => return Ok(done),
                Err(error) => return Err(CopyError { done, error }),
            }
        }
        Ok(len)
    }
}

fn all(done: usize, len: usize) -> Result<(), Faulted> {
    if done == len { Ok(()) } else { Err(Faulted) }
}
