//! Every system call this crate makes, and nothing else.
//!
//! The functions here add types, decode errno into [`SysError`] and know no policy. Addresses are plain numbers
//! ([`AddrRange`]): the callers own the ranges and say so in their safety proofs.

pub(crate) mod direct;
pub(crate) mod eventfd;
pub(crate) mod feature;
pub(crate) mod file;
pub(crate) mod futex;
pub(crate) mod identity;
pub(crate) mod known;
#[cfg(not(all(test, revocable_model)))]
pub(crate) mod life;
pub(crate) mod map;
pub(crate) mod membarrier;
pub(crate) mod pipe;
pub(crate) mod probe;
pub(crate) mod signals;
pub(crate) mod thread;
pub(crate) mod uffd;

use nix::errno::Errno;

/// A system call that failed: its name, the errno, and what to do about it where that is known.
///
/// ```
/// use revocable_mmio::{Backing, BuildError, Region};
/// use std::os::fd::AsFd;
///
/// let a_pipe = std::io::pipe()?.0;
/// let failed = Region::builder(4096).backing(Backing::File { fd: a_pipe.into(), offset: 0, device: None }).build();
/// if let Err(BuildError::Sys(e)) = failed {
///     println!("{} failed with {}: {e}", e.call, e.errno);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {errno}{}", self.hint())]
#[non_exhaustive]
pub struct SysError {
    /// The system call or ioctl.
    pub call: &'static str,
    /// The error that it returned.
    pub errno: Errno,
}

impl SysError {
    pub(crate) fn new(call: &'static str, errno: Errno) -> Self {
        Self { call, errno }
    }

    pub(crate) fn last(call: &'static str) -> Self {
        Self::new(call, Errno::last())
    }

    /// True for a shortage, which may be over at the next try.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self.errno,
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOSPC | Errno::EAGAIN | Errno::EINTR
        )
    }

    /// True for an error that means that the kernel does not know a call or a flag: it never will.
    pub(crate) fn is_lasting(&self) -> bool {
        matches!(self.errno, Errno::ENOSYS | Errno::EINVAL | Errno::ENOTTY | Errno::EOPNOTSUPP)
    }

    fn hint(&self) -> &'static str {
        match (self.errno, self.call) {
            (Errno::ENOMEM, "mmap" | "mremap" | "mprotect" | "munmap" | "madvise") => {
                "; is it the limit of mappings (vm.max_map_count), or of address space (RLIMIT_AS)?"
            }
            (Errno::EBUSY, "ftruncate") => {
                "; another process is in a system call on the shared file: try again once that has ended"
            }
            (Errno::EPERM, "fcntl(F_SETPIPE_SZ)") => {
                "; the user has too many pipes: close some, or raise /proc/sys/fs/pipe-user-pages-soft"
            }
            (Errno::ENOMEM, "mmap(hugetlb)") => {
                "; too few huge pages are free: reserve more, see /proc/sys/vm/nr_hugepages"
            }
            (Errno::EACCES, "mmap" | "mmap(hugetlb)") => "; open the file for reading and writing (O_RDWR)",
            (Errno::EPERM, "mmap" | "mmap(hugetlb)") => {
                "; the file is sealed against writing (F_SEAL_WRITE), or may not be mapped"
            }
            (Errno::ENODEV, "mmap") => "; this kind of file cannot be mapped",
            (Errno::EMFILE, _) => "; out of file descriptors: raise RLIMIT_NOFILE",
            (Errno::ENFILE, _) => "; the system is out of file descriptors: raise fs.file-max",
            (Errno::EAGAIN, "clone") => {
                "; no thread can be had: raise RLIMIT_NPROC, kernel.threads-max or the cgroup's pids.max; or is it the limit of \
                 mappings (vm.max_map_count), or of address space (RLIMIT_AS)?"
            }
            (Errno::EPERM | Errno::EACCES, "userfaultfd" | "open(/dev/userfaultfd)") => {
                "; allow access to /dev/userfaultfd, grant CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1"
            }
            (Errno::ENOMEM, "memfd_create" | "ftruncate") => {
                "; out of memory, or of huge pages: see /proc/sys/vm/nr_hugepages"
            }
            (Errno::EAGAIN, "mmap") => "; the process locks its memory (mlockall) and RLIMIT_MEMLOCK is reached",
            _ => "",
        }
    }
}

/// An address in this process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Addr(pub(crate) usize);

impl Addr {
    pub(crate) fn of<T>(pointer: *mut T) -> Self {
        Self(pointer.expose_provenance())
    }

    /// The start of the page of `size` bytes that contains it.
    pub(crate) fn page(self, size: usize) -> Self {
        Self(self.0 / size * size)
    }

    pub(crate) fn is_multiple_of(self, align: usize) -> bool {
        self.0 % align == 0
    }
}

impl std::ops::Add<usize> for Addr {
    type Output = Self;

    fn add(self, bytes: usize) -> Self {
        Self(self.0 + bytes)
    }
}

impl std::ops::Sub for Addr {
    type Output = usize;

    fn sub(self, other: Self) -> usize {
        self.0 - other.0
    }
}

impl std::fmt::Debug for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A range of this process's address space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct AddrRange {
    pub(crate) start: Addr,
    pub(crate) len: usize,
}

impl AddrRange {
    pub(crate) fn new(start: Addr, len: usize) -> Self {
        Self { start, len }
    }

    pub(crate) fn between(start: Addr, end: Addr) -> Self {
        Self { start, len: end - start }
    }

    /// A part of it: `len` bytes from the offset `from` on.
    pub(crate) fn part(self, from: usize, len: usize) -> Self {
        Self { start: self.start + from, len }
    }

    pub(crate) fn end(self) -> Addr {
        self.start + self.len
    }

    pub(crate) fn contains(self, addr: Addr) -> bool {
        (self.start..self.end()).contains(&addr)
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The part that both ranges have in common.
    pub(crate) fn common(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end().min(other.end()));
        (start < end).then(|| Self::between(start, end))
    }

    /// The rest of the range without `hole`, a part of it.
    pub(crate) fn around(self, hole: Self) -> impl Iterator<Item = Self> {
        let parts = [Self::between(self.start, hole.start), Self::between(hole.end(), self.end())];
        parts.into_iter().filter(|part| part.len > 0)
    }

    /// Its pieces of `size` bytes; the last may be shorter.
    pub(crate) fn pieces(self, size: usize) -> impl Iterator<Item = Self> {
        (0..self.len).step_by(size).map(move |from| self.part(from, size.min(self.len - from)))
    }

    pub(crate) fn as_ptr(self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.start.0)
    }
}

impl std::fmt::Debug for AddrRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}..{:?}", self.start, self.end())
    }
}

/// The machine's memory, in bytes (sysinfo(2)).
pub(crate) fn memory() -> u64 {
    let pages = nix::unistd::sysconf(nix::unistd::SysconfVar::_PHYS_PAGES).ok().flatten();
    pages.and_then(|pages| u64::try_from(pages).ok()).map_or(u64::MAX, |pages| pages.saturating_mul(page_size() as u64))
}

/// The size of a base page, in bytes.
pub(crate) fn page_size() -> usize {
    // No lock: signal handlers and forked children call this too. All threads find the same size.
    static SIZE: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    match SIZE.load(std::sync::atomic::Ordering::Relaxed) {
        0 => {
            let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
            let size = size.and_then(|s| usize::try_from(s).ok()).unwrap_or(4096);
            SIZE.store(size, std::sync::atomic::Ordering::Relaxed);
            size
        }
        size => size,
    }
}

/// Fails where a test makes the next call of this name fail; does nothing in an ordinary build.
#[cfg(not(revocable_inject))]
#[inline(always)]
pub(crate) fn may_fail(_call: &'static str) -> Result<(), SysError> {
    Ok(())
}

/// True if a test leaves this step out, to show that a guarantee test would notice; never in an ordinary build.
#[cfg(not(revocable_inject))]
#[inline(always)]
pub(crate) const fn left_out(_step: &'static str) -> bool {
    false
}

#[cfg(revocable_inject)]
pub(crate) use inject::{left_out, may_fail};

#[cfg(revocable_inject)]
pub mod inject {
    //! System calls that fail, or are left out, on request (`--cfg revocable_inject`), for the fault-injection tests.

    use super::{Errno, SysError};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Plan {
        call: &'static str,
        /// How many calls of that name still succeed.
        skip: usize,
        /// How many fail after that.
        times: usize,
        errno: Errno,
    }

    static PLAN: Mutex<Option<Plan>> = Mutex::new(None);
    /// In place of a call's name: every call, except the monitor's reading, which goes on all the time.
    pub const ANY: &str = "*";
    /// As [`ANY`], except that threads can be started.
    pub const ANY_BUT_CLONE: &str = "* except clone";

    static LEFT_OUT: Mutex<Option<&'static str>> = Mutex::new(None);
    /// Whether a test uses this at all: otherwise no lock is taken, which a forked child could inherit held.
    static IN_USE: AtomicBool = AtomicBool::new(false);
    static SEEN: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

    /// From now on leaves out the named step (or several, separated by commas), and reports it as done; `None` leaves out
    /// none.
    pub fn leave_out(step: Option<&'static str>) {
        IN_USE.store(true, Ordering::SeqCst);
        *LEFT_OUT.lock().unwrap_or_else(|e| e.into_inner()) = step;
    }

    pub(crate) fn left_out(step: &'static str) -> bool {
        if !IN_USE.load(Ordering::SeqCst) {
            return false;
        }
        let steps = *LEFT_OUT.lock().unwrap_or_else(|e| e.into_inner());
        steps.is_some_and(|steps| steps.split(',').any(|left| left == step))
    }

    /// Lets `skip` calls of this name (or of these, separated by commas) succeed and the next `times` fail with `errno`.
    pub fn fail(call: &'static str, skip: usize, times: usize, errno: Errno) {
        IN_USE.store(true, Ordering::SeqCst);
        *PLAN.lock().unwrap_or_else(|e| e.into_inner()) = Some(Plan { call, skip, times, errno });
    }

    /// Plans no further failures; true if all planned ones have happened.
    pub fn clear() -> bool {
        PLAN.lock().unwrap_or_else(|e| e.into_inner()).take().is_none_or(|p| p.times == 0)
    }

    /// The calls made since the last call of this.
    pub fn take_seen() -> Vec<&'static str> {
        IN_USE.store(true, Ordering::SeqCst);
        std::mem::take(&mut *SEEN.lock().unwrap_or_else(|e| e.into_inner()))
    }

    pub(crate) fn may_fail(call: &'static str) -> Result<(), SysError> {
        if !IN_USE.load(Ordering::SeqCst) {
            return Ok(());
        }
        SEEN.lock().unwrap_or_else(|e| e.into_inner()).push(call);
        let meant = |planned: &str| match planned {
            ANY => call != "read(userfaultfd)",
            ANY_BUT_CLONE => call != "read(userfaultfd)" && call != "clone",
            planned => planned.split(',').any(|one| one == call),
        };
        let mut plan = PLAN.lock().unwrap_or_else(|e| e.into_inner());
        match plan.as_mut() {
            Some(p) if meant(p.call) && p.skip > 0 => p.skip -= 1,
            Some(p) if meant(p.call) && p.times > 0 => {
                p.times -= 1;
                return Err(SysError::new(call, p.errno));
            }
            _ => {}
        }
        Ok(())
    }
}
