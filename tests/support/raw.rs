//! Accesses by raw pointer and by system call, as a driver, a guest or the kernel makes them, and their outcomes.
//!
//! A raw access is one instruction between two labels. Before it, the address of the second label is stored in a
//! thread-local. The signal handler resumes the thread there and records the signal. So no Rust frame is unwound or
//! skipped.
//!
//! UNSAFETY: accesses by address, which the tests take from live mappings (or know to be refused), and a signal
//! handler.
#![expect(unsafe_code, reason = "raw accesses, system calls on their addresses, and a signal handler")]

use nix::errno::Errno;
use nix::libc;
use std::cell::Cell;
use std::ffi::{c_int, c_void};

/// The signal that an access got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) signal: c_int,
    pub(crate) code: c_int,
    pub(crate) addr: usize,
}

/// `si_code` of an access past the end of a file, as a revoked BAR gives it.
pub(crate) const BUS_ADRERR: c_int = 2;

impl Hit {
    /// SIGBUS at this very byte.
    pub(crate) fn bus(addr: usize) -> Self {
        Self { signal: libc::SIGBUS, code: BUS_ADRERR, addr }
    }

    pub(crate) fn is_segv(self) -> bool {
        self.signal == libc::SIGSEGV
    }
}

thread_local! {
    /// Where this thread resumes if its access faults. 0: it makes no such access.
    static RESUME: Cell<usize> = const { Cell::new(0) };
    static HIT: Cell<Option<Hit>> = const { Cell::new(None) };
}

/// Catches SIGBUS and SIGSEGV of the accesses here. The crate's own handler, installed later, passes on faults that it
/// does not recognise.
pub(crate) fn catch_signals() {
    for signal in [libc::SIGBUS, libc::SIGSEGV] {
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = (handler as unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: a valid action; the handler touches two thread-locals without destructors and the context only.
        let rc = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        assert_eq!(rc, 0, "sigaction");
    }
}

unsafe extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let resume = RESUME.replace(0);
    if resume == 0 {
        // Not an access made here. The default action kills the process when the fault repeats.
        // SAFETY: async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel's siginfo.
    let info = unsafe { &*info };
    // SAFETY: a fault's siginfo has an address.
    let addr = unsafe { info.si_addr() }.addr();
    HIT.set(Some(Hit { signal, code: info.si_code, addr }));
    // SAFETY: the kernel's context, which the handler may change.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    #[cfg(target_arch = "x86_64")]
    {
        context.uc_mcontext.gregs[libc::REG_RIP as usize] = i64::try_from(resume).unwrap_or(0);
    }
    #[cfg(target_arch = "aarch64")]
    {
        context.uc_mcontext.pc = resume as u64;
    }
}

fn outcome<T>(value: T) -> Result<T, Hit> {
    RESUME.set(0);
    match HIT.take() {
        None => Ok(value),
        Some(hit) => Err(hit),
    }
}

macro_rules! accesses {
    ($load:ident, $store:ident, $ty:ty, $x86_load:literal, $x86_store:literal, $arm_load:literal, $arm_store:literal) => {
        /// One load.
        pub(crate) fn $load(addr: usize) -> Result<$ty, Hit> {
            let resume = RESUME.with(Cell::as_ptr);
            let mut value: u64 = 0;
            // SAFETY: if the address faults, the handler goes on at label 2; the slot is this thread's.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::asm!("lea {t}, [rip + 2f]", "mov [{slot}], {t}", $x86_load, "2:",
                    t = out(reg) _, slot = in(reg) resume, p = in(reg) addr, v = inout(reg_abcd) value, options(nostack))
            };
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            unsafe {
                std::arch::asm!("adr {t}, 2f", "str {t}, [{slot}]", $arm_load, "2:",
                    t = out(reg) _, slot = in(reg) resume, p = in(reg) addr, v = inout(reg) value, options(nostack))
            };
            let bytes = value.to_le_bytes();
            outcome(<$ty>::from_le_bytes(std::array::from_fn(|i| bytes[i])))
        }

        /// One store.
        pub(crate) fn $store(addr: usize, value: $ty) -> Result<(), Hit> {
            let resume = RESUME.with(Cell::as_ptr);
            let value = u64::from(value);
            // SAFETY: as for the load.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::asm!("lea {t}, [rip + 2f]", "mov [{slot}], {t}", $x86_store, "2:",
                    t = out(reg) _, slot = in(reg) resume, p = in(reg) addr, v = in(reg_abcd) value, options(nostack))
            };
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            unsafe {
                std::arch::asm!("adr {t}, 2f", "str {t}, [{slot}]", $arm_store, "2:",
                    t = out(reg) _, slot = in(reg) resume, p = in(reg) addr, v = in(reg) value, options(nostack))
            };
            outcome(())
        }
    };
}

accesses!(load8, store8, u8, "mov {v:l}, [{p}]", "mov [{p}], {v:l}", "ldrb {v:w}, [{p}]", "strb {v:w}, [{p}]");
accesses!(load16, store16, u16, "mov {v:x}, [{p}]", "mov [{p}], {v:x}", "ldrh {v:w}, [{p}]", "strh {v:w}, [{p}]");
accesses!(load32, store32, u32, "mov {v:e}, [{p}]", "mov [{p}], {v:e}", "ldr {v:w}, [{p}]", "str {v:w}, [{p}]");
accesses!(load64, store64, u64, "mov {v:r}, [{p}]", "mov [{p}], {v:r}", "ldr {v:x}, [{p}]", "str {v:x}, [{p}]");

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
    // SAFETY: the local piece is the caller's buffer, and the kernel checks the remote one.
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
    // SAFETY: the tests change rights of their own mappings only, as a careless application does.
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

/// Uses up all mappings that the process may have, until it is dropped.
pub(crate) struct Filler(Vec<usize>);

/// Maps single pages of alternating rights, which the kernel can't merge, until the kernel refuses another.
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
    /// Makes room for `count` mappings again.
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

/// mbind(2) with a policy that only splits the mapping: MPOL_PREFERRED without a node.
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
    // SAFETY: without MAP_FIXED the kernel picks a free address.
    let got = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if got == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(got.expose_provenance()) }
}

/// mremap(2) by code that is not the crate, to an address of the kernel's choice.
pub(crate) fn move_away(addr: usize, old_len: usize, len: usize) -> Result<usize, Errno> {
    // SAFETY: as `protect`.
    let got = unsafe { libc::mremap(at(addr), old_len, len, libc::MREMAP_MAYMOVE) };
    if got == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(got.expose_provenance()) }
}

/// Closes a descriptor that belongs to other code.
pub(crate) fn close_behind_its_back(fd: i32) {
    // SAFETY: a system call on a number that belongs to other code on purpose.
    let rc = unsafe { libc::close(fd) };
    assert_eq!(rc, 0, "close({fd})");
}

/// Puts another file in the place of a descriptor that belongs to other code.
pub(crate) fn put_over(fd: i32, other: impl std::os::fd::AsFd) {
    let other = std::os::fd::AsRawFd::as_raw_fd(&other.as_fd());
    // SAFETY: a system call on numbers, one of which belongs to other code on purpose.
    let rc = unsafe { libc::dup2(other, fd) };
    assert_eq!(rc, fd, "dup2");
}

/// Puts a directory, which can neither be read nor take an ioctl, in the place of a descriptor that belongs to other
/// code.
pub(crate) fn replace_behind_its_back(theirs: impl std::os::fd::AsFd) {
    use std::os::fd::AsRawFd;
    let other = std::fs::File::open("/").expect("there is one");
    let theirs = theirs.as_fd().as_raw_fd();
    // SAFETY: a system call on numbers, one of which belongs to other code on purpose.
    let rc = unsafe { libc::dup2(other.as_raw_fd(), theirs) };
    assert_eq!(rc, theirs, "dup2");
}

/// Installs a handler that does nothing, for tests of interrupted waits.
pub(crate) fn ignore_nothing(signal: nix::sys::signal::Signal) {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
    extern "C" fn nothing(_: c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(signal, &action) }.expect("it can be handled");
}

/// Drops bitwise copies of both, in a forked child that never uses the originals again.
pub(crate) fn drop_copies(region: &revocable_mmio::Region, mapping: &revocable_mmio::Mapping) {
    // SAFETY: the child exits right after, without dropping the originals.
    drop(unsafe { std::ptr::read(mapping) });
    // SAFETY: as above.
    drop(unsafe { std::ptr::read(region) });
}
