//! The identity of this process: one for the whole crate, and a fork changes it.
//!
//! A process id does not reliably tell a forked child from its parent: ids are reused, and processes in two pid namespaces
//! may have the same one. What matters here is the address space, since userfaultfds and addresses belong to that. So the
//! identity is a number in a page that the kernel wipes in every child that gets an address space of its own
//! (`MADV_WIPEONFORK`, madvise(2), Linux 4.14; `dup_mmap`). A child that shares its parent's memory (vfork, CLONE_VM)
//! shares the page, and rightly is the same process to this crate.
//!
//! Descriptors, ranges, monitors and loops remember the identity of the process that made them, and do nothing under
//! another one.
//!
//! UNSAFETY: one page that is mapped once, never unmapped, and used as an atomic only.
#![expect(unsafe_code, reason = "maps a page, and publishes leaked boxes through raw pointers")]

use super::SysError;
use nix::libc;
// Not from `crate::sync`: a signal handler and a forked child read these, and the model checks neither.
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::ptr;

/// The identity of the process that made something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(u64);

/// The page, once it is mapped.
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// The highest number that this process or any of its ancestors was given. It is inherited: a number that a child takes
/// from it is above those of all objects that the child can have inherited.
static LAST: AtomicU64 = AtomicU64::new(0);

impl Identity {
    /// Makes sure that a fork will be noticed. Called before making anything that remembers an identity.
    ///
    /// # Errors
    /// No page can be mapped, or the kernel does not wipe it (before Linux 4.14).
    pub(crate) fn prepare() -> Result<(), SysError> {
        page().map(drop)
    }

    /// This process's identity. Async-signal-safe, and takes no lock.
    pub(crate) fn current() -> Self {
        // Without a page there is nothing that could have been inherited: see `prepare`.
        let Ok(word) = page() else { return Self(0) };
        loop {
            // SeqCst throughout: this is no fast path, and a signal handler may come in between any two steps.
            match word.load(Ordering::SeqCst) {
                0 => {
                    // Raised before the number is used: a child that is forked in between takes a higher one.
                    let next = LAST.fetch_add(1, Ordering::SeqCst) + 1;
                    // Another thread of this process may have been faster: its number then counts.
                    let _ = word.compare_exchange(0, next, Ordering::SeqCst, Ordering::SeqCst);
                }
                number => return Self(number),
            }
        }
    }

    /// True in the process that has this identity; false in a child that was forked since.
    pub(crate) fn is_current(self) -> bool {
        self == Self::current()
    }
}

fn page() -> Result<&'static AtomicU64, SysError> {
    let known = PAGE.load(Ordering::SeqCst);
    let page = if known.is_null() { map_page()? } else { known };
    // SAFETY: a page that is mapped readable and writable for good, aligned, and used as an atomic by every thread; all
    // zeroes is a valid number. The kernel changes it in a forked child only, before that runs.
    Ok(unsafe { &*page })
}

#[cold]
fn map_page() -> Result<*mut AtomicU64, SysError> {
    let len = super::page_size();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    super::may_fail("mmap")?;
    // SAFETY: without MAP_FIXED the kernel picks an address where nothing is mapped.
    let at = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(SysError::last("mmap"));
    }
    // Miri knows neither forks nor this advice.
    #[cfg(miri)]
    let wiped = 0;
    // SAFETY: the page just mapped, which no other thread knows; the advice changes nothing in this process.
    #[cfg(not(miri))]
    let wiped = unsafe { libc::madvise(at, len, libc::MADV_WIPEONFORK) };
    let lost = if wiped == 0 {
        match PAGE.compare_exchange(ptr::null_mut(), at.cast(), Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Ok(at.cast()),
            Err(theirs) => Ok(theirs),
        }
    } else {
        Err(SysError::last("madvise(MADV_WIPEONFORK)"))
    };
    // SAFETY: as above: it was not published.
    unsafe { libc::munmap(at, len) };
    lost
}

/// One value per process, made at its first use, and anew in a forked child.
///
/// For values that would be a `static` lock: a child never sees a lock that another thread of its parent held at the fork,
/// nor descriptors that serve its parent. The inherited value is leaked.
pub(crate) struct PerProcess<T> {
    node: AtomicPtr<Node<T>>,
    make: fn() -> T,
}

struct Node<T> {
    identity: Identity,
    value: T,
}

impl<T: Send + Sync + 'static> PerProcess<T> {
    pub(crate) const fn new(make: fn() -> T) -> Self {
        Self { node: AtomicPtr::new(ptr::null_mut()), make }
    }

    /// Takes no lock. Not for signal handlers: it may allocate.
    pub(crate) fn get(&self) -> &'static T {
        let mut seen = self.node.load(Ordering::Acquire);
        loop {
            // SAFETY: null, or a box that was leaked below and that nothing changes any more. Acquire, here and below, pairs
            // with the Release that published it.
            let node: Option<&'static Node<T>> = unsafe { seen.as_ref() };
            if let Some(node) = node.filter(|node| node.identity.is_current()) {
                return &node.value;
            }
            let made = Box::into_raw(Box::new(Node { identity: Identity::current(), value: (self.make)() }));
            match self.node.compare_exchange(seen, made, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => seen = made,
                Err(theirs) => {
                    // SAFETY: made above, and not published.
                    drop(unsafe { Box::from_raw(made) });
                    seen = theirs;
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Runs `child` in a forked child; its exit code, 101 if it panicked.
    pub(in crate::sys) fn forked(child: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child calls nothing that needs another thread, and exits at once.
        match unsafe { libc::fork() } {
            0 => {
                let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
                // SAFETY: ends the child without running the parent's destructors.
                unsafe { libc::_exit(code) }
            }
            pid => {
                assert!(pid > 0, "fork");
                let mut status = 0;
                // SAFETY: the child just made, and a live word.
                unsafe { libc::waitpid(pid, &raw mut status, 0) };
                if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
            }
        }
    }

    #[test]
    fn a_child_and_its_child_are_others_and_stay_so() {
        let here = Identity::current();
        assert!(here.is_current());
        let code = forked(|| {
            let child = Identity::current();
            if here.is_current() || !child.is_current() {
                return 1;
            }
            2 + forked(|| i32::from(here.is_current() || child.is_current() || !Identity::current().is_current()))
        });
        assert_eq!(code, 2, "1: the child is taken for its parent; 3: the grandchild is");
        assert!(here.is_current(), "a fork changes nothing in the parent");
    }

    #[test]
    fn a_child_that_shares_the_memory_is_the_same_process() {
        extern "C" fn child(told: *mut libc::c_void) -> libc::c_int {
            // SAFETY: the parent's live identity; the parent waits for this child (CLONE_VFORK).
            let theirs = unsafe { *told.cast::<Identity>() };
            i32::from(!theirs.is_current())
        }
        let mut here = Identity::current();
        let mut stack = vec![0_u64; 32 << 10];
        let top = stack.as_mut_ptr_range().end.cast();
        // SAFETY: a stack of its own that outlives the child, which ends before this returns.
        let pid = unsafe {
            libc::clone(child, top, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD, (&raw mut here).cast())
        };
        let mut status = 0;
        // SAFETY: the child just made, and a live word.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
    }

    #[test]
    fn a_child_gets_a_lock_of_its_own_whatever_the_parents_threads_hold() {
        static LOCK: PerProcess<parking_lot::Mutex<u32>> = PerProcess::new(|| parking_lot::Mutex::new(7));
        let mut held = LOCK.get().lock();
        *held = 8;
        let code = forked(|| LOCK.get().try_lock().map_or(1, |value| i32::from(*value != 7)));
        assert_eq!(code, 0);
        drop(held);
        assert_eq!(*LOCK.get().lock(), 8);
    }
}
