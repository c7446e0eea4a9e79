//! mmap, mremap, madvise and memfds.
//!
//! UNSAFETY: changing what stands at an address is unsafe by nature; every function here says which ranges it
//! touches, and its caller proves that they are its own.
#![expect(unsafe_code, reason = "memory mapping calls have no safe form")]

use super::{AddrRange, SysError, may_fail};
use nix::libc;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Access rights of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prot {
    None,
    Read,
    ReadWrite,
}

impl Prot {
    fn bits(self) -> libc::c_int {
        match self {
            Prot::None => libc::PROT_NONE,
            Prot::Read => libc::PROT_READ,
            Prot::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// What `madvise` is asked, see madvise(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    DontNeed,
    /// 5.18: also drops the pages of a locked mapping.
    DontNeedLocked,
    DontFork,
    DontDump,
    NoHugePage,
    PopulateRead,
    PopulateWrite,
}

impl Advice {
    fn bits(self) -> libc::c_int {
        match self {
            Advice::DontNeed => libc::MADV_DONTNEED,
            Advice::DontNeedLocked => libc::MADV_DONTNEED_LOCKED,
            Advice::DontFork => libc::MADV_DONTFORK,
            Advice::DontDump => libc::MADV_DONTDUMP,
            Advice::NoHugePage => libc::MADV_NOHUGEPAGE,
            Advice::PopulateRead => libc::MADV_POPULATE_READ,
            Advice::PopulateWrite => libc::MADV_POPULATE_WRITE,
        }
    }
}

fn off(offset: u64) -> Result<libc::off_t, SysError> {
    libc::off_t::try_from(offset).map_err(|_| SysError::new("mmap", nix::errno::Errno::EOVERFLOW))
}

/// Reserves `len` bytes of address space, nothing accessible, at an address that is a multiple of `align`.
pub(crate) fn reserve(len: usize, align: usize) -> Result<AddrRange, SysError> {
    may_fail("mmap")?;
    let too_large = SysError::new("mmap", nix::errno::Errno::ENOMEM);
    let slack = if align > super::page_size() { align } else { 0 };
    let whole = len.checked_add(slack).ok_or(too_large)?;
    // SAFETY: without MAP_FIXED the kernel picks an address where nothing of anyone's stands.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            whole,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(SysError::last("mmap"));
    }
    let start = at.expose_provenance();
    let addr = start.next_multiple_of(align.max(1));
    for extra in [AddrRange::new(start, addr - start), AddrRange::new(addr + len, slack - (addr - start))] {
        if extra.len > 0 {
            // SAFETY: the two ends of the reservation just made, which nobody else knows.
            let trimmed = unsafe { unmap(extra) };
            if let Err(e) = trimmed {
                // SAFETY: as above, the whole reservation; what was trimmed already is a hole that nobody
                // has had the time to rely on, and munmap ignores holes.
                let _ = unsafe { unmap(AddrRange::new(addr, len)) };
                return Err(e);
            }
        }
    }
    Ok(AddrRange::new(addr, len))
}

/// Puts a shared mapping of `fd` over `range`, replacing what is there.
///
/// # Safety
/// `range` is the caller's own, and nobody relies on what is mapped there now.
pub(crate) unsafe fn map_shared(range: AddrRange, fd: BorrowedFd<'_>, offset: u64, prot: Prot) -> Result<(), SysError> {
    // SAFETY: passed on.
    unsafe { map_fixed(range, Some(fd), offset, prot, libc::MAP_SHARED) }
}

/// Puts a private (copy-on-write) mapping of `fd` over `range`, replacing what is there.
///
/// # Safety
/// As for [`map_shared`].
pub(crate) unsafe fn map_private(
    range: AddrRange,
    fd: BorrowedFd<'_>,
    offset: u64,
    prot: Prot,
) -> Result<(), SysError> {
    // SAFETY: passed on.
    unsafe { map_fixed(range, Some(fd), offset, prot, libc::MAP_PRIVATE) }
}

/// Puts empty private memory over `range`, replacing what is there.
///
/// # Safety
/// As for [`map_shared`].
pub(crate) unsafe fn map_anonymous(range: AddrRange, prot: Prot) -> Result<(), SysError> {
    // SAFETY: passed on.
    unsafe { map_fixed(range, None, 0, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) }
}

/// # Safety
/// As for [`map_shared`].
unsafe fn map_fixed(
    range: AddrRange,
    fd: Option<BorrowedFd<'_>>,
    offset: u64,
    prot: Prot,
    flags: libc::c_int,
) -> Result<(), SysError> {
    may_fail("mmap")?;
    let offset = off(offset)?;
    let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
    // SAFETY: the caller owns the range, so MAP_FIXED replaces nothing of anyone else's.
    let at = unsafe { libc::mmap(range.as_ptr().cast(), range.len, prot.bits(), flags | libc::MAP_FIXED, fd, offset) };
    if at == libc::MAP_FAILED { Err(SysError::last("mmap")) } else { Ok(()) }
}

/// Removes whatever is mapped in `range`.
///
/// # Safety
/// `range` is the caller's own, and nobody uses it afterwards.
pub(crate) unsafe fn unmap(range: AddrRange) -> Result<(), SysError> {
    may_fail("munmap")?;
    // SAFETY: the caller owns the range.
    let rc = unsafe { libc::munmap(range.as_ptr().cast(), range.len) };
    if rc == 0 { Ok(()) } else { Err(SysError::last("munmap")) }
}

/// Changes the access rights of `range`.
///
/// # Safety
/// `range` is the caller's own.
pub(crate) unsafe fn protect(range: AddrRange, prot: Prot) -> Result<(), SysError> {
    may_fail("mprotect")?;
    // SAFETY: the caller owns the range; this moves no memory.
    let rc = unsafe { libc::mprotect(range.as_ptr().cast(), range.len, prot.bits()) };
    if rc == 0 { Ok(()) } else { Err(SysError::last("mprotect")) }
}

/// madvise(2).
///
/// # Safety
/// `range` is the caller's own, and holds no private memory whose content matters where the advice drops pages.
pub(crate) unsafe fn advise(range: AddrRange, advice: Advice) -> Result<(), SysError> {
    may_fail("madvise")?;
    // SAFETY: the caller owns the range; the advices used here never lose the content of shared memory.
    let rc = unsafe { libc::madvise(range.as_ptr().cast(), range.len, advice.bits()) };
    if rc == 0 { Ok(()) } else { Err(SysError::last("madvise")) }
}

/// What stays behind where [`move_onto`] took the pages from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Nothing: the old range is free.
    Hole,
    /// The same mapping, its page tables empty (`MREMAP_DONTUNMAP`; shared memory since 5.13).
    Mapping,
}

/// Moves a mapping with its page tables from `from` onto `to`, replacing what is there, in one step under the
/// kernel's mmap_lock: `to` is never without a mapping (mremap(2), `move_vma`). Whole page-table subtrees move
/// where both addresses are equally aligned.
///
/// # Safety
/// Both ranges are the caller's own and equally long.
pub(crate) unsafe fn move_onto(from: AddrRange, to: AddrRange, leave: Leave) -> Result<(), SysError> {
    may_fail("mremap")?;
    let keep = if leave == Leave::Mapping { libc::MREMAP_DONTUNMAP } else { 0 };
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | keep;
    // SAFETY: the caller owns both ranges.
    let at = unsafe { libc::mremap(from.as_ptr().cast(), from.len, to.len, flags, to.as_ptr().cast::<libc::c_void>()) };
    if at == libc::MAP_FAILED { Err(SysError::last("mremap")) } else { Ok(()) }
}

/// Is `range` still one mapping, that nobody has split by mprotect, munmap or mmap? An mremap to the same place
/// and size changes nothing and answers EFAULT where the range is not within one mapping.
pub(crate) fn is_one_mapping(range: AddrRange) -> bool {
    // SAFETY: without MREMAP_MAYMOVE and with equal sizes the call changes nothing.
    let at = unsafe { libc::mremap(range.as_ptr().cast(), range.len, range.len, 0) };
    at != libc::MAP_FAILED
}

/// The size of huge page that a memfd is made of, in bytes; 0 for base pages.
pub(crate) fn memfd(name: &CStr, len: u64, huge: usize) -> Result<OwnedFd, SysError> {
    may_fail("memfd_create")?;
    let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    if huge > 0 {
        flags |= libc::MFD_HUGETLB | (huge.trailing_zeros() << libc::MFD_HUGE_SHIFT);
    }
    // MFD_NOEXEC_SEAL came with 6.3; before that the flag is EINVAL and the file is merely not sealed against exec.
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
    // SAFETY: a descriptor that the kernel just gave to us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    may_fail("ftruncate")?;
    let size = libc::off_t::try_from(len).map_err(|_| SysError::new("ftruncate", nix::errno::Errno::EFBIG))?;
    nix::unistd::ftruncate(&fd, size).map_err(|e| SysError::new("ftruncate", e))?;
    Ok(fd)
}

/// Forbids shrinking and growing, and further seals; with `frozen`, writing too.
pub(crate) fn seal(fd: BorrowedFd<'_>, frozen: bool) -> Result<(), SysError> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    may_fail("fcntl(F_ADD_SEALS)")?;
    let mut seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    if frozen {
        seals |= SealFlag::F_SEAL_WRITE;
    }
    fcntl(fd, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| SysError::new("fcntl(F_ADD_SEALS)", e))?;
    Ok(())
}
