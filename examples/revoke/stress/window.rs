//! The region's state while an access ran: the clock by which accesses are judged.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The phases of a region, as the one thread that changes it sets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// From the return of `enable()` to the call of `disable()`.
    Enabled,
    /// `disable()` is running.
    Disabling,
    /// From the return of `disable()` to the call of `enable()`.
    Disabled,
    /// `enable()` is running.
    Enabling,
    /// `reset()` is running, its callback is not.
    Resetting,
    /// The callback of `reset()` is running.
    InReset,
}

const WINDOWS: [Window; 6] =
    [Window::Enabled, Window::Disabling, Window::Disabled, Window::Enabling, Window::Resetting, Window::InReset];

/// Which window it is, and of which cycle. A cycle begins with the call of `disable()`.
///
/// One word: the window in 3 bits, a step that makes every window different in 29, the cycle in 32.
#[derive(Debug)]
pub(super) struct Clock(AtomicU64);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(u64);

impl Clock {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(Window::Enabled as u64))
    }

    /// Only for the thread that changes the region.
    pub(super) fn turn(&self, window: Window) {
        let now = self.0.load(Ordering::Relaxed);
        let step = ((now >> 3) + 1) & ((1 << 29) - 1);
        let cycle = (now >> 32) + u64::from(window == Window::Disabling);
        // SeqCst, here and in `now`: one order of windows and accesses, for all threads.
        self.0.store(cycle << 32 | step << 3 | window as u64, Ordering::SeqCst);
    }

    /// To be called before an access and after it.
    pub(super) fn now(&self) -> Moment {
        // The access is volatile or a system call, which orders nothing by itself.
        fence(Ordering::SeqCst);
        let now = Moment(self.0.load(Ordering::SeqCst));
        fence(Ordering::SeqCst);
        now
    }
}

impl Moment {
    pub(super) fn window(self) -> Window {
        WINDOWS[(self.0 & 7) as usize]
    }

    pub(super) fn cycle(self) -> u64 {
        self.0 >> 32
    }
}

/// The time of one access.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) from: Moment,
    pub(super) to: Moment,
}

impl Span {
    /// The window inside of which the whole access ran.
    pub(super) fn inside(self) -> Option<Window> {
        (self.from == self.to).then(|| self.from.window())
    }

    /// True if the region was enabled, or busy with a reset, from the first to the last moment. Then no access may be
    /// refused.
    pub(super) fn never_disabled(self) -> bool {
        let off = matches!(self.from.window(), Window::Disabling | Window::Disabled | Window::Enabling);
        !off && self.from.cycle() == self.to.cycle()
    }
}
