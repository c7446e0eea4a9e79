//! mmap, mremap and madvise.
//!
//! UNSAFETY: changing the mapping at an address is unsafe by nature; every function here says which ranges it touches, and
//! its caller proves that they are its own.
#![expect(unsafe_code, reason = "memory mapping calls have no safe form")]

use super::{Addr, AddrRange, SysError, left_out, may_fail};
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd};

mod memfd;

pub(crate) use memfd::{Sealed, dup, may_shrink, may_write, memfd, seal};

/// Access rights of memory, from the fewest; see [`Mapping::protect`](crate::Mapping::protect).
///
/// ```
/// use revocable_mmio::{MapOptions, Prot};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// let page = region.page_size();
/// mapping.protect(page..2 * page, Prot::None)?; // the MSI-X table: a guest's vCPU exits there
/// assert!(mapping.read::<u32>(page).is_err());
/// assert!(Prot::None < Prot::Read && Prot::Read < Prot::ReadWrite);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prot {
    /// Neither loads nor stores: SIGSEGV, and EFAULT for system calls and for a DMA mapping of it.
    None,
    /// Loads.
    Read,
    /// Loads and stores.
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

/// The advice of a call of madvise(2).
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

/// Address space without access that was taken for a range of another alignment than the kernel's.
pub(crate) struct Reserved {
    /// What the kernel gave.
    pub(crate) whole: AddrRange,
    /// The part of it that was asked for.
    pub(crate) range: AddrRange,
}

/// Reserves `len` bytes of address space, without access, at an address that is a multiple of `align`. The caller gives
/// back what is around them, or the whole: giving a part back splits a mapping, which may fail (ENOMEM).
pub(crate) fn reserve(len: usize, align: usize) -> Result<Reserved, SysError> {
    may_fail("mmap")?;
    let too_large = SysError::new("mmap", nix::errno::Errno::ENOMEM);
    let slack = if align > super::page_size() { align } else { 0 };
    let whole = len.checked_add(slack).ok_or(too_large)?;
    // SAFETY: without MAP_FIXED the kernel picks an address where nothing is mapped.
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
    let whole = AddrRange::new(Addr::of(at), whole);
    Ok(Reserved { whole, range: AddrRange::new(Addr(whole.start.0.next_multiple_of(align.max(1))), len) })
}

/// Maps `len` bytes of `fd`, shared, at `hint` if that is free, else where the kernel chooses.
///
/// A file may refuse to be mapped (a seal, hugetlb without pages). With MAP_FIXED over a reservation the kernel has
/// unmapped that by then (`mmap_region`), and another thread may have mapped something in the hole.
pub(crate) fn map_new(
    hint: Addr,
    len: usize,
    fd: BorrowedFd<'_>,
    offset: u64,
    prot: Prot,
) -> Result<AddrRange, SysError> {
    may_fail("mmap")?;
    let offset = off(offset)?;
    let hint = AddrRange::new(hint, len).as_ptr().cast();
    // SAFETY: without MAP_FIXED the kernel picks an address where nothing is mapped.
    let at = unsafe { libc::mmap(hint, len, prot.bits(), libc::MAP_SHARED, fd.as_raw_fd(), offset) };
    if at == libc::MAP_FAILED { Err(SysError::last("mmap")) } else { Ok(AddrRange::new(Addr::of(at), len)) }
}

/// Puts a shared mapping of `fd` over `range`, replacing the mapping there.
///
/// # Safety
/// `range` is the caller's own, and nothing relies on the present mapping there.
pub(crate) unsafe fn map_shared(range: AddrRange, fd: BorrowedFd<'_>, offset: u64, prot: Prot) -> Result<(), SysError> {
    // SAFETY: passed on.
    unsafe { map_fixed(range, fd, offset, prot, libc::MAP_SHARED) }
}

/// Puts a private (copy-on-write) mapping of `fd` over `range`, replacing the mapping there.
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
    unsafe { map_fixed(range, fd, offset, prot, libc::MAP_PRIVATE) }
}

/// # Safety
/// As for [`map_shared`].
unsafe fn map_fixed(
    range: AddrRange,
    fd: BorrowedFd<'_>,
    offset: u64,
    prot: Prot,
    flags: libc::c_int,
) -> Result<(), SysError> {
    may_fail("mmap")?;
    if left_out("mmap") {
        return Ok(());
    }
    let offset = off(offset)?;
    // SAFETY: the caller owns the range, so MAP_FIXED replaces no other code's mapping.
    let at = unsafe {
        libc::mmap(range.as_ptr().cast(), range.len, prot.bits(), flags | libc::MAP_FIXED, fd.as_raw_fd(), offset)
    };
    if at == libc::MAP_FAILED { Err(SysError::last("mmap")) } else { Ok(()) }
}

/// Removes whatever is mapped in `range`.
///
/// # Safety
/// `range` is the caller's own, and nothing uses it afterwards.
pub(crate) unsafe fn unmap(range: AddrRange) -> Result<(), SysError> {
    may_fail("munmap")?;
    if left_out("munmap") {
        return Ok(());
    }
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
    if left_out("mprotect") {
        return Ok(());
    }
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
    if left_out("madvise") {
        return Ok(());
    }
    // SAFETY: the caller owns the range; the advices used here never lose the content of shared memory.
    let rc = unsafe { libc::madvise(range.as_ptr().cast(), range.len, advice.bits()) };
    if rc == 0 { Ok(()) } else { Err(SysError::last("madvise")) }
}

/// Moves the page tables of `range` to an address that the kernel chooses, `hint` if that is free, and leaves the mapping
/// where it is, empty (`MREMAP_DONTUNMAP`; shared memory since 5.13). Whole subtrees of page tables move if both addresses
/// are equally aligned.
///
/// Not `MREMAP_FIXED`: that unmaps its target before it knows whether the source can be moved (`mremap_to`). This takes no
/// address that another thread may have, and a failure loses nothing. A range of several mappings is EFAULT.
///
/// # Safety
/// `range` is the caller's own. The returned range is the caller's too.
pub(crate) unsafe fn move_aside(range: AddrRange, hint: Addr) -> Result<AddrRange, SysError> {
    may_fail("mremap")?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
    let hint = AddrRange::new(hint, range.len).as_ptr().cast::<libc::c_void>();
    // SAFETY: the caller owns the range; the kernel picks a target where nothing is mapped.
    let at = unsafe { libc::mremap(range.as_ptr().cast(), range.len, range.len, flags, hint) };
    if at == libc::MAP_FAILED {
        return Err(SysError::last("mremap"));
    }
    Ok(AddrRange::new(Addr::of(at), range.len))
}

/// Moves the mapping at `from` with its page tables over `to`, replacing the mapping there, in one step under the kernel's
/// mmap_lock: `to` is never without a mapping (mremap(2), `move_vma`), and `from` is free afterwards. After a failure `to`
/// may be a hole: see [`plug`].
///
/// # Safety
/// Both ranges are the caller's own and equally long, and `from` is one mapping.
pub(crate) unsafe fn move_over(from: AddrRange, to: AddrRange) -> Result<(), SysError> {
    may_fail("mremap")?;
    if left_out("mremap") {
        return Ok(());
    }
    // Fails as the kernel does where the range has become a hole.
    if let Err(e) = may_fail("mremap(unmapped)") {
        // SAFETY: the caller owns the range.
        let _ = unsafe { unmap(to) };
        return Err(e);
    }
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the caller owns both ranges.
    let at = unsafe { libc::mremap(from.as_ptr().cast(), from.len, to.len, flags, to.as_ptr().cast::<libc::c_void>()) };
    if at == libc::MAP_FAILED { Err(SysError::last("mremap")) } else { Ok(()) }
}

/// Reserves `range` if nothing at all is mapped there.
///
/// The kernel checks its limits before it unmaps the mapping that is replaced (`check_mremap_params`), but a small
/// allocation comes after that (`move_vma`; `mmap_region` before 6.12). If that allocation fails, the range has become a
/// hole.
///
/// # Errors
/// EEXIST: something is mapped there. Any other error: it is a hole, and stays one.
///
/// # Safety
/// `range` is the caller's own, or was until a call that was to replace it failed.
pub(crate) unsafe fn plug(range: AddrRange) -> Result<(), SysError> {
    may_fail("mmap(MAP_FIXED_NOREPLACE)")?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing; a kernel that does not know the flag (before 4.17) takes the address as a hint.
    let at = unsafe { libc::mmap(range.as_ptr().cast(), range.len, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(SysError::last("mmap"));
    }
    if at == range.as_ptr().cast() {
        return Ok(());
    }
    // SAFETY: the range just mapped, which nothing else knows.
    unsafe { libc::munmap(at, range.len) };
    Err(SysError::new("mmap", nix::errno::Errno::EEXIST))
}

/// True if nothing is mapped in a part of `range`: msync(2) then returns ENOMEM. It does nothing to shared memory.
pub(crate) fn has_hole(range: AddrRange) -> bool {
    // SAFETY: changes no mapping and no content.
    let rc = unsafe { libc::msync(range.as_ptr().cast(), range.len, libc::MS_ASYNC) };
    rc < 0 && nix::errno::Errno::last() == nix::errno::Errno::ENOMEM
}

/// True if nothing at all is mapped in `range`.
pub(crate) fn is_hole(range: AddrRange) -> bool {
    has_hole(range) && first_mapped(range).is_none()
}

/// The first mapped page of `range`.
fn first_mapped(range: AddrRange) -> Option<Addr> {
    range.pieces(super::page_size()).find(|page| !has_hole(*page)).map(|page| page.start)
}

/// [`protect`] of all that is mapped in `range`, around its holes. mprotect(2) itself ends at the first hole.
///
/// # Safety
/// As for [`protect`].
pub(crate) unsafe fn protect_around_holes(range: AddrRange, prot: Prot) -> Result<(), SysError> {
    let mut rest = range;
    loop {
        // SAFETY: passed on.
        let Err(e) = (unsafe { protect(rest, prot) }) else { return Ok(()) };
        let hole = rest.pieces(super::page_size()).find(|page| has_hole(*page)).ok_or(e)?;
        if hole.start > rest.start {
            // mprotect may have ended for another reason.
            // SAFETY: passed on.
            unsafe { protect(AddrRange::between(rest.start, hole.start), prot) }?;
        }
        match first_mapped(AddrRange::between(hole.start, range.end())) {
            Some(next) => rest = AddrRange::between(next, range.end()),
            None => return Ok(()),
        }
    }
}
