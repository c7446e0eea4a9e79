//! Descriptors that were opened elsewhere.
//!
//! A userfaultfd serves the address space of the process that *made* it, for good. One that comes from another process
//! (over a socket, by exec or fork) registers and fills ranges in that process, and does not see faults here. A trial
//! detects such a descriptor, and it is refused.
//!
//! # The trial
//!
//! The trial must change nothing in the other process, so it is a registration that every process refuses.
//! `userfaultfd_register` (fs/userfaultfd.c, 4.11 to 7.3) first looks at all mappings in the range, from the lowest, and
//! changes any only if it objects to none. The range is the whole address space from a low page on. In every process it
//! contains mappings that cannot be registered (the vdso, the program's text): EINVAL. Then the low page is mapped here, as
//! shared memory that can never be made writable: now this process, and no other, returns EPERM, at the first mapping that
//! the kernel looks at.
//!
//! UNSAFETY: as in the parent module; the trial maps pages that replace nothing.
#![expect(unsafe_code, reason = "userfaultfd ioctls have no safe form")]

use super::{Uffd, UffdFeatures, UffdSource, raw};
use crate::sys::map;
use crate::sys::{Addr, AddrRange, SysError, may_fail, page_size};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;

impl Uffd {
    /// A userfaultfd that was opened elsewhere; `None` if it serves another process. In that process all is as before,
    /// except that the API handshake is done, if it was not: without it a userfaultfd refuses everything.
    pub(crate) fn from_fd(fd: OwnedFd, features: UffdFeatures) -> Result<Option<Self>, SysError> {
        let uffd = Self::made_here(fd)?;
        match uffd.handshake(features) {
            // A second handshake is EINVAL: the first owner has done it, with features of its choice.
            Ok(_) | Err(SysError { errno: Errno::EINVAL, .. }) => {}
            Err(e) => return Err(e),
        }
        if !uffd.serves_this_process()? {
            return Ok(None);
        }
        // The flags are shared with every holder of the file, so this comes last.
        let flags = fcntl(uffd.file.unchecked(), FcntlArg::F_GETFL).map_err(|e| SysError::new("fcntl", e))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(uffd.file.unchecked(), FcntlArg::F_SETFL(flags)).map_err(|e| SysError::new("fcntl", e))?;
        Ok(Some(uffd))
    }

    /// A new userfaultfd of this process, from an open `/dev/userfaultfd`.
    pub(crate) fn by_device(
        device: BorrowedFd<'_>,
        features: UffdFeatures,
        source: UffdSource,
    ) -> Result<Self, SysError> {
        let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        if source == UffdSource::UserModeOnly {
            flags |= raw::UFFD_USER_MODE_ONLY as libc::c_int;
        }
        may_fail("USERFAULTFD_IOC_NEW")?;
        // SAFETY: the argument is a number, not a pointer.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
        if fd < 0 {
            return Err(SysError::last("USERFAULTFD_IOC_NEW"));
        }
        // SAFETY: a descriptor that the kernel just gave to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let uffd = Self::made_here(fd)?;
        uffd.handshake(features)?;
        Ok(uffd)
    }

    /// True if it serves this process: see the module's documentation.
    fn serves_this_process(&self) -> Result<bool, SysError> {
        let page = low_page()?;
        let everything = end_of_addresses().map(|end| AddrRange::between(page.start, end));
        let with = everything.map(|range| self.register(range, false));
        // SAFETY: mapped by `low_page`, and known only here.
        unsafe { map::unmap(page) }?;
        let without = self.register(everything?, false);
        let refused = |tried: Result<(), SysError>| tried.err().map(|e| e.errno);
        Ok(refused(with?) == Some(Errno::EPERM) && refused(without).is_some_and(|errno| errno != Errno::EPERM))
    }
}

/// Maps a page that userfaultfd refuses with EPERM, below the mappings of any process.
fn low_page() -> Result<AddrRange, SysError> {
    let len = page_size();
    let file = map::memfd(c"revocable-trial", len as u64, 0)?;
    let seal = FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(libc::F_SEAL_FUTURE_WRITE));
    fcntl(&file, seal).map_err(|e| SysError::new("fcntl(F_ADD_SEALS)", e))?;
    let mut refused = SysError::new("mmap", Errno::ENOMEM);
    // From the lowest address that the kernel allows (vm.mmap_min_addr is 64 KiB at most) to 256 MiB.
    for shift in 0..=12 {
        match map_if_free(AddrRange::new(Addr(0x10000 << shift), len), Some(file.as_fd())) {
            Ok(page) => return Ok(page),
            Err(e) => refused = e,
        }
    }
    Err(refused)
}

/// The end of this process's address space, give or take a page or two: a power of two on every architecture.
fn end_of_addresses() -> Result<Addr, SysError> {
    let page = page_size();
    let on_stack = (&raw const page).addr();
    let mut refused = SysError::new("mmap", Errno::ENOMEM);
    for bits in (30..=57).rev() {
        let Some(end) = 1_usize.checked_shl(bits).map(|end| end - page) else { continue };
        if end <= on_stack {
            break;
        }
        match map_if_free(AddrRange::new(Addr(end - page), page), None) {
            Ok(last) => {
                // SAFETY: the page just mapped, which no other code knows.
                unsafe { map::unmap(last) }?;
                return Ok(Addr(end));
            }
            Err(SysError { errno: Errno::EEXIST, .. }) => return Ok(Addr(end)),
            // ENOMEM: no such addresses (mmap(2)).
            Err(e) => refused = e,
        }
    }
    Err(refused)
}

/// Maps a page, of a file for reading or without access, where nothing is mapped.
fn map_if_free(page: AddrRange, file: Option<BorrowedFd<'_>>) -> Result<AddrRange, SysError> {
    may_fail("mmap")?;
    let (prot, flags) = match file {
        Some(_) => (libc::PROT_READ, libc::MAP_SHARED),
        None => (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
    };
    let fd = file.map_or(-1, |file| file.as_raw_fd());
    // SAFETY: replaces nothing (MAP_FIXED_NOREPLACE, Linux 4.17, older than the userfaultfds that are used).
    let at = unsafe { libc::mmap(page.as_ptr().cast(), page.len, prot, flags | libc::MAP_FIXED_NOREPLACE, fd, 0) };
    if at == libc::MAP_FAILED { Err(SysError::last("mmap")) } else { Ok(page) }
}
