//! The size and the content of files: truncating, punching, writing, opening anew.
#![expect(unsafe_code, reason = "pwrite(2) from memory that there are no references to")]

use super::{SysError, may_fail, page_size};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::libc;
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

fn off(call: &'static str, offset: usize) -> Result<libc::off_t, SysError> {
    libc::off_t::try_from(offset).map_err(|_| SysError::new(call, Errno::EOVERFLOW))
}

/// Shortens the file: the kernel unmaps what is beyond its new end from every process.
pub(crate) fn truncate(file: BorrowedFd<'_>, len: usize) -> Result<(), SysError> {
    may_fail("ftruncate")?;
    nix::unistd::ftruncate(file, off("ftruncate", len)?).map_err(|e| SysError::new("ftruncate", e))
}

/// Takes pages out of the file, whose size stays: the kernel unmaps them from every process.
pub(crate) fn punch(file: BorrowedFd<'_>, offset: usize, len: usize) -> Result<(), SysError> {
    may_fail("fallocate(FALLOC_FL_PUNCH_HOLE)")?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = (off("fallocate", offset)?, off("fallocate", len)?);
    fallocate(file, flags, offset, len).map_err(|e| SysError::new("fallocate(FALLOC_FL_PUNCH_HOLE)", e))
}

/// Waits until no system call of another process has the lock of the file (`inode_lock`), by a call that needs it and changes
/// nothing: there are no pages beyond the end.
pub(crate) fn wait_for_lock(file: BorrowedFd<'_>, len: usize) -> Result<(), SysError> {
    punch(file, len, page_size())
}

/// Allocates the file's pages.
pub(crate) fn allocate(file: BorrowedFd<'_>, len: usize) -> Result<(), SysError> {
    may_fail("fallocate")?;
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, off("fallocate", len)?) {
            Err(Errno::EINTR) => {}
            done => return done.map_err(|e| SysError::new("fallocate", e)),
        }
    }
}

/// Shortens the file to `len` bytes if it is longer.
pub(crate) fn truncate_if_longer(file: BorrowedFd<'_>, len: usize) -> Result<(), SysError> {
    may_fail("fstat")?;
    let stat = nix::sys::stat::fstat(file).map_err(|e| SysError::new("fstat", e))?;
    if usize::try_from(stat.st_size).is_ok_and(|size| size > len) { truncate(file, len) } else { Ok(()) }
}

pub(crate) fn fill_with_zeroes(file: BorrowedFd<'_>, offset: usize, len: usize) -> Result<(), SysError> {
    static ZEROES: [u8; PART] = [0; PART];
    fill(file, offset, len, &ZEROES)
}

pub(crate) fn fill_with_ones(file: BorrowedFd<'_>, offset: usize, len: usize) -> Result<(), SysError> {
    static ONES: [u8; PART] = [0xff; PART];
    fill(file, offset, len, &ONES)
}

const PART: usize = 64 << 10;

/// Writes `part` again and again, `len` bytes from `offset` on.
fn fill(file: BorrowedFd<'_>, offset: usize, len: usize, part: &[u8]) -> Result<(), SysError> {
    let mut done = 0;
    while done < len {
        may_fail("pwrite")?;
        match nix::sys::uio::pwrite(file, &part[..part.len().min(len - done)], off("pwrite", offset + done)?) {
            Ok(0) => return Err(SysError::new("pwrite", Errno::EIO)),
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(SysError::new("pwrite", e)),
        }
    }
    Ok(())
}

/// Writes `len` bytes from `from` on to the file, in order.
///
/// # Safety
/// The kernel may read the bytes, whatever is there and whoever writes there meanwhile. If nothing is mapped there the call
/// fails.
pub(crate) unsafe fn write_from(
    file: BorrowedFd<'_>,
    offset: usize,
    from: *const u8,
    len: usize,
) -> Result<(), SysError> {
    let mut done = 0;
    while done < len {
        may_fail("pwrite")?;
        let at = off("pwrite", offset + done)?;
        // SAFETY: the kernel reads bytes that it may read.
        let n = unsafe { libc::pwrite(file.as_raw_fd(), from.wrapping_add(done).cast(), len - done, at) };
        match usize::try_from(n) {
            Ok(0) => return Err(SysError::new("pwrite", Errno::EIO)),
            Ok(n) => done += n,
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(SysError::last("pwrite")),
        }
    }
    Ok(())
}

/// Lets only the file's user open it anew: whoever holds a descriptor of it could, by /proc/self/fd, with more rights than
/// the descriptor has.
pub(crate) fn keep_from_other_users(file: BorrowedFd<'_>) -> Result<(), SysError> {
    may_fail("fchmod")?;
    nix::sys::stat::fchmod(file, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| SysError::new("fchmod", e))
}

/// Another open file of the same inode, by /proc/self/fd (proc(5)).
pub(crate) fn reopen(file: BorrowedFd<'_>, writable: bool) -> Result<OwnedFd, SysError> {
    may_fail("open(/proc/self/fd)")?;
    let access = if writable { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::fcntl::open(path.as_str(), access | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| SysError::new("open(/proc/self/fd)", e))
}
