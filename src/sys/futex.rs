//! Sleeping on a word until it changes: futex(2), private to this process.
//!
//! UNSAFETY: system calls through `libc::syscall`, on the address of a word that the caller borrows.
#![expect(unsafe_code, reason = "system calls")]

use nix::libc;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

/// Sleeps while `word` is `seen`, until [`wake_all`], a signal, or the deadline; may also return for no reason.
///
/// The comparison and the falling asleep are one step against any [`wake_all`] of the same word: either the comparison sees
/// a change before the waking, or the waking wakes this thread.
pub(crate) fn wait(word: &AtomicU32, seen: u32, deadline: Option<Instant>) {
    let timeout = deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        libc::timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i32::MAX.into()),
            tv_nsec: left.subsec_nanos() as libc::c_long,
        }
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the word and the timeout are borrowed for the whole call, which only reads them; other threads
    // change the word atomically. The result is ignored on purpose: the caller looks at its condition again
    // after EAGAIN, EINTR and ETIMEDOUT alike.
    let _ = unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, seen, timeout)
    };
}

/// Wakes every thread that sleeps on `word`. Never sleeps.
pub(crate) fn wake_all(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE uses the address as a key and does not access the word.
    let _ = unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, libc::c_int::MAX)
    };
}
