//! Signals: each thread that asks for it gets SIGPROF a thousand times a second wherever it is, asleep or not, and children
//! that come and go make SIGCHLD. The handlers are installed without `SA_RESTART`, so every wait is interrupted.
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

/// What the handler does beside counting.
static ALSO: OnceLock<fn()> = OnceLock::new();

thread_local! {
    /// When the handler last ended what it does beside counting, in this thread, in nanoseconds.
    static ENDED: AtomicU64 = const { AtomicU64::new(0) };
}

/// So long a thread gets on between two handlers that do something, in nanoseconds.
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
        // On a slow machine it takes longer than the next signal does: what is interrupted has to get on, too.
        let ended = ENDED.with(|ended| ended.load(Ordering::Relaxed));
        if now().saturating_sub(ended) >= BREATH {
            also();
            ENDED.with(|ended| ended.store(now(), Ordering::Relaxed));
        }
    }
    Errno::set_raw(errno);
}

/// From now on every signal does this, wherever it comes.
pub(crate) fn also(also: fn()) {
    ALSO.set(also).expect("once a process");
}

/// Installs the handlers, for the whole process.
pub(crate) fn prepare() {
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGPROF, Signal::SIGCHLD] {
        // SAFETY: the handler counts, and nothing else.
        unsafe { sigaction(signal, &action) }.expect("it can be handled");
    }
}

/// How many signals were handled.
pub(crate) fn handled() -> u64 {
    SIGNALS.load(Ordering::Relaxed)
}

/// SIGPROF for the calling thread, each millisecond from now on, as long as the answer lives. A clock of real time: a
/// thread's own would stand still while it waits.
pub(crate) fn on_this_thread() -> Timer {
    let notify =
        SigevNotify::SigevThreadId { signal: Signal::SIGPROF, thread_id: nix::unistd::gettid().as_raw(), si_value: 0 };
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify)).expect("a timer can be had");
    let each = Expiration::Interval(Duration::from_millis(1).into());
    timer.set(each, TimerSetTimeFlags::empty()).expect("it starts");
    timer
}

/// One child that ends at once.
pub(crate) fn child() {
    assert_eq!(forking::exit_code(|| 0), 0);
}
