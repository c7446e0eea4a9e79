//! Accesses by raw pointer and by system call, as a driver, a guest or the kernel make them, and the signal or the errno that each
//! gets. Here are the system calls.
//!
//! UNSAFETY: system calls on addresses that the tests take from live mappings (or know to be refused).
#![expect(unsafe_code, reason = "system calls on addresses and descriptors of the crate's")]

mod access;
mod catch;

pub(crate) use access::*;
pub(crate) use catch::*;

use nix::errno::Errno;
use nix::libc;
use std::ffi::{c_int, c_void};

fn answer(n: isize) -> Result<usize, Errno> {
    usize::try_from(n).map_err(|_| Errno::last())
}

fn at(addr: usize) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(addr)
}

/// A file to write into and read from, at its start.
pub(crate) fn scratch() -> std::os::fd::OwnedFd {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    nix::sys::memfd::memfd_create(c"scratch", flags).expect("a memfd can be had")
}

/// pwrite(2) with `len` bytes at `addr` as its source.
pub(crate) fn write_from(addr: usize, len: usize) -> Result<usize, Errno> {
    let file = scratch();
    // SAFETY: the kernel reads at an address of the test's, or refuses to.
    answer(unsafe { libc::pwrite(std::os::fd::AsRawFd::as_raw_fd(&file), at(addr), len, 0) })
}

/// The same into a pipe.
pub(crate) fn write_pipe_from(addr: usize, len: usize) -> Result<usize, Errno> {
    let (_out, into) = nix::unistd::pipe().expect("a pipe can be had");
    // SAFETY: as above.
    answer(unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&into), at(addr), len) })
}

/// pread(2) of the given bytes into `addr`.
pub(crate) fn read_into(addr: usize, bytes: &[u8]) -> Result<usize, Errno> {
    let file = scratch();
    nix::unistd::write(&file, bytes).expect("the file takes them");
    // SAFETY: the kernel writes at an address of the test's, or refuses to.
    answer(unsafe { libc::pread(std::os::fd::AsRawFd::as_raw_fd(&file), at(addr), bytes.len(), 0) })
}

/// pwrite(2) of `len` bytes at `addr` to the start of a file.
pub(crate) fn pwrite_from(file: impl std::os::fd::AsFd, addr: usize, len: usize) -> Result<usize, Errno> {
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file.as_fd());
    // SAFETY: as for `write_from`.
    answer(unsafe { libc::pwrite(fd, at(addr), len, 0) })
}

/// pread(2) of `len` bytes from the start of a file into `addr`.
pub(crate) fn pread_into(file: impl std::os::fd::AsFd, addr: usize, len: usize) -> Result<usize, Errno> {
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file.as_fd());
    // SAFETY: as for `read_into`.
    answer(unsafe { libc::pread(fd, at(addr), len, 0) })
}

/// pwritev(2) of two pieces into a file.
pub(crate) fn writev(pieces: [(usize, usize); 2]) -> Result<usize, Errno> {
    let file = scratch();
    let pieces = pieces.map(|(addr, len)| libc::iovec { iov_base: at(addr), iov_len: len });
    // SAFETY: as for `write_from`.
    answer(unsafe { libc::pwritev(std::os::fd::AsRawFd::as_raw_fd(&file), pieces.as_ptr(), 2, 0) })
}

/// process_vm_readv(2) of another (or this) process's memory.
pub(crate) fn read_process(pid: i32, addr: usize, into: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: at(addr), iov_len: into.len() };
    // SAFETY: the local piece is the caller's buffer; the remote one the kernel checks.
    answer(unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) })
}

/// process_vm_readv(2) on this process, from one address to another.
pub(crate) fn copy_in_kernel(from: usize, to: usize, len: usize) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: at(to), iov_len: len };
    let remote = libc::iovec { iov_base: at(from), iov_len: len };
    let me = nix::unistd::getpid().as_raw();
    // SAFETY: the kernel accesses addresses of the test's, or refuses to.
    answer(unsafe { libc::process_vm_readv(me, &raw const local, 1, &raw const remote, 1, 0) })
}

/// mprotect(2).
pub(crate) fn protect(addr: usize, len: usize, prot: c_int) -> Result<(), Errno> {
    // SAFETY: the tests change rights of their own mappings only, which is what a careless application does.
    Errno::result(unsafe { libc::mprotect(at(addr), len, prot) }).map(drop)
}

/// munmap(2).
pub(crate) fn unmap(addr: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: as `protect`.
    Errno::result(unsafe { libc::munmap(at(addr), len) }).map(drop)
}

/// mmap(2) of anonymous memory at exactly this address, if nothing is there.
pub(crate) fn map_if_free(addr: usize, len: usize) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let got = unsafe { libc::mmap(at(addr), len, libc::PROT_NONE, flags, -1, 0) };
    if got == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// What uses up all mappings that the process may have, until it is dropped.
pub(crate) struct Filler(Vec<usize>);

/// Single pages of alternating rights, which the kernel can't merge, until it refuses another.
pub(crate) fn fill_the_table_of_mappings() -> Filler {
    let mut pages = Vec::with_capacity(1 << 17);
    loop {
        let rights = if pages.len() % 2 == 0 { libc::PROT_READ } else { libc::PROT_NONE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new pages at an address of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, rights, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Filler(pages);
        }
        pages.push(page.expose_provenance());
    }
}

impl Filler {
    /// Has room for so many mappings again.
    pub(crate) fn leave(&mut self, count: usize) {
        let kept = self.0.len().saturating_sub(count);
        drop(Filler(self.0.split_off(kept)));
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        for page in &self.0 {
            // SAFETY: the pages made by `fill_the_table_of_mappings`, which nothing uses.
            unsafe { libc::munmap(at(*page), 4096) };
        }
    }
}

/// The advice that not every C library has a name for.
pub(crate) const MADV_COLLAPSE: i32 = 25;

/// madvise(2).
pub(crate) fn advise(addr: usize, len: usize, advice: c_int) -> Result<(), Errno> {
    // SAFETY: as `protect`.
    Errno::result(unsafe { libc::madvise(at(addr), len, advice) }).map(drop)
}

/// mlock(2).
pub(crate) fn lock(addr: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: locks pages of a mapping of the test's.
    Errno::result(unsafe { libc::mlock(at(addr), len) }).map(drop)
}

/// mbind(2) with the policy that changes nothing but splits: MPOL_PREFERRED on no node in particular.
pub(crate) fn bind(addr: usize, len: usize) -> Result<(), Errno> {
    const MPOL_PREFERRED: c_int = 1;
    let none = std::ptr::null::<u64>();
    // SAFETY: as `protect`; an empty set of nodes.
    Errno::result(unsafe { libc::syscall(libc::SYS_mbind, at(addr), len, MPOL_PREFERRED, none, 0_usize, 0_u32) })
        .map(drop)
}

/// New anonymous memory at an address of the kernel's choice, readable and writable.
pub(crate) fn map_anonymous(len: usize) -> Result<usize, Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: without MAP_FIXED the kernel picks an address where nothing of anyone's stands.
    let got = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if got == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(got.expose_provenance()) }
}

/// mremap(2) by foreign code: to a place of the kernel's choice.
pub(crate) fn move_away(addr: usize, old_len: usize, len: usize) -> Result<usize, Errno> {
    // SAFETY: as `protect`.
    let got = unsafe { libc::mremap(at(addr), old_len, len, libc::MREMAP_MAYMOVE) };
    if got == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(got.expose_provenance()) }
}

/// Closes a descriptor that belongs to other code.
pub(crate) fn close_behind_its_back(fd: i32) {
    // SAFETY: a system call on a number; that it is another's is the point.
    let rc = unsafe { libc::close(fd) };
    assert_eq!(rc, 0, "close({fd})");
}

/// Puts another file in the place of a descriptor that belongs to other code.
pub(crate) fn put_over(fd: i32, other: impl std::os::fd::AsFd) {
    let other = std::os::fd::AsRawFd::as_raw_fd(&other.as_fd());
    // SAFETY: a system call on numbers; that one is another's is the point.
    let rc = unsafe { libc::dup2(other, fd) };
    assert_eq!(rc, fd, "dup2");
}

/// Puts a directory, which can be neither read nor asked, in the place of a descriptor that belongs to other code.
pub(crate) fn replace_behind_its_back(theirs: impl std::os::fd::AsFd) {
    use std::os::fd::AsRawFd;
    let other = std::fs::File::open("/").expect("there is one");
    let theirs = theirs.as_fd().as_raw_fd();
    // SAFETY: a system call on numbers; that one is another's is the point.
    let rc = unsafe { libc::dup2(other.as_raw_fd(), theirs) };
    assert_eq!(rc, theirs, "dup2");
}

/// A thread's signal, for the tests of interrupted waits.
pub(crate) fn ignore_nothing(signal: nix::sys::signal::Signal) {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
    extern "C" fn nothing(_: c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(signal, &action) }.expect("it can be handled");
}

/// Drops bitwise copies of both, in a forked child, where the originals are never used again.
pub(crate) fn drop_copies(region: &revocable_mmio::Region, mapping: &revocable_mmio::Mapping) {
    // SAFETY: the child exits right after, without dropping the originals.
    drop(unsafe { std::ptr::read(mapping) });
    // SAFETY: as above.
    drop(unsafe { std::ptr::read(region) });
}
