//! Signals: each thread that asks for them gets SIGPROF a thousand times a second wherever it is, asleep or not.
//! Children that come and go make SIGCHLD. The handlers are installed without `SA_RESTART`, so every wait is
//! interrupted.
#![expect(unsafe_code, reason = "signal handlers and timers")]

use crate::support::forking;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::time::ClockId;
use nix::unistd::{Pid, getpid};
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

static SIGNALS: AtomicU64 = AtomicU64::new(0);

/// A function that the handler calls besides counting.
static ALSO: OnceLock<fn()> = OnceLock::new();

thread_local! {
    /// When the handler last ended a call of that function, in this thread, in nanoseconds.
    static ENDED: AtomicU64 = const { AtomicU64::new(0) };
}

/// The time that a thread gets between two such calls, in nanoseconds.
const BREATH: u64 = 500_000;

/// Async-signal-safe.
fn now() -> u64 {
    let now = nix::time::clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(0)
}

extern "C" fn handler(_: c_int) {
    let errno = Errno::last_raw();
    SIGNALS.fetch_add(1, Ordering::Relaxed);
    if let Some(also) = ALSO.get() {
        // On a slow machine the call takes longer than the time to the next signal. The interrupted code must go on,
        // too.
        let ended = ENDED.with(|ended| ended.load(Ordering::Relaxed));
        if now().saturating_sub(ended) >= BREATH {
            also();
            ENDED.with(|ended| ended.store(now(), Ordering::Relaxed));
        }
    }
    Errno::set_raw(errno);
}

/// From now on every signal calls `also`, wherever it arrives.
pub(crate) fn also(also: fn()) {
    ALSO.set(also).expect("once a process");
}

/// Installs the handlers, for the whole process.
pub(crate) fn prepare() {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGPROF, Signal::SIGCHLD] {
        // SAFETY: the handler is async-signal-safe, as is the function that it calls.
        unsafe { sigaction(signal, &action) }.expect("it can be handled");
    }
}

/// How many signals were handled.
pub(crate) fn handled() -> u64 {
    SIGNALS.load(Ordering::Relaxed)
}

/// Sends signals until it is dropped.
pub(crate) struct Timer(c_int);

/// `struct sigevent` for one thread, which not every C library has.
#[repr(C)]
struct ToThread {
    value: u64,
    signal: c_int,
    notify: c_int,
    thread: c_int,
    unused: [c_int; 11],
}

/// Sends SIGPROF to the calling thread each millisecond, as long as the timer lives. The clock is of real time, because
/// the thread's own clock stands still while it waits.
pub(crate) fn on_this_thread() -> Timer {
    const SIGEV_THREAD_ID: c_int = 4;
    let thread = nix::unistd::gettid().as_raw();
    let event = ToThread { value: 0, signal: libc::SIGPROF, notify: SIGEV_THREAD_ID, thread, unused: [0; 11] };
    let mut timer: c_int = 0;
    // SAFETY: the kernel reads one structure, and writes a number.
    let made =
        unsafe { libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw const event, &raw mut timer) };
    assert_eq!(made, 0, "a timer can be had");
    let each = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let times = libc::itimerspec { it_interval: each, it_value: each };
    // SAFETY: the kernel reads one structure, and writes nothing.
    let set = unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const times, null_mut::<u8>()) };
    assert_eq!(set, 0, "it starts");
    Timer(timer)
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: takes a number, which is this timer's alone.
        unsafe { libc::syscall(libc::SYS_timer_delete, self.0) };
    }
}

/// Sends a signal to a thread of this process. (Not by its `pthread_t`, whose type differs between C libraries.)
pub(crate) fn send(thread: Pid, signal: Signal) {
    // SAFETY: takes numbers.
    let rc = unsafe { libc::syscall(libc::SYS_tgkill, getpid().as_raw(), thread.as_raw(), signal as c_int) };
    assert_eq!(rc, 0, "the thread lives");
}

/// Makes one child that ends at once.
pub(crate) fn child() {
    assert_eq!(forking::exit_code(|| 0), 0);
}
