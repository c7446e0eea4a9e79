//! Two system calls of the fault path, not by the C library's functions of their names. Callers know what each errno means.
//!
//! Those functions are points of cancellation (pthreads(7)), which glibc 2.36 marks by two locked instructions for each call:
//! together about a hundredth of what a fault takes. A thread that reads faults is not to be cancelled anyway.
//!
//! UNSAFETY: system calls through `libc::syscall`, which write to what the caller borrows mutably.
#![expect(unsafe_code, reason = "system calls")]

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollEvent};
use std::os::fd::{AsRawFd, BorrowedFd};

/// read(2).
pub(crate) fn read(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most `len` bytes, to a slice that is borrowed mutably for the whole call.
    count(unsafe { libc::syscall(libc::SYS_read, fd.as_raw_fd(), into.as_mut_ptr(), into.len()) })
}

/// Waits until there is an event, however long that takes: epoll_pwait(2) with no signal mask; not every architecture has
/// epoll_wait(2).
pub(crate) fn epoll_wait<'e>(epoll: &Epoll, into: &'e mut [EpollEvent]) -> Result<&'e [EpollEvent], Errno> {
    let room = libc::c_int::try_from(into.len()).unwrap_or(libc::c_int::MAX);
    let (epoll, forever, mask) = (epoll.0.as_raw_fd(), -1, std::ptr::null::<libc::sigset_t>());
    // SAFETY: an EpollEvent is an epoll_event (repr(transparent)), and the kernel writes at most `room` of them to a slice
    // that is borrowed mutably for the whole call. Without a mask its size, the last argument, is not looked at.
    let ready =
        count(unsafe { libc::syscall(libc::SYS_epoll_pwait, epoll, into.as_mut_ptr(), room, forever, mask, 0_usize) })?;
    Ok(&into[..ready])
}

/// What a system call returns that counts something.
fn count(returned: libc::c_long) -> Result<usize, Errno> {
    Errno::result(returned).map(|n| usize::try_from(n).unwrap_or(0))
}
