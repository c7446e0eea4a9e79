//! Descriptors that somebody else opened.
//!
//! A userfaultfd serves the address space of whoever *made* it, for good: one that comes from another process (over a
//! socket, by exec or fork) registers and fills ranges over there, while faults here go past it. Such a descriptor is
//! found out by a trial and refused.
//!
//! UNSAFETY: as in the parent module; the trial changes a page that it has mapped itself.
#![expect(unsafe_code, reason = "userfaultfd ioctls have no safe form")]

use super::{Uffd, UffdFeatures, UffdSource, nr, raw, uffdio_range};
use crate::sys::map::{self, Prot};
use crate::sys::{SysError, may_fail, page_size};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const USERFAULTFD_IOC_NEW: libc::Ioctl = 0xaa00;

impl Uffd {
    /// A userfaultfd that somebody else opened. The API handshake may be done or not.
    pub(crate) fn from_fd(fd: OwnedFd, features: UffdFeatures) -> Result<Self, SysError> {
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL).map_err(|e| SysError::new("fcntl", e))?;
        let flags = nix::fcntl::OFlag::from_bits_retain(flags) | nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(flags)).map_err(|e| SysError::new("fcntl", e))?;
        let uffd = Self::made_here(fd)?;
        match uffd.handshake(features) {
            // A second handshake is EINVAL: its first owner has done it, with features of its choice.
            Ok(_) | Err(SysError { errno: Errno::EINVAL, .. }) => Ok(uffd),
            Err(e) => Err(e),
        }
    }

    /// A new userfaultfd of this process's, by a `/dev/userfaultfd` that somebody opened.
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

    /// Whether it serves this process: a page that it is told to fill gets filled here.
    pub(crate) fn serves_this_process(&self) -> Result<bool, SysError> {
        let page = map::reserve(page_size(), page_size())?;
        let tried = self.try_on(page);
        // SAFETY: mapped above, known to nobody else.
        let unmapped = unsafe { map::unmap(page) };
        let here = tried?;
        unmapped.map(|()| here)
    }

    fn try_on(&self, page: crate::sys::AddrRange) -> Result<bool, SysError> {
        // SAFETY: a reservation that only the caller knows.
        unsafe { map::protect(page, Prot::ReadWrite) }?;
        // Over there the address may be nobody's (EINVAL), or its process may have ended (ESRCH).
        if self.register(page, false).is_err() {
            return Ok(false);
        }
        let mut fill = raw::uffdio_zeropage { range: uffdio_range(page), mode: 0, zeropage: 0 };
        let filled = self.ioctl("UFFDIO_ZEROPAGE", nr::UFFDIO_ZEROPAGE, &mut fill);
        let mut resident = 0u8;
        // SAFETY: one page, which is mapped, and a byte for the answer.
        let asked = unsafe { libc::mincore(page.as_ptr().cast(), page.len, &mut resident) };
        self.unregister(page)?;
        if asked < 0 {
            return Err(SysError::last("mincore"));
        }
        Ok(filled.is_ok() && resident & 1 == 1)
    }
}
