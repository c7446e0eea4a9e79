//! Signals: each thread that asks for them gets SIGPROF a thousand times a second wherever it is, asleep or not.
//! Children that come and go make SIGCHLD. The handlers are installed without `SA_RESTART`, so every wait is
//! interrupted.
#![expect(unsafe_code, reason = "signal handlers")]

use crate::support::forking;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use std::ffi::c_int;
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

/// Sends SIGPROF to the calling thread each millisecond, as long as the timer lives. The clock is of real time, because
/// the thread's own clock stands still while it waits.
pub(crate) fn on_this_thread() -> Timer {
    let notify =
        SigevNotify::SigevThreadId { signal: Signal::SIGPROF, thread_id: nix::unistd::gettid().as_raw(), si_value: 0 };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).expect("a timer can be had");
    let each = Expiration::Interval(Duration::from_millis(1).into());
    timer.set(each, TimerSetTimeFlags::empty()).expect("it starts");
    timer
}

/// Makes one child that ends at once.
pub(crate) fn child() {
    assert_eq!(forking::exit_code(|| 0), 0);
}
