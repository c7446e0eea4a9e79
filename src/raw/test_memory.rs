//! Memory for the tests: accessible, or raising a chosen signal.

use nix::libc::{self, c_int};
use std::ptr::null_mut;

/// A whole number of pages, whatever their size.
pub(in crate::raw) const PAGE: usize = 64 << 10;

fn map(len: usize, protection: c_int, fd: c_int) -> *mut u8 {
    let flags = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    // SAFETY: the kernel picks an address where nothing is mapped.
    let p = unsafe { libc::mmap(null_mut(), len, protection, flags, fd, 0) };
    assert_ne!(p, libc::MAP_FAILED);
    p.cast()
}

/// Accessible memory.
pub(in crate::raw) fn good(len: usize) -> *mut u8 {
    map(len, libc::PROT_READ | libc::PROT_WRITE, -1)
}

/// Memory whose every access raises SIGSEGV.
pub(in crate::raw) fn segv(len: usize) -> *mut u8 {
    map(len, libc::PROT_NONE, -1)
}

/// Memory that is accessible up to `good` bytes; an access to a page after that raises SIGBUS.
pub(in crate::raw) fn bus_after(good: usize, len: usize) -> *mut u8 {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"empty".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: a descriptor made here, which only this function knows.
    assert_eq!(unsafe { libc::ftruncate(fd, good.try_into().unwrap()) }, 0);
    let p = map(len, libc::PROT_READ | libc::PROT_WRITE, fd);
    // SAFETY: as above, and used no more.
    unsafe { libc::close(fd) };
    p
}

/// Memory whose every access raises SIGBUS.
pub(in crate::raw) fn bus(len: usize) -> *mut u8 {
    bus_after(0, len)
}
