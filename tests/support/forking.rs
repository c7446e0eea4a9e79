//! Forked children, and their ends.
//!
//! UNSAFETY: fork in a process with many threads. Each function says what its child may do.
#![expect(unsafe_code, reason = "fork, waitpid and _exit")]

use super::patience;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::alarm;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// A forked child that has not been waited for.
pub(crate) struct Started(c_int);

impl Started {
    pub(crate) fn pid(&self) -> c_int {
        self.0
    }

    pub(crate) fn kill(self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.0), nix::sys::signal::Signal::SIGKILL);
        self.wait();
    }

    /// Its exit code, or 128 plus the signal that killed it.
    pub(crate) fn wait(self) -> c_int {
        reap(self.0)
    }
}

/// Runs `child` in a forked process, which ends with its exit code and without the parent's destructors.
///
/// `child` must neither allocate nor lock, as another thread of the parent may have held any lock.
pub(crate) fn start(child: impl FnOnce() -> c_int) -> Started {
    // SAFETY: the contract above; `_exit` runs nothing.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", Errno::last());
    if pid == 0 {
        let code = child();
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(code) };
    }
    Started(pid)
}

/// Runs `child` as [`start`] does, and returns its exit code, or 128 plus the signal that killed it.
pub(crate) fn exit_code(child: impl FnOnce() -> c_int) -> c_int {
    start(child).wait()
}

/// Runs `child` in a forked process. Returns true if the child returned true. A child that panics or takes ten seconds,
/// or what that is on a slow machine, is false.
///
/// The child may allocate, and take locks that glibc and musl release in a child, or that no other thread holds.
pub(crate) fn is_fine(child: impl FnOnce() -> bool) -> bool {
    let patience = u32::try_from(patience(Duration::from_secs(10)).as_secs()).unwrap_or(10);
    exit_code(|| {
        alarm::set(patience);
        i32::from(!catch_unwind(AssertUnwindSafe(child)).unwrap_or(false))
    }) == 0
}

/// Waits for a child of any kind: its exit code, or 128 plus the signal that killed it.
pub(crate) fn reap(pid: c_int) -> c_int {
    let mut status = 0;
    loop {
        // SAFETY: waits for a child of ours; the status is a live integer.
        let got = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        match got {
            _ if got == pid && libc::WIFEXITED(status) => return libc::WEXITSTATUS(status),
            _ if got == pid => return 128 + libc::WTERMSIG(status),
            _ => assert_eq!(Errno::last(), Errno::EINTR, "waitpid"),
        }
    }
}
