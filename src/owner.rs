//! The owner's view: the device side's own mapping of a region, which no revocation touches.
//!
//! UNSAFETY: addresses inside the view; a device, other processes and every mapping of the region write there at any time,
//! which is why there are no references to it, only volatile and recoverable accesses.
#![expect(unsafe_code, reason = "accesses memory by address")]

use crate::access::raw;
use crate::access::{Primitive, check};
use crate::backing::{File, Kind, OnRevoke};
use crate::error::{AccessError, CopyError};
use crate::revoke::map_over;
use crate::sys::{AddrRange, SysError, map};
use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::errno::Errno;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

/// The device side's view of a region: always there, whatever state the region is in.
///
/// For emulating the device. Its accesses take no lock and never wait; they fail only where the file gives no memory
/// (truncated by somebody else, or out of memory).
///
/// Of a device that is dropped on revocation ([`OnRevoke::Drop`](crate::OnRevoke)) the view is empty: it would pin the
/// device.
pub struct OwnerView {
    map: Option<MmapRaw>,
    of_device: bool,
    /// Where accesses don't recover by themselves: the file, and where in it the view starts, in bytes.
    file: Option<(OwnedFd, u64)>,
    /// The file's page size, in bytes.
    page: usize,
}

impl OwnerView {
    pub(crate) fn new(file: &File, len: usize) -> Result<Self, SysError> {
        let of_device = file.kind == Kind::Other;
        if file.on_revoke == OnRevoke::Drop {
            return Ok(Self { map: None, of_device, file: None, page: file.page });
        }
        let errno = |e: std::io::Error| SysError::new("mmap", Errno::from_raw(e.raw_os_error().unwrap_or(0)));
        crate::sys::may_fail("mmap")?;
        let map = MmapOptions::new().offset(file.offset).len(len).map_raw(&file.fd).map_err(errno)?;
        for advice in [Advice::DontFork, Advice::DontDump] {
            map.advise(advice).map_err(|e| SysError::new("madvise", Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        }
        let kept = (!raw::RECOVERABLE).then(|| crate::revoke::dup(file.fd.as_fd())).transpose()?;
        Ok(Self { map: Some(map), of_device, file: kept.map(|fd| (fd, file.offset)), page: file.page })
    }

    /// The first byte; null for an empty view.
    pub fn as_ptr(&self) -> *mut u8 {
        self.map.as_ref().map_or(std::ptr::null_mut(), MmapRaw::as_mut_ptr)
    }

    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        self.as_ptr().wrapping_add(offset)
    }

    /// The region's length, in bytes.
    pub fn len(&self) -> usize {
        self.map.as_ref().map_or(0, MmapRaw::len)
    }

    /// Is there nothing in it? See [`OwnerView`].
    pub fn is_empty(&self) -> bool {
        self.map.is_none()
    }

    /// Has the file give pages in `range`, without changing their content.
    pub(crate) fn populate(&self, offset: usize, len: usize) -> Result<(), SysError> {
        // An empty view has no addresses: 0 plus the offset is somebody else's.
        let view = self.map.as_ref().ok_or(SysError::new("madvise", Errno::EBADF))?;
        let range = AddrRange::new(view.as_mut_ptr().addr() + offset, len);
        // SAFETY: inside the view (the callers' windows are inside the region); it drops nothing.
        match unsafe { map::advise(range, map::Advice::PopulateWrite) } {
            // A device's memory (VM_PFNMAP) is always there.
            Err(e) if e.errno == Errno::EINVAL && self.of_device => Ok(()),
            other => other,
        }
    }

    /// One load. `offset` in bytes, a multiple of the size of `T`.
    ///
    /// # Errors
    /// Out of bounds, misaligned, or no memory there.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn read<T: Primitive>(&self, offset: usize) -> Result<T, AccessError> {
        check::<T>(offset, self.len())?;
        // SAFETY: inside the view and aligned, as just checked; the view lives as long as `self`. Whoever writes there
        // at the same time makes the value theirs or ours, never torn.
        self.recovering(|| unsafe { raw::load(self.at(offset).cast::<T>()) })
            .map_err(|_| AccessError::NoMemory { offset })
    }

    /// One store. `offset` in bytes, a multiple of the size of `T`.
    ///
    /// # Errors
    /// Out of bounds, misaligned, or no memory there.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn write<T: Primitive>(&self, offset: usize, value: T) -> Result<(), AccessError> {
        check::<T>(offset, self.len())?;
        // SAFETY: as in `read`.
        self.recovering(|| unsafe { raw::store(self.at(offset).cast::<T>(), value) })
            .map_err(|_| AccessError::NoMemory { offset })
    }

    /// Copies out of the region.
    ///
    /// # Errors
    /// Out of bounds (nothing done), or no memory at some place.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn read_slice(&self, offset: usize, into: &mut [u8]) -> Result<(), CopyError> {
        self.check_slice(offset, into.len())?;
        // SAFETY: inside the view as just checked; `into` is the caller's exclusive buffer.
        let done = self.recovering(|| unsafe { raw::copy_out(into.as_mut_ptr(), self.at(offset), into.len()) });
        finished(done, into.len(), offset)
    }

    /// Copies into the region.
    ///
    /// # Errors
    /// Out of bounds (nothing done), or no memory at some place.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn write_slice(&self, offset: usize, from: &[u8]) -> Result<(), CopyError> {
        self.check_slice(offset, from.len())?;
        // SAFETY: inside the view as just checked; `from` is not written meanwhile.
        let done = self.recovering(|| unsafe { raw::copy_in(self.at(offset), from.as_ptr(), from.len()) });
        finished(done, from.len(), offset)
    }

    /// Sets `len` bytes to `byte`.
    ///
    /// # Errors
    /// Out of bounds (nothing done), or no memory at some place.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    pub fn fill(&self, offset: usize, byte: u8, len: usize) -> Result<(), CopyError> {
        self.check_slice(offset, len)?;
        // SAFETY: inside the view as just checked.
        let done = self.recovering(|| unsafe { raw::fill(self.at(offset), byte, len) });
        finished(done, len, offset)
    }

    /// Runs some accesses to the view.
    #[inline]
    pub(crate) fn recovering<R>(&self, accesses: impl FnOnce() -> R) -> R {
        let view = AddrRange::new(self.as_ptr().addr(), self.len());
        raw::recovering(view, accesses, |stand_in| self.put_back(stand_in.range))
    }

    /// Maps the file's pages again where an access' handler has put others.
    fn put_back(&self, range: AddrRange) {
        let Some((fd, offset)) = &self.file else { return };
        let offset = offset + (range.addr - self.as_ptr().addr()) as u64;
        if map_over(range, self.page, fd.as_fd(), offset, map::Prot::ReadWrite).is_err() {
            // SAFETY: inside of the view, which `self` keeps; what is there now is nobody's memory.
            let _ = unsafe { map::protect(range, map::Prot::None) };
        }
    }

    fn check_slice(&self, offset: usize, size: usize) -> Result<(), CopyError> {
        let fits = offset.checked_add(size).is_some_and(|end| end <= self.len());
        let error = AccessError::OutOfBounds { offset, size, len: self.len() };
        if fits { Ok(()) } else { Err(CopyError { done: 0, error }) }
    }
}

fn finished(done: usize, len: usize, offset: usize) -> Result<(), CopyError> {
    if done == len { Ok(()) } else { Err(CopyError { done, error: AccessError::NoMemory { offset: offset + done } }) }
}

impl fmt::Debug for OwnerView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerView").field("at", &self.as_ptr()).field("len", &self.len()).finish()
    }
}
