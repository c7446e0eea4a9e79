//! The vault: the private file that has a window's content while nothing may reach it by the window.
//!
//! The content goes in and out by a mapping, which system calls alone access: that takes one copy and no look at the
//! descriptor, whose number other code may have given to another file. The descriptor is for the owner's view.
//!
//! UNSAFETY: passes addresses of a mapping that only this module knows to the kernel.
#![expect(unsafe_code, reason = "the kernel copies into and out of a mapping")]

use crate::sys::identity::Identity;
use crate::sys::known::KnownFile;
use crate::sys::map::{self, Advice, Sealed};
use crate::sys::pipe::Pipes;
use crate::sys::{Addr, AddrRange, SysError, file, may_fail};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use std::ffi::CStr;
use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes in a file that is never shared, all of whose pages exist and are in the page tables.
///
/// # Invariants
///
/// *Private*: no reference to the mapping is ever made, and its address is never given out. The file is sealed at its size.
/// *Bounds*: ranges are checked by [`part`](Self::part).
pub(super) struct Vault {
    file: KnownFile,
    /// Not in a forked child, which has something else there, or nothing.
    map: Option<MmapRaw>,
    mapped_in: Identity,
}

impl Vault {
    /// `len` is a multiple of the page size.
    pub(super) fn make(name: &CStr, len: usize) -> Result<Self, SysError> {
        Identity::prepare()?;
        let fd = map::memfd(name, len as u64, 0)?;
        map::seal(fd.as_fd(), Sealed::Size)?;
        file::allocate(fd.as_fd(), len)?;
        may_fail("mmap")?;
        let errno = |e: std::io::Error| SysError::new("mmap", Errno::from_raw(e.raw_os_error().unwrap_or(0)));
        let map = MmapOptions::new().len(len).map_raw(&fd).map_err(errno)?;
        let range = AddrRange::new(Addr::of(map.as_mut_ptr()), len);
        for advice in [Advice::DontFork, Advice::DontDump, Advice::PopulateWrite] {
            // SAFETY: the mapping made just now; no advice drops content.
            match unsafe { map::advise(range, advice) } {
                // Linux before 5.14: the first copy brings them in.
                Err(e) if advice == Advice::PopulateWrite && e.errno == Errno::EINVAL => {}
                advised => advised?,
            }
        }
        Ok(Self { file: KnownFile::new(fd), map: Some(map), mapped_in: Identity::current() })
    }

    /// For other mappings of it.
    pub(super) fn file(&self) -> &KnownFile {
        &self.file
    }

    /// The address of a part. A forked child has none.
    fn part(&self, part: &Range<usize>) -> Result<*mut u8, SysError> {
        let map = self.map.as_ref().filter(|_| self.mapped_in.is_current());
        let map = map.filter(|map| part.start <= part.end && part.end <= map.len());
        map.map(|map| map.as_mut_ptr().wrapping_add(part.start)).ok_or(SysError::new("read", Errno::EFAULT))
    }

    /// Moves the first bytes that the pipes hold into the first of `part`. Returns how many, at least one.
    pub(super) fn take(&self, pipes: &Pipes, part: Range<usize>) -> Result<usize, SysError> {
        let at = self.part(&part)?;
        // SAFETY: *Private* and *Bounds*: the kernel writes to shared memory that no reference is made to. The owner's view
        // waits, and a pipe's reader that finds the mapping gone fails.
        unsafe { pipes.take_some(at, part.len()) }
    }

    /// Makes a part zeroes.
    pub(super) fn clear(&self, part: Range<usize>) -> Result<(), SysError> {
        if part.is_empty() { Ok(()) } else { file::fill_with_zeroes(self.file.get()?, part.start, part.len()) }
    }

    /// Writes a part to the same place of `file`.
    pub(super) fn write_to(&self, file: BorrowedFd<'_>, part: Range<usize>) -> Result<(), SysError> {
        let at = self.part(&part)?;
        // SAFETY: *Private* and *Bounds*: the kernel reads shared memory, whatever is stored to it meanwhile.
        unsafe { file::write_from(file, part.start, at, part.len()) }
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        if !self.mapped_in.is_current() {
            // munmap would remove what the child has mapped there by now.
            std::mem::forget(self.map.take());
        }
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Vault").field(&self.file).finish()
    }
}
