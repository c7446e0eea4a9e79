//! The owner's view: the device side's own mapping of a region, which no revocation touches.
//!
//! UNSAFETY: addresses inside the view. A device, other processes and every mapping of the region write there at any time,
//! so there are no references to it, only volatile and recoverable accesses.
#![expect(unsafe_code, reason = "accesses memory by address")]

use super::offsets::InRegion;
use crate::raw;
use crate::raw::Primitive;
use crate::region::access_error::check;
use crate::region::access_error::{AccessError, CopyError};
use crate::region::backing::{BackingKind, File, OnRevoke};
use crate::sys::identity::Identity;
use crate::sys::{Addr, AddrRange, SysError, map};
use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::errno::Errno;
use std::fmt;
use std::os::fd::AsFd;

/// The device's own view of a region: always there, whatever state the region is in.
///
/// For emulating the device. Its accesses take no lock and never wait; they fail only where the file gives no memory (it
/// was truncated, or memory ran out).
///
/// If the region's device is dropped on revocation ([`OnRevoke::Drop`](crate::OnRevoke)), the view is empty: a mapping
/// would pin the device.
pub struct OwnerView {
    map: Option<MmapRaw>,
    /// The process that it is mapped in. A forked child has something else there, or nothing.
    mapped_in: Identity,
    of_device: bool,
    /// Whether an access first makes sure that there is memory: it could not recover, and the file can lose pages.
    asks: bool,
    /// The file's page size, in bytes.
    page: usize,
}

impl OwnerView {
    pub(crate) fn new(file: &File, len: usize) -> Result<Self, SysError> {
        let of_device = file.kind == BackingKind::Other;
        if file.on_revoke == OnRevoke::Drop {
            return Ok(Self { map: None, mapped_in: Identity::current(), of_device, asks: false, page: file.page });
        }
        let call = if file.kind == BackingKind::Hugetlb { "mmap(hugetlb)" } else { "mmap" };
        let errno = |e: std::io::Error| SysError::new(call, Errno::from_raw(e.raw_os_error().unwrap_or(0)));
        crate::sys::may_fail("mmap")?;
        let map = MmapOptions::new().offset(file.offset).len(len).map_raw(&file.fd).map_err(errno)?;
        for advice in [Advice::DontFork, Advice::DontDump] {
            map.advise(advice).map_err(|e| SysError::new("madvise", Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        }
        // A device's memory (VM_PFNMAP) can't be populated.
        let asks = !raw::RECOVERABLE && !of_device && map::may_shrink(file.fd.as_fd());
        Ok(Self { map: Some(map), mapped_in: Identity::current(), of_device, asks, page: file.page })
    }

    /// The address of the first byte; null for an empty view.
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_ref().map_or(std::ptr::null_mut(), MmapRaw::as_mut_ptr)
    }

    pub(crate) fn at(&self, offset: InRegion) -> *mut u8 {
        self.as_ptr().wrapping_add(offset.0)
    }

    /// The region's length, in bytes; 0 for an empty view.
    pub fn len(&self) -> usize {
        self.map.as_ref().map_or(0, MmapRaw::len)
    }

    /// True if the view has no memory: see [`OwnerView`].
    pub fn is_empty(&self) -> bool {
        self.map.is_none()
    }

    /// Makes the file's pages in the range present, without changing their content.
    pub(crate) fn populate(&self, offset: InRegion, len: usize) -> Result<(), SysError> {
        // An empty view has no addresses: 0 plus the offset may be anything.
        let view = self.map.as_ref().ok_or(SysError::new("madvise", Errno::EBADF))?;
        let range = AddrRange::new(Addr::of(view.as_mut_ptr()) + offset.0, len);
        // SAFETY: inside the view (callers pass ranges inside the region); the advice drops no content.
        match unsafe { map::advise(range, map::Advice::PopulateWrite) } {
            // A device's memory (VM_PFNMAP) is always there.
            Err(e) if e.errno == Errno::EINVAL && self.of_device => Ok(()),
            other => other,
        }
    }

    /// One load. `offset` is in bytes, a multiple of the size of `T`.
    ///
    /// # Errors
    /// Out of bounds, misaligned, or no memory there.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn read<T: Primitive>(&self, offset: usize) -> Result<T, AccessError> {
        self.check::<T>(offset)?;
        // SAFETY: inside the view and aligned, as just checked; the view lives as long as `self`. A device, mappings of the
        // region and other processes may write there at the same time: the value is then theirs or ours, never torn.
        unsafe { raw::load(self.at(InRegion(offset)).cast::<T>()) }.map_err(|_| AccessError::NoMemory { offset })
    }

    /// One store. `offset` is in bytes, a multiple of the size of `T`.
    ///
    /// # Errors
    /// Out of bounds, misaligned, or no memory there.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn write<T: Primitive>(&self, offset: usize, value: T) -> Result<(), AccessError> {
        self.check::<T>(offset)?;
        // SAFETY: as in `read`.
        unsafe { raw::store(self.at(InRegion(offset)).cast::<T>(), value) }
            .map_err(|_| AccessError::NoMemory { offset })
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
        let done = unsafe { raw::copy_out(into.as_mut_ptr(), self.at(InRegion(offset)), given) };
        finished(done, into.len(), offset)
    }

    /// Copies into the region.
    ///
    /// # Errors
    /// Out of bounds (nothing is done), or no memory at some offset.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn write_slice(&self, offset: usize, from: &[u8]) -> Result<(), CopyError> {
        let given = self.check_slice(offset, from.len())?;
        // SAFETY: inside the view as just checked; `from` is not written meanwhile.
        let done = unsafe { raw::copy_in(self.at(InRegion(offset)), from.as_ptr(), given) };
        finished(done, from.len(), offset)
    }

    /// Sets `len` bytes to `byte`.
    ///
    /// # Errors
    /// Out of bounds (nothing is done), or no memory at some offset.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn fill(&self, offset: usize, byte: u8, len: usize) -> Result<(), CopyError> {
        let given = self.check_slice(offset, len)?;
        // SAFETY: inside the view as just checked.
        let done = unsafe { raw::fill(self.at(InRegion(offset)), byte, given) };
        finished(done, len, offset)
    }

    /// How many of the `len` bytes at `offset`, which are in the view, may be accessed: all of them, unless an access
    /// without memory would raise a signal that is not recovered from.
    pub(crate) fn given(&self, offset: InRegion, len: usize) -> usize {
        if !self.asks || self.gives(offset.0, len) {
            return len;
        }
        let mut given = 0;
        while given < len {
            let next = (self.page - (offset.0 + given) % self.page).min(len - given);
            if !self.gives(offset.0 + given, next) {
                break;
            }
            given += next;
        }
        given
    }

    fn gives(&self, offset: usize, len: usize) -> bool {
        let first = offset / self.page * self.page;
        // Linux before 5.14 does not know the advice (EINVAL).
        self.populate(InRegion(first), offset + len - first).map_or_else(|e| e.errno == Errno::EINVAL, |()| true)
    }

    /// Checks one access: bounds, alignment, memory.
    fn check<T: Primitive>(&self, offset: usize) -> Result<(), AccessError> {
        check::<T>(offset, self.len())?;
        if self.given(InRegion(offset), T::SIZE) == T::SIZE { Ok(()) } else { Err(AccessError::NoMemory { offset }) }
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

impl Drop for OwnerView {
    fn drop(&mut self) {
        if !self.mapped_in.is_current() {
            // munmap would remove what the child has mapped there by now.
            std::mem::forget(self.map.take());
        }
    }
}

impl fmt::Debug for OwnerView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerView").field("at", &self.as_ptr()).field("len", &self.len()).finish()
    }
}
