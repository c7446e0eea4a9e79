//! The calling thread's id, and threads of the crate's own.

use super::SysError;
use nix::errno::Errno;
use nix::sys::signal::{SIGBUS, SIGSEGV, SigSet, SigmaskHow};
use std::marker::PhantomData;
use std::thread::{Builder, JoinHandle};

/// The caller's thread id, the one in `/proc/PID/task`.
pub(crate) fn current_tid() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// Starts a thread of the crate's own, which takes none of the process's signals: a handler of the application must not run
/// in a thread that resolves other threads' faults. SIGBUS and SIGSEGV stay unblocked, for the thread's own accesses.
///
/// # Errors
/// No thread can be started (clone(2)), or there is no room for one.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, SysError> {
    super::may_fail("clone")?;
    super::map::has_room_for_a_thread()?;
    let spawned = blocking_signals(|| Builder::new().name(name.to_owned()).spawn(run));
    spawned.map_err(|e| SysError::new("clone", Errno::from_raw(e.raw_os_error().unwrap_or(0))))
}

/// Runs `spawn` with the signals blocked that a thread of the crate's own does not take. The new thread inherits the mask,
/// so it never runs with less; see [`spawn`].
pub(crate) fn blocking_signals<R>(spawn: impl FnOnce() -> R) -> R {
    let _blocked = WithoutSignals::new();
    spawn()
}

/// While it lives no handler interrupts the calling thread, except one of SIGBUS and SIGSEGV.
#[must_use]
pub(crate) struct WithoutSignals {
    before: Option<SigSet>,
    /// The mask is the thread's.
    on_this_thread: PhantomData<*mut ()>,
}

impl WithoutSignals {
    pub(crate) fn new() -> Self {
        let mut blocked = SigSet::all();
        blocked.remove(SIGBUS);
        blocked.remove(SIGSEGV);
        let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok();
        Self { before, on_this_thread: PhantomData }
    }
}

impl Drop for WithoutSignals {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            let _ = before.thread_set_mask();
        }
    }
}
