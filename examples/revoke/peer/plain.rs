//! A plain mapping of a file that its owner may empty at any time, and a handler of SIGBUS that survives it.
//!
//! The handler puts an anonymous page where the access failed, so that the instruction ends. The access counts as
//! refused, and the page is replaced by the file's again.
//!
//! UNSAFETY: one mapping that only this file knows, volatile accesses and system calls inside of it, and a handler that
//! changes nothing but that mapping.
#![expect(unsafe_code, reason = "maps a file and accesses it by address, as any program does")]

use super::NoValue;
use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst, compiler_fence};

/// The first address of the mapping, its length, and the size of a page, for the handler.
static START: AtomicUsize = AtomicUsize::new(0);
static LEN: AtomicUsize = AtomicUsize::new(0);
static PAGE: AtomicUsize = AtomicUsize::new(0);
/// An access has failed since this was last false.
static FAILED: AtomicBool = AtomicBool::new(false);

/// The only one of its process, whose only thread uses it.
pub(super) struct Mapped {
    at: *mut u8,
    len: usize,
    file: OwnedFd,
    scrap: File,
}

impl Mapped {
    pub(super) fn new(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let file = file.try_clone_to_owned()?;
        let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: without MAP_FIXED the kernel picks a free address.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, rights, flags, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        PAGE.store(usize::try_from(page).map_err(io::Error::other)?, SeqCst);
        START.store(at.addr(), SeqCst);
        LEN.store(len, SeqCst);
        let scrap = memfd_create(c"revoke-peer", MFdFlags::MFD_CLOEXEC)?.into();
        catch_sigbus()?;
        Ok(Self { at: at.cast(), len, file, scrap })
    }

    pub(super) fn addr(&self) -> usize {
        self.at.addr()
    }

    fn at(&self, offset: usize) -> *mut u64 {
        assert!(offset % 8 == 0 && offset + 8 <= self.len, "offset {offset:#x} of {:#x}", self.len);
        self.at.wrapping_add(offset).cast()
    }

    pub(super) fn load(&self, offset: usize) -> Result<u64, NoValue> {
        let from = self.at(offset);
        // SAFETY: inside the mapping and aligned, as `at` has checked; other processes write there at any time.
        self.access(offset, || unsafe { from.read_volatile() })
    }

    pub(super) fn store(&self, offset: usize, value: u64) -> Result<(), NoValue> {
        let to = self.at(offset);
        // SAFETY: as in `load`.
        self.access(offset, || unsafe { to.write_volatile(value) })
    }

    /// The kernel loads 8 bytes from the mapping.
    pub(super) fn load_by_kernel(&self, offset: usize) -> Result<u64, NoValue> {
        let from = self.at(offset).cast_const().cast();
        // SAFETY: 8 bytes inside the mapping; the kernel returns EFAULT for a fault.
        let n = unsafe { libc::pwrite(self.scrap.as_raw_fd(), from, 8, 0) };
        if n < 0 {
            return Err(NoValue::Errno(Errno::last()));
        }
        let mut bytes = [0; 8];
        self.scrap.read_exact_at(&mut bytes, 0).map_err(|e| NoValue::Ended(e.to_string()))?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn access<R>(&self, offset: usize, access: impl FnOnce() -> R) -> Result<R, NoValue> {
        compiler_fence(SeqCst);
        let done = access();
        compiler_fence(SeqCst);
        if FAILED.swap(false, SeqCst) {
            self.map_again(offset).map_err(|e| NoValue::Ended(e.to_string()))?;
            return Err(NoValue::Sigbus);
        }
        Ok(done)
    }

    /// Maps the file's page at `offset` over the anonymous one.
    fn map_again(&self, offset: usize) -> io::Result<()> {
        let page = PAGE.load(SeqCst);
        let first = offset / page * page;
        let to = self.at.wrapping_add(first).cast();
        let file_offset = libc::off_t::try_from(first).map_err(io::Error::other)?;
        let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: a page of the mapping, to which there are no references.
        let at = unsafe { libc::mmap(to, page, rights, flags, self.file.as_raw_fd(), file_offset) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn catch_sigbus() -> io::Result<()> {
    // SAFETY: plain numbers and a null pointer, for which zeroes are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void) = on_sigbus;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler makes one system call and touches atomics only.
    let rc = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_sigbus(_: libc::c_int, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS has an address (sigaction(2)).
    let addr = unsafe { info.si_addr() }.addr();
    let (start, page) = (START.load(SeqCst), PAGE.load(SeqCst));
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let first = std::ptr::without_provenance_mut(addr / page * page);
    let is_ours = (start..start + LEN.load(SeqCst)).contains(&addr);
    // SAFETY: a page of the mapping, to which there are no references.
    if !is_ours || unsafe { libc::mmap(first, page, rights, flags, -1, 0) } == libc::MAP_FAILED {
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(128 + libc::SIGBUS) };
    }
    FAILED.store(true, SeqCst);
}
