//! mmap, mremap, madvise and memfds.
//!
//! UNSAFETY: changing what stands at an address is unsafe by nature; every function here says which ranges it
//! touches, and its caller proves that they are its own.
#![expect(unsafe_code, reason = "memory mapping calls have no safe form")]

use super::{AddrRange, SysError, left_out, may_fail};
use nix::libc;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Access rights of a mapping, from the fewest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    if left_out("mmap") {
        return Ok(());
    }
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
    if left_out("mremap") {
        return Ok(());
    }
    if leave == Leave::Mapping {
        may_grow()?;
    }
    let keep = if leave == Leave::Mapping { libc::MREMAP_DONTUNMAP } else { 0 };
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | keep;
    // SAFETY: the caller owns both ranges.
    let at = unsafe { libc::mremap(from.as_ptr().cast(), from.len, to.len, flags, to.as_ptr().cast::<libc::c_void>()) };
    if at == libc::MAP_FAILED {
        let e = SysError::last("mremap");
        plug(to);
        return Err(e);
    }
    Ok(())
}

/// Fails if RLIMIT_AS was lowered below what the process uses: `mremap` with `MREMAP_DONTUNMAP` unmaps its target before it
/// looks at that limit (`mremap_to`), and its target would be left without a mapping.
fn may_grow() -> Result<(), SysError> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    if getrlimit(Resource::RLIMIT_AS).is_ok_and(|(soft, _)| soft == RLIM_INFINITY) {
        return Ok(());
    }
    let page = super::page_size();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED the kernel picks an address where nothing of anyone's stands.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), page, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(SysError::new("mremap", nix::errno::Errno::ENOMEM));
    }
    // SAFETY: the page just mapped, which nobody else knows.
    unsafe { libc::munmap(at, page) };
    Ok(())
}

/// Reserves `range` again if a failed `mremap` has left nothing there, before another thread's mmap finds it free.
fn plug(range: AddrRange) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing; a kernel that doesn't know the flag (before 4.17) takes the address as a hint.
    let at = unsafe { libc::mmap(range.as_ptr().cast(), range.len, libc::PROT_NONE, flags, -1, 0) };
    if at != libc::MAP_FAILED && at != range.as_ptr().cast() {
        // SAFETY: what was just mapped, which nobody else knows.
        unsafe { libc::munmap(at, range.len) };
    }
}

/// Is `range` still within one mapping with just these rights, that nobody has split by mprotect, munmap or mmap?
pub(crate) fn is_one_mapping(range: AddrRange, prot: Prot) -> bool {
    // Before 6.11 the list is read. (An mremap to the same place and size tells nothing: it succeeds over splits and
    // holes on every kernel, see "Always allow a shrinking remap" in mm/mremap.c.)
    let around = mapping_around(range.addr).or_else(|| mapping_listed(range.addr));
    around.is_some_and(|(mapping, rights)| mapping.end() >= range.end() && rights == prot)
}

/// The mapping that contains an address, and its rights, from the text of /proc/self/maps.
fn mapping_listed(addr: usize) -> Option<(AddrRange, Prot)> {
    let text = super::maps::read().ok()?;
    super::maps::lines(&text).find(|line| line.range.contains(addr)).map(|line| (line.range, line.prot))
}

/// Is there a part of `range` where nothing is mapped? msync(2) answers ENOMEM then, and does nothing to shared memory.
pub(crate) fn has_hole(range: AddrRange) -> bool {
    // SAFETY: changes no mapping and no content.
    let rc = unsafe { libc::msync(range.as_ptr().cast(), range.len, libc::MS_ASYNC) };
    rc < 0 && nix::errno::Errno::last() == nix::errno::Errno::ENOMEM
}

/// This process's list of mappings. Opened once, before anyone may lock it out of /proc.
pub(crate) fn maps() -> Option<&'static std::fs::File> {
    static MAPS: std::sync::OnceLock<(super::identity::Identity, Option<std::fs::File>)> = std::sync::OnceLock::new();
    let here = super::identity::Identity::current();
    let (made, maps) = MAPS.get_or_init(|| (here, std::fs::File::open("/proc/self/maps").ok()));
    // In a forked child it tells of the parent.
    maps.as_ref().filter(|_| *made == here)
}

/// The mapping that `addr` is in, and its rights; empty if it is in none; `None` if the kernel can't be asked
/// (`PROCMAP_QUERY`, 6.11; /proc).
fn mapping_around(addr: usize) -> Option<(AddrRange, Prot)> {
    use linux_raw_sys::general::{procmap_query, procmap_query_flags as flags};
    let maps = maps()?;
    // SAFETY: all zeroes is a valid query: numbers, and no buffers for names.
    let mut query: procmap_query = unsafe { std::mem::zeroed() };
    query.size = size_of::<procmap_query>() as u64;
    query.query_addr = addr as u64;
    let request = nix::request_code_readwrite!(b'f', 17, size_of::<procmap_query>());
    // SAFETY: the structure that this request reads and writes, live and initialised.
    let rc = unsafe { libc::ioctl(maps.as_raw_fd(), request, &raw mut query) };
    match (rc, nix::errno::Errno::last()) {
        (0, _) => {
            let (start, end) = (usize::try_from(query.vma_start).ok()?, usize::try_from(query.vma_end).ok()?);
            let has = |flag: flags| query.vma_flags & flag as u64 != 0;
            let prot = match (has(flags::PROCMAP_QUERY_VMA_READABLE), has(flags::PROCMAP_QUERY_VMA_WRITABLE)) {
                (_, true) => Prot::ReadWrite,
                (true, false) => Prot::Read,
                (false, false) => Prot::None,
            };
            Some((AddrRange::new(start, end - start), prot))
        }
        (_, nix::errno::Errno::ENOENT) => Some((AddrRange::new(0, 0), Prot::None)),
        _ => None,
    }
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

/// Can the file lose pages? False where a seal forbids it.
pub(crate) fn may_shrink(fd: BorrowedFd<'_>) -> bool {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    // Files that have no seals answer EINVAL.
    let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map_or(SealFlag::empty(), SealFlag::from_bits_truncate);
    !seals.contains(SealFlag::F_SEAL_SHRINK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn reading_the_list_finds_the_mapping_that_the_query_finds() {
        let page = crate::sys::page_size();
        let outer = reserve(6 * page, page).expect("address space");
        let file = memfd(c"split", 4 * page as u64, 0).expect("a memfd");
        let range = AddrRange::new(outer.addr + page, 4 * page);
        // SAFETY: inner pages of a reservation made here.
        unsafe { map_shared(range, file.as_fd(), 0, Prot::ReadWrite) }.expect("mapped");
        let listed = mapping_listed(range.addr).expect("it is there");
        assert_eq!((listed.0.end(), listed.1), (range.end(), Prot::ReadWrite));
        assert!(is_one_mapping(range, Prot::ReadWrite));
        assert!(!is_one_mapping(range, Prot::Read));
        // SAFETY: as above.
        unsafe { unmap(AddrRange::new(range.addr + 2 * page, page)) }.expect("a hole");
        let first = AddrRange::new(range.addr, 2 * page);
        for prot in [Prot::None, Prot::Read, Prot::ReadWrite] {
            // SAFETY: as above.
            unsafe { protect(first, prot) }.expect("its rights can be changed");
            assert_eq!(mapping_listed(range.addr), Some((first, prot)));
            if let Some(queried) = mapping_around(range.addr) {
                assert_eq!(queried, (first, prot));
            }
        }
        assert_eq!(mapping_listed(range.addr + 2 * page), None);
        assert!(!is_one_mapping(range, Prot::ReadWrite));
    }
}
