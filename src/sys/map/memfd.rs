//! Memfds, and what other files allow.
#![expect(unsafe_code, reason = "a descriptor that the kernel gave")]
// UNSAFETY: takes ownership of descriptors that system calls have just returned.

use crate::sys::{SysError, may_fail};
use nix::libc;
use std::ffi::CStr;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

/// A memfd of `len` bytes, of huge pages of `huge` bytes; 0 for base pages.
pub(crate) fn memfd(name: &CStr, len: u64, huge: usize) -> Result<OwnedFd, SysError> {
    may_fail("memfd_create")?;
    let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    if huge > 0 {
        flags |= libc::MFD_HUGETLB | (huge.trailing_zeros() << libc::MFD_HUGE_SHIFT);
    }
    // MFD_NOEXEC_SEAL is from 6.3; before that the flag is EINVAL, and the file is merely not sealed against exec.
    let mut raw = -1;
    for extra in [libc::MFD_NOEXEC_SEAL, 0] {
        // SAFETY: `name` is a C string; the call touches no memory of ours.
        raw = unsafe { libc::memfd_create(name.as_ptr(), flags | extra) };
        if raw >= 0 || nix::errno::Errno::last() != nix::errno::Errno::EINVAL {
            break;
        }
    }
    if raw < 0 {
        return Err(SysError::last("memfd_create"));
    }
    // SAFETY: a descriptor that the kernel has just given to this call alone.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    may_fail("ftruncate")?;
    let size = libc::off_t::try_from(len).map_err(|_| SysError::new("ftruncate", nix::errno::Errno::EFBIG))?;
    nix::unistd::ftruncate(&fd, size).map_err(|e| SysError::new("ftruncate", e))?;
    Ok(fd)
}

/// What a memfd's seals forbid, besides further seals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sealed {
    Nothing,
    /// Shrinking and growing.
    Size,
    /// Those, and writing.
    Content,
}

/// Seals a memfd.
pub(crate) fn seal(fd: BorrowedFd<'_>, sealed: Sealed) -> Result<(), SysError> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    may_fail("fcntl(F_ADD_SEALS)")?;
    let size = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    let seals = SealFlag::F_SEAL_SEAL
        | match sealed {
            Sealed::Nothing => SealFlag::empty(),
            Sealed::Size => size,
            Sealed::Content => size | SealFlag::F_SEAL_WRITE,
        };
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| SysError::new("fcntl(F_ADD_SEALS)", e))?;
    Ok(())
}

/// Another descriptor of the same file.
pub(crate) fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd, SysError> {
    let errno = |e: std::io::Error| nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0));
    fd.try_clone_to_owned().map_err(|e| SysError::new("fcntl(F_DUPFD_CLOEXEC)", errno(e)))
}

/// True if a shared mapping of the file can be stored to: it is open for writing, and no seal forbids it.
pub(crate) fn may_write(fd: BorrowedFd<'_>) -> Result<bool, SysError> {
    use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
    may_fail("fcntl(F_GETFL)")?;
    let flags = fcntl(fd, FcntlArg::F_GETFL).map_err(|e| SysError::new("fcntl(F_GETFL)", e))?;
    let open = OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE != OFlag::O_RDONLY;
    // For files that have no seals this is EINVAL.
    let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), SealFlag::from_bits_retain);
    Ok(open && !seals.intersects(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE))
}

/// True if the file can lose pages; false if a seal forbids that.
pub(crate) fn may_shrink(fd: BorrowedFd<'_>) -> bool {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    // For files that have no seals this is EINVAL.
    let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), SealFlag::from_bits_truncate);
    !seals.contains(SealFlag::F_SEAL_SHRINK)
}
