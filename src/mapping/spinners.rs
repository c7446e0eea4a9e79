//! Threads that spin in a fault instead of sleeping in it.

use std::time::{Duration, Instant};

/// Finds threads that fault again and again without being woken: in a system call with a signal pending they don't sleep
/// (see `View::refuse_kernel_faults`). What is woken faults again too, once or twice for each change of state, and a region
/// may change its state as often as it likes: so each wake begins the count anew. A thread in user mode runs its handler
/// instead, and faults once for each signal.
#[derive(Default)]
pub(super) struct Spinners {
    since: Option<Instant>,
    faults: Vec<(u32, u32)>,
}

impl Spinners {
    /// So many faults of one thread within `WINDOW` are no signal handlers' doing.
    const MANY: u32 = 24;
    const WINDOW: Duration = Duration::from_millis(8);

    /// Counts a fault of a thread; is it one too many?
    pub(super) fn spins(&mut self, tid: u32) -> bool {
        if self.since.is_none_or(|since| since.elapsed() > Self::WINDOW) {
            self.since = Some(Instant::now());
            self.faults.clear();
        }
        match self.faults.iter_mut().find(|(known, _)| *known == tid) {
            Some((_, faults)) => {
                *faults += 1;
                *faults >= Self::MANY
            }
            None => {
                self.faults.push((tid, 1));
                false
            }
        }
    }

    /// Whoever waits is being woken.
    pub(super) fn forget(&mut self) {
        self.faults.clear();
    }
}
