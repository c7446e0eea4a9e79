//! What a monitor's threads share, and do: read faults, answer them, fail closed.

use super::Served;
use super::follow::Follower;
use crate::stats::Histogram;
use crate::sync::inside::RwLock;
use crate::sys::uffd::{FaultMessage, Uffd, UffdSource};
use crate::sys::{AddrRange, SysError, page_size};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerFd, TimerSetTimeFlags};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Faults that come within so long of each other are a quick succession.
const QUICK: Duration = Duration::from_micros(250);
/// No fault for so long ends it.
const LULL: Duration = Duration::from_millis(20);
/// As soon as a timer can ring: zero would be never.
pub(super) const AT_ONCE: Duration = Duration::from_nanos(1);

#[derive(Default)]
pub(super) struct Counters {
    pub(super) faults: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) answer: Histogram,
}

/// Mappings by first address.
pub(super) type Table = BTreeMap<usize, (AddrRange, Arc<dyn Served>)>;

pub(super) struct Core {
    pub(super) uffd: Uffd,
    pub(super) source: UffdSource,
    /// By first address. Held for reading while an answer is given: see `disown`.
    pub(super) mappings: RwLock<Table>,
    /// Rings at the end, and for a thread that follows another when it may be time to give up. A timer of its own, as
    /// poll's would have to be set for each fault.
    pub(super) bell: TimerFd,
    pub(super) stopping: AtomicBool,
    pub(super) dead: AtomicBool,
    pub(super) counters: Counters,
}

impl Core {
    /// Reads what waits (at most `limit`) and answers it.
    pub(super) fn pump(&self, batch: &mut Batch, limit: usize) -> Result<usize, SysError> {
        batch.faults.clear();
        let n = match self.uffd.read(&mut batch.faults, limit) {
            Err(e) if matches!(e.errno, Errno::EINTR | Errno::EAGAIN) => return Ok(0),
            other => other?,
        };
        for fault in &batch.faults {
            batch.answered = self.answer(*fault);
        }
        Ok(n)
    }

    /// Says when it was done.
    pub(super) fn answer(&self, fault: FaultMessage) -> Instant {
        let since = Instant::now();
        self.counters.faults.fetch_add(1, Ordering::Relaxed);
        let answered = catch_unwind(AssertUnwindSafe(|| {
            let mappings = self.mappings.read();
            match mappings.range(..=fault.addr).next_back() {
                Some((_, (range, served))) if range.contains(fault.addr) => served.serve(fault),
                // The mapping went away between fault and answer: let the thread see what is there now.
                _ => {
                    self.counters.stale.fetch_add(1, Ordering::Relaxed);
                    wake_page(&self.uffd, fault.addr);
                }
            }
        }));
        if answered.is_err() {
            self.counters.panics.fetch_add(1, Ordering::Relaxed);
            self.give_up(fault.addr);
        }
        let done = Instant::now();
        self.counters.answer.record(done - since);
        done
    }

    /// Fails closed where an answer has panicked: the next one would too. The mapping refuses from now on, and the thread
    /// meets that instead of waiting for ever.
    fn give_up(&self, addr: usize) {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let mappings = self.mappings.read();
            if let Some((_, (_, served))) = mappings.range(..=addr).next_back().filter(|(_, (r, _))| r.contains(addr)) {
                served.abandon();
            }
        }));
        wake_page(&self.uffd, addr);
    }

    pub(super) fn run(&self, mut follower: Follower) {
        let mut batch = Batch::new();
        while !self.stopping.load(Ordering::Acquire) {
            match self.sleep() {
                Woken::ByFault => {}
                // Setting the bell, or not, also silences it, for the other threads too.
                Woken::ByBell if batch.answered.elapsed() < LULL => self.ring_in(LULL),
                Woken::ByBell => {
                    follower.release();
                    self.ring_in(Duration::ZERO);
                }
                Woken::Gone => break,
            }
            let before = batch.answered;
            match self.pump(&mut batch, usize::MAX) {
                Ok(0) => {}
                Ok(_) => {
                    let quick = batch.answered - before < QUICK;
                    if let (true, Some(fault)) = (quick, batch.faults.last()) {
                        let new = !follower.is_following();
                        follower.answered(fault.tid);
                        if new && follower.is_following() {
                            self.ring_in(LULL);
                        }
                    }
                }
                Err(_) => break,
            }
        }
        self.fail();
        // Whoever silenced the bell may have kept the end from another thread: each rings once more on its way out.
        self.ring_in(AT_ONCE);
    }

    /// Ends in one of the monitor's threads, unless it is wanted to.
    pub(super) fn fail(&self) {
        // A mapping that does not even refuse, for want of memory, say, would leave its threads waiting: try again.
        while !self.stopping.load(Ordering::Acquire) && !self.die() {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Zero: never.
    pub(super) fn ring_in(&self, time: Duration) {
        let _ = self.bell.set(Expiration::OneShot(TimeSpec::from_duration(time)), TimerSetTimeFlags::empty());
    }

    /// Waits for a fault or for the bell.
    fn sleep(&self) -> Woken {
        let mut fds =
            [PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN), PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {
                let is = |fd: &PollFd<'_>, what| fd.revents().is_some_and(|r| r.intersects(what));
                let gone = PollFlags::POLLNVAL | PollFlags::POLLERR | PollFlags::POLLHUP;
                match &fds {
                    fds if fds.iter().any(|fd| is(fd, gone)) => Woken::Gone,
                    [_, bell] if is(bell, PollFlags::POLLIN) => Woken::ByBell,
                    _ => Woken::ByFault,
                }
            }
            Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM) => Woken::ByFault,
            Err(_) => Woken::Gone,
        }
    }

    /// Fails closed; false if that has to be tried again.
    pub(super) fn die(&self) -> bool {
        self.dead.store(true, Ordering::Release);
        let mut closed = true;
        for (_, served) in self.mappings.read().values() {
            // A panic here must not leave the rest of the mappings open.
            closed &= catch_unwind(AssertUnwindSafe(|| served.abandon())).unwrap_or(true);
        }
        closed
    }
}

/// Faults that were read together.
pub(super) struct Batch {
    faults: Vec<FaultMessage>,
    /// When the last of them was answered.
    answered: Instant,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { faults: Vec::with_capacity(16), answered: Instant::now() }
    }
}

/// Why a monitor's thread does not sleep any more.
enum Woken {
    /// Or by whatever else: it looks.
    ByFault,
    ByBell,
    /// There is no userfaultfd to wait for any more.
    Gone,
}

pub(crate) fn wake_page(uffd: &Uffd, addr: usize) {
    let page = page_size();
    let _ = uffd.wake(AddrRange::new(addr & !(page - 1), page));
}
