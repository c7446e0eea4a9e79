//! The rivals' tools: plain mappings and a plain userfaultfd, directly on the kernel.
//!
//! UNSAFETY: mappings that only the bench knows, and accesses inside of them.
#![expect(unsafe_code, reason = "raw system calls and accesses are what is measured")]

use nix::libc;
use revocable_mmio::Mapping;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub(crate) const PAGE: usize = 4096;

/// A memfd whose pages all exist. `flags` are those of memfd_create(2).
pub(crate) fn memfd(len: usize, flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: a C string.
    let fd = unsafe { libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if len == 0 {
        return Ok(fd);
    }
    let len = libc::off_t::try_from(len).map_err(io::Error::other)?;
    // SAFETY: takes numbers only.
    let rc = unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, len) };
    if rc == 0 { Ok(fd) } else { Err(io::Error::last_os_error()) }
}

fn count(call: &str, n: libc::ssize_t) -> usize {
    usize::try_from(n).unwrap_or_else(|_| panic!("{call}: {}", io::Error::last_os_error()))
}

/// Has a pipe hold up to `len` bytes of a file. Returns how many.
pub(crate) fn splice(file: BorrowedFd<'_>, offset: usize, pipe: BorrowedFd<'_>, len: usize) -> usize {
    let mut at = libc::off64_t::try_from(offset).expect("inside of a file");
    let flags = libc::SPLICE_F_NONBLOCK;
    // SAFETY: the kernel reads and writes the offset, and moves references to pages.
    let n = unsafe { libc::splice(file.as_raw_fd(), &raw mut at, pipe.as_raw_fd(), std::ptr::null_mut(), len, flags) };
    count("splice", n)
}

/// Reads from a pipe into a part of a memory. Returns how many bytes.
pub(crate) fn read(pipe: BorrowedFd<'_>, memory: Bytes, part: Range<usize>) -> usize {
    assert!(part.start <= part.end && part.end <= memory.len);
    // SAFETY: the bench's own memory, inside of it as just checked; the kernel alone writes there.
    let n = unsafe { libc::read(pipe.as_raw_fd(), memory.at.wrapping_add(part.start).cast(), part.len()) };
    count("read", n)
}

/// Writes a memory from `done` on to the same place of a file. Returns how many bytes.
pub(crate) fn write(file: BorrowedFd<'_>, memory: Bytes, done: usize) -> usize {
    assert!(done <= memory.len);
    let at = libc::off_t::try_from(done).expect("inside of a file");
    // SAFETY: the bench's own memory, inside of it as just checked.
    let n = unsafe { libc::pwrite(file.as_raw_fd(), memory.at.wrapping_add(done).cast(), memory.len - done, at) };
    count("pwrite", n)
}

/// A shared mapping of a file.
pub(crate) struct Map {
    at: *mut u8,
    len: usize,
    rights: libc::c_int,
    whole: (*mut u8, usize),
}

// SAFETY: an address range, accessed by volatile accesses and system calls only.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// At a multiple of `align`, without huge pages.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, align: usize) -> Self {
        Self::with_rights(fd, len, align, libc::PROT_READ | libc::PROT_WRITE)
    }

    pub(crate) fn with_rights(fd: BorrowedFd<'_>, len: usize, align: usize, rights: libc::c_int) -> Self {
        let reserved = len + align;
        // SAFETY: without MAP_FIXED the kernel picks a free address.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        let start = start.cast::<u8>();
        let at = start.wrapping_add(start.align_offset(align));
        let map = Self { at, len, rights, whole: (start, reserved) };
        map.fill(fd);
        map
    }

    /// Maps the file (anew) over the range.
    pub(crate) fn fill(&self, fd: BorrowedFd<'_>) {
        // SAFETY: the range is inside of the reservation made above.
        let at = unsafe {
            libc::mmap(self.at.cast(), self.len, self.rights, libc::MAP_SHARED | libc::MAP_FIXED, fd.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        // Hugetlb does not support this advice, and does not need it.
        let _ = self.advise(libc::MADV_NOHUGEPAGE);
    }

    /// To be used while the map lives.
    pub(crate) fn bytes(&self) -> Bytes {
        // SAFETY: mapped until the drop; a bench that unmaps it in between fills it again before it looks.
        unsafe { Bytes::new(self.at, self.len) }
    }

    pub(crate) fn addr(&self) -> usize {
        self.at.addr()
    }

    pub(crate) fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the bench's own range; of shared memory, no advice used here loses the content.
        let rc = unsafe { libc::madvise(self.at.cast(), self.len, advice) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(crate) fn protect(&self, prot: libc::c_int) {
        // SAFETY: the bench's own range.
        let rc = unsafe { libc::mprotect(self.at.cast(), self.len, prot) };
        assert_eq!(rc, 0, "mprotect: {}", io::Error::last_os_error());
    }

    pub(crate) fn unmap(&self) {
        // SAFETY: the bench's own range.
        let rc = unsafe { libc::munmap(self.at.cast(), self.len) };
        assert_eq!(rc, 0, "munmap: {}", io::Error::last_os_error());
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the whole reservation. The bench has given no part of it to other code.
        unsafe { libc::munmap(self.whole.0.cast(), self.whole.1) };
    }
}

/// madvise of many ranges by one call.
pub(crate) fn process_madvise(maps: &[Map], advice: libc::c_int) -> io::Result<()> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    let fd = libc::c_int::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a new descriptor, which has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let ranges: Vec<_> = maps.iter().map(|map| libc::iovec { iov_base: map.at.cast(), iov_len: map.len }).collect();
    // SAFETY: live iovecs of the bench's own ranges; of shared memory, no advice used here loses the content.
    let n =
        unsafe { libc::syscall(libc::SYS_process_madvise, fd.as_raw_fd(), ranges.as_ptr(), ranges.len(), advice, 0) };
    let all: usize = maps.iter().map(|map| map.len).sum();
    match usize::try_from(n) {
        Ok(n) if n == all => Ok(()),
        Ok(n) => Err(io::Error::other(format!("only {n} bytes of {all}"))),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// A mapped range, for plain accesses.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    at: *mut u8,
    len: usize,
}

// SAFETY: an address range, accessed by volatile accesses only.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// # Safety
    /// The range stays mapped as long as it is accessed by this.
    unsafe fn new(at: *mut u8, len: usize) -> Self {
        Self { at, len }
    }

    /// To be used while the mapping lives and its region is enabled.
    pub(crate) fn of(mapping: &Mapping) -> Self {
        // SAFETY: as said; a bench whose region is disabled meanwhile dies of the signal.
        unsafe { Self::new(mapping.as_ptr(), mapping.len()) }
    }

    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// One store.
    #[inline]
    pub(crate) fn store(self, offset: usize, value: u8) {
        assert!(offset < self.len);
        // SAFETY: inside the range, which `new`'s caller keeps mapped; volatile, as other threads may write there.
        unsafe { self.at.wrapping_add(offset).write_volatile(value) };
    }

    /// One load.
    #[inline]
    pub(crate) fn load(self, offset: usize) -> u8 {
        assert!(offset < self.len);
        // SAFETY: as in `store`.
        unsafe { self.at.wrapping_add(offset).read_volatile() }
    }

    /// memcpy into another range of this length.
    pub(crate) fn copy_to(self, to: Self) {
        assert_eq!(self.len, to.len);
        // SAFETY: two separate ranges that `new`'s callers keep mapped, and that no other thread uses.
        unsafe { std::ptr::copy_nonoverlapping(self.at, to.at, self.len) };
    }

    /// Stores to the first byte of every `step` bytes.
    pub(crate) fn touch(self, step: usize) {
        for offset in (0..self.len).step_by(step) {
            self.store(offset, 1);
        }
    }
}
